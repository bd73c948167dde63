"""Receive from a topic, and connect again if the connection is lost.

    pip install websockets
    export TOPICSVC_TOKEN=...
    python receive.py wss://cell1.unit1.example/__topic/box1/col.topic.name

Prints each message on one line. If you can get new tokens, return them from `current_token`:
`renew` presents the next one on the same connection before the old one expires.
"""

import asyncio
import json
import os
import random
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

MAX_WAIT = 30.0  # seconds
RENEW_AT = 0.8  # of the time until the token expires
FINAL = {1003, 1008}  # the token or a message was refused, or this client was too slow


def current_token() -> str:
    """Return the token to present. Replace this with a request to your authorization server."""
    return os.environ["TOPICSVC_TOKEN"]


async def present(connection) -> None:
    """Present a token. The first one starts the session, a later one extends it."""
    await connection.send(json.dumps({"AccessToken": current_token()}))


async def renew(connection, seconds: int) -> None:
    """Present the next token before this one expires; messages arrive meanwhile."""
    await asyncio.sleep(seconds * RENEW_AT)
    await present(connection)


async def session(url: str) -> tuple[bool, int]:
    """Receive on one connection; returns whether a token was accepted, and the close code."""
    renewing = None
    # The service limits the length of messages. With the default of 1 MiB, this library would close
    # the connection at a message whose body alone has that length.
    async with connect(url, max_size=None) as connection:
        await present(connection)
        try:
            while True:
                message = json.loads(await connection.recv())
                if "Response" not in message:
                    print(json.dumps(message["Body"]), "from", message["From"], flush=True)
                elif message["Result"] == "Success":
                    print("granted for", message["ExpiresIn"], "s", file=sys.stderr, flush=True)
                    if renewing:
                        renewing.cancel()
                    renewing = asyncio.create_task(renew(connection, message["ExpiresIn"]))
                else:
                    print("refused:", message["Reason"], file=sys.stderr, flush=True)
        except ConnectionClosed:
            return renewing is not None, connection.close_code or 1006
        finally:
            if renewing:
                renewing.cancel()


async def main(url: str) -> None:
    """Receive and connect again, until the service refuses the token."""
    failures = 0
    while True:
        code = 1006
        try:
            was_granted, code = await session(url)
            failures = 0 if was_granted else failures
        except InvalidStatus as error:
            if error.response.status_code < 500:
                sys.exit(f"not a topic: HTTP {error.response.status_code}")
        except (OSError, InvalidHandshake) as error:
            print(error, file=sys.stderr, flush=True)
        if code in FINAL:
            sys.exit(f"closed: {code}")
        wait = min(2.0**failures, MAX_WAIT) * random.uniform(0.5, 1.5)
        failures += 1
        print(f"closed: {code}; connecting again in {wait:.1f} s", file=sys.stderr, flush=True)
        await asyncio.sleep(wait)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
