"""The messages on the wire, as a client sees them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.client.rules.messages import Beat, Granted, Message, Refused, parse, token_message
from topicsvc.interfaces import Message as ServiceMessage
from topicsvc.topics import TopicAddress
from topicsvc.websocket.messages import TokenRequest, data_frame, parse_request

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
_POSITIONS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


TOPIC = TopicAddress("cell1", "box1", ("col",), "name")


def payload_of(frame: bytes) -> str:
    """The text of an unmasked frame."""
    length = frame[1]
    head = {126: 4, 127: 10}.get(length, 2)
    return frame[head:].decode()


class DataTests(SynchronousTestCase):
    @given(_JSON, st.none() | st.text(max_size=20))
    def test_each_message_of_the_service_is_read(self, value: object, sender: str | None) -> None:
        body = json.dumps(value).encode()
        text = payload_of(data_frame(ServiceMessage(TOPIC, sender, body)))
        self.assertEqual(parse(text), Message(body.decode(), sender, None))

    @given(_JSON, _POSITIONS, st.sampled_from([(",", ":"), (", ", ": ")]), st.booleans())
    def test_a_position_and_blanks_and_any_order_are_read(
        self, value: object, position: str, separators: tuple[str, str], is_reversed: bool
    ) -> None:
        members = {"From": None, "Body": value, "Position": position}
        if is_reversed:
            members = dict(reversed(members.items()))
        message = parse(json.dumps(members, separators=separators))
        body = json.dumps(value, separators=separators)
        self.assertEqual(message, Message(body, None, position))

    def test_the_body_is_parsed_when_it_is_wanted(self) -> None:
        message = parse('{"From":null,"Body":{"a":2.50}}')
        assert isinstance(message, Message)
        self.assertEqual((message.text, message.body), ('{"a":2.50}', {"a": 2.5}))

    def test_a_number_of_any_length_is_read_also_with_blanks(self) -> None:
        digits = "9" * 10000
        for text in (f'{{"From":null,"Body":{digits}}}', f'{{"Body": {digits} }}'):
            message = parse(text)
            assert isinstance(message, Message)
            self.assertEqual(message.text, digits)

    def test_a_heartbeat_and_an_unknown_object(self) -> None:
        self.assertEqual(parse('{"Position":"a.1"}'), Beat("a.1"))
        self.assertIsNone(parse('{"Future":[1,{"Body":2}]}'))
        self.assertIsNone(parse(" { } "))

    def test_what_is_not_of_this_protocol_is_refused(self) -> None:
        for text in (
            *("", "nonsense", "[]", "1", "{", '{"a":1,}', '{"a":1} x', "{} x", "{1:2}"),
            *('{"Body"', '{"Body":', '{"Body":1', '{"Body":1,"From":2}', '{"Position":7}'),
            *('{"Result":"Success"}', '{"Result":"Success","ExpiresIn":null}'),
            *('{"Result":"Success","ExpiresIn":1e999}', '{"Body": ' + "[" * 100000),
        ):
            self.assertRaises(ValueError, parse, text)


class ReplyTests(SynchronousTestCase):
    def test_granted_without_and_with_positions(self) -> None:
        reply = {"Response": "AccessToken", "Result": "Success", "ExpiresIn": 60, "Timestamp": 1}
        self.assertEqual(parse(json.dumps(reply)), Granted(60))
        reply |= {"Position": "a.1", "Missed": True, "Heartbeat": 5}
        self.assertEqual(parse(json.dumps(reply)), Granted(60, "a.1", True, 5))
        reply |= {"Position": None, "Missed": False}
        self.assertEqual(parse(json.dumps(reply)), Granted(60, None, False, 5))

    def test_refused(self) -> None:
        for reason in ("Token inactive", ""):
            reply = {"Response": "AccessToken", "Result": "Error", "Reason": reason}
            self.assertEqual(parse(json.dumps(reply)), Refused(reason))
        self.assertEqual(parse('{"Result":"Error"}'), Refused(""))


class RequestTests(SynchronousTestCase):
    def test_a_token_message_is_what_the_service_reads(self) -> None:
        for since, recover, text, request in (
            (None, False, '{"AccessToken":"t1"}', TokenRequest("t1")),
            ("a.1", False, '{"AccessToken":"t1"}', TokenRequest("t1")),
            (None, True, '{"AccessToken":"t1","Since":null}', TokenRequest("t1", True)),
            ("a.1", True, '{"AccessToken":"t1","Since":"a.1"}', TokenRequest("t1", True, "a.1")),
        ):
            self.assertEqual(token_message("t1", since, recover=recover), text)
            self.assertEqual(parse_request(text.encode()), request)
