"""Run targets under atheris; see `tests.fuzz`. Each runs in a process of its own."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SLOW = 10
"""Seconds that one input may take."""

MOST_BYTES = 4096
"""Bytes of one input."""


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["topicsvc", "autobahn", "twisted.web.http"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-timeout={SLOW}",
        f"-max_len={MOST_BYTES}",
        f"-artifact_prefix=fuzz-{name}-",
        str(corpus),
    ]
    atheris.Setup(options, TARGETS[name])
    atheris.Fuzz()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m tests.fuzz")
    found.add_argument("target", nargs="*", metavar="TARGET", help="of tests.fuzz.targets")
    found.add_argument("-s", "--seconds", type=int, default=60, help="for each target")
    found.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    return found


def main() -> int:
    """Run the targets that are asked for, or all; 1: something was found."""
    options = parser().parse_args()
    if options.corpus:
        fuzz(options.target[0], options.seconds, options.corpus)
    bad = 0
    # Not imported before: a child has to see its modules through the fuzzer.
    from tests.fuzz.targets import TARGETS

    if not set(options.target) <= set(TARGETS):
        parser().error(f"targets are {', '.join(TARGETS)}")
    for name in options.target or TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            child = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.fuzz", name),
                    *("--seconds", str(options.seconds), "--corpus", corpus),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        done = re.search(r"Done (\d+) runs in (\d+) second", child.stdout)
        if child.returncode == 0 and done is not None:
            print(f"{name}: {done[1]} runs in {done[2]} s, nothing found", flush=True)
        else:
            bad += 1
            print(f"{name}: found\n{child.stdout}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
