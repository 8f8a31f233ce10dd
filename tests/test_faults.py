"""Each system call fails, in each way that it can, at each time that it is made: nothing is lost.

On each route that bytes can take, and for each call that is made there, the first such call is
disturbed, then in another transfer the second one, and so on, until a transfer runs through
untouched. What has to come of it stands in `RULES`. Whatever comes, each byte is accounted for:
what has arrived, then what is `undelivered`, then what a new transfer on the same ends moves, are
the bytes that were sent, all, once and in order.

EINTR has no rule of its own. Python makes an interrupted call again by itself (PEP 475), so what
gets as far as gsplice is what the handler of a signal has raised, and it ends a transfer as it
would end a loop of ``recv`` and ``sendall``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import gevent
import pytest
from eagerness import make_eager
from faults import (
    REFUSALS,
    Effect,
    Fault,
    always,
    failing,
    forget_pipes,
    half,
    injected,
    new_fallbacks,
    one_byte,
    raising_after,
    shortened,
    told,
)
from gevent import socket
from peers import PATIENCE, Pairs, connected, error_of, pattern, receive, send_and_end
from routes import MODERATED, MODERATED_AND_SPLICED, ROUTES, STREAM, Route

import gsplice
from gsplice._shutdown import half_close

# What comes of a fault: the transfer
GOES_ON: Final = "goes on"  # as if nothing had been
COPIES: Final = "copies"  # from then on, and `stats` says why
RAISES: Final = "raises"  # the very same error

ERRNOS: Final = (
    *(errno.EAGAIN, errno.EINTR, errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF),
    *(errno.EPIPE, errno.ECONNRESET, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS),
    *(errno.EIO, errno.ENOSPC, errno.EOPNOTSUPP, errno.ENOTCONN),
)

_REFUSED: Final = dict.fromkeys(REFUSALS, COPIES)
_NOT_NOW: Final = {errno.EAGAIN: GOES_ON}
_PEER_HAS_GONE: Final = dict.fromkeys((errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET), GOES_ON)

#: Call → errno → what comes of it; what is not there is raised, as `recv` and `sendall` would.
RULES: Final[dict[str, dict[int, str]]] = {
    # Nothing has been consumed when it is refused: the same bytes can be copied.
    "splice": {**_NOT_NOW, **_REFUSED},
    "sendfile": {**_NOT_NOW, **_REFUSED},
    "pipe2": _REFUSED,
    "fcntl F_GETPIPE_SZ": _REFUSED,
    # A pipe that does not grow is used as it is.
    "fcntl F_SETPIPE_SZ": dict.fromkeys(REFUSALS, GOES_ON),
    # Whatever readiness said, it is waited for again.
    "recv": _NOT_NOW,
    "recv_into": _NOT_NOW,
    "send": _NOT_NOW,
    "sendmsg": _NOT_NOW,
    # What goes out before a chunk is spliced; where it cannot, it goes out with copied bytes.
    "send (of a size line)": {**_NOT_NOW, **_REFUSED},
    "pread": _NOT_NOW,
    "pwrite": _NOT_NOW,
    # The direction that reads from that peer finds out what became of it.
    "shutdown": _PEER_HAS_GONE,
    # Moderation is a convenience.
    "getsockopt": dict.fromkeys(ERRNOS, GOES_ON),
}
#: What these do not say: there is nothing that they could wait for.
_NEVER_SAID: Final = {(call, errno.EAGAIN) for call in ("pipe2", "shutdown")}
_SHORT: Final = {"one byte": shortened(one_byte), "half": shortened(half)}
_MOVING_NOTHING: Final = ("pipe2", "fcntl", "shutdown", "getsockopt")
#: No transfer here makes so many calls.
_MANY: Final = 200


def effects(call: str) -> Iterator[tuple[str, Effect, str, int]]:
    """Tell what can become of *call*: the name of the effect, the effect, its rule, the errno."""
    for number in ERRNOS:
        if (call, number) not in _NEVER_SAID:
            rule = RULES[call].get(number, RAISES)
            yield errno.errorcode[number], failing(number), rule, number
    if not call.startswith(_MOVING_NOTHING):
        for name, effect in _SHORT.items():
            yield name, effect, GOES_ON, 0


@pytest.fixture(autouse=True)
def _never_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have moderation take a few writes for a stream, however quick or busy the machine is."""
    make_eager(monkeypatch, reads=4)


class Outcome(NamedTuple):
    """What came of a transfer."""

    error: BaseException | None
    fallbacks: dict[str, int]


def run(route: Route, *faults: Fault) -> Outcome:
    """Have one transfer on *route* with *faults* in it, and check that nothing is lost by them."""
    giving = route.gives(route.data, route.piece)
    taking = route.takes()
    feeding = gevent.spawn(giving.feed)
    try:
        forget_pipes()
        before = gsplice.stats()
        with injected(*faults, sockets=[*giving.sockets, *taking.sockets]):
            transfer = gsplice.Transfer(giving.thing, taking.thing, route.count, mode=route.mode)
            transfer.start()
            taking.begin(transfer)
            error = error_of(transfer.get, PATIENCE)
        outcome = Outcome(error, new_fallbacks(before))
        check_figures(transfer, before)
        assert error is not None or transfer.undelivered == b""
        assert error is not None or transfer.moved == (route.count or len(route.data))
        send_the_rest(transfer, giving, taking)
        feeding.get(timeout=PATIENCE)
        assert taking.end() == route.data
        giving.check_end()
        return outcome
    finally:
        feeding.kill()
        giving.close()
        taking.close()


def send_the_rest(transfer: gsplice.Transfer, giving: Any, taking: Any) -> None:
    """Send what *transfer* has not, over the same ends."""
    undelivered = transfer.undelivered
    taken = transfer.moved + len(undelivered)
    assert undelivered == giving.data[transfer.moved : taken]
    gsplice.copy(io.BytesIO(undelivered), taking.thing)
    assert taken + gsplice.copy(giving.thing, taking.thing) == len(giving.data)


def check_figures(task: gsplice.Transfer | gsplice.Relay, before: gsplice.Stats) -> None:
    """Check that `stats` has counted what *task* has moved, and that nothing of it is left."""
    now = gsplice.stats()
    assert now.spliced - before.spliced == task.spliced
    assert now.copied - before.copied == task.moved - task.spliced
    assert now.active == before.active
    assert now.pipes == now.idle_pipes


def check_rule(rule: str, number: int, outcome: Outcome) -> None:
    """Check that what came of the errno *number* is what *rule* says."""
    copies = rule == COPIES
    assert set(outcome.fallbacks) == ({errno.errorcode[number]} if copies else set())
    if rule == RAISES:
        assert type(outcome.error) is type(OSError(number, ""))
        assert outcome.error.errno == number
    else:
        assert outcome.error is None


def at_each_time(
    run: Callable[..., Outcome], what: str, make: Callable[[int], Fault], *others: Fault
) -> Iterator[Outcome]:
    """Have *run* with a fault at the first time, the second one, and so on.

    They end with the first one that the fault does not reach: that has to run through untouched,
    where there are no *others* beside it.
    """
    for first in range(1, _MANY):
        fault = make(first)
        with told(f"{fault.name} number {first}: {what}"):
            outcome = run(fault, *others)
            if fault.reached:
                yield outcome
            else:
                assert others or outcome == Outcome(None, {})
                return
    pytest.fail("it makes ever more calls")


def made(*names: str) -> list[Any]:
    """Return each route with each of the calls *names* that it makes; all where there are none."""
    return [
        pytest.param(route, call, id=f"{name}, {call}")
        for name, route in ROUTES.items()
        for call in route.calls
        if call in names or not names
    ]


def check_in_each_way(call: str, once: Callable[..., Outcome]) -> None:
    """Have *call* fail in each way at each time that *once* makes it, by the rule for it."""
    for name, effect, rule, number in effects(call):
        times = 0
        for outcome in at_each_time(once, name, functools.partial(Fault, call, effect)):
            check_rule(rule, number, outcome)
            times += 1
        assert times, "the call is never made"


@pytest.mark.parametrize(("route", "call"), made())
def test_each_call_fails_in_each_way_at_each_time(route: Route, call: str) -> None:
    check_in_each_way(call, functools.partial(run, route))


@pytest.mark.parametrize(
    ("route", "call"),
    [(MODERATED, "recv_into"), (MODERATED, "send"), (MODERATED_AND_SPLICED, "splice")],
    ids=["recv_into", "send", "splice"],
)
def test_each_call_of_a_moderated_stream_fails_at_each_time(route: Route, call: str) -> None:
    fault = functools.partial(Fault, call, failing(errno.EIO))
    for outcome in at_each_time(functools.partial(run, route), "EIO", fault):
        check_rule(RAISES, errno.EIO, outcome)


@pytest.mark.parametrize(("route", "call"), made("splice", "sendfile", "pipe2"))
def test_what_is_refused_at_each_time_is_asked_for_once(route: Route, call: str) -> None:
    for number in REFUSALS:
        faults: list[Fault] = []

        def refused(first: int, number: int = number, faults: list[Fault] = faults) -> Fault:
            faults.append(always(call, failing(number), first))
            return faults[-1]

        for outcome in at_each_time(functools.partial(run, route), "for ever", refused):
            check_rule(COPIES, number, outcome)
            assert outcome.fallbacks[errno.errorcode[number]] == 1
        assert [fault.calls for fault in faults[:-1]] == [*range(1, len(faults))]


@pytest.mark.parametrize(("route", "call"), made("splice", "sendfile"))
def test_copying_after_a_refusal_fails_at_each_time(route: Route, call: str) -> None:
    for copies_by in ("recv_into", "send", "sendmsg", "pread", "pwrite"):
        fault = functools.partial(Fault, copies_by, failing(errno.EIO))
        for first in range(1, _MANY):
            refused = always(call, failing(errno.EINVAL), first)
            after_refusal = at_each_time(
                functools.partial(run, route), f"after refusal {first}", fault, refused
            )
            for outcome in after_refusal:
                check_rule(RAISES, errno.EIO, outcome._replace(fallbacks={}))
                refused.calls = 0
            if not refused.reached:
                break
        else:
            pytest.fail("it makes ever more calls")


@pytest.mark.parametrize(
    ("route", "call"), made("splice", "sendfile", "recv", "recv_into", "send", "sendmsg")
)
def test_readiness_is_wrong_three_times_in_a_row(route: Route, call: str) -> None:
    def not_now(first: int) -> Fault:
        return Fault(call, failing(errno.EAGAIN), first, first + 2)

    for outcome in at_each_time(functools.partial(run, route), "thrice", not_now):
        check_rule(GOES_ON, errno.EAGAIN, outcome)


@pytest.mark.parametrize(("route", "call"), made("splice"))
def test_what_is_left_in_a_pipe_comes_back_in_small_pieces(route: Route, call: str) -> None:
    fault, pieces = (
        functools.partial(Fault, call, failing(errno.EIO)),
        always("read", _SHORT["half"]),
    )
    for outcome in at_each_time(functools.partial(run, route), "in pieces", fault, pieces):
        check_rule(RAISES, errno.EIO, outcome)
    assert pieces.reached


@pytest.mark.parametrize("call", ["send", "shutdown"])
def test_the_end_of_a_tls_session_is_told_or_why_it_is_not(pairs: Pairs, call: str) -> None:
    for number in ERRNOS:
        near, far = pairs("tls")
        fault = Fault(call, failing(number))
        with told(errno.errorcode[number]), injected(fault, sockets=[near]):
            error = error_of(half_close, near)
            assert fault.reached
            rule = {**RULES[call], **_PEER_HAS_GONE}.get(number, RAISES)
            check_rule(rule, number, Outcome(error, {}))
            if number == errno.EAGAIN and rule == GOES_ON:
                assert receive(far) == b""


class Interrupted(Exception):
    """What the handler of a signal raises."""


@pytest.mark.parametrize(("route", "call"), made("splice"))
def test_a_signal_handler_raises_right_after_each_splice(route: Route, call: str) -> None:
    fault = functools.partial(Fault, call, raising_after(Interrupted))
    for outcome in at_each_time(functools.partial(run, route), "an exception", fault):
        assert type(outcome.error) is Interrupted
        assert outcome.fallbacks == {}


def relay(mode: str, sink_buffer: int, *faults: Fault) -> Outcome:
    """Have one relay with *faults* in it, and check that nothing is lost by them."""
    sent = {"up": STREAM, "down": pattern(50_003, 13)}
    (client, a), (b, backend) = connected("unix"), connected("unix")
    b.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sink_buffer)
    peers = [
        gevent.spawn(send_and_end, client, sent["up"]),
        gevent.spawn(send_and_end, backend, sent["down"]),
        received_up := gevent.spawn(receive, backend),
        received_down := gevent.spawn(receive, client),
    ]
    try:
        forget_pipes()
        before = gsplice.stats()
        with injected(*faults, sockets=[a, b]):
            relay = gsplice.Relay(a, b, mode=mode).start()
            error = error_of(relay.get, PATIENCE)
        check_figures(relay, before)
        fallbacks = new_fallbacks(before)
        for name, source, sink in (("up", a, b), ("down", b, a)):
            leg = getattr(relay, name)
            assert leg.undelivered == sent[name][leg.moved :][: len(leg.undelivered)]
            sink.sendall(leg.undelivered)
            rest = gsplice.copy(source, sink)
            assert leg.moved + len(leg.undelivered) + rest == len(sent[name])
            with contextlib.suppress(OSError):  # the relay has done it, perhaps
                sink.shutdown(socket.SHUT_WR)
        assert received_up.get(timeout=PATIENCE) == sent["up"]
        assert received_down.get(timeout=PATIENCE) == sent["down"]
        return Outcome(error, fallbacks)
    finally:
        gevent.killall(peers)
        for sock in (client, a, b, backend):
            sock.close()


@pytest.mark.parametrize("buffer", [1 << 20, 8192], ids=["flowing", "stalling"])
@pytest.mark.parametrize(
    ("mode", "call"),
    [
        *(("auto", call) for call in ("splice", "pipe2", "recv_into", "send", "shutdown")),
        *(("splice", call) for call in ("splice", "recv_into", "shutdown")),
        *(("copy", call) for call in ("recv_into", "send", "shutdown")),
    ],
)
def test_each_call_of_a_relay_fails_in_each_way_at_each_time(
    mode: str, buffer: int, call: str
) -> None:
    times = 0
    for name, effect, rule, number in effects(call):
        fault = functools.partial(Fault, call, effect)
        for outcome in at_each_time(functools.partial(relay, mode, buffer), name, fault):
            check_rule(rule, number, outcome)
            times += 1
    assert times, "the call is never made"
