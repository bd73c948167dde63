"""The options of librdkafka's clients, and the names that Kafka allows for a topic.

librdkafka's CONFIGURATION.md describes the options. Their times are in milliseconds.
"""

from __future__ import annotations

import re
from typing import Any

from topicsvc.settings import Login

__all__ = ["CONSUMER", "PRODUCER", "Options", "connection_options", "is_topic_name"]

Options = dict[str, Any]

GROUP = "topicsvc"
"""A group id, which librdkafka requires. No group is joined, and nothing is committed."""

CONNECTION: Options = {
    "client.id": "topicsvc",
    "log_level": 0,  # errors are also passed to error_cb
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
    # If a partition does not have the next offset, report an error and do not skip messages.
    "auto.offset.reset": "error",
    # Let the broker create a missing topic, if it is configured to, as Personium's client does.
    "allow.auto.create.topics": True,
    # How long the broker may delay the response to a fetch while there are no records. Other
    # requests on the connection wait for it, for example the first fetch of a new topic.
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 100,
    "queued.max.messages.kbytes": 16384,
}

PRODUCER: Options = {
    "acks": "all",
    # A message that is sent again after a lost confirmation is stored once, in its order.
    "enable.idempotence": True,
    "linger.ms": 0,
    # How long to wait for a topic that the broker does not create.
    "topic.metadata.propagation.max.ms": 5000,
    # After this time the message fails: the broker must not accept it after the sender has got
    # an error.
    "message.timeout.ms": 10000,
    # The broker limits the length of messages, not librdkafka.
    "message.max.bytes": 67108864,
}

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def is_topic_name(name: str) -> bool:
    """Whether Kafka allows this topic name (org.apache.kafka.common.internals.Topic)."""
    return _TOPIC_NAME.fullmatch(name) is not None


def connection_options(
    bootstrap: str, login: Login | None = None, authorities: str | None = None
) -> Options:
    """Return the options for address, login and encryption.

    Args:
        bootstrap: ``host:port`` of some of the broker's servers, separated by commas.
        login: for SASL PLAIN; None: no authentication.
        authorities: CA certificates in PEM; TLS is used, and only these are trusted. None: no TLS.
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
