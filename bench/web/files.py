"""The files that are served: real bytes, in memory."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.web.cases import UPLOAD, Case

PROBE = "probe"  # a file to ask for before anything is measured
BLOCK = os.urandom(1 << 20)
IN_MEMORY = Path("/dev/shm")


@contextmanager
def folder_for(cases: Sequence[Case]) -> Iterator[Path]:
    """A folder with the files that the cases ask for, until they are done."""
    sizes = {case.file: case.size for case in cases if case.kind != UPLOAD}
    where = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    if sum(sizes.values()) > shutil.disk_usage(where).free:
        sys.exit(f"{where} has no room for {sum(sizes.values())} bytes; --case chooses fewer")
    with tempfile.TemporaryDirectory(prefix="gsplice-bench-", dir=where) as name:
        folder = Path(name)
        (folder / "static").mkdir()
        (folder / "proxy").symlink_to("static")  # a backend has them under that name
        for file, size in {**sizes, PROBE: 1}.items():
            write_file(folder / "static" / file, size)
        yield folder


def write_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for begin in range(0, size, len(BLOCK)):
            file.write(BLOCK[: size - begin])
