"""Promise 4: the first refusal of the kernel moves on to copying; no byte is lost by it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
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

REFUSALS = [
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EOPNOTSUPP,
]
NAMES = [errno.errorcode[number] for number in REFUSALS]
DATA = pattern(1_500_007, 5)


@pytest.fixture(autouse=True)
def _empty_pool() -> Iterator[None]:
    """Have no pipe left over from before, nor the pause that follows a refused one."""
    _hub.resources().pipes.close()
    _hub.resources().pipes._not_before = 0.0
    yield
    _hub.resources().pipes._not_before = 0.0


def refuse_from(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, first: int = 1, last: int | None = None
) -> list[int]:
    """Have `_kernel`'s *call* fail with errno *number* from the *first* to the *last* time."""
    original = getattr(_kernel, call)
    calls: list[int] = []

    def refusing(*args: Any) -> Any:
        calls.append(len(calls) + 1)
        if first <= len(calls) <= (last or 1 << 60):
            raise OSError(number, os.strerror(number))
        return original(*args)

    monkeypatch.setattr(_kernel, call, refusing)
    return calls


def new_fallbacks(before: gsplice.Stats) -> dict[str, int]:
    """Return the fallbacks counted since *before*."""
    now = gsplice.stats().fallbacks
    return {
        reason: count - before.fallbacks.get(reason, 0)
        for reason, count in now.items()
        if count != before.fallbacks.get(reason, 0)
    }


def copied_whole(ends: Line, spawn: Spawn, mode: str = "splice") -> None:
    """Move the data from end to end, and check that it arrives."""
    spawn(send_and_end, ends.client, DATA)
    received = spawn(receive, ends.backend, len(DATA))
    assert gsplice.copy(ends.source, ends.sink, mode=mode) == len(DATA)
    assert received.get() == DATA


@pytest.mark.parametrize("mode", ["auto", "splice"])
@pytest.mark.parametrize("first", [1, 2, 3, 4], ids="call {}".format)
@pytest.mark.parametrize("number", REFUSALS, ids=NAMES)
def test_splice_refused(
    line: MakeLine,
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    first: int,
    number: int,
) -> None:
    before = gsplice.stats()
    calls = refuse_from(monkeypatch, "splice", number, first)
    copied_whole(line(), spawn, mode)
    assert new_fallbacks(before) == {errno.errorcode[number]: 1}
    assert len(calls) == first, "once refused, it is not asked again"


@pytest.mark.parametrize("first", [1, 2, 3, 4], ids="call {}".format)
def test_splice_into_a_file_refused(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int
) -> None:
    before = gsplice.stats()
    refuse_from(monkeypatch, "splice", errno.EINVAL, first)
    client, source, _, _ = line()
    spawn(send_and_end, client, DATA)
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before ")
        assert gsplice.copy(source, file, mode="splice") == len(DATA)
        assert file.tell() == 7 + len(DATA)
    assert (tmp_path / "file").read_bytes() == b"before " + DATA
    assert new_fallbacks(before) == {"EINVAL": 1}


@pytest.mark.parametrize("first", [1, 2, 3], ids="call {}".format)
@pytest.mark.parametrize("number", REFUSALS, ids=NAMES)
def test_sendfile_refused(
    line: MakeLine,
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    first: int,
    number: int,
) -> None:
    (tmp_path / "file").write_bytes(b"before " + DATA)
    before = gsplice.stats()
    calls = refuse_from(monkeypatch, "sendfile", number, first)
    _, _, sink, backend = line()
    received = spawn(receive, backend, len(DATA))
    with open(tmp_path / "file", "rb") as file:
        file.seek(7)
        assert gsplice.copy(file, sink) == len(DATA)
        assert file.tell() == 7 + len(DATA)
    assert received.get() == DATA
    assert new_fallbacks(before) == {errno.errorcode[number]: 1}
    assert len(calls) == first


@pytest.mark.parametrize("number", REFUSALS, ids=NAMES)
def test_no_pipe_to_be_had(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = gsplice.stats()
    calls = refuse_from(monkeypatch, "open_pipe", number)
    copied_whole(line(), spawn)
    assert new_fallbacks(before) == {errno.errorcode[number]: len(calls)}
    assert gsplice.stats().spliced == before.spliced
    assert len(calls) < 5, "a limit that was met is not run into at every read"


def test_pipes_that_come_back_are_used_again(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_from(monkeypatch, "open_pipe", errno.EMFILE, last=1)
    copied_whole(line(), spawn)
    _hub.resources().pipes._not_before = 0.0  # the pause is over
    before = gsplice.stats()
    copied_whole(line(), spawn)
    assert gsplice.stats().spliced > before.spliced


def test_really_no_fd_left(line: MakeLine, spawn: Spawn) -> None:
    ends = line()
    before = gsplice.stats()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        copied_whole(ends, spawn)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
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


def test_unexpected_error_of_a_new_pipe_is_raised_and_closes_it(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_from(monkeypatch, "resize_pipe", errno.EIO)
    client, source, sink, _ = line()
    client.sendall(b"hello")
    with pytest.raises(OSError, match="Input/output") as caught:
        gsplice.copy(source, sink, mode="splice")
    assert caught.value.errno == errno.EIO
    assert receive(source, 5) == b"hello"


@pytest.mark.parametrize("first", [1, 2, 3, 4], ids="call {}".format)
def test_error_that_is_no_refusal_is_raised_with_every_byte_accounted_for(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    refuse_from(monkeypatch, "splice", errno.EIO, first)
    before = gsplice.stats()
    client, source, sink, backend = line()
    spawn(send_and_end, client, DATA)
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink, mode="splice").start()
    with pytest.raises(OSError, match="Input/output"):
        transfer.get()
    sink.close()
    arrived = received.get()
    assert len(arrived) == transfer.moved
    assert arrived + transfer.undelivered + receive(source) == DATA
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


def test_copy_mode_asks_nothing_of_the_kernel(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [refuse_from(monkeypatch, call, errno.EINVAL) for call in ("splice", "open_pipe")]
    before = gsplice.stats()
    copied_whole(line(), spawn, "copy")
    assert asked == [[], []]
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
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, backend = line("unix")
    spawn(send_and_end, client, DATA)
    transfer = gsplice.Transfer(source, sink, mode="splice").start()
    wait_until(lambda: waits_to_write(sink))  # the pipe is full, and the sink takes no more
    assert gsplice.stats().pipes == 1
    refuse_from(monkeypatch, "splice", errno.EINVAL)
    assert receive(backend, len(DATA)) == DATA
    assert transfer.get() == len(DATA)
