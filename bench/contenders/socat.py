"""socat, which forks for each connection."""

from bench.addresses import BACKLOG, Address
from bench.contenders import Contender, execute, program
from bench.contenders._own_listener import announce_when_it_listens, reserved


def missing() -> str:
    return "" if program("socat") else "socat is not installed"


def serve(at: Address, backend: Address) -> None:
    if isinstance(backend, str):
        _become_socat(at, f"UNIX-CONNECT:{backend}")
    else:
        _become_socat(at, "TCP:{}:{},nodelay".format(*backend))


def _become_socat(at: Address, target: str) -> None:
    at = reserved(at)
    if isinstance(at, str):
        listen = f"UNIX-LISTEN:{at},fork"
    else:
        listen = "TCP-LISTEN:{1},bind={0},reuseport,fork,nodelay".format(*at)
    announce_when_it_listens(at)
    execute(program("socat"), f"{listen},backlog={BACKLOG}", target)


CONTENDERS = [
    Contender(
        "socat",
        "socat with its defaults, a process for each relay",
        serve,
        missing,
        process_for_each=True,
        most_connections=100,
    )
]
