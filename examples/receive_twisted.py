"""Receive from a topic with Twisted: pip install topicsvc; python receive_twisted.py wss://..."""

import os
import sys

from twisted.internet import reactor
from twisted.internet.task import react

from topicsvc.client import Message, Reason, TopicClient


async def get_token(_: Reason) -> str:
    """Return a token. Replace this with a request to your authorization server."""
    return os.environ["TOPICSVC_TOKEN"]


def on_message(message: Message) -> None:
    """Print a message."""
    print(message.text, "from", message.sender, flush=True)


async def main(_: object, url: str) -> None:
    """Receive until the client gives up."""
    client = TopicClient(reactor, url, get_token, on_message, on_state=print)
    client.startService()
    await client.when_ended()


react(main, sys.argv[1:])
