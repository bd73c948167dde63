"""The cases of scripted servers have the documented form, and cover every row of close codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import page

Step = dict[str, Any]

FINAL = {"1002", "1003", "1007", "1009"}
AGAIN = {"Session expired", "Token timeout", "No pong", "Slow consumer"}


def section(heading: str) -> str:
    """Return the text below a heading of the page on clients."""
    return page("clients/README.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def table(heading: str) -> dict[str, str]:
    """Return the first and the second column of the table with this heading."""
    text = section("scripted_servers.json").partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in text.splitlines()[2:]]
    return {row[1].strip().strip("`"): row[2] for row in rows}


def expand(table: dict[str, Any], steps: list[Step]) -> Iterator[Step]:
    """Yield the steps, with preludes in the place of their names."""
    for step in steps:
        if "include" in step:
            yield from expand(table, table["preludes"][step["include"]])
        else:
            yield step


class ScriptedServersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = json.loads(page("clients/scripted_servers.json"))
        self.cases = {case["name"]: case for case in self.file["cases"]}
        self.steps = {
            name: list(expand(self.file, case["steps"])) for name, case in self.cases.items()
        }

    def test_names_are_unique(self) -> None:
        self.assertEqual(len(self.cases), len(self.file["cases"]))
        self.assertGreater(len(self.cases), 100)

    def test_every_key_action_and_observation_is_documented_and_used(self) -> None:
        everything = [step for steps in self.steps.values() for step in steps]
        for heading, used in {
            "key of a case": {key for case in self.cases.values() for key in case},
            "value of `needs`": {
                need for case in self.cases.values() for need in case.get("needs", ())
            },
            "`do`": {step["do"] for step in everything},
            "key of `then`": {key for step in everything for key in step.get("then", ())},
            "value of `error`": {
                error for step in everything for error in step.get("then", {}).get("error", ())
            },
        }.items():
            self.assertEqual(set(table(heading)), used, heading)

    def test_the_keys_of_each_action_are_documented(self) -> None:
        documented = table("`do`")
        for name, steps in self.steps.items():
            for step in steps:
                keys = set(step) - {"do", "then"}
                self.assertLessEqual(
                    keys, set(re.findall(r"`(\w+)`", documented[step["do"]])), name
                )

    def test_every_case_begins_with_the_client_and_expects_something(self) -> None:
        for name, steps in self.steps.items():
            self.assertEqual(
                [index for index, step in enumerate(steps) if step["do"] in {"start", "closeIdle"}],
                [0],
                name,
            )
            self.assertTrue(any("then" in step for step in steps), name)

    def test_every_close_code_of_the_protocol_has_a_case_with_the_documented_end(self) -> None:
        text = page("docs/protocol.md").partition("\n## Close codes\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \|", text, re.MULTILINE)
        self.assertGreater(len(rows), 8)
        for codes, reasons in rows:
            for code in codes.split(", "):
                for reason in reasons.strip().split(", "):
                    self.check_close(code, "" if "description" in reason else reason)

    def check_close(self, code: str, reason: str) -> None:
        ends = {
            tuple(step["then"].get("state", ()))
            for steps in self.steps.values()
            for step in steps
            if step["do"] == "cut"
            and (str(step["code"]), step["reason"]) == (code, reason)
            and "then" in step
        }
        if reason == "Token inactive":
            self.assertEqual(ends, {("waiting",), ("failed",)})
        elif code in FINAL or (code == "1008" and reason not in AGAIN):
            self.assertEqual(ends, {("failed",)}, (code, reason))
        else:
            self.assertEqual(ends, {("waiting",)}, (code, reason))
