"""The command line: ``python -m gsplice forward`` and ``python -m gsplice demo``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import gevent
from gevent import socket

from gsplice import __version__, _addresses, _options, _output, _systemd
from gsplice._meter import Meter
from gsplice.server import CONNECT_TIMEOUT, ForwardServer

#: Seconds that relays have to finish in once the server has been told to end.
_GRACE: Final = 10.0
#: How many connections the kernel queues; it caps the number at net.core.somaxconn.
_BACKLOG: Final = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (``sys.argv`` if None) name; return the exit status.

    Where nobody reads on (``| head``) it is a quiet end, with the status that a shell gives what
    SIGPIPE has ended. The signal itself would leave what was started behind. Any other error in
    writing is one line and status 1.

    Invariant: what is taken for an error of the output is one. Only `_output.say` raises an
    `OutputError`, and an `OSError` of anything else goes on up, a `BrokenPipeError` included.
    """
    try:
        return _run(arguments)
    except _output.OutputError as failure:
        return _cannot_say(failure.reason)


def _cannot_say(reason: OSError) -> int:
    """Say why nothing more can be said, if that is any use; return the exit status."""
    if isinstance(reason, BrokenPipeError):
        status = 128 + signal.SIGPIPE
    else:
        status = 1
        with contextlib.suppress(_output.OutputError):
            _say(f"cannot write output: {reason.strerror or reason}")
    _output.forget()
    return status


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    command = options.command
    try:
        status: int = command(options)
    except _UsageError as error:
        _say(str(error))
        return 2
    return status


class _UsageError(Exception):
    """An argument that cannot be followed; the message is for the user."""


class _Parser(argparse.ArgumentParser):
    """A parser whose help and version are output like any other.

    argparse writes them without looking whether that succeeds.
    """

    def _print_message(self, message: str, file: Any = None) -> None:
        _output.say(message or "", file or sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gsplice", description="Relays for gevent whose bytes stay in the kernel."
    )
    parser.add_argument("--version", action="version", version=f"gsplice {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_forward(commands)
    _add_demo(commands)
    return parser


def _add_forward(commands: Any) -> None:
    parser = commands.add_parser(
        "forward",
        help="forward connections to another address",
        description="Accept connections at LISTEN and relay each of them to TARGET. An address "
        "is host:port, [v6]:port or unix:/path. As LISTEN, systemd stands for the socket that was "
        "passed by socket activation, and systemd:NAME for the one of that name. SIGTERM and "
        "SIGINT end it.",
    )
    parser.set_defaults(command=_forward)
    parser.add_argument("listen", metavar="LISTEN", help="where to accept; port 0 takes a free one")
    parser.add_argument("target", metavar="TARGET", help="where to connect to")
    _add_limits(parser)
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        help="let other processes listen at the same port, and share its clients (SO_REUSEPORT)",
    )
    parser.add_argument(
        "--mode",
        choices=_options.MODES,
        default="auto",
        help="auto (the default) chooses by what flows",
    )
    parser.add_argument(
        "--moderation",
        type=float,
        metavar="S",
        default=_options.MODERATION,
        help="how long a byte of a stream of small writes may wait for company "
        "(default: %(default)s; 0: off)",
    )
    parser.add_argument(
        "--stats", action="store_true", help="show a live line on a terminal, and a summary"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idle-timeout", type=float, metavar="S", help="end a relay after S seconds without a byte"
    )
    parser.add_argument(
        "--connect-timeout",
        type=float,
        metavar="S",
        default=CONNECT_TIMEOUT,
        help="let a connection to TARGET take S seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections", type=int, metavar="N", help="serve at most N connections at once"
    )
    parser.add_argument(
        "--grace",
        type=float,
        metavar="S",
        default=_GRACE,
        help="let relays finish for S seconds when told to end (default: %(default)s)",
    )


def _forward(options: argparse.Namespace) -> int:
    server = _server(options)
    _end_on_signals(server)
    server.start()
    _say(f"listening on {_addresses.show(server.address)}, forwarding to {options.target}")
    meter = Meter(server, sys.stderr) if options.stats else None
    line_start = meter.line_start if meter else ""
    logging.basicConfig(
        format=f"{line_start}gsplice: %(message)s", level=logging.INFO, handlers=[_output.Log()]
    )
    with meter or contextlib.nullcontext():
        server.serve_forever(stop_timeout=options.grace)
    return 0


class _OwnSocketServer(ForwardServer):
    """A server that removes its unix socket, when it is to accept no more.

    Not later: while relays finish here, another process may bind a socket of that name. And not
    when somebody has done so already.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = _file_at(self.address)

    def close(self) -> None:
        path: Any = self.address
        if not self.closed and self._file is not None and self._file == _file_at(path):
            with contextlib.suppress(OSError):
                os.unlink(path)
        super().close()


def _file_at(address: Any) -> tuple[int, int] | None:
    """Return which file a unix socket's *address* is, if it is one."""
    if not isinstance(address, str):
        return None
    try:
        status = os.lstat(address)
    except (OSError, ValueError):  # an abstract name is no file's
        return None
    return status.st_dev, status.st_ino


class _SystemdServer(ForwardServer):
    """A server at a socket that systemd keeps, for the next process that accepts there."""

    shares_listener = True


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="show what gsplice does on this machine",
        description="Move the same bytes through a forwarder as it is usually written with gevent "
        "and through gsplice, check that they arrive, and compare speed and CPU time.",
    )
    parser.set_defaults(command=_demo)
    parser.add_argument(
        "--megabytes",
        type=int,
        metavar="N",
        default=1000,
        help="how much a round moves through each (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        default=5,
        help="how many rounds, at the most (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        default=30,
        help="leave out the rounds for which S seconds are too short (default: %(default)s)",
    )


def _demo(options: argparse.Namespace) -> int:
    for name in ("megabytes", "rounds", "seconds"):
        if not getattr(options, name) >= 1:
            raise _UsageError(f"--{name} must be at least 1: {getattr(options, name)}")
    try:
        _options.mode("auto")
    except ValueError as error:  # the environment's
        raise _UsageError(str(error)) from None
    from gsplice.demo.main import run  # here, so that a forwarder need not load it

    return run(options.megabytes, options.rounds, options.seconds)


def _server(options: argparse.Namespace) -> ForwardServer:
    try:
        _options.not_negative("--grace", options.grace)
        _options.not_negative("--moderation", options.moderation)
        _options.seconds("--idle-timeout", options.idle_timeout)
        _options.seconds("--connect-timeout", options.connect_timeout)
        _options.max_connections(options.max_connections, "--max-connections")
        address, target = _parsed_addresses(options)
        listener, server = _listener(options, address)
    except ValueError as error:
        raise _UsageError(str(error)) from None
    except OSError as error:
        reason = error.strerror or error
        raise _UsageError(f"cannot listen on {options.listen}: {reason}") from None
    try:
        return server(
            listener,
            target,
            idle_timeout=options.idle_timeout,
            max_connections=options.max_connections,
            connect_timeout=options.connect_timeout,
            mode=options.mode,
            moderation=options.moderation,
        )
    except ValueError as error:
        listener.close()
        raise _UsageError(str(error)) from None


def _parsed_addresses(options: argparse.Namespace) -> list[Any]:
    """Return where to listen, None where systemd says it, and the target.

    :raises ValueError: where an address is bad; it names both where both are.
    """
    found, problems = [], []
    for text, to_listen in ((options.listen, True), (options.target, False)):
        try:
            by_systemd = to_listen and _systemd.is_meant(text)
            found.append(None if by_systemd else _addresses.parse(text, to_listen=to_listen))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _listener(
    options: argparse.Namespace, address: Any
) -> tuple[socket.socket, type[ForwardServer]]:
    """Return the socket to accept at, and the class of a server for it."""
    if address is None:
        if options.reuse_port:
            raise ValueError("--reuse-port is for an address; a socket unit has ReusePort=yes")
        return _systemd.listener(options.listen), _SystemdServer
    if options.reuse_port and isinstance(address, str):
        raise ValueError(f"--reuse-port is for a port: {options.listen}")
    listener = _addresses.listen(address, _BACKLOG, reuse_port=options.reuse_port)
    return listener, _OwnSocketServer


def _end_on_signals(server: ForwardServer) -> None:
    """End *server* at SIGTERM or SIGINT, and cut its relays off at a second one."""

    def end() -> None:
        if server.closed:
            gevent.spawn(server.stop, 0)
        else:
            server.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, end)


def _say(text: str) -> None:
    _output.say(f"gsplice: {text}\n", sys.stderr)
