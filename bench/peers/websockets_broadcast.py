"""A peer: the websockets library's server with its own broadcast()."""

import asyncio

from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.sessions import pin

members: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    if connection.request.path.startswith("/send"):
        async for message in connection:
            broadcast(members, message)
        return
    members.add(connection)
    try:
        await connection.wait_closed()
    finally:
        members.discard(connection)


async def main() -> None:
    pin(0)
    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
