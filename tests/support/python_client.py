"""The asyncio client: the installed one, or in a checkout the one of the checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["SOURCE", "client"]

SOURCE = Path(__file__).parents[2] / "clients" / "python" / "src"

if importlib.util.find_spec("topicsvc_client") is None:
    sys.path.append(str(SOURCE))

client = importlib.import_module("topicsvc_client")
