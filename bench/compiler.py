"""The C and Go programs of the bench: compiled once, kept in the user's cache."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HEADERS = Path(__file__).with_name("peers")  # what the C programs include
C_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-pthread", f"-I{HEADERS}")
COMPILE_SECONDS = 300  # the first Go program makes Go compile its library as well


class CannotCompile(Exception):
    """What is wrong, in a line."""


def compiler() -> str | None:
    """The C compiler's path; ``GSPLICE_BENCH_CC`` names another one, or none when it is empty."""
    return shutil.which(os.environ.get("GSPLICE_BENCH_CC", "cc"))


def go() -> str | None:
    """Go's path; ``GSPLICE_BENCH_GO`` names another one, or none when it is empty."""
    return shutil.which(os.environ.get("GSPLICE_BENCH_GO", "go"))


def compiled(source: Path) -> Path:
    """The program made from ``source``: a changed source is compiled anew, by its digest."""
    try:
        program = _cache() / f"{source.stem}-{_digest(source)}"
        if not program.exists():
            _compile(source, program)
    except subprocess.CalledProcessError as error:
        what = f"{error.cmd[0]} ended with status {error.returncode}"
    except subprocess.TimeoutExpired as error:
        what = f"{error.cmd[0]} took more than {COMPILE_SECONDS} s"
    except OSError as error:
        what = f"{error.filename}: {error.strerror}"
    else:
        return program
    raise CannotCompile(f"{source.name} could not be compiled: {what}")


def _cache() -> Path:
    # Outside the source tree: what is packed from there must not hold a binary.
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "gsplice-bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _recipe(source: Path) -> tuple[str, ...]:
    """The command, up to the names of the program and of its source."""
    if source.suffix == ".go":
        return (go() or "", "build", "-o")
    return (compiler() or "", *C_FLAGS, "-o")


def _digest(source: Path) -> str:
    headers = b"".join(header.read_bytes() for header in sorted(HEADERS.glob("*.h")))
    recipe = " ".join((*_recipe(source), "")).encode()
    return hashlib.sha256(recipe + headers + source.read_bytes()).hexdigest()[:16]


def _compile(source: Path, program: Path) -> None:
    recipe = _recipe(source)
    if not recipe[0]:
        raise CannotCompile(f"there is no compiler for {source.name}")
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    try:
        subprocess.run([*recipe, unfinished, source], check=True, timeout=COMPILE_SECONDS)
        unfinished.rename(program)  # whole or not at all, whoever else compiles it now
    finally:
        unfinished.unlink(missing_ok=True)
