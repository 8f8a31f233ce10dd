"""``python -m bench.contenders NAME ADDRESS BACKEND``: one contender, in this process.

Instead of a backend's address there may be ``file:PATH``, for a contender that sends files.
"""

import sys
from pathlib import Path

from bench.addresses import parse
from bench.contenders import contender_named
from bench.processes import prepare_contender


def main(name: str, at: str, backend: str) -> None:
    prepare_contender()
    contender = contender_named(name)
    if not backend.startswith("file:"):
        contender.serve(parse(at), parse(backend))
    elif contender.send_file is not None:
        contender.send_file(parse(at), Path(backend.removeprefix("file:")))


if __name__ == "__main__":
    main(*sys.argv[1:])
