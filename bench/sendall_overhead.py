"""``python -m bench.sendall_overhead``: what ``sendall(bytes)`` costs after ``patch_all()``.

pyperf measures each variant in processes of its own: ``original``, ``patched``, and ``control``,
which is the original once more and shows what the machine's noise alone makes of nothing. The
processes take turns, and each is compared with the ``original`` of the same turn.

What is sent fits into the receiver's buffer, which is emptied while the clock stands still. So no
other process takes part, and every call does the same.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

try:
    import pyperf  # type: ignore[import-untyped]
except ModuleNotFoundError:
    sys.exit("this needs pyperf: python -m pip install -e '.[bench]'")
from gevent import socket

import gsplice
from bench.command_line import run_program
from bench.rounds import progress, turns
from bench.values import count, file_to_write

VARIANTS = ("original", "patched", "control")
CALLS = 32  # in a block: with the size below, far less than a receive buffer holds
SIZE = 256
BLOCKS = 400  # for a value: about 50 ms
LIMIT_PERCENT = 2.0


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    benchmarks: dict[str, list[pyperf.Benchmark]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for turn, variant in turns(VARIANTS, options.turns):
            progress(f"turn {turn + 1} of {options.turns}, {variant}")
            file = Path(folder, f"{variant}-{turn}.json")
            run_pyperf(variant, options.transport, file)
            benchmarks[variant].append(pyperf.Benchmark.load(str(file)))
    progress("")
    return report(benchmarks, options)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--turns", type=count, default=15, help="(default: 15)")
    add_transport_option(options)
    options.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="write a suite for the pyperf command"
    )
    return options


def add_transport_option(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--transport",
        choices=("tcp", "unix"),
        default="tcp",
        help="unix: a system call so cheap that a Python call shows most (default: tcp)",
    )


def run_pyperf(variant: str, transport: str, file: Path) -> None:
    command = [sys.executable, "-m", "bench.sendall_overhead", "--variant", variant]
    command += ["--transport", transport, "--quiet", "--output", str(file), "--processes=1"]
    command += ["--values=5", "--warmups=1", f"--loops={BLOCKS}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)


def report(benchmarks: dict[str, list[pyperf.Benchmark]], options: argparse.Namespace) -> int:
    for variant, measured in benchmarks.items():
        medians = [benchmark.median() for benchmark in measured]
        print(f"{variant:9} {statistics.median(medians) * 1e6:.3f} µs a call")
    patched, control = (percent_more(benchmarks, variant) for variant in ("patched", "control"))
    print(f"patched: {patched:+.2f} % (the control: {control:+.2f} %; limit: {LIMIT_PERCENT} %)")
    if options.output:
        pyperf.BenchmarkSuite([merged(measured) for measured in benchmarks.values()]).dump(
            str(options.output), replace=True
        )
    return 0 if patched <= LIMIT_PERCENT else 1


def percent_more(benchmarks: dict[str, list[pyperf.Benchmark]], variant: str) -> float:
    pairs = zip(benchmarks[variant], benchmarks["original"], strict=True)
    ratio: float = statistics.median(one.median() / other.median() for one, other in pairs)
    return (ratio - 1) * 100


def merged(measured: Sequence[pyperf.Benchmark]) -> pyperf.Benchmark:
    first, *others = measured
    for other in others:
        first.add_runs(other)
    return first


# Below: what runs in pyperf's own processes.


def run_variant() -> None:
    runner = pyperf.Runner(
        program_args=("-m", "bench.sendall_overhead"), add_cmdline_args=pass_on_options
    )
    runner.argparser.add_argument("--variant", choices=VARIANTS, required=True)
    add_transport_option(runner.argparser)
    options = runner.parse_args()
    if options.variant == "patched":
        gsplice.patch_all()
    runner.bench_time_func(
        f"sendall, {options.variant}", time_blocks, options.transport, inner_loops=CALLS
    )


def pass_on_options(command: list[str], options: argparse.Namespace) -> None:
    command += ["--variant", options.variant, "--transport", options.transport]


def time_blocks(blocks: int, transport: str) -> float:
    """Seconds for so many blocks, as if each took what the median one does.

    A block in which the process lost the CPU to another tells of the other.
    """
    sender, receiver = unix_pair() if transport == "unix" else tcp_pair()
    discarded = bytearray(CALLS * SIZE)
    with sender, receiver:
        times = []
        for _ in range(blocks):
            times.append(time_block(sender))
            drain(receiver, discarded)
    return statistics.median(times) * blocks


def time_block(sender: socket.socket) -> float:
    message = bytes(SIZE)
    begun = perf_counter()
    for _ in range(CALLS):
        sender.sendall(message)
    return perf_counter() - begun


def drain(receiver: socket.socket, buffer: bytearray) -> None:
    remaining = len(buffer)
    while remaining:
        remaining -= receiver.recv_into(buffer, remaining)


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sender, receiver


if __name__ == "__main__":
    if "--variant" in sys.argv:
        run_variant()
    else:
        run_program(main)
