"""The JavaScript client: scripted servers in each runtime, its types and its size."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/javascript"
SUITE = Path(__file__).parent / "javascript"
MODULES = SUITE / "node_modules"

RUNTIMES = {
    "node22": (["node22-x64/bin/node", "node22-arm64/bin/node"], []),
    "node24": (["node24-x64/bin/node", "node24-arm64/bin/node"], []),
    "bun": (["@oven/bun-linux-x64/bin/bun", "@oven/bun-linux-aarch64/bin/bun"], ["run"]),
    "deno": (["@deno/linux-x64-glibc/deno", "@deno/linux-arm64-glibc/deno"], ["run", "-A"]),
}
"""The program of each runtime, as npm's packages have it, and its arguments."""

MAX_GZIPPED = 3584
"""Bytes: 3.5 KiB."""


def runtime(name: str) -> list[str]:
    """Return the beginning of a command line that runs a script."""
    programs, arguments = RUNTIMES[name]
    found = [str(MODULES / each) for each in programs if (MODULES / each).exists()]
    need(found, f"{name} (tests/integration/install.sh)")
    return [found[0], *arguments]


def run(command: list[str], **options: Any) -> str:
    """Run a program; returns its output.

    Raises:
        AssertionError: the program failed, with its output.
    """
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=120, **options
    )
    if done.returncode:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class ScriptedServerTests(SynchronousTestCase):
    """Each runtime runs all cases that a client without HTTP status can have."""

    def check(self, name: str) -> None:
        table = json.loads((ROOT / "clients/scripted_servers.json").read_text("utf-8"))
        cases = [case for case in table["cases"] if "status" not in case.get("needs", ())]
        result = json.loads(run([*runtime(name), str(SUITE / "run_scripted.js")]))
        self.assertEqual(result, {"ran": len(cases), "failures": []})

    def test_node_22(self) -> None:
        self.check("node22")

    def test_node_24(self) -> None:
        self.check("node24")

    def test_bun(self) -> None:
        self.check("bun")

    def test_deno(self) -> None:
        self.check("deno")

    def test_a_client_that_breaks_the_policy_fails(self) -> None:
        """The runner fails if the client gives up after 1001."""
        directory = Path(self.mktemp()).absolute()
        for path in (
            CLIENT / "topicsvc-client.js",
            CLIENT / "package.json",
            CLIENT.parent / "scripted_servers.json",
            SUITE / "run_scripted.js",
            SUITE / "scripted.js",
        ):
            copy = directory / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text("utf-8"), "utf-8")
        client = directory / "clients/javascript/topicsvc-client.js"
        client.write_text(client.read_text("utf-8").replace("FINAL = [1002,", "FINAL = [1001,"))
        script = directory / "tests/integration/javascript/run_scripted.js"
        script.with_name("package.json").write_text('{"type": "module"}')
        with self.assertRaises(AssertionError) as caught:
            run([*runtime("node22"), str(script)])
        self.assertIn("close 1001 Going away while live", str(caught.exception))


class PackageTests(SynchronousTestCase):
    def test_the_types_are_valid_and_fit_an_example(self) -> None:
        """Each use in the example has its type, and each mistake in it is found."""
        need((MODULES / ".bin/tsc").exists(), "typescript (tests/integration/install.sh)")
        run([*runtime("node22"), str(MODULES / "typescript/bin/tsc"), "-p", str(SUITE)])

    def test_the_client_is_small_and_the_readme_has_all_sizes(self) -> None:
        """At most 3.5 KiB, minified and gzipped; the other clients are measured beside it."""
        need((MODULES / "esbuild").exists(), "esbuild (tests/integration/install.sh)")
        sizes = json.loads(run([*runtime("node22"), str(SUITE / "sizes.js")]))
        self.assertLessEqual(sizes["topicsvc-client"]["gzipped"], MAX_GZIPPED)
        rows = re.findall(
            r"^\| ([\w.-]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$",
            (CLIENT / "README.md").read_text("utf-8"),
            re.MULTILINE,
        )
        self.assertEqual(
            {
                name: {"version": version, "minified": int(minified), "gzipped": int(gzipped)}
                for name, version, minified, gzipped in rows
            },
            sizes,
        )

    def test_the_published_package_has_what_a_user_needs(self) -> None:
        """`npm pack` takes the client, its types, the guide and the license, and nothing else."""
        [packed] = json.loads(run(["npm", "pack", "--dry-run", "--json"], cwd=CLIENT))
        self.assertEqual(
            {file["path"] for file in packed["files"]},
            {"LICENSE", "README.md", "package.json", "topicsvc-client.d.ts", "topicsvc-client.js"},
        )
        self.assertEqual((CLIENT / "LICENSE").read_text(), (ROOT / "LICENSE").read_text())
