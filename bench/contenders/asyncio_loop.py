"""asyncio, on its own loop and on uvloop's: a relay of streams, and one of protocols.

Both libraries set ``TCP_NODELAY`` themselves.
"""

import importlib.util
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from bench.addresses import BACKLOG, Address, announce, listening
from bench.contenders import Contender

READ_SIZE = 65536

Relay = Callable[[Address, Address], Coroutine[Any, Any, None]]


async def relay_streams(at: Address, backend: Address) -> None:
    """What the documentation of asyncio leads to."""
    import asyncio

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(backend, str):
            back_reader, back_writer = await asyncio.open_unix_connection(backend)
        else:
            back_reader, back_writer = await asyncio.open_connection(*backend)
        try:
            await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))
        finally:
            writer.close()
            back_writer.close()

    listener = listening(at)
    if isinstance(at, str):
        server = await asyncio.start_unix_server(handle, sock=listener, backlog=BACKLOG)
    else:
        server = await asyncio.start_server(handle, sock=listener, backlog=BACKLOG)
    await _serve_for_ever(server, listener.getsockname())


async def relay_protocols(at: Address, backend: Address) -> None:
    """The least that the loop's callbacks can be made to do."""
    import asyncio

    from bench.contenders._asyncio_protocol import Client, End

    loop = asyncio.get_running_loop()

    async def connect(protocol: End) -> None:
        if isinstance(backend, str):
            await loop.create_unix_connection(lambda: protocol, backend)
        else:
            await loop.create_connection(lambda: protocol, *backend)

    listener = listening(at)
    create = loop.create_unix_server if isinstance(at, str) else loop.create_server
    server = await create(partial(Client, connect), sock=listener, backlog=BACKLOG)
    await _serve_for_ever(server, listener.getsockname())


async def send_file_natively(at: Address, path: str) -> None:
    import asyncio

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with open(path, "rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file)
        writer.close()

    await _serve_streams(at, handle)


async def send_file_by_blocks(at: Address, path: str) -> None:
    """For uvloop, which has no sendfile."""
    import asyncio

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with open(path, "rb") as file:
            while data := file.read(READ_SIZE):
                writer.write(data)
                await writer.drain()
        writer.close()

    await _serve_streams(at, handle)


async def _serve_streams(at: Address, handle: Any) -> None:
    import asyncio

    listener = listening(at)
    server = await asyncio.start_server(handle, sock=listener, backlog=BACKLOG)
    await _serve_for_ever(server, listener.getsockname())


async def _serve_for_ever(server: Any, address: Address) -> None:
    _tick_when_told()
    announce(address)
    await server.serve_forever()


def _tick_when_told() -> None:
    import asyncio
    import signal

    from bench.contenders._ticker import Ticker

    loop = asyncio.get_running_loop()
    running: list[tuple[Ticker, asyncio.Task[None]]] = []

    async def tick(ticker: Ticker) -> None:
        while ticker.running:
            await asyncio.sleep(ticker.delay())
            ticker.tick()

    def begin_or_end() -> None:
        if running:
            running.pop()[0].report()
        else:
            ticker = Ticker()
            running.append((ticker, loop.create_task(tick(ticker))))

    loop.add_signal_handler(signal.SIGUSR2, begin_or_end)


def run(relay: Relay, with_uvloop: bool, at: Address, backend: Any) -> None:
    import asyncio

    if with_uvloop:
        import uvloop  # type: ignore[import-not-found, unused-ignore]

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.run_until_complete(relay(at, backend))


def uvloop_missing() -> str:
    return "" if importlib.util.find_spec("uvloop") else "uvloop is not installed"


def contender(name: str, description: str, relay: Relay, with_uvloop: bool) -> Contender:
    send: Any = send_file_by_blocks if with_uvloop else send_file_natively
    send_file: Callable[[Address, Path], None] = partial(run, send, with_uvloop)
    return Contender(
        name,
        description,
        partial(run, relay, with_uvloop),
        uvloop_missing if with_uvloop else lambda: "",
        send_file=None if relay is relay_protocols else send_file,
        ticks=True,
    )


CONTENDERS = [
    contender("asyncio", "asyncio streams, two coroutines for each relay", relay_streams, False),
    contender("asyncio-protocol", "asyncio, a protocol for each socket", relay_protocols, False),
    contender("uvloop", "the streams on uvloop", relay_streams, True),
    contender("uvloop-protocol", "the protocols on uvloop", relay_protocols, True),
]
