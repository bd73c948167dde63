"""Adapter: what Kafka allows for a name, and how librdkafka is to behave.

The settings are librdkafka's own (its CONFIGURATION.md). Times are milliseconds there.
"""

from __future__ import annotations

import re
from typing import Any

from topicsvc.settings import Login

__all__ = ["CONSUMER", "PRODUCER", "Options", "connection_options", "is_topic_name"]

Options = dict[str, Any]

GROUP = "topicsvc"
"""librdkafka wants a name here, though nobody joins a group: nothing is committed under it."""

CONNECTION: Options = {
    "client.id": "topicsvc",
    "log_level": 0,  # what it has to say comes as an event as well
    "socket.timeout.ms": 10000,
    "socket.connection.setup.timeout.ms": 5000,
    "socket.nagle.disable": True,
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1000,
}

CONSUMER: Options = {
    "group.id": GROUP,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # A partition that no longer has the messages that come next is told, not skipped over.
    "auto.offset.reset": "error",
    # A topic that nobody has sent to yet is made, where the broker does that, as Personium's
    # own client has it.
    "allow.auto.create.topics": True,
    # How long the broker may keep an answer back while nothing comes. What else is asked on the
    # connection waits behind it, a topic that has just been added too.
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 100,
    "queued.max.messages.kbytes": 16384,
}

PRODUCER: Options = {
    "acks": "all",
    # What is sent again because its confirmation was lost comes once, and in its place.
    "enable.idempotence": True,
    "linger.ms": 0,
    # A topic that the broker does not make is waited for no longer than this.
    "topic.metadata.propagation.max.ms": 5000,
    # Whoever waits has been told by then; a later acceptance would be a surprise.
    "message.timeout.ms": 10000,
    # The broker judges which message is too long, not this library.
    "message.max.bytes": 67108864,
}

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def is_topic_name(name: str) -> bool:
    """Whether Kafka can have a topic of this name (org.apache.kafka.common.internals.Topic)."""
    return _TOPIC_NAME.fullmatch(name) is not None


def connection_options(
    bootstrap: str, login: Login | None = None, authorities: str | None = None
) -> Options:
    """How to reach the broker and who we are.

    Args:
        bootstrap: ``host:port`` of some of its servers, joined by commas.
        login: for SASL PLAIN; None: no authentication.
        authorities: certificates in PEM: TLS is spoken, and nobody else vouches for the
            broker; None: TLS is not spoken.
    """
    protocol = "SSL" if authorities else "PLAINTEXT"
    options: Options = {
        **CONNECTION,
        "bootstrap.servers": bootstrap,
        "security.protocol": f"SASL_{protocol}" if login else protocol,
    }
    if login is not None:
        options |= {
            "sasl.mechanism": "PLAIN",
            "sasl.username": login.username,
            "sasl.password": login.password,
        }
    if authorities is not None:
        options |= {"ssl.ca.pem": authorities, "ssl.endpoint.identification.algorithm": "https"}
    return options
