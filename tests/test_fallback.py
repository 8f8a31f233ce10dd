"""Promise 4: the first refusal of the kernel moves on to copying; no byte is lost by it.

Each refusal of each call, at each time that it is made, is in `test_faults`.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from faults import Fault, always, failing, forget_pipes, injected, new_fallbacks
from peers import (
    Line,
    MakeLine,
    Spawn,
    connected,
    pattern,
    receive,
    run_alone,
    send_and_end,
    wait_until,
    waits_to_write,
)

import gsplice
from gsplice import _hub, _kernel

DATA = pattern(1_500_007, 5)


@pytest.fixture(autouse=True)
def _empty_pool() -> Iterator[None]:
    """Have no pipe left over from before, nor the pause that follows a refused one."""
    forget_pipes()
    yield
    forget_pipes()


def copied_whole(ends: Line, spawn: Spawn, mode: str = "splice") -> None:
    """Move the data from end to end, and check that it arrives."""
    spawn(send_and_end, ends.client, DATA)
    received = spawn(receive, ends.backend, len(DATA))
    assert gsplice.copy(ends.source, ends.sink, mode=mode) == len(DATA)
    assert received.get() == DATA


def test_a_limit_that_was_met_is_not_run_into_at_every_read(line: MakeLine, spawn: Spawn) -> None:
    before = gsplice.stats()
    refused = always("pipe2", failing(errno.EMFILE))
    with injected(refused):
        copied_whole(line(), spawn)
    assert new_fallbacks(before) == {"EMFILE": refused.calls}
    assert gsplice.stats().spliced == before.spliced
    assert refused.calls < 5


def test_pipes_that_come_back_are_used_again(line: MakeLine, spawn: Spawn) -> None:
    with injected(Fault("pipe2", failing(errno.EMFILE))):
        copied_whole(line(), spawn)
    _hub.resources().pipes._not_before = 0.0  # the pause is over
    before = gsplice.stats()
    copied_whole(line(), spawn)
    assert gsplice.stats().spliced > before.spliced


def test_a_stream_for_which_there_is_no_pipe_is_copied_in_large_pieces(line: MakeLine) -> None:
    """By the buffer that is for small messages it would be slower than a plain loop."""
    ends = line()
    sizes: list[int] = []  # of what is sent

    def noted(send: Callable[..., int], data: memoryview) -> int:
        sizes.append(len(data))
        return send(data)

    refused = always("pipe2", failing(errno.EMFILE))
    with injected(refused, always("send", noted), sockets=[ends.sink]):
        transfer = gsplice.Transfer(ends.source, ends.sink).start()
        for _ in range(4):
            ends.client.sendall(pattern(100_000))
            receive(ends.backend, 100_000)
        transfer.stop()
    assert max(sizes) > _hub.LARGE_MESSAGE


def test_in_splice_mode_small_messages_are_spliced_again_once_there_is_a_pipe(
    line: MakeLine,
) -> None:
    ends = line()
    with injected(Fault("pipe2", failing(errno.EMFILE))):
        transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
        _hub.resources().pipes._not_before = math.inf  # the pause does not end by itself
        for message in (b"copied", b"so too"):
            ends.client.sendall(message)
            assert receive(ends.backend, 6) == message
        assert transfer.spliced == 0
        _hub.resources().pipes._not_before = 0.0  # the pause is over
        ends.client.sendall(b"spliced")
        assert receive(ends.backend, 7) == b"spliced"
    assert (transfer.moved, transfer.spliced) == (19, 7)
    transfer.stop()


def test_really_no_fd_left(line: MakeLine, spawn: Spawn, no_fd_left: Callable[[], None]) -> None:
    ends = line()
    before = gsplice.stats()
    no_fd_left()
    copied_whole(ends, spawn)
    assert set(new_fallbacks(before)) == {"EMFILE"}


def test_pipe_that_the_quota_shrank(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _kernel.resize_pipe
    monkeypatch.setattr(_kernel, "resize_pipe", lambda fd, _: original(fd, 4096))
    before = gsplice.stats()
    copied_whole(line(), spawn)
    after = gsplice.stats()
    assert sum(new_fallbacks(before).values()) >= 1
    assert after.spliced == before.spliced
    assert after.pipes == 0, "a pipe of a page is worse than none"


def test_pipe_that_would_not_grow_is_used_as_it_is(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _kernel.resize_pipe
    monkeypatch.setattr(_kernel, "resize_pipe", lambda fd, _: original(fd, 65536))
    before = gsplice.stats()
    copied_whole(line(), spawn)
    assert gsplice.stats().spliced > before.spliced
    assert new_fallbacks(before) == {}


@pytest.mark.parametrize("mode", ["auto", "splice"])
def test_platform_without_splice(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(_kernel, "HAVE_SPLICE", False)
    ends = line()
    assert not gsplice.can_splice(ends.source, ends.sink)
    before = gsplice.stats()
    copied_whole(ends, spawn, mode)
    assert gsplice.stats().spliced == before.spliced
    assert sum(new_fallbacks(before).values()) == 1


def test_platform_without_sendfile(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_kernel, "HAVE_SENDFILE", False)
    (tmp_path / "file").write_bytes(DATA)
    _, _, sink, backend = line()
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    with open(tmp_path / "file", "rb") as file:
        assert not gsplice.can_splice(file, sink)
        assert gsplice.copy(file, sink) == len(DATA)
    assert received.get() == DATA
    assert gsplice.stats().spliced == before.spliced
    assert sum(new_fallbacks(before).values()) == 1


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
def test_a_file_that_the_kernel_will_not_send_is_copied_and_counted_once(
    line: MakeLine,
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: int,
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(_kernel, "sendfile", refuse)
    (tmp_path / "file").write_bytes(DATA)
    _, _, sink, backend = line()
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    gsplice.patch_socket()
    try:
        with open(tmp_path / "file", "rb") as file:
            assert sink.sendfile(file, 0, len(DATA)) == len(DATA)
            assert file.tell() == len(DATA)
    finally:
        gsplice.unpatch_all()
    assert received.get() == DATA
    assert gsplice.stats().spliced == before.spliced
    assert new_fallbacks(before) == {errno.errorcode[error]: 1}


def use_without_system_calls() -> None:
    """Move bytes where Python has neither splice nor sendfile (see the test below)."""
    for name in ("splice", "sendfile"):
        assert not hasattr(os, name)
    client, source, sink, backend = *connected(), *connected()
    gevent.spawn(send_and_end, client, DATA)
    received = gevent.spawn(receive, backend, len(DATA))
    assert gsplice.copy(source, sink) == len(DATA)
    assert received.get() == DATA
    assert gsplice.stats().spliced == 0
    for sock in (client, source, sink, backend):
        sock.close()


def test_python_without_the_system_calls(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.splice, os.sendfile\n")
    run_alone(use_without_system_calls, path=tmp_path)


def test_copy_mode_asks_nothing_of_the_kernel(line: MakeLine, spawn: Spawn) -> None:
    asked = [always(call, failing(errno.EINVAL)) for call in ("splice", "pipe2")]
    before = gsplice.stats()
    with injected(*asked):
        copied_whole(line(), spawn, "copy")
    assert [fault.calls for fault in asked] == [0, 0]
    assert new_fallbacks(before) == {}


@pytest.mark.parametrize("meant", ["copy", "splice"])
def test_environment_says_what_auto_means(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, meant: str
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", meant)
    ends = line()
    before = gsplice.stats()
    assert gsplice.can_splice(ends.source, ends.sink) is (meant == "splice")
    copied_whole(ends, spawn, "auto")
    after = gsplice.stats()
    assert (after.spliced > before.spliced) is (meant == "splice")
    assert (after.copied > before.copied) is (meant == "copy")


def test_refusal_on_the_way_out_with_a_stalled_sink_keeps_the_order(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line("unix")
    spawn(send_and_end, client, DATA)
    transfer = gsplice.Transfer(source, sink, mode="splice").start()
    wait_until(lambda: waits_to_write(sink))  # the pipe is full, and the sink takes no more
    assert gsplice.stats().pipes == 1
    with injected(always("splice", failing(errno.EINVAL))):
        assert receive(backend, len(DATA)) == DATA
        assert transfer.get() == len(DATA)
