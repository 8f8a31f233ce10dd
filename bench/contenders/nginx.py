"""nginx's stream module, one process, with its defaults."""

import re
import subprocess
from pathlib import Path

from bench.addresses import Address, show
from bench.contenders import Contender, execute, file_in_memory, program
from bench.contenders._own_listener import announce_when_it_listens, reserved

# One process does what one worker does, and none is left if the bench is killed.
CONFIGURATION = """
{load_module}
daemon off;
master_process off;
pid {pid};
error_log stderr;
events {{ worker_connections 24000; }}
stream {{
    server {{
        listen {listen};
        proxy_pass {backend};
        tcp_nodelay on;
    }}
}}
"""
MODULE = "ngx_stream_module.so"


def missing() -> str:
    if not program("nginx"):
        return "nginx is not installed"
    if _load_module() is None:
        return "nginx has no stream module (Debian: libnginx-mod-stream)"
    return ""


def _load_module() -> str | None:
    """The directive that it needs, if any; None if there is no such module."""
    nginx = program("nginx")
    assert nginx is not None
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, timeout=10).stderr
    if re.search(r"--with-stream(\s|$)", built):
        return ""
    folder = re.search(r"--modules-path=(\S+)", built)
    module = Path(folder.group(1) if folder else "/usr/lib/nginx/modules", MODULE)
    return f"load_module {module};" if module.exists() else None


def serve(at: Address, backend: Address) -> None:
    at = reserved(at)  # handed a socket that listens, nginx crashes without a master
    text = CONFIGURATION.format(
        load_module=_load_module(),
        pid=file_in_memory("pid", ""),
        listen=f"{show(at)} backlog=4096" + ("" if isinstance(at, str) else " reuseport"),
        backend=show(backend),
    )
    announce_when_it_listens(at)
    configuration = file_in_memory("nginx.conf", text)
    execute(program("nginx"), "-p", "/", "-c", configuration, "-e", "stderr")


CONTENDERS = [Contender("nginx", "nginx's stream module, one process", serve, missing)]
