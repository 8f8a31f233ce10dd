"""``python -m bench.web.servers NAME BACKEND_PORT FOLDER``: one server, in this process."""

import sys
from pathlib import Path

from bench.processes import prepare_contender
from bench.web.servers import server_named


def main(name: str, backend_port: str, folder: str) -> None:
    prepare_contender()
    server_named(name).serve(int(backend_port), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
