"""Encoding and decoding of STOMP frames."""

from __future__ import annotations

import string
from time import process_time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.activemq.stomp_frames import Decoder, Frame, encode, parse_heartbeat
from topicsvc.errors import StompError

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
headers = st.dictionaries(names.filter(lambda name: name != "content-length"), values, max_size=5)
commands = st.sampled_from(["SEND", "SUBSCRIBE", "MESSAGE", "RECEIPT", "ERROR"])
text_frames = st.builds(Frame, commands, headers, st.binary().filter(lambda body: 0 not in body))


@st.composite
def frames(draw: Any) -> Frame:
    if draw(st.booleans()):
        return draw(text_frames)
    body = draw(st.binary())
    return Frame(draw(commands), {**draw(headers), "content-length": str(len(body))}, body)


PIECES = b"\0 MESSAGE\n RECEIPT\r\n content-length:3\n content-length:-1\n a:b\n : \\c \\t abc \xff"
fragments = st.sampled_from([*PIECES.split(b" "), b"\n", b"\r\n", b"\n\n", b"CONNECTED\n"])
streams = st.lists(st.one_of(fragments, st.binary(max_size=8)), max_size=30).map(b"".join)


def decode(*pieces: bytes, **limits: int) -> tuple[list[Frame], str]:
    """Return the frames of a stream that arrives in `pieces`, and the error that ended it."""
    decoder = Decoder(**limits)
    found = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (frame := decoder.next_frame()) is not None:
                found.append(frame)
    except StompError as error:
        return found, str(error)
    return found, ""


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = [*sorted(place % (len(stream) + 1) for place in places), len(stream)]
    starts = [0, *ends]
    return [stream[start:end] for start, end in zip(starts, ends, strict=False)]


class PropertyTests(SynchronousTestCase):
    @given(st.lists(frames(), max_size=4))
    def test_an_encoded_frame_is_decoded(self, written: list[Frame]) -> None:
        stream = b"\n".join(map(encode, written))
        self.assertEqual(decode(stream), (written, ""))

    @given(streams, st.lists(st.integers(0, 1000), max_size=8))
    @settings(max_examples=500)
    def test_any_stream_may_arrive_in_any_pieces(self, stream: bytes, places: list[int]) -> None:
        limits = {"max_head": 24, "max_body": 12}
        whole = decode(stream, **limits)
        self.assertEqual(decode(*cut(stream, places), **limits), whole)
        self.assertEqual(decode(*(bytes([byte]) for byte in stream), **limits), whole)

    @given(st.lists(frames(), min_size=1, max_size=3), st.lists(st.integers(0, 10000), max_size=6))
    def test_frames_may_arrive_in_any_pieces(self, written: list[Frame], places: list[int]) -> None:
        stream = b"".join(map(encode, written))
        self.assertEqual(decode(*cut(stream, places)), (written, ""))

    @given(st.binary())
    def test_any_bytes_are_frames_or_a_stomp_error(self, stream: bytes) -> None:
        # Any other exception would fail the test.
        found, error = decode(stream)
        self.assertEqual(decode(stream), (found, error))

    @given(names.filter(lambda name: name != "content-length"), values)
    def test_a_header_never_adds_a_line(self, name: str, value: str) -> None:
        for command in ("CONNECT", "SEND"):
            try:
                written = encode(Frame(command, {name: value}))
            except StompError:
                self.assertEqual(command, "CONNECT", "an escaped header is not refused")
            else:
                self.assertEqual(written.count(b"\n"), 3)
                self.assertEqual(written.count(b"\0"), 1)


class EncoderTests(SynchronousTestCase):
    def refused(self, frame: Frame) -> str:
        return str(self.assertRaises(StompError, encode, frame))

    def test_a_text_has_no_content_length(self) -> None:
        written = encode(Frame("SEND", {"destination": "/topic/a.b", "u": "https://c/"}, b"{}"))
        self.assertEqual(written, b"SEND\ndestination:/topic/a.b\nu:https\\c//c/\n\n{}\0")

    def test_the_connect_frame_is_not_escaped(self) -> None:
        written = encode(Frame("CONNECT", {"passcode": "a:b\\c"}))
        self.assertEqual(written, b"CONNECT\npasscode:a:b\\c\n\n\0")

    def test_the_connect_frame_cannot_contain_an_injected_header(self) -> None:
        self.assertIn("line break", self.refused(Frame("CONNECT", {"passcode": "a\nb:c"})))
        self.assertIn("line break", self.refused(Frame("CONNECT", {"passcode": "a\rb"})))
        self.assertIn("line break", self.refused(Frame("CONNECT", {"passcode": "a\0"})))
        self.assertIn("colon", self.refused(Frame("CONNECT", {"a:b": "c"})))

    def test_frames_that_cannot_be_decoded_are_refused(self) -> None:
        self.assertIn("command", self.refused(Frame("SHOUT")))
        self.assertIn("name", self.refused(Frame("SEND", {"": "value"})))
        self.assertIn("NUL in a header", self.refused(Frame("SEND", {"name": "a\0b"})))
        self.assertIn("lone surrogate", self.refused(Frame("SEND", {"name": "\ud800"})))
        self.assertIn("cannot contain a NUL", self.refused(Frame("SEND", {}, b"a\0b")))
        self.assertIn("length", self.refused(Frame("SEND", {"content-length": "2"}, b"abc")))


class DecoderTests(SynchronousTestCase):
    def broken(self, stream: bytes, **limits: int) -> str:
        found, error = decode(stream, **limits)
        self.assertEqual(found, [])
        return error

    def test_a_frame_of_activemq_is_decoded(self) -> None:
        stream = (
            b"\n\nMESSAGE\nexpires:0\ndestination:/topic/a.b\nsubscription:2\n"
            b"__PERSONIUM_CELL:https\\c//x/\n\n{}\0\n"
        )
        expected = Frame(
            "MESSAGE",
            {
                "expires": "0",
                "destination": "/topic/a.b",
                "subscription": "2",
                "__PERSONIUM_CELL": "https://x/",
            },
            b"{}",
        )
        self.assertEqual(decode(stream), ([expected], ""))

    def test_lines_may_end_with_carriage_returns(self) -> None:
        stream = b"\r\nRECEIPT\r\nreceipt-id:1\r\n\r\n\0\r\n"
        self.assertEqual(decode(stream), ([Frame("RECEIPT", {"receipt-id": "1"})], ""))

    def test_the_first_value_of_a_repeated_header_is_used(self) -> None:
        found, _ = decode(b"MESSAGE\na:1\na:2\n\n\0")
        self.assertEqual(found[0].headers, {"a": "1"})

    def test_escape_sequences_are_decoded(self) -> None:
        found, _ = decode(b"MESSAGE\na\\cb:\\r\\n\\c\\\\n\n\n\0")
        self.assertEqual(found[0].headers, {"a:b": "\r\n:\\n"})

    def test_the_connected_frame_is_not_unescaped(self) -> None:
        found, _ = decode(b"CONNECTED\nsession:a:b\\x\n\n\0")
        self.assertEqual(found[0].headers, {"session": "a:b\\x"})

    def test_a_nul_in_a_header_is_accepted(self) -> None:
        found, _ = decode(b"MESSAGE\na:1\0002\n\nbody\0")
        self.assertEqual(found, [Frame("MESSAGE", {"a": "1\0002"}, b"body")])

    def test_a_body_with_a_length_may_contain_nuls(self) -> None:
        found, _ = decode(b"MESSAGE\ncontent-length:3\n\n\0\0\0\0RECEIPT\n\n\0")
        self.assertEqual([each.body for each in found], [b"\0\0\0", b""])

    def test_invalid_frames_are_errors(self) -> None:
        self.assertIn("command", self.broken(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        self.assertIn("not a header", self.broken(b"MESSAGE\nabc\n\n\0"))
        self.assertIn("not a header", self.broken(b"MESSAGE\n:abc\n\n\0"))
        self.assertIn("not a header", self.broken(b"MESSAGE\na:b\rc\n\n\0"))
        self.assertIn("escape", self.broken(b"MESSAGE\na:\\t\n\n\0"))
        self.assertIn("escape", self.broken(b"MESSAGE\na:b\\\n\n\0"))
        self.assertIn("UTF-8", self.broken(b"MESSAGE\na:\xff\n\n\0"))
        self.assertIn("number", self.broken(b"MESSAGE\ncontent-length:-1\n\n\0"))
        self.assertIn("number", self.broken("MESSAGE\ncontent-length:\u0663\n\n\0".encode()))
        self.assertIn("no NUL", self.broken(b"MESSAGE\ncontent-length:1\n\nabc\0"))

    def test_an_error_is_final(self) -> None:
        decoder = Decoder()
        decoder.feed(b"SHOUT\n\n\0")
        first = self.assertRaises(StompError, decoder.next_frame)
        decoder.feed(b"RECEIPT\n\n\0")
        self.assertIs(self.assertRaises(StompError, decoder.next_frame), first)

    def test_frames_before_an_error_are_returned(self) -> None:
        found, error = decode(b"RECEIPT\n\n\0SHOUT\n\n\0")
        self.assertEqual(found, [Frame("RECEIPT")])
        self.assertIn("command", error)

    def test_the_size_of_headers_is_limited(self) -> None:
        exact = b"MESSAGE\na:" + b"b" * 10
        limits = {"max_head": len(exact)}
        self.assertEqual(decode(exact + b"\n\n\0", **limits)[1], "")
        self.assertIn("bytes of headers", self.broken(exact + b"b\n\n\0", **limits))
        self.assertIn("bytes of headers", self.broken(exact + b"b" * 3, **limits))

    def test_the_size_of_bodies_is_limited(self) -> None:
        limits = {"max_body": 4}
        self.assertEqual(decode(b"MESSAGE\n\n1234\0", **limits)[1], "")
        self.assertIn("in a body", self.broken(b"MESSAGE\n\n12345\0", **limits))
        self.assertIn("in a body", self.broken(b"MESSAGE\n\n12345", **limits))
        self.assertIn("in a body", self.broken(b"MESSAGE\ncontent-length:5\n\n", **limits))

    def test_each_byte_is_examined_once(self) -> None:
        # If the whole buffer were examined for each piece, this would take minutes.
        size = 2**22
        began = process_time()
        decoder = Decoder()
        decoder.feed(b"MESSAGE\n\n")
        for _ in range(0, size, 16):
            decoder.feed(b"0123456789abcdef")
            self.assertIsNone(decoder.next_frame())
        decoder.feed(b"\0")
        frame = decoder.next_frame()
        assert frame is not None
        self.assertEqual(len(frame.body), size)
        self.assertLess(process_time() - began, 10)


class HeartbeatTests(SynchronousTestCase):
    def test_two_numbers_are_parsed(self) -> None:
        self.assertEqual(parse_heartbeat("5000,0"), (5000, 0))

    def test_anything_else_is_an_error(self) -> None:
        for value in ("", "5000", "5000,", "-1,0", "a,b", "1,2,3", "1, 2", string.digits):
            self.assertRaises(StompError, parse_heartbeat, value)
