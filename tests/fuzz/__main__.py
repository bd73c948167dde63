"""Runs targets with atheris, or without it with mutated inputs; see `tests.fuzz`.

Each target runs in its own process.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import NoReturn

INPUT_TIMEOUT = 10
"""The most seconds for one input."""

MAX_INPUT = 4096
"""The most bytes of one input."""


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process. The process ends with the run."""
    try:
        import atheris
    except ImportError:
        mutate(name, seconds)
    with atheris.instrument_imports(include=["topicsvc", "autobahn", "twisted.web.http"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_TIMEOUT}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix=fuzz-{name}-",
        str(corpus),
    ]
    atheris.Setup(options, TARGETS[name])
    atheris.Fuzz()


def mutate(name: str, seconds: int) -> NoReturn:
    """Fuzz one target without atheris."""
    from tests.fuzz.mutation import Mutator, run
    from tests.fuzz.targets import SEEDS, TARGETS

    mutator = Mutator(SEEDS[name], Random(), MAX_INPUT)
    runs = run(name, TARGETS[name], mutator, seconds, INPUT_TIMEOUT)
    print(f"Done {runs} runs in {seconds} second(s)")
    sys.exit(0)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument(
        "target",
        nargs="*",
        metavar="TARGET",
        help="a target of tests.fuzz.targets; without any, all run",
    )
    parser.add_argument(
        "-s", "--seconds", type=int, default=60, help="the time for each target (default: 60)"
    )
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the given targets, or all. Returns 1 if an error was found."""
    options = parser().parse_args()
    if options.corpus:
        fuzz(options.target[0], options.seconds, options.corpus)
    errors = 0
    # Imported only now: in a child, the fuzzer has to instrument these modules first.
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
            print(f"{name}: {done[1]} runs in {done[2]} s, no error found", flush=True)
        else:
            errors += 1
            print(f"{name}: error found\n{child.stdout}", flush=True)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
