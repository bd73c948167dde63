"""The documentation agrees with the code: settings, options, figures, errors and links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import topicsvc
from topicsvc import config, service
from topicsvc.admission import limits, token_attempts
from topicsvc.cli.doctor import checks, endpoints
from topicsvc.cli.main import main
from topicsvc.config import changes
from topicsvc.config.toml_table import Table
from topicsvc.delivery import hub
from topicsvc.delivery.slow_consumers import STALL_TIMEOUT
from topicsvc.errors import ConfigError
from topicsvc.listening.proxy_header import MAX_LENGTH, MAX_LINE
from topicsvc.process import memory
from topicsvc.settings import LimitSettings
from topicsvc.validators.local import make_key, write_key
from topicsvc.web import http_parser, responses, send, site
from topicsvc.websocket import server
from topicsvc.websocket.session import (
    GOING_AWAY,
    INTERNAL_ERROR,
    MAX_WAITING_BYTES,
    MAX_WAITING_REQUESTS,
    TRY_AGAIN_LATER,
)

ROOT = Path(__file__).parents[2]
KINDS = [
    ("local", "memory"),
    ("personium", "memory"),
    ("introspection", "memory"),
    ("local", "activemq"),
    ("local", "kafka"),
]


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def pages() -> list[Path]:
    """Return the files of all pages."""
    return [path for part in (".", "docs", "bench", "tests") for path in (ROOT / part).glob("*.md")]


def anchors(text: str) -> set[str]:
    """Return the names by which links reach the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def settings() -> dict[str, object]:
    """Every setting of every kind, with its default."""
    found: dict[str, object] = {}

    def collect(table: Table) -> None:
        names = {each._name.rpartition(".")[2] for each in table._tables}
        for key, default in table.keys.items():
            if key not in names:
                found[table._full(key)] = default
        for each in table._tables:
            collect(each)

    for validator, broker in KINDS:
        table = Table({"listen": [], "validator": {"kind": validator}, "broker": {"kind": broker}})
        table.texts("listen")
        config._config(table, (), None)
        collect(table)
    return found


class ConfigurationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rows = dict(
            re.findall(r"^\| `([\w.]+)` \|([^|]*)\|", page("docs/configuration.md"), re.MULTILINE)
        )
        for claim in ("exp", "nbf", "sub", "may"):
            del self.rows[claim]

    def test_the_page_lists_exactly_the_settings(self) -> None:
        self.assertEqual(set(self.rows), set(settings()))

    def test_each_default_is_that_of_the_code(self) -> None:
        for key, default in settings().items():
            documented = self.rows[key].strip()
            if default in ("", []) and documented:
                self.assertNotIn('"', documented, key)  # described in words
            elif default in (None, []):
                self.assertEqual(documented, "", key)
            else:
                self.assertEqual(tomllib.loads(f"x = {documented}")["x"], default, key)

    def test_the_page_lists_exactly_the_options(self) -> None:
        options = service.Options()
        known = {name for name in options.longOpt if name not in ("help", "reactor")}
        documented = re.findall(r"^\| `--(\w+)", page("docs/configuration.md"), re.MULTILINE)
        self.assertEqual(set(documented), {name.rstrip("=") for name in known})

    def test_each_complete_example_is_a_valid_configuration(self) -> None:
        examples = 0
        for name in ("README.md", "docs/configuration.md", "docs/validators.md"):
            for example in re.findall(r"```toml\n(.*?)```", page(name), re.DOTALL):
                if "listen" not in example:
                    continue  # an incomplete example
                key_file = Path(self.mktemp())
                write_key(key_file, make_key())
                text = re.sub(r'_file = ".*"', f'_file = "{key_file}"', example)
                try:
                    config.load(text)
                except ConfigError as error:
                    self.fail(f"{name}: {error}")
                examples += 1
        self.assertGreaterEqual(examples, 4)


class OperationTests(SynchronousTestCase):
    def test_each_figure_is_that_of_the_code(self) -> None:
        text = " ".join(page("docs/configuration.md").split())
        parts = service.SENDS_GRACE, server.CLOSE_TIMEOUT, service.STOP_MARGIN
        for figure in (
            f"at most `stop.drain` + {sum(parts):.0f} seconds: {parts[0]:.0f} for the sends, "
            f"{parts[1]:.0f} for the last close handshake, {parts[2]:.0f} for the rest",
            f"fewer than {endpoints.CERTIFICATE_WARNING_DAYS} days left",
            f"more than {checks.CLOCK_ERROR} s apart | more than {checks.CLOCK_WARNING} s apart",
            f"fewer than {checks.MIN_FILES} |",
        ):
            self.assertIn(figure, text)
        self.assertIn(
            f"warns {endpoints.CERTIFICATE_WARNING_DAYS} days before", page("docs/deployment.md")
        )

    def test_the_page_lists_the_settings_that_need_a_restart(self) -> None:
        [row] = re.findall(
            r"^\| (`listen`.*?) \| nothing: the log", page("docs/configuration.md"), re.MULTILINE
        )
        documented = set(re.findall(r"`\[?([\w.]+)\]?`", row))
        known = " ".join(changes._NEEDS_RESTART.values()).replace(" or ", " ")
        self.assertEqual(documented, set(re.findall(r"[\w.]+", known)))


class CommandTests(SynchronousTestCase):
    def test_each_option_of_a_documented_command_exists(self) -> None:
        """Commands that need a service are run in tests.integration.test_commands."""
        seen = set()
        for name in ("README.md", "docs/configuration.md"):
            text = re.sub(r" \\\n +", " ", page(name))  # a command on two lines
            for line in re.findall(r"^ {4}topicsvc (.*)$", text, re.MULTILINE):
                words = re.sub(r"\[[^]]*\]", "", line).replace("'", "").split()
                seen.add(words[0])
                for option in (word for word in words if word.startswith("--")):
                    self.assertIn(option, self.help(words[0]), line)
        self.assertEqual(seen, {"token", "subscribe", "send", "check", "doctor"})

    def help(self, command: str) -> str:
        import contextlib
        import io

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([command, "--help"])
        return out.getvalue()

    def test_the_bench_has_the_options_that_its_pages_name(self) -> None:
        source = page("bench/__main__.py")
        for name in ("docs/performance.md", "bench/README.md"):
            commands = re.findall(r"python -m bench (.*)", page(name))
            options = [each for command in commands for each in re.findall(r"--\w+", command)]
            self.assertTrue(options, name)
            for option in options:
                self.assertIn(f'"{option}"', source)


class PerformanceTests(SynchronousTestCase):
    def test_each_figure_of_the_summary_is_in_the_results(self) -> None:
        summary = page("docs/performance.md").split("## How to repeat it")[0]
        summary += page("docs/performance.md").split("## Ratios for other machines")[1]
        results = page("bench/RESULTS.md")
        for figure in re.findall(r"\d[\d,]*\.\d+|\d{1,3},\d{3}(?:,\d{3})*", summary):
            self.assertIn(figure, results)


class ProtocolTests(SynchronousTestCase):
    def test_the_page_lists_exactly_the_errors_of_the_http_side(self) -> None:
        known = {
            each.code for each in vars(responses).values() if isinstance(each, responses.ApiError)
        }
        self.assertEqual(set(re.findall(r"PR\d{3}-\w\w-\d{4}", page("docs/protocol.md"))), known)

    def test_the_page_lists_each_close_code(self) -> None:
        documented = re.findall(
            r"^\| (1\d{3}(?:, 1\d{3})*) \|", page("docs/protocol.md"), re.MULTILINE
        )
        self.assertLessEqual(
            {str(code) for code in (GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER)},
            set(", ".join(documented).split(", ")),
        )

    def test_the_page_shows_replies_exactly_as_they_are_sent(self) -> None:
        from topicsvc.websocket import messages

        text = page("docs/protocol.md")
        for reply in (
            messages.success_reply(3599, 1518612600, "seconds"),
            messages.error_reply("Token inactive", 1518612600, "seconds"),
            messages.error_reply("Invalid message", 1518612600, "seconds"),
        ):
            self.assertIn("    " + reply[2:].decode() + "\n", text)


class SecurityTests(SynchronousTestCase):
    def setUp(self) -> None:
        text = page("docs/security.md")
        self.rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))

    def test_the_page_lists_exactly_the_limits_that_are_counted(self) -> None:
        self.assertEqual(set(self.rows), set(limits.COUNTED_SETTINGS))

    def test_each_default_is_that_of_the_code(self) -> None:
        default = LimitSettings()
        words = {"none": 0, "any": frozenset(), "256 MiB": 256 * 2**20}
        words["the limit of open files less 256, but at least half of it"] = 0
        words["1000, but at most three quarters of `connections`"] = 1000
        for name, documented in self.rows.items():
            value = words[documented] if documented in words else int(documented)
            self.assertEqual(value, getattr(default, name), name)

    def test_each_figure_is_that_of_the_code(self) -> None:
        text = page("docs/security.md")
        head = http_parser.MAX_HEAD // 1024
        stall = round(STALL_TIMEOUT)
        polite = limits.MAX_POLITE_REFUSALS
        for figure in (
            f"less {limits.RESERVED_FILES}, ",
            f"up to {polite} at once, and {polite} a second",
            f"at most {token_attempts.MAX_ADDRESSES:,} addresses",
            f"others from its address | {token_attempts.QUEUE_TIMEOUT:.0f} s |",
            f"counts for another {token_attempts.ABANDONED_CHECK_TTL:.0f} s",
            f"head together | {site.HEAD_TIMEOUT:.0f} s |",
            f"request head | {head} KiB |",
            f"{MAX_LINE} bytes in version 1, {MAX_LENGTH >> 10} KiB in version 2",
            f"body of a request | {site.BODY_TIMEOUT:.0f} s",
            f"between two requests | {site.IDLE_TIMEOUT:.0f} s",
            f"on one connection | {limits.TOKEN_DEADLINE:.0f} s from",
            f"TLS close included | {site.CLOSE_TIMEOUT:.0f} s",
            f"close handshake | {server.CLOSE_TIMEOUT:.0f} s",
            f"them leaves | {stall} s, looked at every {stall} s: {stall} to {2 * stall} s",
            f"token is checked | {MAX_WAITING_REQUESTS} |",
            f"token is checked | {MAX_WAITING_BYTES >> 10} KiB,",
            f"When {memory.MIN_CLOSED} connections have gone",
            f"within {memory.INTERVAL:.0f} s (malloc_trim(3)",
            f"sends under way | {send.MAX_IN_FLIGHT} |",
            f"of all topics together | {hub.HIGH_WATER >> 20} MiB | "
            f"until {hub.LOW_WATER >> 20} MiB are left",
        ):
            self.assertIn(figure, text)

    def test_each_close_reason_is_in_the_protocol_page(self) -> None:
        protocol = page("docs/protocol.md")
        for reason in re.findall(r"close 1008 `([\w ]+)`", page("docs/security.md")):
            self.assertIn(reason, protocol)


class LinkTests(SynchronousTestCase):
    def test_each_link_within_the_project_leads_to_a_file(self) -> None:
        for path in pages():
            for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text("utf-8")):
                self.assertTrue((path.parent / target).exists(), f"{path.name}: {target}")

    def test_each_link_to_a_section_leads_to_a_heading(self) -> None:
        for path in pages():
            links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", path.read_text("utf-8"))
            for target, anchor in links:
                linked = path.parent / target if target else path
                self.assertIn(anchor, anchors(linked.read_text("utf-8")), f"{path.name}: {target}")

    def test_the_changelog_has_this_version(self) -> None:
        self.assertIn(f"\n## {topicsvc.__version__}", page("CHANGELOG.md"))
