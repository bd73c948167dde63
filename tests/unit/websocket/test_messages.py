"""The bytes of requests, replies and data."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.strategies import json_values
from topicsvc.errors import InvalidMessage
from topicsvc.interfaces import Message, Place
from topicsvc.topics import TopicAddress
from topicsvc.websocket import messages

NOW = 1518612600.987
TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SENDER = "https://cell1.unit1.example/"


def payload_of(frame: bytes) -> bytes:
    """The payload of a text frame; fails if its length is not encoded in the shortest form."""
    assert frame[0] == 0x81
    if frame[1] < 126:
        assert len(frame) == 2 + frame[1]
        return frame[2:]
    width = 2 if frame[1] == 126 else 8
    size = int.from_bytes(frame[2 : 2 + width], "big")
    assert size > (125 if width == 2 else 65535)
    assert len(frame) == 2 + width + size
    return frame[2 + width :]


class FrameTests(SynchronousTestCase):
    def test_success(self) -> None:
        self.assertEqual(
            payload_of(messages.success_reply(3599, NOW, "seconds")),
            b'{"Response":"AccessToken","Result":"Success","ExpiresIn":3599,'
            b'"Timestamp":1518612600}',
        )

    def test_success_of_a_session_with_positions(self) -> None:
        for place, golden in (
            (
                Place("m4x7.1041", False, 60),
                b'"Position":"m4x7.1041","Missed":false,"Heartbeat":60',
            ),
            (Place("m4x7.9", True, 60.0), b'"Position":"m4x7.9","Missed":true,"Heartbeat":60'),
            (Place(None, True, 20.5), b'"Position":null,"Missed":true,"Heartbeat":20.5'),
        ):
            with self.subTest(place=place):
                self.assertEqual(
                    payload_of(messages.success_reply(3599, NOW, "seconds", place)),
                    b'{"Response":"AccessToken","Result":"Success","ExpiresIn":3599,'
                    b'"Timestamp":1518612600,%s}' % golden,
                )

    def test_the_heartbeat_of_a_session_with_positions(self) -> None:
        self.assertEqual(payload_of(messages.position_frame("m4x7.2")), b'{"Position":"m4x7.2"}')
        self.assertEqual(payload_of(messages.position_frame(None)), b'{"Position":null}')

    def test_a_position_is_added_behind_the_body_of_a_message_of_any_length(self) -> None:
        for length in (0, 60, 80, 90, 100, 125, 126, 65400, 65480, 65500, 65536, 70000):
            with self.subTest(length=length):
                message = Message(TOPIC, SENDER, b'"%s"' % (b"x" * length))
                plain = payload_of(messages.data_frame(message))
                positioned = payload_of(
                    messages.positioned(messages.data_frame(message), "m4x7.1042")
                )
                self.assertEqual(positioned, plain[:-1] + b',"Position":"m4x7.1042"}')

    def test_errors(self) -> None:
        for reason, response in (
            ("Token inactive", b"AccessToken"),
            ("Service unavailable", b"AccessToken"),
            ("Invalid message", b"Unknown"),
            ("Session expired", b"Unknown"),
        ):
            with self.subTest(reason=reason):
                self.assertEqual(
                    payload_of(messages.error_reply(reason, NOW, "seconds")),
                    b'{"Response":"%s","Result":"Error","Reason":"%s","Timestamp":1518612600}'
                    % (response, reason.encode()),
                )

    def test_milliseconds(self) -> None:
        self.assertTrue(
            messages.success_reply(1, NOW, "milliseconds").endswith(b'"Timestamp":1518612600987}')
        )

    def test_data(self) -> None:
        message = Message(
            TOPIC, "https://cell1.unit1.example/", b'{"hoge":"testmessage", "n":2.50}'
        )
        self.assertEqual(
            payload_of(messages.data_frame(message)),
            b'{"From":"https://cell1.unit1.example/","Body":{"hoge":"testmessage", "n":2.50}}',
        )
        self.assertEqual(
            payload_of(messages.data_frame(Message(TOPIC, None, b"[]"))), b'{"From":null,"Body":[]}'
        )

    def test_lengths_are_encoded_in_the_shortest_form(self) -> None:
        for size in (0, 1, 125, 126, 65535, 65536, 70000):
            self.assertEqual(payload_of(messages.text_frame(b"x" * size)), b"x" * size)

    @given(json_values, st.booleans())
    def test_every_json_value_is_delivered_unchanged(self, value: object, ascii_only: bool) -> None:
        try:
            body = json.dumps(value, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            return
        frame = messages.data_frame(Message(TOPIC, 'https://x/"\n', body))
        self.assertEqual(json.loads(payload_of(frame)), {"From": 'https://x/"\n', "Body": value})


class TokenMessageTests(SynchronousTestCase):
    def test_valid_token_messages(self) -> None:
        for payload, token in (
            (b'{"AccessToken":"AA~91WT0GNoVGFHJFQ.......e"}', "AA~91WT0GNoVGFHJFQ.......e"),
            (b' {\n"AccessToken" : "x" } ', "x"),
            (b'{"Other":[1,{"a":null}],"AccessToken":"x"}', "x"),
            (b'{"AccessToken":"\\u0041!~"}', "A!~"),
            (b'{"AccessToken":"%s"}' % (b"x" * 32768), "x" * 32768),
            # A unit ignores blanks and line ends around a token.
            (b'{"AccessToken":" x"}', "x"),
            (b'{"AccessToken":"x\\n"}', "x"),
            (b'{"AccessToken":"\\r\\n\\t x \\u000b\\f\\r\\n"}', "x"),
            (b'{"AccessToken":"  %s\\n"}' % (b"x" * 32768), "x" * 32768),
            (b'{"n":1e400,"AccessToken":"x"}', "x"),
            (b'{"n":%s,"AccessToken":"x"}' % (b"9" * 5000), "x"),
        ):
            with self.subTest(payload=payload[:60]):
                self.assertEqual(messages.parse_request(payload), (token, False, None))

    def test_the_position_in_a_token_message(self) -> None:
        for more, expected in (
            (b"", (False, None)),
            (b',"Since":null', (True, None)),
            (b',"Since":"m4x7.1041"', (True, "m4x7.1041")),
            (b',"Since":"%s"' % (b"!" * 128), (True, "!" * 128)),
            (b',"Since":"\\u007e"', (True, "~")),
            (b',"since":1', (False, None)),
        ):
            with self.subTest(more=more):
                request = messages.parse_request(b'{"AccessToken":"x"%s}' % more)
                self.assertEqual(request[1:], expected)

    def test_invalid_messages(self) -> None:
        for payload in (
            b"",
            b"hello",
            b"null",
            b'"AccessToken"',
            b'["AccessToken","x"]',
            b"{}",
            b'{"accesstoken":"x"}',
            b'{"AccessToken":""}',
            b'{"AccessToken":" "}',
            b'{"AccessToken":"\\r\\n"}',
            b'{"AccessToken":"\\u0000x"}',
            b'{"AccessToken":"x\\u00a0"}',
            b'{"AccessToken":"\\u3000x"}',
            b'{"AccessToken":" %s "}' % (b"x" * 32769),
            b'{"AccessToken":null}',
            b'{"AccessToken":1}',
            b'{"AccessToken":["x"]}',
            b'{"AccessToken":"a b"}',
            b'{"AccessToken":"a\\nb"}',
            b'{"AccessToken":"a\\r\\nX-Header: b"}',
            b'{"AccessToken":"\\u007f"}',
            b'{"AccessToken":"\\u00e9"}',
            b'{"AccessToken":"\\ud800"}',
            b'{"AccessToken":"%s"}' % (b"x" * 32769),
            b'{"AccessToken":"x","AccessToken":"y"}',
            b'{"AccessToken":"x","a":1,"a":2}',
            b'{"AccessToken":"x","n":NaN}',
            b'{"AccessToken":"x","n":-Infinity}',
            b'{"AccessToken":"x"}{}',
            b'{"AccessToken":"x"',
            b"{'AccessToken':'x'}",
            b'\xef\xbb\xbf{"AccessToken":"x"}',
            b"\xff",
            b"[" * 60000,
            b'{"a":' * 10000,
            b'{"AccessToken":"x","Since":""}',
            b'{"AccessToken":"x","Since":0}',
            b'{"AccessToken":"x","Since":false}',
            b'{"AccessToken":"x","Since":["a.1"]}',
            b'{"AccessToken":"x","Since":{}}',
            b'{"AccessToken":"x","Since":"a b"}',
            b'{"AccessToken":"x","Since":"a\\n"}',
            b'{"AccessToken":"x","Since":"\\u00e9"}',
            b'{"AccessToken":"x","Since":"%s"}' % (b"a" * 129),
            b'{"AccessToken":"x","Since":"a.1","Since":null}',
        ):
            with self.subTest(payload=payload[:60]), self.assertRaises(InvalidMessage):
                messages.parse_request(payload)

    @given(st.text() | json_values.map(json.dumps))
    def test_any_text_is_a_token_message_or_invalid(self, text: str) -> None:
        try:
            token = messages.parse_request(text.encode("utf-8", "surrogatepass")).token
        except InvalidMessage:
            return
        self.assertRegex(token, r"\A[!-~]+\Z")


class WholeTextTests(SynchronousTestCase):
    """`whole_text`: a text message that is read in one piece needs no frame parser."""

    def frame(self, payload: bytes, first: int = 0x81, mask: bytes = b"\1\2\3\4") -> bytes:
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        return bytes([first]) + length + mask + masked

    @given(st.text(max_size=300), st.binary(min_size=4, max_size=4))
    def test_a_whole_message(self, text: str, mask: bytes) -> None:
        payload = text.encode()
        self.assertEqual(messages.whole_text(self.frame(payload, mask=mask), 65535), payload)

    def test_each_form_of_the_length(self) -> None:
        for size in (0, 1, 3, 4, 125, 126, 127, 65535):
            payload = b"x" * size
            self.assertEqual(messages.whole_text(self.frame(payload), 65535), payload)
            self.assertIsNone(messages.whole_text(self.frame(payload), size - 1))

    def test_everything_else_is_left_to_the_frame_parser(self) -> None:
        whole = self.frame(b"abc")
        for name, data in {
            "nothing": b"",
            "incomplete": whole[:-1],
            "more behind it": whole + b"\x89",
            "a fragment": self.frame(b"abc", 0x01),
            "a continuation": self.frame(b"abc", 0x80),
            "binary": self.frame(b"abc", 0x82),
            "a ping": self.frame(b"abc", 0x89),
            "a close": self.frame(b"abc", 0x88),
            "a reserved bit": self.frame(b"abc", 0xC1),
            "not masked": b"\x81\x03abc",
            "not masked, with 6 bytes": b"\x81\x04abcd",
            "a length that is not the shortest": b"\x81\xfe\x00\x03\1\2\3\4abc",
            "a length of 8 bytes": b"\x81\xff" + bytes(6) + b"\0\3\1\2\3\4abc",
            "invalid UTF-8": self.frame(b"\xff"),
            "half a character": self.frame(b"\xc3"),
        }.items():
            with self.subTest(name=name):
                self.assertIsNone(messages.whole_text(data, 65535))

    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        payload = messages.whole_text(data, 65535)
        if payload is not None:
            mask = data[2:6] if len(payload) < 126 else data[4:8]
            self.assertEqual(self.frame(payload, mask=mask), data)


class EndsWithCloseTests(SynchronousTestCase):
    """The close frame of a client is found although the frames before it cannot be parsed."""

    def close(self, payload: bytes, mask: bytes = b"\x0f\xf0\x55\xaa") -> bytes:
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        return bytes([0x88, 0x80 | len(payload)]) + mask + masked

    @given(
        st.binary(max_size=300),
        st.just(b"") | st.binary(min_size=2, max_size=125),
        st.binary(min_size=4, max_size=4),
    )
    def test_a_close_frame_at_the_end(self, before: bytes, payload: bytes, mask: bytes) -> None:
        self.assertTrue(messages.ends_with_close(before + self.close(payload, mask)))

    def test_other_bytes(self) -> None:
        close = self.close(b"\x03\xe8")
        for name, data in {
            "nothing": b"",
            "incomplete": close[:-1],
            "more behind it": close + b"x",
            "a payload of one byte": self.close(b"x"),
            "not masked": b"\x88\x02\x03\xe8",
            "another frame": b"\x89" + close[1:],
            "a rest of a long message": b"x" * 70_000,
        }.items():
            with self.subTest(name=name):
                self.assertFalse(messages.ends_with_close(data))
