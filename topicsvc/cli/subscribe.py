"""``topicsvc subscribe``: prints the messages of a topic."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from math import inf
from pathlib import Path
from typing import Any

from hyperlink import URL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from topicsvc.cli.client import connection_error, find_token, parse_url, run_reactor
from topicsvc.cli.terminal import CommandFailed, print_error, print_line
from topicsvc.client import Failed, Gap, Message, Policy, Reason, State, TokenRefused, TopicClient
from topicsvc.client.rules.session import NO_POSITIONS
from topicsvc.client.rules.tokens import checked_token
from topicsvc.files import read_file

__all__ = ["NOW", "Subscription", "run"]

NOW = "now"
"""``--since now``: with positions, from now on."""

POLL_INTERVAL = 1.0
"""Seconds between two looks at the file of the token, while another token is needed."""


def run(options: Namespace) -> None:
    """Print each message on one line, until the connection has ended or enough have arrived.

    With ``--reconnect``, connect again after the end of a connection.

    Raises:
        CommandFailed: the connection failed, ended before enough messages had arrived, or is
            dead; or the messages cannot be printed.
        KeyboardInterrupt: the user stopped the command. The connection is closed.
    """
    token = find_token(options)
    url = parse_url(options.url, "ws", "wss")
    begun: list[Subscription] = []

    def begin(reactor: Any) -> Deferred[None]:
        begun.append(Subscription(reactor, url, token, options))
        return begun[0].begin()

    run_reactor(begin, lambda: begun[0].stop())  # noqa: PLW0108, it is not there yet


class Subscription:
    """The client of the command, from its beginning to its end.

    Args:
        reactor: the reactor.
        url: the URL of the topic.
        token: the first token.
        options: those of the command.
        endpoint: where to connect; None: to the host of the URL.
    """

    def __init__(
        self,
        reactor: Any,
        url: URL,
        token: str,
        options: Namespace,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        self._since: str | None = None if options.since == NOW else options.since
        self._url = url
        self._token = token
        self._token_file: Path | None = options.token_file
        self._is_raw: bool = options.json
        self._left: int | None = options.count
        self._reconnects: bool = options.reconnect
        self._reactor = reactor
        self._done: Deferred[None] = Deferred()
        self._client = TopicClient(
            reactor,
            url.to_text(),
            self._get_token,
            self._on_message,
            recover=options.reconnect or options.since is not None,
            since=self._since,
            on_gap=self._on_gap,
            on_state=self._on_state,
            on_note=self._on_note,
            endpoint=endpoint,
            policy=Policy(token_timeout=inf),  # the user decides when there is another
        )

    def begin(self) -> Deferred[None]:
        """Connect; fires when the command has done its work, or fails with `CommandFailed`."""
        self._client.when_ended().addErrback(self._failed)
        self._client.startService()
        return self._done

    def stop(self) -> None:
        """Close the connection."""
        self._end(None)

    def _end(self, error: CommandFailed | None) -> None:
        """Close the connection, and end the command with this error."""
        if not self._done.called:
            self._client.stopService().addCallback(lambda _: self._finish(error))

    def _finish(self, error: CommandFailed | None) -> None:
        if self._done.called:
            return
        self._tell_position()
        if error is None:
            self._done.callback(None)
        else:
            self._done.errback(error)

    def _tell_position(self) -> None:
        """Say where to go on, if it is known. With ``--json`` each line has its position."""
        position = self._client.position
        if position is not None and position != self._since and not self._is_raw:
            print_error(
                f"the last position is {position}; go on with --since {shlex.quote(position)}"
            )

    def _failed(self, failure: Failure) -> None:
        failure.trap(Failed)
        self._end(self._reason())

    def _reason(self) -> CommandFailed:
        """Why the last connection ended."""
        end = self._client.end
        if end is not None and not end.was_open and not end.reason:
            return connection_error(self._url, end.detail)
        return CommandFailed(f"closed: {end}")

    def _get_token(self, reason: Reason) -> Any:
        if reason == "first":
            return self._token
        if self._token_file is not None:
            return self._wait_for_token(self._token_file)
        if self._client.state == "live":
            return Deferred()  # there is no other token: it is used until it expires
        raise TokenRefused(str(self._client.end))

    async def _wait_for_token(self, file: Path) -> str:
        """Wait until the file has another token."""
        has_told = False
        while (token := _token_in(file)) in ("", self._token):
            if self._client.state != "live" and not has_told:
                print_error(f"waiting for another token in {file}")
                has_told = True
            await deferLater(self._reactor, POLL_INTERVAL)
        self._token = token
        return token

    def _on_message(self, message: Message) -> None:
        # In JSON a line break is only whitespace; in strings it is escaped.
        body = message.text.replace("\r", " ").replace("\n", " ")
        position = ""
        if self._is_raw and message.position is not None:
            position = f',"Position":{json.dumps(message.position)}'
        try:
            print_line(
                f'{{"From":{json.dumps(message.sender)},"Body":{body}{position}}}', self._is_raw
            )
        except CommandFailed as error:
            self._end(error)
            return
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._end(None)

    def _on_gap(self, gap: Gap) -> None:
        print_error(
            f"messages may have been missed after {gap.since or 'the beginning'}"
            + (f"; they go on after {gap.position}" if gap.position else "")
        )

    def _on_note(self, text: str) -> None:
        if text == NO_POSITIONS:  # everything else is the reason for the end of a connection
            print_error(text)

    def _on_state(self, state: State) -> None:
        if state == "live":
            print_error(f"subscribed for {self._client.lifetime:.0f} seconds")
        elif state == "waiting":
            reason = self._reason()
            if self._reconnects:
                print_error(f"{reason.lines[0]}; connecting again")
            else:
                self._end(reason)


def _token_in(file: Path) -> str:
    """The token in the file; empty if there is none now, or what is there is not one."""
    try:
        return checked_token(read_file(file).decode("utf-8-sig").strip())
    except (OSError, ValueError):
        return ""
