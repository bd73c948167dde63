"""URLs and names of topics, valid and invalid."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote, urlsplit

from hypothesis import assume, example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.strategies import parts, topics
from topicsvc.errors import AddressError, HostRefused, PathRefused
from topicsvc.topics import (
    MAX_NAME,
    MAX_PARTS,
    SubjectPattern,
    TopicAddress,
    TopicPattern,
    Unit,
)

UNIT = Unit("https://unit1.example/", ["unit1.example", "unit1.internal"])
SAMPLE = TopicAddress("cell1", "box1", ("stream-collection1",), "name")


class SampleTests(SynchronousTestCase):
    """The specification's example."""

    def test_cell_by_host(self) -> None:
        topic = UNIT.websocket_topic(
            [b"cell1.unit1.example"], b"/__topic/box1/stream-collection1.topic.name"
        )
        self.assertEqual(topic, SAMPLE)

    def test_cell_by_path(self) -> None:
        topic = UNIT.websocket_topic(
            [b"unit1.example"], b"/cell1/__topic/box1/stream-collection1.topic.name"
        )
        self.assertEqual(topic, SAMPLE)

    def test_the_send_url(self) -> None:
        path = b"/box1/stream-collection1/topic/name"
        self.assertEqual(UNIT.send_topic([b"cell1.unit1.example"], path), SAMPLE)
        self.assertEqual(UNIT.send_topic([b"unit1.example"], b"/cell1" + path), SAMPLE)

    def test_all_forms_of_a_topic(self) -> None:
        topic = TopicAddress("cell1", "box1", ("dir", "col"), "name")
        self.assertEqual(topic.broker_name, "cell1.box1.dir.col.topic.name")
        self.assertEqual(topic.path, "/cell1/box1/dir/col/topic/name")
        self.assertEqual(topic.websocket_path, "/cell1/__topic/box1/dir.col.topic.name")
        self.assertEqual(
            UNIT.topic_url(topic), "https://cell1.unit1.example/box1/dir/col/topic/name"
        )
        self.assertEqual(UNIT.collection_url(topic), "https://cell1.unit1.example/box1/dir/col")
        self.assertEqual(UNIT.cell_url("cell1"), "https://cell1.unit1.example/")
        by_path = Unit("https://unit1.example:8443", cell_urls="path")
        self.assertEqual(by_path.cell_url("cell1"), "https://unit1.example:8443/cell1/")
        self.assertEqual(
            by_path.topic_url(topic), "https://unit1.example:8443/cell1/box1/dir/col/topic/name"
        )


class PropertyTests(SynchronousTestCase):
    @given(topics)
    def test_every_form_can_be_parsed(self, topic: TopicAddress) -> None:
        assume(len(topic.broker_name) <= MAX_NAME)
        by_host = [f"{topic.cell}.unit1.example".encode()]
        below = ".".join(topic.parts[2:])
        websocket = f"/__topic/{topic.box}/{quote(below)}".encode()
        self.assertEqual(UNIT.websocket_topic(by_host, websocket), topic)
        path = topic.websocket_path.encode()
        self.assertEqual(UNIT.websocket_topic([b"unit1.example"], path), topic)
        sent = urlsplit(UNIT.topic_url(topic))
        self.assertEqual(UNIT.send_topic([sent.netloc.encode()], sent.path.encode()), topic)
        self.assertEqual(UNIT.send_topic([b"UNIT1.example:443"], topic.send_path.encode()), topic)
        self.assertEqual(TopicAddress.from_path(topic.path), topic)

    @given(topics, topics)
    @example(TopicAddress("c", "b", ("x", "topic"), "y"), TopicAddress("c", "b", ("x",), "topic"))
    def test_no_two_topics_share_a_broker_name(self, one: TopicAddress, two: TopicAddress) -> None:
        self.assertEqual(one == two, one.broker_name == two.broker_name)

    @given(topics)
    def test_a_broker_name_has_no_special_characters(self, topic: TopicAddress) -> None:
        self.assertFalse(set(topic.broker_name) & set(" ,*>?:/\\#%;&=@\"'\t\r\n\0^$+|()[]{}"))
        self.assertNotIn("..", topic.broker_name)

    @given(st.lists(st.binary(max_size=60), max_size=2), st.binary(max_size=120))
    def test_any_bytes_are_parsed_or_refused(self, hosts: list[bytes], path: bytes) -> None:
        self.read(hosts, path)

    @given(st.text(max_size=80))
    def test_any_text_as_a_name_is_within_the_grammar_or_refused(self, text: str) -> None:
        path = "/__topic/box1/" + quote(text, safe="/%.")
        self.read([b"cell1.unit1.example"], path.encode())

    @given(st.lists(parts, min_size=1, max_size=20), st.integers(0, 3))
    def test_paths_without_the_word_topic_are_refused(self, names: list[str], at: int) -> None:
        assume(len(names) < 3 or names[-2] != "topic")
        path = "/__topic/box1/" + quote(".".join(names))
        with self.assertRaises(PathRefused):
            UNIT.websocket_topic([b"cell1.unit1.example"], path.encode())

    def read(self, hosts: list[bytes], path: bytes) -> None:
        for reader in (UNIT.websocket_topic, UNIT.send_topic):
            try:
                topic = reader(hosts, path)
            except AddressError:
                continue
            self.assertEqual(TopicAddress.from_path(topic.path), topic)
            self.assertLessEqual(len(topic.broker_name), MAX_NAME)


class GrammarTests(SynchronousTestCase):
    def test_names_at_their_limits(self) -> None:
        for names in (
            ("c" * 128, "b", ["col", "topic", "n"]),
            ("0", "b" * 128, ["col", "topic", "n"]),
            ("c", "b", ["x" * 128, "topic", "n"]),
            ("c", "__", ["x" * 100, "topic", "n" * 128]),
            ("c", "b", ["\N{HIRAGANA LETTER A}\N{ARABIC-INDIC DIGIT ONE}_-", "topic", "é"]),
            ("c", "b", ["x"] * (MAX_PARTS - 2) + ["topic", "n"]),
            ("c" * 100, "b" * 100, ["x" * 39, "topic", "n"]),
        ):
            with self.subTest(names=names):
                self.assertTrue(TopicAddress.from_parts(*names).broker_name)

    def test_names_outside_the_grammar(self) -> None:
        for names in (
            ("c" * 129, "b", ["col", "topic", "n"]),
            ("C", "b", ["col", "topic", "n"]),
            ("-c", "b", ["col", "topic", "n"]),
            ("c_", "b", ["col", "topic", "n"]),
            ("", "b", ["col", "topic", "n"]),
            ("c\n", "b", ["col", "topic", "n"]),
            ("c", "b" * 129, ["col", "topic", "n"]),
            ("c", "_b", ["col", "topic", "n"]),
            ("c", "___", ["col", "topic", "n"]),
            ("c", "é", ["col", "topic", "n"]),
            ("c", "", ["col", "topic", "n"]),
            ("c", "b", ["x" * 129, "topic", "n"]),
            ("c", "b", ["", "topic", "n"]),
            ("c", "b", ["col", "topic", ""]),
            ("c", "b", ["topic", "n"]),
            ("c", "b", ["col", "Topic", "n"]),
            ("c", "b", ["col", "topic", "n", "m"]),
            ("c", "b", ["x"] * (MAX_PARTS - 1) + ["topic", "n"]),
            ("c" * 100, "b" * 100, ["x" * 40, "topic", "n"]),
            ("c", "b", ["\N{COMBINING ACUTE ACCENT}e", "topic", "n"]),
            ("c", "b", ["e\N{COMBINING ACUTE ACCENT}" * 65, "topic", "n"]),
            ("c", "b", ["a\N{ZERO WIDTH JOINER}", "topic", "n"]),
            ("c", "b", ["\N{VULGAR FRACTION ONE HALF}", "topic", "n"]),
            *(("c", "b", [f"a{char}", "topic", "n"]) for char in " .,*>?:/\\#%;\0\x7f\ud800\n"),
        ):
            with self.subTest(names=names), self.assertRaises(PathRefused):
                TopicAddress.from_parts(*names)


class ScriptTests(SynchronousTestCase):
    """Words of scripts that write with combining marks, and names in NFD."""

    NAMES = (
        *("हिन्दी", "ราชการ", "ข่าว", "தமிழ்", "বাংলা", "ខ្មែរ", "မြန်မာ", "עִבְרִית", "عَرَبِيّ", "日本語"),
        *("Việt", "cafe\N{COMBINING ACUTE ACCENT}", "ﾊﾟ", "ཨོཾ"),
    )

    def test_names_with_combining_marks_are_names_in_each_form(self) -> None:
        for name in self.NAMES:
            for form in ("NFC", "NFD"):
                text = unicodedata.normalize(form, name)
                topic = TopicAddress("cell1", "box1", (text,), text)
                with self.subTest(name=text, form=form):
                    path = topic.websocket_path.encode()
                    self.assertEqual(UNIT.websocket_topic([b"unit1.example"], path), topic)
                    path = topic.send_path.encode()
                    self.assertEqual(UNIT.send_topic([b"unit1.example"], path), topic)
                    self.assertTrue(TopicPattern.parse(f"/cell1/box1/{text}/*").matches(topic))

    def test_a_name_in_nfd_is_another_topic_than_in_nfc(self) -> None:
        """As in a unit and in the brokers, which compare code points: docs/protocol.md."""
        one, other = (
            UNIT.send_topic([b"cell1.unit1.example"], f"/box1/{name}/topic/n".encode())
            for name in ("caf%C3%A9", "cafe%CC%81")
        )
        self.assertNotEqual(one, other)
        self.assertNotEqual(one.broker_name, other.broker_name)


class HostTests(SynchronousTestCase):
    PATH = b"/cell1/__topic/box1/col.topic.name"
    BELOW = b"/__topic/box1/col.topic.name"

    def test_hosts_of_this_unit(self) -> None:
        for host in (b"unit1.example", b"UNIT1.EXAMPLE", b"unit1.example:8443", b"unit1.internal"):
            with self.subTest(host=host):
                self.assertEqual(UNIT.websocket_topic([host], self.PATH).cell, "cell1")

    def test_hosts_of_a_cell(self) -> None:
        for host in (b"cell2.unit1.example", b"CELL2.unit1.example:1", b"cell2.unit1.internal"):
            with self.subTest(host=host):
                self.assertEqual(UNIT.websocket_topic([host], self.BELOW).cell, "cell2")

    def test_other_hosts_are_refused(self) -> None:
        for host in (
            b"",
            b"example",
            b"unit2.example",
            b"a.b.unit1.example",
            b"xunit1.example",
            b"-a.unit1.example",
            b"_a.unit1.example",
            b".unit1.example",
            b"unit1.example.",
            b"unit1.example:",
            b"unit1.example:x",
            b"unit1.example:65536",
            b"unit1.example:1:2",
            b"unit1.example,unit1.example",
            b"unit1.example unit1.example",
            b"cell1@unit1.example",
            b"unit1.example/x",
            b"unit1.example\xff",
            b"[unit1.example]",
            b"::1",
        ):
            for path in (self.PATH, self.BELOW):
                with self.subTest(host=host), self.assertRaises(HostRefused):
                    UNIT.websocket_topic([host], path)

    def test_exactly_one_host_header(self) -> None:
        for hosts in (None, [], [b"unit1.example", b"unit1.example"]):
            with self.subTest(hosts=hosts), self.assertRaises(HostRefused):
                UNIT.websocket_topic(hosts, self.PATH)

    def test_ip_addresses_may_be_hosts(self) -> None:
        unit = Unit("https://unit1.example/", ["127.0.0.1", "[::1]"])
        for host in (b"127.0.0.1:8080", b"[::1]:8080", b"[::1]"):
            self.assertEqual(unit.websocket_topic([host], self.PATH).cell, "cell1")

    def test_invalid_units(self) -> None:
        for url, hosts in (
            ("unit1.example", []),
            ("ftp://unit1.example/", []),
            ("https:///", []),
            ("https://unit1.example/path/", []),
            ("https://unit1.example/?q", []),
            ("https://me@unit1.example/", []),
            ("https://unit1.example:99999/", []),
            ("https://unit1.example/", ["two words"]),
            ("https://unit1.example/", ["unit1.example:443"]),
            ("https://two words/", ["unit1.example"]),
            ("https://\u00fcnit1.example/", ["unit1.example"]),
            ("https://unit1.example/", ["\u00fcnit1.example"]),
        ):
            with self.subTest(url=url, hosts=hosts), self.assertRaises(ValueError):
                Unit(url, hosts)


class PathTests(SynchronousTestCase):
    def test_escapes_are_decoded_once(self) -> None:
        host = [b"cell1.unit1.example"]
        topic = UNIT.websocket_topic(host, b"/__topic/box1/%63ol%2Etopic.n%61me")
        self.assertEqual(topic.broker_name, "cell1.box1.col.topic.name")
        for path in (
            b"/__topic/box1/%2563ol.topic.name",
            b"/__topic/box1/col%2Ftopic%2Fname",
            b"/__topic/box1/col.topic.name%00",
            b"/__topic/box1/col.topic.name%",
            b"/__topic/box1/col.topic.name%zz",
            b"/__topic/box1/%c0%af.topic.name",
            b"/__topic/box1/%ff.topic.name",
            b"/__topic/box1/%ed%a0%80.topic.name",
            "/__topic/box1/é.topic.name".encode(),
            b"/__topic/box1/col.topic.name//",
            b"/__topic/box1/col.topic.name%2F",
            b"/__topic/box1//col.topic.name",
            b"/__topic/box1/",
            b"/__topic/",
            b"//",
            b"/__topic/box1/col.topic.name;x",
            b"/__topic//box1/col.topic.name",
            b"//__topic/box1/col.topic.name",
            b"/__topic/box1/../box2/col.topic.name",
            b"/__topic/box1/col..topic.name",
            b"/__topic/box1/.col.topic.name",
            b"/__topic/box1/col,cell2.topic.name",
            b"/__topic/box1/>.topic.name",
            b"/__topic/box1/*.topic.name",
            b"/__topic/box1",
            b"/",
            b"",
            b"*",
            b"http://cell1.unit1.example/__topic/box1/col.topic.name",
            b"/cell2/__topic/box1/col.topic.name",
        ):
            with self.subTest(path=path), self.assertRaises(PathRefused):
                UNIT.websocket_topic(host, path)

    def test_one_slash_at_the_end_is_ignored(self) -> None:
        for host, prefix in ((b"cell1.unit1.example", b""), (b"unit1.example", b"/cell1")):
            path = prefix + b"/__topic/box1/col.topic.name/"
            self.assertEqual(UNIT.websocket_topic([host], path).topic, "name")
            path = prefix + b"/box1/col/topic/name/"
            self.assertEqual(UNIT.send_topic([host], path).topic, "name")
            for more in (b"/", b"%2F", b".", b"%20", b"/."):
                with self.subTest(more=more), self.assertRaises(PathRefused):
                    UNIT.send_topic([host], path + more)

    def test_a_key_behind_the_name(self) -> None:
        for host, prefix in ((b"cell1.unit1.example", b""), (b"unit1.example", b"/cell1")):
            for key in (b"('key')", b"('k(e)y')", b"(1)", b"(a='b',c='d')", b"%28%27key%27%29",
                        b"('%2F')", b"('')", b"('key')/", b"('%0A')"):  # fmt: skip
                path = prefix + b"/box1/dir/col/topic/name" + key
                with self.subTest(path=path):
                    self.assertEqual(
                        UNIT.send_topic_with_key([host], path),
                        TopicAddress("cell1", "box1", ("dir", "col"), "name"),
                    )
                with self.subTest(path=path), self.assertRaises(PathRefused):
                    UNIT.send_topic([host], path)
            for end in (b"", b"()", b"('key'", b"'key')", b"('key')x", b"('key')//", b"('a/b')x",
                        b"(x)(", b"/('key')", b",(x)"):  # fmt: skip
                path = prefix + b"/box1/dir/col/topic/name" + end
                with self.subTest(path=path), self.assertRaises(PathRefused):
                    UNIT.send_topic_with_key([host], path)
        for path in (b"/", b"//", b"", b"/box1", b"/box1/col('key')/topic/name", b"('key')"):
            with self.subTest(path=path), self.assertRaises(PathRefused):
                UNIT.send_topic_with_key([b"cell1.unit1.example"], path)

    def test_a_dot_in_a_send_path_is_refused(self) -> None:
        for path in (b"/box1/a.b/topic/name", b"/box1/a%2Eb/topic/name", b"/box1/a/topic.name"):
            with self.subTest(path=path), self.assertRaises(PathRefused):
                UNIT.send_topic([b"cell1.unit1.example"], path)


class PatternTests(SynchronousTestCase):
    def test_matching_topics(self) -> None:
        topic = TopicAddress("cell1", "box1", ("dir", "col"), "name")
        for pattern, matches in (
            ("/cell1/box1/dir/col/topic/name", True),
            ("/cell1/box1/dir/col/topic/name2", False),
            ("/cell1/box1/dir/*", True),
            ("/cell1/box1/d/*", False),
            ("/cell1/*", True),
            ("/cell/*", False),
            ("/*", True),
        ):
            with self.subTest(pattern=pattern):
                self.assertIs(TopicPattern.parse(pattern).matches(topic), matches)

    def test_invalid_patterns(self) -> None:
        for text in (
            "",
            "*",
            "cell1/*",
            "/cell1",
            "/cell1/box1/col/topic/*x",
            "/Cell/*",
            "/c/_b/*",
            "/c/b/*/topic/name",
            "/c/b/a.b/*",
            "//*",
            "/cell1/box1/col/name",
        ):
            with self.subTest(text=text), self.assertRaises(PathRefused):
                TopicPattern.parse(text)


class SubjectPatternTests(SynchronousTestCase):
    def test_the_subject_takes_the_place_of_a_part(self) -> None:
        for text, subject, expected in (
            ("/{sub}/inbox/*", "alice", "/alice/inbox/*"),
            ("/cell1/{sub}/*", "Alice_1", "/cell1/Alice_1/*"),
            ("/cell1/box1/{sub}/topic/name", "\u3042", "/cell1/box1/\u3042/topic/name"),
            ("/cell1/box1/col/topic/{sub}", "f81d4fae-7dec", "/cell1/box1/col/topic/f81d4fae-7dec"),
            ("/{sub}/{sub}/*", "a", "/a/a/*"),
        ):
            pattern = SubjectPattern.parse(text)
            self.assertEqual(pattern.of(subject), TopicPattern.parse(expected))
            self.assertEqual(str(pattern), text)

    def test_a_subject_outside_the_grammar_has_no_topics(self) -> None:
        for text in ("/{sub}/inbox/*", "/cell1/{sub}/*", "/cell1/box1/col/topic/{sub}"):
            for subject in ("", "*", "a/b", "a/*", "..", ".", "a.b", "auth0|1", "a b", "%2f",
                            "{sub}", "a\0", "a\n", "x" * 129, "https://cell1.unit1.example/#me",
                            "\ud800"):  # fmt: skip
                self.assertIsNone(SubjectPattern.parse(text).of(subject), subject)

    def test_each_place_has_its_own_grammar(self) -> None:
        self.assertIsNone(SubjectPattern.parse("/{sub}/inbox/*").of("Alice"))
        self.assertIsNone(SubjectPattern.parse("/{sub}/inbox/*").of("\u3042"))
        self.assertIsNone(SubjectPattern.parse("/cell1/{sub}/*").of("_a"))
        self.assertIsNotNone(SubjectPattern.parse("/cell1/box1/{sub}/*").of("_a"))

    def test_no_subject_has_the_main_box(self) -> None:
        for text in ("/cell1/{sub}/*", "/cell1/{sub}/col/topic/name", "/cell1/box1/{sub}/*"):
            self.assertIsNone(SubjectPattern.parse(text).of("__"), text)

    @given(st.text())
    def test_no_subject_reaches_the_topics_of_another(self, subject: str) -> None:
        assume(subject != "alice")
        pattern = SubjectPattern.parse("/cell1/{sub}/*").of(subject)
        own = TopicAddress("cell1", "alice", ("inbox",), "name")
        self.assertFalse(pattern is not None and pattern.matches(own))

    def test_invalid_patterns(self) -> None:
        for text in ("/cell1/box1/*", "/x{sub}/*", "/{sub}x/*", "/{sub}", "/{SUB}/*", "{sub}/*",
                     "/{sub}/*/a", "/cell1/box1/col/{sub}/name", "/{sub}/{name}/*",
                     "/{sub}/A B/*"):  # fmt: skip
            self.assertRaises(PathRefused, SubjectPattern.parse, text)
