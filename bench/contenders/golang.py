"""Go's ``io.Copy``, two goroutines for each relay."""

import os
from functools import partial
from pathlib import Path

from bench.addresses import Address, show
from bench.compiler import go
from bench.contenders import Contender
from bench.contenders.ceiling import serve_compiled

SOURCE = Path(__file__).with_name("relay.go")


def missing() -> str:
    return "" if go() else "go is not installed"


def serve(at: Address, backend: Address, threads: str = "1") -> None:
    _serve(at, show(backend), threads)


def send_file(at: Address, path: Path, threads: str = "1") -> None:
    _serve(at, f"file:{path}", threads)


def _serve(at: Address, target: str, threads: str) -> None:
    if threads:
        os.environ["GOMAXPROCS"] = threads
    serve_compiled(SOURCE, at, target)


CONTENDERS = [
    Contender(
        "go",
        "Go's io.Copy, one thread (GOMAXPROCS=1)",
        serve,
        missing,
        source=SOURCE,
        send_file=send_file,
        fds_each=6,
    ),
    Contender(
        "go-all-cpus",
        "the same on as many threads as Go likes",
        partial(serve, threads=""),
        missing,
        source=SOURCE,
        send_file=partial(send_file, threads=""),
        fds_each=6,
        by_default=False,
    ),
]
