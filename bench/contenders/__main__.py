"""``python -m bench.contenders NAME BACKEND_PORT``: one contender, in this process."""

import sys

from bench.contenders import contender_named
from bench.processes import prepare_contender


def main(name: str, backend_port: str) -> None:
    prepare_contender()
    contender_named(name).serve(int(backend_port))


if __name__ == "__main__":
    main(*sys.argv[1:])
