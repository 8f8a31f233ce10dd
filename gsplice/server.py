"""`ForwardServer`: a port forwarder that is ready to run.

Invariant: a client is accepted only where there is an fd for its connection to the target as well:
that socket is made before, and kept until there is a client for it. So at the fd limit clients
wait in the backlog, none that has been accepted is dropped, and those accepted don't wait for each
other.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, Final

import gevent
from gevent import GreenletExit, socket
from gevent.event import Event

from gsplice import _addresses, _connecting, _gevent, _options, _own_methods, _reset
from gsplice._accepting import AcceptingServer, check_listener
from gsplice._connecting import Connecting, Destination, Reserve, Target, begin, make_prompt
from gsplice._direction import TransferStopped
from gsplice._forwarding import Forwarding, may_exchange
from gsplice._gevent import LeanSocket
from gsplice.relay import Relay

_logger = logging.getLogger(__name__)

#: Seconds that looking up and connecting to the target may take. As long as two SYNs that are
#: lost take to be sent again (RFC 6298: 1 s, then 2 s), and some more for a slow link.
CONNECT_TIMEOUT: Final = 10.0

#: Seconds between two tries to connect without an fd: nothing tells when there is one.
_RETRY: Final = 0.01


class ForwardServer(AcceptingServer):
    """Accepts connections and relays each of them to *target*.

    A target that cannot be reached costs that client its connection and is logged. A connection
    needs no greenlet, but for a target that has to be looked up or called. A peer that has vanished
    (its cable is out, its host is down) is given up by TCP's keepalive after two minutes, without
    an idle time-out as well.

    :param listener: where to accept: an address or a listening socket, as for `StreamServer`.
    :param target: where to connect to; see `Target`.
    :param idle_timeout: seconds without a byte in either direction after which both ends are
        closed; None for never. A client that is slow to take its bytes takes some; see `Transfer`.
    :param max_connections: the most to serve at once; further ones wait in the backlog. None
        for no limit.
    :param connect_timeout: seconds that it may take to connect to the target; None for as long
        as the kernel tries.
    :param mode: see `gsplice.copy`.
    :param moderation: see `gsplice.copy`.
    :param backlog: see `socket.listen`.
    :param reuse_port: whether other processes of this user may listen at the same address, and the
        kernel spread clients over them (``SO_REUSEPORT``).
    :raises TypeError: for what is no target, or a listening socket that gevent does not manage.
    :raises ValueError: for a bad mode, or a number that makes no sense.
    """

    def __init__(
        self,
        listener: Any,
        target: Target,
        *,
        idle_timeout: float | None = None,
        max_connections: int | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        mode: str = "auto",
        moderation: float = _options.MODERATION,
        backlog: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        _check_relays_alone(type(self))
        self._reserve = Reserve()
        self.target = target
        self.connect_timeout = _options.seconds("connect_timeout", connect_timeout)
        self.max_connections = _options.max_connections(max_connections)
        self.relay_options: dict[str, Any] = {
            "idle_timeout": _options.seconds("idle_timeout", idle_timeout),
            "mode": _options.mode(mode),
            "moderation": _options.moderation(moderation),
        }
        #: How many connections have been accepted.
        self.accepted = 0
        self._connections: set[_Connection] = set()
        self._asks_target = _own_methods.has_own(self, ("connect",), __name__)
        #: Whether clients have inherited what `make_prompt` set on the listening socket.
        self.clients_are_prompt = False
        self._short_of_fds = 0  # connections that have been accepted and want one
        self._all_done = Event()
        self._all_done.set()
        self.reuse_port = reuse_port
        #: Whether connections begin as an exchange; see `Forwarding`.
        self.may_exchange = False
        check_listener(listener, reuse_port)
        super().__init__(listener, self._do_nothing, backlog=backlog)

    @property
    def target(self) -> Target:
        """Where clients' connections go; it may be changed, for those who come from then on."""
        return self._target

    @target.setter
    def target(self, target: Target) -> None:
        self._target = _connecting.check(target)
        self._reserve.close()  # it was for the one before

    @property
    def short_of_fds(self) -> bool:
        """Whether somebody is waiting for an fd."""
        return bool(self._short_of_fds) or self._said_no_fd

    @property
    def connections(self) -> int:
        """How many connections are being served."""
        return len(self._connections)

    def full(self) -> bool:
        """Return whether there are as many connections as there may be."""
        if self._short_of_fds:
            return True
        return self.max_connections is not None and self.connections >= self.max_connections

    def init_socket(self) -> None:
        """Listen, where the listener was given as an address."""
        if self.reuse_port and self.closed:
            self.socket = _addresses.bound(self.family, self.address, self.backlog, reuse_port=True)
            self.address = self.socket.getsockname()
        super().init_socket()
        make_prompt(self.socket)
        self.may_exchange = may_exchange(self.socket, self.relay_options)

    def stop_accepting(self) -> None:
        """Accept nobody for now, and keep no fd for anybody."""
        super().stop_accepting()
        self._reserve.close()

    def stop(self, timeout: float | None = None) -> None:
        """Accept who waits already and no more, let all finish, then end what is left.

        :param timeout: seconds to wait; `stop_timeout` (1) if None.
        """
        self.close()
        self._all_done.wait(self.stop_timeout if timeout is None else timeout)
        for connection in list(self._connections):
            connection.stop()
        self._all_done.wait(1)  # they have been told, and close their sockets in the hub

    def connect(self, address: Any) -> socket.socket:
        """Return a new connection to the target for the client at *address*.

        :raises OSError: where there is none to be had; the client's connection is closed then.
        """
        target = self.target
        if callable(target):
            return target(address)
        to = _connecting.destination(target)
        if to is not None:
            return _connecting.connect(to)
        assert isinstance(target, tuple)
        return socket.create_connection(target, timeout=None)

    def do_read(self) -> Any:
        """Accept a client where there are fds for both its ends."""
        return self.accept_by(self._accept)

    def _accept(self) -> Any:
        """Accept a client, and reserve an fd for the connection to the target.

        Where there is none to be had `StreamServer` tries again later.
        """
        self._reserve.fill(self.target, self._asks_target)
        accepted = _gevent.accept(self.socket)
        if accepted is None:
            self.clients_are_prompt = True  # nobody is left who came before it was set
        return accepted

    def do_handle(self, *args: Any) -> None:
        """Serve an accepted connection, which is not closed when its greenlet ends."""
        connection = _Connection(self, self._reserve.take(), *args)
        self.accepted += 1
        self._connections.add(connection)
        self._all_done.clear()
        connection.start(self._reserve.destination)

    def forget(self, connection: _Connection) -> None:
        """*connection* has ended: there is room for another."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_done.set()
        self._accept_again()

    @contextlib.contextmanager
    def accepting_nobody(self) -> Iterator[None]:
        """Leave further clients in the backlog: each fd is wanted for one that is here."""
        self._short_of_fds += 1
        self._reserve.close()
        try:
            yield
        finally:
            self._short_of_fds -= 1
            self._accept_again()

    def _accept_again(self) -> None:
        if self.started:
            self.start_accepting()

    def _do_nothing(self, client: socket.socket, address: Any) -> None:
        """`StreamServer` wants a handler; `do_handle` needs none."""


class _Connection:
    """One client: connected to the target, then forwarded; a greenlet only asks where that is."""

    __slots__ = (
        "_address",
        "_backend",
        "_client",
        "_connecting",
        "_forwarding",
        "_greenlet",
        "_process",
        "_reserved",
        "_server",
    )

    def __init__(
        self,
        server: ForwardServer,
        reserved: _socket.socket | None,
        client: socket.socket,
        address: Any,
    ) -> None:
        self._server = server
        self._reserved = reserved
        self._client = client
        self._address = address
        self._backend: socket.socket | None = None
        self._connecting: Connecting | None = None
        self._forwarding: Forwarding | _reset.Reset | None = None
        self._greenlet: Any = None
        self._process = os.getpid()

    def start(self, destination: Destination | None) -> None:
        """Begin to connect to the target; in a greenlet, if it is not known where that is."""
        if destination is None or self._reserved is None:
            self._greenlet = gevent.spawn(self._connect)
            return
        self._backend = sock = LeanSocket.over(self._reserved)
        self._reserved = None
        timeout = self._server.connect_timeout
        try:
            self._connecting = begin(sock, destination.address, self._connected, timeout)
        except BaseException as problem:
            self._give_up(problem)

    def stop(self) -> None:
        """End at once, whatever is under way."""
        if self._forwarding is not None:
            self._forwarding.stop()
        elif self._connecting is not None:
            self._connecting.stop()
            self._connecting = None  # it refers to this object
            self._close()
        else:
            self._greenlet.kill(block=False)
            if self._greenlet.dead:  # it had not begun, so nobody else closes them
                self._close()

    def _connected(self, error: OSError | None) -> None:
        """The end of connecting without a greenlet."""
        self._connecting = None
        try:
            if error is not None:
                raise error
            assert self._backend is not None
            self._begin_relay(self._backend)
        except BaseException as problem:
            self._give_up(problem)

    def _connect(self) -> None:
        try:
            self._backend = self._connect_with_an_fd()
            self._free_reserved()
            self._begin_relay(self._backend)
        except BaseException as problem:
            self._give_up(problem)

    def _give_up(self, problem: BaseException) -> None:
        if isinstance(problem, OSError) and not self._is_the_parents():
            _logger.warning("%s: cannot connect to the target: %s", self, problem)
        self._close()
        if not isinstance(problem, OSError):
            raise problem

    def _connect_with_an_fd(self) -> socket.socket:
        try:
            return self._connect_in_time()
        except OSError as error:
            in_vain = isinstance(error, socket.gaierror) and self._server.short_of_fds
            if not in_vain and not _connecting.was_short_of_fds(error):
                raise
        with self._server.accepting_nobody():
            self._free_reserved()
            while True:
                if _connecting.is_worth_a_retry(self._server.target):
                    try:
                        return self._connect_in_time()
                    except OSError as error:
                        if not _connecting.was_short_of_fds(error):
                            raise
                gevent.sleep(_RETRY)

    def _free_reserved(self) -> None:
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            reserved.close()

    def _connect_in_time(self) -> socket.socket:
        # Not an OSError, which create_connection would take for the failure of one address.
        with gevent.Timeout(self._server.connect_timeout) as limit:
            try:
                return _connecting.check_connected(self._server.connect(self._address))
            except gevent.Timeout as expired:
                if expired is not limit:
                    raise
        raise TimeoutError("timed out")

    def _begin_relay(self, backend: socket.socket) -> None:
        if self._is_the_parents():
            raise GreenletExit
        client, server = self._client, self._server
        make_prompt(_gevent.raw_socket(backend))
        if not server.clients_are_prompt or type(client) is not LeanSocket:
            make_prompt(_gevent.raw_socket(client))
        self._forwarding = Forwarding(client, backend, server.relay_options, self._ended)
        self._forwarding.start(server.may_exchange)
        self._greenlet = None

    def _is_the_parents(self) -> bool:
        """Whether this is a forked child's copy; what connects in the parent goes on in the child.

        The parent relays its client, and tells what went wrong. Here the sockets are just closed.
        """
        return self._process != os.getpid()

    def _ended(self, relay: Relay | None) -> None:
        if relay is not None and relay.exception is not None:
            _logger.debug("%s: ended by %r", self, relay.exception)
            assert self._backend is not None
            cut_short = _reset.cut_short(relay, self._client, self._backend)
            self._forwarding = _reset.Reset(cut_short, self._close)
            self._forwarding.start()
            if isinstance(relay.exception, TransferStopped):
                self._forwarding.stop()  # it has had its time
        else:
            self._close()

    def _close(self) -> None:
        self._server.forget(self)
        self._free_reserved()
        self._client.close()
        if self._backend is not None:
            self._backend.close()

    def __str__(self) -> str:
        return f"client {_addresses.show(self._address)}"


def _check_relays_alone(cls: type) -> None:
    """Raise TypeError where a subclass would handle clients, as those of `StreamServer` do."""
    if hasattr(cls, "handle"):
        raise TypeError(
            f"{cls.__name__}.handle would not be called: a ForwardServer relays its clients. "
            "To refuse one, or to choose its target, override connect"
        )
