"""Receive from a topic with asyncio: pip install topicsvc-client; python receive.py wss://..."""

import asyncio
import logging
import os
import sys

from topicsvc_client import Failed, Topic


async def get_token(_: str) -> str:
    """Return a token. Replace this with a request to your authorization server."""
    return os.environ["TOPICSVC_TOKEN"]


async def main(url: str) -> None:
    """Print each message."""
    async with Topic(url, get_token, on_state=logging.info) as topic:
        async for message in topic:
            print(message.text, "from", message.sender, flush=True)


logging.basicConfig(level=logging.INFO, format="%(message)s")
if len(sys.argv) != 2 or "TOPICSVC_TOKEN" not in os.environ:
    sys.exit("usage: TOPICSVC_TOKEN=... python receive.py wss://...")
try:
    asyncio.run(main(sys.argv[1]))
except (Failed, ValueError) as error:
    sys.exit(f"failed: {error}")
except KeyboardInterrupt:
    sys.exit(130)
