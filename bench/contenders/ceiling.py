"""What the kernel allows: a C program that does nothing but splice, or sendfile."""

from pathlib import Path

from bench.addresses import Address, announce, listening, show
from bench.compiler import compiled, compiler
from bench.contenders import Contender, execute

SOURCE = Path(__file__).with_name("ceiling.c")


def missing() -> str:
    return "" if compiler() else "no C compiler"


def serve_compiled(source: Path, at: Address, target: str) -> None:
    """Become a program that is handed a listener, and told a backend or ``file:PATH``."""
    listener = listening(at)
    announce(listener.getsockname())
    execute(compiled(source), listener.fileno(), target)


def serve(at: Address, backend: Address) -> None:
    serve_compiled(SOURCE, at, show(backend))


def send_file(at: Address, path: Path) -> None:
    serve_compiled(SOURCE, at, f"file:{path}")


CONTENDERS = [
    Contender(
        "ceiling",
        "C, a thread for each direction, splice only",
        serve,
        missing,
        source=SOURCE,
        send_file=send_file,
        most_connections=1000,
        fds_each=6,
    )
]
