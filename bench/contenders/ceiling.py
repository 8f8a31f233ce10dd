"""What the kernel allows: a C program that does nothing but splice."""

import os
from pathlib import Path

from bench.compiler import compiled, compiler
from bench.contenders import Contender

SOURCE = Path(__file__).with_name("ceiling.c")


def serve(backend_port: int) -> None:
    program = compiled(SOURCE)
    os.execv(program, [str(program), str(backend_port)])


def missing() -> str:
    return "" if compiler() else "no C compiler"


CONTENDERS = [Contender("ceiling", "C, a thread for each direction, splice only", serve, missing)]
