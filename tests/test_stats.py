"""`stats()`: the figures of the process add up."""

from __future__ import annotations

import io

import gevent
from gevent import get_hub, monkey
from peers import (
    MORE_THAN_BUFFERS,
    MakeLine,
    Spawn,
    connected,
    error_of,
    pattern,
    receive,
    run_alone,
    send_and_end,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice

DATA = pattern(1_000_003, 8)


def moved_since(before: gsplice.Stats) -> tuple[int, int]:
    """Return how many bytes have been spliced and copied since *before*."""
    now = gsplice.stats()
    return now.spliced - before.spliced, now.copied - before.copied


def test_it_is_a_named_tuple() -> None:
    now = gsplice.stats()
    assert isinstance(now, tuple)
    assert now._fields == ("spliced", "copied", "active", "pipes", "idle_pipes", "fallbacks")


def begin_with_nothing() -> None:
    """Look before anything has happened (for the test below)."""
    assert gsplice.stats() == (0, 0, 0, 0, 0, {})


def test_process_begins_with_nothing() -> None:
    run_alone(begin_with_nothing)


def test_bytes_count_while_a_transfer_runs(line: MakeLine) -> None:
    client, source, sink, backend = line()
    before = gsplice.stats()
    transfer = gsplice.Transfer(source, sink).start()
    client.sendall(b"hello")
    receive(backend, 5)
    assert moved_since(before) == (0, 5)
    transfer.stop()
    assert moved_since(before) == (0, 5), "and not once more at its end"


def test_active_transfers(line: MakeLine) -> None:
    lines = [line() for _ in range(3)]
    transfer = gsplice.Transfer(lines[0].source, lines[0].sink)
    assert gsplice.stats().active == 0
    transfer.start()
    assert gsplice.stats().active == 1
    relays = [gsplice.Relay(ends.source, ends.sink).start() for ends in lines[1:]]
    assert gsplice.stats().active == 5, "a relay is two"
    relays[0].up.stop()
    assert gsplice.stats().active == 3
    lines[0].client.close()
    transfer.get()
    assert gsplice.stats().active == 2
    relays[1].stop()
    assert gsplice.stats().active == 0


def test_stop_from_the_hub_counts_what_was_under_way(line: MakeLine, spawn: Spawn) -> None:
    """Where `stop` can't wait for the greenlet of a transfer, that one still tells in the end."""
    ends = line("tls")
    before = gsplice.stats()
    spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    spawn(error_of, receive, ends.backend)
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    wait_until(lambda: transfer.moved > 500_000)
    get_hub().loop.run_callback(transfer.stop)
    wait_until(transfer.ready)
    wait_until(lambda: not waits_to_read(ends.source) and not waits_to_write(ends.sink))
    assert sum(moved_since(before)) == transfer.moved


class StoppingSink:
    """Takes all that it is given, and stops the transfer meanwhile."""

    transfer: gsplice.Transfer

    def write(self, data: bytes) -> int:
        self.transfer.stop()
        return len(data)


def test_what_a_method_takes_after_the_end_is_counted_once() -> None:
    sink = StoppingSink()
    sink.transfer = gsplice.Transfer(io.BytesIO(DATA[:5000]), sink)
    before = gsplice.stats()
    assert isinstance(error_of(sink.transfer.run), gsplice.TransferStopped)
    assert sink.transfer.moved == 5000
    assert moved_since(before) == (0, 5000)


def test_methods_copy(line: MakeLine) -> None:
    _, _, sink, backend = line()
    before = gsplice.stats()
    assert gsplice.copy(io.BytesIO(DATA[:5000]), sink) == 5000
    assert receive(backend, 5000) == DATA[:5000]
    assert moved_since(before) == (0, 5000)


def test_pipes_are_held_while_bytes_are_in_them(line: MakeLine, spawn: Spawn) -> None:
    ends = line()
    assert (gsplice.stats().pipes, gsplice.stats().idle_pipes) == (0, 0)
    data = bytes(MORE_THAN_BUFFERS)
    spawn(send_and_end, ends.client, data)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: waits_to_write(ends.sink))
    assert (gsplice.stats().pipes, gsplice.stats().idle_pipes) == (1, 0)
    receive(ends.backend, len(data))
    transfer.get()
    assert (gsplice.stats().pipes, gsplice.stats().idle_pipes) == (1, 1)


def test_figures_given_out_are_a_copy() -> None:
    gsplice.stats().fallbacks["made up"] = 1
    assert "made up" not in gsplice.stats().fallbacks


def count_in_threads() -> None:
    """Move bytes in several threads at once, each with a hub of its own (for the test below)."""
    thread_class = monkey.get_original("threading", "Thread")

    def work() -> None:
        for _ in range(20):
            sockets = (*connected("unix"), *connected("unix"))
            client, source, sink, backend = sockets
            gevent.spawn(send_and_end, client, DATA)
            received = gevent.spawn(receive, backend, len(DATA))
            assert gsplice.copy(source, sink) == len(DATA)
            assert received.get() == DATA
            for sock in sockets:
                sock.close()
        get_hub().destroy(destroy_loop=True)

    threads = [thread_class(target=work) for _ in range(4)]
    # On libuv gevent itself crashes now and then where several threads have a hub at once, with a
    # plain loop of recv and sendall as well (about 1 of 40 runs of this).
    libuv = "libuv" in type(get_hub().loop).__module__
    for thread in threads:
        thread.start()
        if libuv:
            thread.join()
    for thread in threads:
        thread.join()
    now = gsplice.stats()
    assert now.spliced + now.copied == 4 * 20 * len(DATA)
    assert now.active == 0


def test_threads_with_hubs_of_their_own_add_up() -> None:
    run_alone(count_in_threads)
