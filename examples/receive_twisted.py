"""Receive from a topic with Twisted: pip install topicsvc; python receive_twisted.py wss://..."""

import os
import sys
from typing import Any

from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from topicsvc.client import Failed, Message, Reason, TopicClient


async def get_token(_: Reason) -> str:
    """Return a token. Replace this with a request to your authorization server."""
    return os.environ["TOPICSVC_TOKEN"]


def on_message(message: Message) -> None:
    """Print a message."""
    print(message.text, "from", message.sender, flush=True)


async def main(reactor: Any, url: str) -> None:
    """Receive until the client gives up, or until Ctrl-C."""
    try:
        client = TopicClient(reactor, url, get_token, on_message, on_state=print)
        reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
        client.startService()
        await client.when_ended()
    except (Failed, ValueError) as error:
        sys.exit(f"failed: {error}")


if len(sys.argv) != 2 or "TOPICSVC_TOKEN" not in os.environ:
    sys.exit("usage: TOPICSVC_TOKEN=... python receive_twisted.py wss://...")
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
react(main, sys.argv[1:])
