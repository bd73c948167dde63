"""Runs the ``topicsvc`` command: ``python -m topicsvc``."""

import sys

from topicsvc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
