"""The settings of ``--demo``, its page, and the commands that it prints to try the service."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv6Address
from twisted.internet.interfaces import IListeningPort

from topicsvc.errors import ConfigError
from topicsvc.process.setup import fail_to_start
from topicsvc.settings import Config, LocalSettings
from topicsvc.topics import TopicAddress, Unit
from topicsvc.validators.local import RIGHTS, make_key, sign_token

__all__ = ["ENDPOINT", "TOPIC", "announce", "new_token", "sample_curl", "settings"]

ENDPOINT = "tcp:8080:interface=127.0.0.1"
TOPIC = TopicAddress("cell1", "box1", ("stream-collection1",), "name")
TOKEN_LIFETIME = 3600

_SAMPLE = '{"hello":"world"}'
_HOST = "127.0.0.1"
_KIND = re.compile(r"(tcp|ssl|tls):")
_INTERFACE = re.compile(r":interface=([0-9.]+)(?::|$)")
_ANY = "0.0.0.0"  # noqa: S104 - compared with, not listened on


def settings(listen: Sequence[str], admin: str | None) -> Config:
    """Return the settings of a demo: memory broker, local validator, a new key.

    Raises:
        ConfigError: the first endpoint is not TCP or TLS, so it has no URL to print.
    """
    endpoints = tuple(listen) or (ENDPOINT,)
    kind = _KIND.match(endpoints[0])
    if kind is None:
        raise ConfigError(
            [f"listen: {endpoints[0]!r}: not for a demo; allowed: tcp:..., ssl:... or tls:..."]
        )
    scheme = "http" if kind[1] == "tcp" else "https"
    interface = _INTERFACE.search(endpoints[0])
    hosts = ["localhost", _HOST, *(interface.groups() if interface else ())]
    return Config(
        listen=endpoints,
        admin=admin,
        unit=Unit(f"{scheme}://localhost/", hosts),
        validator=LocalSettings(make_key()),
    )


def new_token(config: Config, now: float) -> str:
    """Make a token for the topic of the demo, which is valid for an hour."""
    assert isinstance(config.validator, LocalSettings)  # noqa: S101 - `settings` has made it
    return sign_token(
        config.validator.key,
        config.unit.cell_url(TOPIC.cell),
        [TOPIC.path],
        RIGHTS,
        int(now) + TOKEN_LIFETIME,
    )


def sample_curl(send_url: str) -> str:
    """The command that sends a message without the topicsvc command."""
    return (
        f"curl {send_url} \\\n"
        f"""    -H "Authorization: Bearer $TOPICSVC_TOKEN" -d '{_SAMPLE}'"""
    )


def announce(config: Config, ports: Sequence[IListeningPort], now: float) -> None:
    """Print the URL of the page and the commands to try.

    They go to the real standard output: with the prefix of log lines they could not be pasted.
    """
    out = sys.__stdout__
    if out is None:
        return
    try:
        out.write(text(config, ports, now))
        out.flush()
    except OSError as error:
        fail_to_start([f"standard output: {error.strerror}"])


def text(config: Config, ports: Sequence[IListeningPort], now: float) -> str:
    """The text that a demo prints when it listens."""
    is_tls = not config.listen[0].startswith("tcp:")
    address: Any = ports[0].getHost()
    host = _HOST if address.host == _ANY else address.host
    if isinstance(address, IPv6Address):
        host = "localhost"
    authority = f"{host}:{address.port}"
    page_url = f"{'https' if is_tls else 'http'}://{authority}"
    websocket_url = f"{'wss' if is_tls else 'ws'}://{authority}{TOPIC.websocket_path}"
    send_url = page_url + TOPIC.send_path
    return f"""
This is a demo of topicsvc. It stores nothing; its key and tokens are valid until it ends.

To see messages in a browser, open this page:
    {page_url}/

To see them in a terminal, give it a token first, which is valid for one hour:
    export TOPICSVC_TOKEN={new_token(config, now)}
Then receive:
    topicsvc subscribe {websocket_url}
In another terminal, after the same export, send:
    topicsvc send {send_url} '{_SAMPLE}'
Or without the topicsvc command:
    {sample_curl(send_url).replace(chr(10), chr(10) + "    ")}

"""
