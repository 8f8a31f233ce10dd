"""The ends of a relay under measurement: in C, or in Python where there is no compiler."""

import sys
from pathlib import Path

from bench.compiler import compiled, compiler

BACKEND, CLIENT, CONNECTIONS = "backend", "client", "connections"  # the programs


def peer_command(program: str, role: str, *words: str | int) -> list[str]:
    texts = [role, *map(str, words)]
    if compiler():
        return [str(compiled(Path(__file__).with_name(f"{program}.c"))), *texts]
    return [sys.executable, "-m", f"bench.peers.{program}", *texts]
