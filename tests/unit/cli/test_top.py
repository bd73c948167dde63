"""``topicsvc top``: lists of a service as text."""

from __future__ import annotations

import io
import json
import socket
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.cli.test_commands import CommandTestCase
from topicsvc.cli import top

TOPIC = "/cell1/box1/col/topic/name"
EVIL = "\x1b[2Jevil\n"
LINE = {
    "topic": TOPIC,
    "sessions": 5000,
    "messages_per_minute": 600,
    "bytes_per_minute": 84000,
    "queued_bytes": 0,
}
SESSION = {
    "id": 17,
    "topic": TOPIC,
    "address": "192.0.2.7",
    "subject": EVIL,
    "token": "3f9a1c02",
    "age": 3700.5,
    "expires_in": 65.0,
    "messages": 96,
    "queued_bytes": 12,
}


class Server:
    """An admin endpoint with canned responses.

    Attributes:
        answers: status and body, by the path without its query; others get 404.
        requests: the requests: path with query, and the value of ``Authorization``.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers["Authorization"]))
                status, body = outer.answers.get(self.path.partition("?")[0], (404, b"not found\n"))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class TopTestCase(CommandTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.stop)

    def top(self, *arguments: str) -> list[str]:
        """Run the command, with standard output as a pipe; return its lines."""
        code, out, err = self.run_command("top", "--admin", self.server.url, *arguments)
        self.assertEqual((code, err), (0, ""))
        return out.splitlines()

    def fails(self, words: str, *arguments: str) -> None:
        self.assert_refused(words, "top", "--admin", self.server.url, *arguments)


class ListTests(TopTestCase):
    def test_topics_are_printed_once_with_the_most_messages_first(self) -> None:
        self.server.answers["/topics"] = (200, {"total": 300, "topics": [LINE]})
        self.assertEqual(
            self.top(),
            [
                "300 topics, those with the most messages first",
                "SESSIONS  MESSAGES/MIN  BYTES/MIN  QUEUED  TOPIC",
                f"    5000           600      84000       0  {TOPIC}",
            ],
        )
        self.assertEqual(self.server.requests, [("/topics?sort=messages&limit=100", None)])

    def test_a_list_says_which_workers_are_left_out(self) -> None:
        left_out = {"unanswered": [2, 4]}
        self.server.answers |= {
            "/topics": (200, {"total": 1, "topics": [LINE], **left_out}),
            f"/topics{TOPIC}": (200, {**LINE, **left_out}),
            "/sessions": (200, {"total": 1, "sessions": [SESSION], **left_out}),
            "/sessions/ended": (200, {"total": 0, "sessions": [], **left_out}),
            "/senders": (200, {"senders": [], **left_out}),
        }
        for arguments in ((), ("--topic", TOPIC), ("sessions",), ("ended",), ("senders",)):
            title = self.top(*arguments)[0]
            self.assertTrue(title.endswith(" (no answer of worker 2, 4)"), title)

    def test_the_order_and_the_limit_are_those_of_the_options(self) -> None:
        self.server.answers["/topics"] = (200, {"total": 1, "topics": [LINE]})
        self.assertIn("1 topic, those with the most bytes first", self.top("--sort", "bytes"))
        self.top("--limit", "5", "topics")
        self.assertEqual(self.server.requests[0][0], "/topics?sort=bytes&limit=100")
        self.assertEqual(self.server.requests[1][0], "/topics?sort=messages&limit=5")

    def test_one_topic_has_the_number_of_its_sessions(self) -> None:
        topic = "/cell1/box1/col/topic/имя"
        self.server.answers["/topics/cell1/box1/col/topic/%D0%B8%D0%BC%D1%8F"] = (200, LINE)
        self.assertEqual(self.top("--topic", topic)[0], f"5,000 sessions on {topic}")

    def test_a_topic_without_sessions(self) -> None:
        error = {"error": "no session is on this topic"}
        self.server.answers[f"/topics{TOPIC}"] = (404, error)
        self.assertEqual(self.top("--topic", TOPIC)[0], "no session is on this topic")

    def test_sessions_are_filtered_by_the_service(self) -> None:
        self.server.answers["/sessions"] = (200, {"total": 1, "sessions": [SESSION]})
        found = self.top(
            *("sessions", "--topic", TOPIC, "--address", "192.0.2.0/24", "--subject", "a b")
        )
        self.assertEqual(
            found,
            [
                "1 session",
                "ID      AGE  EXPIRES IN  MESSAGES  QUEUED  ADDRESS    TOKEN     SUBJECT"
                "              TOPIC",
                "17  1:01:40        1:05        96      12  192.0.2.7  3f9a1c02  "
                rf"\u001b[2Jevil\u000a  {TOPIC}",
            ],
        )
        query = f"topic={TOPIC.replace('/', '%2F')}&address=192.0.2.0%2F24&subject=a+b&limit=100"
        self.assertEqual(self.server.requests, [(f"/sessions?{query}", None)])

    def test_ended_connections_have_reason_and_detail_and_are_searched(self) -> None:
        ended = [
            {**SESSION, "reason": "Session expired", "detail": ""},
            {**SESSION, "subject": "x", "reason": "Token inactive", "detail": "it has expired"},
            {**SESSION, "address": "192.0.2.8", "expires_in": None, "reason": EVIL, "detail": EVIL},
        ]
        self.server.answers["/sessions/ended"] = (200, {"total": 3, "sessions": ended})
        title, head, *lines = self.top("ended")
        self.assertEqual(title, "3 ended connections, the last one first")
        self.assertTrue(lines[0].endswith(f"{TOPIC}  Session expired"), lines)
        self.assertTrue(lines[1].endswith("Token inactive (it has expired)"), lines)
        self.assertTrue(all(line.isprintable() for line in lines))
        self.assertEqual(head.split()[-1], "REASON")
        [_, _, line] = self.top("ended", "--subject", "x")
        self.assertIn("Token inactive", line)
        self.assertEqual(len(self.top("ended", "--address", "192.0.2.7")), 4)
        self.assertEqual(len(self.top("ended", "--topic", "/cell1/box1/col/topic/other")), 2)
        self.assertEqual(len(self.top("ended", "--limit", "1")), 3)
        self.assertEqual({path for path, _ in self.server.requests}, {"/sessions/ended?limit=1000"})

    def test_senders(self) -> None:
        senders = [
            {"subject": "a", "address": "192.0.2.7", "sends_per_minute": 600},
            {"subject": None, "address": "192.0.2.8", "sends_per_minute": 1},
        ]
        self.server.answers["/senders"] = (200, {"senders": senders})
        self.assertEqual(
            self.top("senders"),
            [
                "2 senders in the last minute",
                "MESSAGES/MIN  ADDRESS    SUBJECT",
                "         600  192.0.2.7  a",
                "           1  192.0.2.8  -",
            ],
        )
        self.assertEqual(len(self.top("senders", "--subject", "a")), 3)

    def test_a_token_is_sent_if_a_file_is_given(self) -> None:
        file = Path(self.mktemp())
        file.write_text("secret\n")
        self.server.answers["/senders"] = (200, {"senders": []})
        self.top("senders", "--token-file", str(file))
        self.assertEqual(self.server.requests, [("/senders?limit=1000", "Bearer secret")])

    def test_a_prefix_of_the_url_is_kept(self) -> None:
        self.server.answers["/topicsvc/senders"] = (200, {"senders": []})
        url = f"{self.server.url}/topicsvc/"
        self.assertEqual(self.run_command("top", "senders", "--admin", url)[0], 0)


class ErrorTests(TopTestCase):
    def test_lists_that_are_switched_off(self) -> None:
        self.fails("set inspect = true in [admin], and reload (SIGHUP)")

    def test_other_answers(self) -> None:
        for status, body, words in (
            (400, {"error": "limit: ...; allowed: 1"}, "limit: ...; allowed: 1"),
            (401, b"", "401: it requires a token; give --token-file"),
            (403, {}, "403: it requires a token"),
            (503, {"error": "no worker answers"}, "503: no worker answers"),
            (503, b"busy", "503: too many requests; try again"),
            (200, b"<html>", "200: this is not the admin endpoint of topicsvc"),
            (302, b"", "302: this is not the admin endpoint"),
            (200, b"[" * 9000, "200: this is not the admin endpoint"),
            (200, {}, "an unexpected answer; is it another version of topicsvc?"),
            (200, {"topics": [{}], "total": 1}, "an unexpected answer"),
            (200, {"topics": 5, "total": 1}, "an unexpected answer"),
            (200, {"topics": [LINE], "total": "x"}, "an unexpected answer"),
            (200, {"topics": [], "total": 0, "unanswered": 5}, "an unexpected answer"),
            (200, {"topics": [], "total": 0, "unanswered": ["x"]}, "an unexpected answer"),
        ):
            self.server.answers["/topics"] = (status, body)
            self.fails(words)

    def test_no_service(self) -> None:
        with socket.socket() as taken:  # bound and not listening: connections are refused
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            words = f"{url}: Connection refused; is topicsvc running, with this address in admin."
            self.assert_refused(words, "top", "--admin", url)

    def test_wrong_urls(self) -> None:
        for url, words in (
            ("127.0.0.1:9090", "not a URL; allowed: http://127.0.0.1:9090"),
            ("ftp://127.0.0.1", "not a URL"),
            ("http://", "not a URL"),
            ("http://x:99999", "Port out of range"),
            ("http://u:p@x/", "has a user name or a password"),
            ("http://:p@x/", "has a user name or a password"),
            ("http://x/?a=1", "a query"),
            ("http://x\n/", "not a URL"),
        ):
            self.assert_refused(words, "top", "--admin", url)

    def test_options_that_a_list_does_not_have(self) -> None:
        for arguments, words in (
            (("topics", "--subject", "x"), "topics have no --subject; allowed: --topic, --sort"),
            (("sessions", "--sort", "bytes"), "sessions have no --sort"),
            (("senders", "--topic", TOPIC), "senders have no --topic; allowed: --address, --sub"),
            (("--topic", TOPIC, "--sort", "bytes"), "--topic and --sort exclude each other"),
            (("--topic", "/cell1"), "--topic '/cell1': not /{cell}/{box}"),
            (("--limit", "1001"), "'1001' is not a whole number from 1 to 1000"),
            (("nonsense",), "invalid choice: 'nonsense'"),
        ):
            self.fails(words, *arguments)
        self.assertEqual(self.server.requests, [])


class Terminal(io.StringIO):
    encoding = "ascii"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


class ScreenTests(TopTestCase):
    """The refreshing screen; tests.integration.test_inspect runs it in a terminal."""

    def refresh(self, *screens: object, columns: int = 40, lines: int = 6) -> list[str]:
        """Run the command until it has drawn these answers; return the screens."""
        out = Terminal()
        answers = list(screens)
        slept: list[float] = []
        self.patch(top.shutil, "get_terminal_size", lambda: top.os.terminal_size((columns, lines)))
        self.patch(top.sys, "stdout", out)
        self.patch(top.os, "environ", {})

        class Done(Exception):
            """All answers are drawn."""

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if not answers:
                raise Done
            answer()

        def answer() -> None:
            self.server.answers["/senders"] = answers.pop(0)  # type: ignore[assignment]

        self.patch(top.time, "sleep", sleep)
        answer()
        options = Namespace(
            view="senders", topic=None, sort=None, address=None, subject=None, limit=100,
            admin=self.server.url, token_file=None, once=False, interval=7,
        )  # fmt: skip
        self.assertRaises(Done, top.run, options)
        self.assertEqual(set(slept), {7})
        clear, *drawn = out.getvalue().split("\x1b[H")
        self.assertEqual(clear, "\x1b[2J")
        return drawn[1:]

    def senders(self, *subjects: str) -> tuple[int, object]:
        each = [{"subject": it, "address": "192.0.2.7", "sends_per_minute": 1} for it in subjects]
        return 200, {"senders": each}

    def test_each_screen_replaces_the_one_before(self) -> None:
        first, second = self.refresh(self.senders("a", "b"), self.senders("c"), columns=200)
        self.assertRegex(
            first, r"^http://\S+  \d\d:\d\d:\d\d  2 senders in the last minute\x1b\[K\n"
        )
        self.assertIn("  192.0.2.7  b\x1b[K\n", first)
        self.assertNotIn("  b", second)
        for screen in (first, second):
            self.assertTrue(screen.endswith("\x1b[J"))

    def test_a_screen_is_cut_to_the_terminal(self) -> None:
        [screen] = self.refresh(self.senders(*"abcdefgh"))
        lines = screen.removesuffix("\x1b[J").split("\x1b[K\n")
        self.assertEqual(lines.pop(), "")
        self.assertEqual(len(lines), 5)
        self.assertLessEqual(max(map(len, lines)), 40)

    def test_a_service_that_restarts_keeps_the_last_list(self) -> None:
        down = (503, {"error": "no worker answers"})
        _, second, third = self.refresh(self.senders("a"), down, self.senders("b"), columns=200)
        self.assertIn("503: no worker answers", second)
        self.assertIn("  a\x1b[K", second)
        self.assertIn("1 sender in the last minute", third)

    def test_names_cannot_drive_the_terminal(self) -> None:
        [screen] = self.refresh(self.senders(EVIL + "\u202e日"), columns=200)
        left = screen.replace("\x1b[K\n", "").removesuffix("\x1b[J")
        self.assertTrue(left.isprintable(), left)
        self.assertIn(r"\u001b[2Jevil\u000a\u202e\u65e5", left)
