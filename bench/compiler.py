"""The C programs of the bench: compiled once, kept in the user's cache."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HEADER = Path(__file__).with_name("peer.h")  # what the programs include, if any
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-pthread")


def compiler() -> str | None:
    """The C compiler's path; ``GSPLICE_BENCH_CC`` names another one, or none when it is empty."""
    return shutil.which(os.environ.get("GSPLICE_BENCH_CC", "cc"))


def compiled(source: Path) -> Path:
    """The program made from ``source``: a changed source is compiled anew, by its digest."""
    program = _cache() / f"{source.stem}-{_digest(source)}"
    if not program.exists():
        _compile(source, program)
    return program


def _cache() -> Path:
    # Outside the source tree: what is packed from there must not hold a binary.
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "gsplice-bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _digest(source: Path) -> str:
    recipe = " ".join((compiler() or "", *FLAGS, "")).encode()
    return hashlib.sha256(recipe + HEADER.read_bytes() + source.read_bytes()).hexdigest()[:16]


def _compile(source: Path, program: Path) -> None:
    cc = compiler()
    if cc is None:
        raise FileNotFoundError(f"no C compiler to make {source.name} with")
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    try:
        subprocess.run([cc, *FLAGS, "-o", unfinished, source], check=True, timeout=60)
        unfinished.rename(program)  # whole or not at all, whoever else compiles it now
    finally:
        unfinished.unlink(missing_ok=True)
