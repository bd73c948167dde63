"""The cases of scripted servers have the documented form, and cover every row of close codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import page
from topicsvc.client.rules.close_codes import Next, after_close, after_error_reply

Step = dict[str, Any]

ANY_REASON = "*"
OTHER_REASON = "Another reason"
NO_CODE = 1005
OTHER_CODE = 4000


def section(heading: str) -> str:
    """Return the text below a heading of the page on clients."""
    return page("clients/README.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def table(heading: str) -> dict[str, str]:
    """Return the first and the second column of the table with this heading."""
    text = section("scripted_servers.json").partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in text.splitlines()[2:]]
    return {row[1].strip().strip("`"): row[2] for row in rows}


def close_table() -> dict[tuple[int, str], str]:
    """Return what the table of docs/protocol.md says about each code and reason."""
    text = page("docs/protocol.md").partition("\n### What to do after a close\n")[2]
    found = {}
    for row in text.partition("\n\n* ")[0].splitlines()[3:]:
        _, closes, action, _ = row.split("|")
        code = 0
        for each in re.findall(r"\d{4}|`[^`]+`|\w+ code|\w+ reason", closes):
            if each.endswith(" code") or each.isdecimal():
                code = {"another code": OTHER_CODE, "no code": NO_CODE}.get(each) or int(each)
                reason = ANY_REASON
            else:
                found.pop((code, ANY_REASON), None)
                known = {"another reason": OTHER_REASON, "no reason": ""}
                reason = known.get(each, each.strip("`"))
            found[code, reason] = action.strip()
    return found


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

    def test_the_table_of_the_protocol_is_the_rule_of_the_clients(self) -> None:
        """The policy refers to it, and each row has a case."""
        found = close_table()
        self.assertEqual(len(found), 23)
        for (code, reason), action in found.items():
            with self.subTest(code=code, reason=reason):
                following = after_close(code, reason)
                begin = "give up" if following is Next.GIVE_UP else "retry"
                self.assertTrue(action.startswith(begin), action)
                self.assertEqual("the second time" in action, following is Next.NEW_TOKEN)
                self.check_close(str(code), reason)
        policy = section("Policy")
        self.assertIn("](../docs/protocol.md#what-to-do-after-a-close)", policy)
        self.assertNotRegex(policy, r"(?m)^\| (any other code|1\d{3})")

    def test_error_replies_count_as_the_table_of_the_protocol_says(self) -> None:
        """The policy lists those with a new token and those after which the client gives up."""
        counting = {
            reason
            for (code, reason), action in close_table().items()
            if code == 1008
            and reason not in ("", OTHER_REASON)
            and ("new token" in action or action == "give up")
        }
        listed = section("Policy").partition("count without a close code:")[2].partition(".")[0]
        self.assertEqual(set(re.findall("`([^`]+)`", listed)), counting)
        for reason in counting:
            with self.subTest(reason=reason):
                wanted = after_close(1008, reason)
                self.assertIs(after_error_reply(reason), wanted)
                ends = {
                    tuple(step["then"].get("state", ()))
                    for steps in self.steps.values()
                    for step in steps
                    if step["do"] == "send"
                    and isinstance(step.get("message"), dict)
                    and step["message"].get("Reason") == reason
                }
                self.assertIn(("failed",) if wanted is Next.GIVE_UP else ("waiting",), ends)

    def check_close(self, code: str, reason: str) -> None:
        ends = {
            tuple(step["then"].get("state", ()))
            for steps in self.steps.values()
            for step in steps
            if step["do"] == "cut"
            and str(step["code"]) == code
            and reason in (step["reason"], ANY_REASON)
            and "then" in step
        }
        if reason == "Token inactive":
            self.assertEqual(ends, {("waiting",), ("failed",)})
        else:
            found = close_table()
            action = found.get((int(code), reason)) or found[int(code), ANY_REASON]
            end = "failed" if action.startswith("give up") else "waiting"
            self.assertEqual(ends, {(end,)}, (code, reason))


class PackageTests(SynchronousTestCase):
    def test_the_guide_of_a_package_has_no_link_to_files_outside_of_it(self) -> None:
        """The repository is not in a published package: such a link would lead nowhere."""
        for language in ("javascript", "python"):
            links = re.findall(r"\]\(([^)]+)\)", page(f"clients/{language}/README.md"))
            outside = [each for each in links if not each.startswith(("https://", "#"))]
            self.assertEqual(outside, [], language)

    def test_the_guide_for_javascript_has_each_reason_of_the_state_waiting(self) -> None:
        """The texts of the client, not those of close frames, error replies and runtimes."""
        client = page("clients/javascript/topicsvc-client.js")
        reasons = set(re.findall(r'#lost\("([^"]*)"\)', client))
        self.assertEqual(reasons, {"timeout", "silence"})
        guide = page("clients/javascript/README.md")
        rows = re.findall(r"^\| `([^`]+)` \|", guide.partition("| `reason` |")[2], re.MULTILINE)
        self.assertLessEqual(reasons, set(rows))
