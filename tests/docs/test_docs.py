"""The documentation agrees with the code: settings, options, figures, errors and links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import topicsvc
from topicsvc import config, service
from topicsvc.admission import limits, rates, token_attempts
from topicsvc.cli.doctor import checks, endpoints
from topicsvc.cli.main import main
from topicsvc.config import changes, shares
from topicsvc.config.toml_table import Table
from topicsvc.delivery import hub
from topicsvc.delivery.slow_consumers import STALL_TIMEOUT
from topicsvc.errors import ConfigError
from topicsvc.interfaces import Place
from topicsvc.listening import paced_tls
from topicsvc.listening.listener import MAX_ACCEPTS
from topicsvc.listening.proxy_header import MAX_LENGTH, MAX_LINE
from topicsvc.process import memory
from topicsvc.settings import LimitSettings
from topicsvc.validators.jwt import claims, key_source, keys
from topicsvc.validators.jwt import validator as jwt_validator
from topicsvc.validators.local import make_key, write_key
from topicsvc.validators.wrappers import concurrency
from topicsvc.web import http_connection, http_parser, responses, send, site
from topicsvc.websocket import connection, messages, server
from topicsvc.websocket.close_reasons import CLOSE_REASONS
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
    ("jwt", "memory"),
    ("local", "activemq"),
    ("local", "kafka"),
    ("local", "redis"),
]


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def pages() -> list[Path]:
    """Return the files of all pages."""
    parts = (".", "docs", "bench", "tests", "clients", "clients/javascript")
    return [path for part in parts for path in (ROOT / part).glob("*.md")]


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
                found[table._full(key).replace("[0]", "[]")] = default
        for each in table._tables:
            collect(each)

    for validator, broker in KINDS:
        members: dict[str, Any] = {"kind": validator}
        if validator == "jwt":
            members["issuers"] = [{}]
        table = Table({"listen": [], "validator": members, "broker": {"kind": broker}})
        table.texts("listen")
        config._config(table, (), None)
        collect(table)
    return found


def seconds(value: float) -> str:
    return f"{value:.0f} s"


def kibibytes(value: int) -> str:
    return f"{value >> 10} KiB"


class ConfigurationTests(SynchronousTestCase):
    def setUp(self) -> None:
        row = re.compile(r"^\| `([\w.]+(?:\[\][\w.]+)?)` \|([^|]*)\|", re.MULTILINE)
        self.rows = dict(row.findall(page("docs/configuration.md")))
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

    def test_each_row_of_a_limit_says_what_workers_do_with_it(self) -> None:
        text = page("docs/configuration.md")
        rows = dict(
            re.findall(
                r"^\| `limits\.(\w+)` \|[^|]*\|[^|]*\| (divided|each) \|", text, re.MULTILINE
            )
        )
        expected = dict.fromkeys(shares.DIVIDED_LIMITS, "divided")
        expected |= dict.fromkeys(shares.UNDIVIDED_LIMITS, "each")
        self.assertEqual(rows, expected)
        self.assertIn("maximum number of checks at once, divided among workers;", text)
        self.assertIn(
            f"`limits.connections = 1001` allows {shares.divide(1001, 4)} connections", text
        )

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
            r"^\| (`listen`.*?) \| nothing \|", page("docs/configuration.md"), re.MULTILINE
        )
        documented = set(re.findall(r"`\[?([\w.]+)\]?`", row))
        known = " ".join(changes._NEEDS_RESTART.values()).replace(" or ", " ")
        self.assertEqual(documented, set(re.findall(r"[\w.]+", known)))


class CommandTests(SynchronousTestCase):
    def test_each_option_of_a_documented_command_exists(self) -> None:
        """Commands that need a service are run in tests.integration.test_commands."""
        seen = set()
        for name in ("README.md", "docs/configuration.md", "docs/operations.md"):
            text = re.sub(r" \\\n +", " ", page(name))  # a command on two lines
            for line in re.findall(r"^ {4}topicsvc (.*)$", text, re.MULTILINE):
                words = re.sub(r"\[[^]]*\]", "", line).replace("'", "").split()
                seen.add(words[0])
                for option in (word for word in words if word.startswith("--")):
                    self.assertIn(option, self.help(words[0]), line)
        self.assertEqual(seen, {"serve", "token", "subscribe", "send", "check", "doctor", "top"})

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
        place = Place("m4x7.1041", False, 60)
        reply = messages.success_reply(3599, 1518612600, "seconds", place)[4:].decode()
        self.assertIn(reply, text.replace(",\n     ", ","))
        self.assertIn("    " + messages.position_frame("m4x7.1042")[2:].decode() + "\n", text)

    def test_the_page_says_what_to_do_after_each_close(self) -> None:
        text = page("docs/protocol.md")
        _, _, rest = text.partition("### What to do after a close")
        table = rest.partition("\n\n* ")[0]
        _, _, codes = text.partition("## Close codes")
        for reason in CLOSE_REASONS:
            if f"| {reason} |" in codes or f", {reason}" in codes:
                known = reason in ("Internal error", "Service unavailable")  # 1011 and 1013
                self.assertTrue(known or f"`{reason}`" in table, reason)
        documented = set(re.findall(r"^\| (1\d{3}(?:, 1\d{3})*) \|", codes, re.MULTILINE))
        for code in ", ".join(documented).split(", "):
            self.assertIn(code, table)


class SecurityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = page("docs/security.md")
        settings, _, fixed = self.text.partition("## Limits that cannot be set")
        row = re.compile(r"^\| ([^|]*) \| ([^|]*) \| [^|]* \| [^|]* \|$", re.MULTILINE)
        self.settings, self.fixed = (
            {name: value for name, value in row.findall(part) if name not in ("limit", "---")}
            for part in (settings, fixed.partition("## Behind a proxy")[0])
        )

    def test_the_page_lists_exactly_the_limits_that_are_counted(self) -> None:
        self.assertEqual(set(self.settings), {f"`{name}`" for name in limits.COUNTED_SETTINGS})

    def test_each_default_is_that_of_the_code(self) -> None:
        default = LimitSettings()
        words = {"none": 0, "any": frozenset(), "256 MiB": 256 * 2**20}
        words[f"open files less {limits.RESERVED_FILES}"] = 0
        for name, documented in self.settings.items():
            value = words[documented] if documented in words else int(documented)
            self.assertEqual(value, getattr(default, name.strip("`")), name)

    def test_each_limit_that_cannot_be_set_is_that_of_the_code(self) -> None:
        longest_head = http_parser.MAX_HEAD + http_parser.MAX_TOKEN_LINE
        self.assertEqual(
            self.fixed,
            {
                "TLS handshake, PROXY header and request head together": seconds(site.HEAD_TIMEOUT),
                "request body": seconds(site.BODY_TIMEOUT),
                "pause between two requests": seconds(site.IDLE_TIMEOUT),
                "time without a valid token on an HTTP connection": seconds(limits.TOKEN_DEADLINE),
                "reading the last response, and closing, TLS included": seconds(site.CLOSE_TIMEOUT),
                "presenting a valid token": "`session.token_timeout`",
                "close handshake": seconds(server.CLOSE_TIMEOUT),
                "TLS handshake": kibibytes(paced_tls.MAX_HANDSHAKE),
                "responses of TLS to key updates": f"{kibibytes(paced_tls.MAX_OUTPUT)} a minute",
                "PROXY header, version 1": f"{MAX_LINE} bytes",
                "PROXY header, version 2": kibibytes(MAX_LENGTH),
                "request head, without the value of `Authorization`": kibibytes(
                    http_parser.MAX_HEAD
                ),
                "request head, complete": kibibytes(longest_head),
                "header fields of a request": str(http_parser.MAX_HEADERS),
                "empty lines before a request": str(http_parser.MAX_EMPTY_LINES),
                "line before a chunk": f"{http_parser.MAX_CHUNK_LINE} bytes",
                "trailer section": kibibytes(http_parser.MAX_TRAILERS),
                "body": "`send.max_body`",
                "messages of one request": "`send.max_batch`",
                "body that is not needed": kibibytes(http_connection.MAX_SKIPPED),
                "sends in progress, of all clients": str(send.MAX_IN_FLIGHT),
                "work for one HTTP connection, if others wait": (
                    f"{1e3 * http_connection.TURN:g} ms"
                ),
                "connections that a port accepts in one iteration": str(MAX_ACCEPTS),
                "reads behind an error": (
                    f"{1 / http_connection.DISCARD_INTERVAL:.0f} a second, "
                    f"of {kibibytes(http_connection.DISCARD_SIZE)}, "
                    f"or of {kibibytes(http_connection.TLS_DISCARD_SIZE)} with TLS"
                ),
                "work on requests, and on frames before a valid token, in one reactor iteration": (
                    f"{site.WORK_PER_ITERATION * 1000:.0f} ms"
                ),
                "work on frames of sessions in one reactor iteration": (
                    f"{site.WORK_PER_ITERATION * 1000:.0f} ms"
                ),
                "frames that are processed between two checks of these limits": kibibytes(
                    connection.PIECE
                ),
                "length of a token": kibibytes(messages.MAX_TOKEN),
                "one check": "`validator.timeout`",
                "checks that wait for the validator": str(concurrency.MAX_WAITING),
                "time that such a check waits": seconds(concurrency.QUEUE_TIMEOUT),
                "time that a token waits for others from its address": seconds(
                    token_attempts.QUEUE_TIMEOUT
                ),
                "fetches of the keys of an issuer": f"one in {key_source.FETCH_INTERVAL:.0f} s",
                "tokens that wait for the next keys": str(key_source.MAX_WAITING),
                "waiting tokens that are ended in one reactor iteration": str(
                    key_source.ENDED_PER_ITERATION
                ),
                "keys of an issuer": f"{keys.MAX_KEYS}, in {kibibytes(keys.MAX_JWKS)}",
                "verified tokens that are remembered": str(jwt_validator.MAX_TOKENS),
                "topics in one entry of `authorization_details`": str(claims.MAX_DETAIL_TOPICS),
                "messages that wait while a token is checked": str(MAX_WAITING_REQUESTS),
                "bytes of these messages": kibibytes(MAX_WAITING_BYTES),
                "bytes that wait for a session": "`session.send_queue`",
                "bytes of HTTP responses that wait": kibibytes(http_connection.MAX_UNREAD),
                "time in which no waiting byte is sent": seconds(STALL_TIMEOUT),
                "pings that wait for an answer": "1",
                "bytes that wait for delivery, of all topics": f"{hub.HIGH_WATER >> 20} MiB",
            },
        )

    def test_each_figure_is_that_of_the_code(self) -> None:
        text = " ".join(self.text.split())
        polite, stall = limits.MAX_POLITE_REFUSALS, round(STALL_TIMEOUT)
        default, reserve = LimitSettings(), limits.RESERVED_FILES
        unauthenticated = int((1024 - reserve) * limits.UNAUTHENTICATED_SHARE)
        failures = default.failed_tokens_per_minute
        for figure in (
            f"limit of open files less {reserve}, but at least half of it. The {reserve} desc",
            f"has {site.HEAD_TIMEOUT:.0f} s for its request. It has {limits.TOKEN_DEADLINE:.0f} s",
            "At most three quarters of `connections` may be unauthenticated, even if",
            f"{1024 - reserve} connections are allowed, and {unauthenticated} of them may be",
            f"use up the {default.unauthenticated} unauthenticated connections",
            f"up to {polite} at once, and {polite} a second, get HTTP 503",
            f"After {failures} failed tokens, no token from that address",
            f"100 invalid tokens arrive together, {failures} are checked",
            f"all are granted, {failures} at a time",
            f"counts for another {token_attempts.ABANDONED_CHECK_TTL:.0f} s",
            f"at most {failures} are checked in {token_attempts.ABANDONED_CHECK_TTL:.0f} s",
            f"at most {token_attempts.MAX_ADDRESSES:,} addresses",
            f"at most {limits.MAX_LOGGED_ADDRESSES} addresses are named in a minute",
            f"at most {rates.MAX_KEYS:,} tokens and {rates.MAX_KEYS:,} cells",
            f"Up to {default.messages_per_minute} messages may arrive at once, then one a second",
            f"{default.frames_per_message} is enough for a message of 64 KiB in frames of 512",
            f"After {limits.TOKEN_DEADLINE:.0f} s without a valid token, a request in progress",
            f"When more than {MAX_WAITING_BYTES >> 10} KiB wait",
            f"checked every {stall} s, so a client is closed {stall} to {2 * stall} s after",
            f"Above {hub.HIGH_WATER >> 20} MiB, sends get HTTP 503 with `Retry-After`",
            f"Both end when {hub.LOW_WATER >> 20} MiB are left",
            f"only {default.unauthenticated_per_address} of them may be unauthenticated, and "
            f"{failures} failed tokens",
            f"After {memory.MIN_CLOSED} connections have closed",
            f"within {memory.INTERVAL:.0f} s. This uses malloc_trim(3)",
        ):
            self.assertIn(figure, text)
        self.assertEqual(limits.UNAUTHENTICATED_SHARE, 3 / 4)
        self.assertEqual(default.messages_per_minute, 60)
        self.assertEqual(default.frames_per_message * 512, 65536)

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
