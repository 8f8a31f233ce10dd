"""Each system call of a connection that is forwarded fails, in each way, at each time.

As in `test_faults`; but an exchange leaves what its sink does not take to a relay, which sends it
anew. So one error in sending costs nothing, and one that stays is the relay's to raise.
"""

from __future__ import annotations

import errno
import functools
from typing import Any, Final

import gevent
import pytest
from faults import Fault, always, failing, forget_pipes, injected
from forwarded import OPTIONS, lean
from gevent import socket
from peers import PATIENCE, connected, error_of, pattern, receive, wait_until
from test_faults import (
    ERRNOS,
    GOES_ON,
    RAISES,
    Outcome,
    at_each_time,
    check_in_each_way,
    check_rule,
    effects,
)

import gsplice
from gsplice import _gevent
from gsplice._forwarding import _MOST_MESSAGES, Forwarding

MESSAGE: Final = 300
#: So many messages are an exchange to their end, and so many are a relay from the middle on.
FEW: Final = _MOST_MESSAGES // 2
MANY: Final = _MOST_MESSAGES + FEW


class Talk:
    """A client and a backend that both send messages, one in each pass of the event loop."""

    def __init__(self, messages: int) -> None:
        self.client, source = connected("unix")
        sink, self.backend = connected("unix")
        self.a, self.b = lean(source), lean(sink)
        self.sent = {"up": pattern(messages * MESSAGE, 1), "down": pattern(messages * MESSAGE, 2)}
        self.told: list[Any] = []
        self.before = gsplice.stats()
        self._peers = [
            gevent.spawn(self._feed, self.client, "up"),
            gevent.spawn(self._feed, self.backend, "down"),
        ]
        self._received = {
            "up": gevent.spawn(receive, self.backend),
            "down": gevent.spawn(receive, self.client),
        }

    def _feed(self, sock: socket.socket, way: str) -> None:
        data = self.sent[way]
        for at in range(0, len(data), MESSAGE):
            sock.sendall(data[at : at + MESSAGE])
            _gevent.let_loop_pass()
        sock.shutdown(socket.SHUT_WR)

    def forward(self) -> BaseException | None:
        """Forward, and return what has ended it."""
        Forwarding(self.a, self.b, OPTIONS, self.told.append).start(True)
        wait_until(lambda: self.told, PATIENCE)
        (relay,) = self.told
        return None if relay is None else relay.exception

    def check(self) -> None:
        """Check that every byte is counted, and is somewhere: here, handed back, or to be had."""
        now = gsplice.stats()
        moved = now.spliced + now.copied - self.before.spliced - self.before.copied
        assert now.active == self.before.active
        assert now.pipes == now.idle_pipes
        gevent.joinall(self._peers, timeout=PATIENCE, raise_error=True)
        (relay,) = self.told
        held = 0
        for way, source, sink in (("up", self.a, self.b), ("down", self.b, self.a)):
            undelivered = b"" if relay is None else getattr(relay, way).undelivered
            rest = undelivered + receive(source)
            held += len(rest)
            error_of(sink.sendall, rest)
            error_of(sink.shutdown, socket.SHUT_WR)
        for way, received in self._received.items():
            assert received.get(timeout=PATIENCE) == self.sent[way]
        assert moved == sum(map(len, self.sent.values())) - held

    def close(self) -> None:
        """Close everything."""
        gevent.killall([*self._peers, *self._received.values()])
        for sock in (self.client, self.a, self.b, self.backend):
            sock.close()


def forward(messages: int, *faults: Fault) -> Outcome:
    """Have one connection forwarded with *faults* in it, and check that nothing is lost by them."""
    forget_pipes()
    talk = Talk(messages)
    try:
        with injected(*faults, sockets=[talk.a, talk.b]):
            error = talk.forward()
        talk.check()
        return Outcome(error, {})
    finally:
        talk.close()


@pytest.mark.parametrize("messages", [FEW, MANY], ids=["exchange", "exchange and relay"])
@pytest.mark.parametrize("call", ["recv_into", "shutdown"])
def test_each_call_of_a_forwarded_connection_fails_in_each_way_at_each_time(
    call: str, messages: int
) -> None:
    check_in_each_way(call, functools.partial(forward, messages))


def test_an_error_in_sending_a_message_is_left_to_a_relay_which_sends_it_anew() -> None:
    for name, effect, _, number in effects("send"):
        fault = functools.partial(Fault, "send", effect)
        for outcome in at_each_time(functools.partial(forward, FEW), name, fault):
            check_rule(GOES_ON, number, outcome)


@pytest.mark.parametrize("messages", [FEW, MANY], ids=["exchange", "exchange and relay"])
def test_an_error_in_sending_that_stays_is_raised_and_loses_nothing(messages: int) -> None:
    for number in set(ERRNOS) - {errno.EAGAIN}:
        fault = functools.partial(always, "send", failing(number))
        for outcome in at_each_time(functools.partial(forward, messages), "for ever", fault):
            check_rule(RAISES, number, outcome)


def test_what_one_way_has_received_is_handed_back_where_the_other_one_fails_at_once() -> None:
    (client, source), (sink, backend) = connected("unix"), connected("unix")
    a, b = lean(source), lean(sink)
    told: list[Any] = []
    with injected(always("send", failing(errno.EIO)), sockets=[a, b]):
        forwarding = Forwarding(a, b, OPTIONS, told.append)
        forwarding.start(True)
        client.sendall(b"a question")
        backend.sendall(b"an answer")
        assert forwarding._down is not None
        forwarding._down.on_readable()
        wait_until(lambda: told)
    assert (told[0].moved, told[0].undelivered) == (0, b"an answer")
    assert receive(a, 10) == b"a question"
    for sock in (client, a, b, backend):
        sock.close()
