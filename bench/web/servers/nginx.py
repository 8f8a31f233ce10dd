"""nginx, one process: files by sendfile, ``proxy_pass`` with its buffers and without.

It is the backend of the proxied files as well.
"""

import tempfile
from functools import partial
from pathlib import Path

from bench.addresses import announce
from bench.contenders import execute, program
from bench.contenders._own_listener import reserved
from bench.web.cases import PROXY, UPLOAD
from bench.web.servers import Server

# One process does what one worker does, and none is left if the bench is killed. What it could not
# do without is: a body of any size, and folders that it may write to.
CONFIGURATION = """
daemon off;
master_process off;
pid {own}/pid;
error_log stderr;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_temp_path {own}/client_body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen 127.0.0.1:{port} reuseport;
        root {folder};
        {proxy}
    }}
}}
"""
PROXY_PASS = "location /proxy/ {{ proxy_pass http://127.0.0.1:{backend_port}; {options} }}"
UNBUFFERED = "proxy_buffering off; proxy_request_buffering off;"


def missing() -> str:
    return "" if program("nginx") else "nginx is not installed"


def serve(backend_port: int, folder: Path, options: str = "") -> None:
    own = Path(tempfile.mkdtemp(prefix="nginx-", dir=folder))
    address = reserved(("127.0.0.1", 0))
    proxy = PROXY_PASS.format(backend_port=backend_port, options=options) if backend_port else ""
    configuration = own / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(own=own, port=address[1], folder=folder, proxy=proxy)
    )
    announce(address)
    execute(program("nginx"), "-p", str(own), "-c", str(configuration), "-e", "stderr")


SERVERS = [
    Server("nginx", "nginx, one process, with its defaults", serve, missing),
    Server(
        "nginx-unbuffered",
        "the same with proxy_buffering off and proxy_request_buffering off",
        partial(serve, options=UNBUFFERED),
        missing,
        kinds=frozenset({PROXY, UPLOAD}),
    ),
]
