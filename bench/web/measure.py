"""One measurement: a backend, a server and a client, each a process, for a second or so."""

import http.client
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compiler import compiled
from bench.measure import Measurement, Observed
from bench.processes import READY_SECONDS, LineProcess, ProcessFailed
from bench.setting import blamed_on
from bench.web.cases import PROXY, STATIC, UPLOAD, Case
from bench.web.files import PROBE
from bench.web.servers import Server

PEER = Path(__file__).with_name("http_peer.c")
BACKEND = "nginx"
# The window ends with an exchange: the largest may take long with the slowest.
PATIENCE_SECONDS = 60.0
PROBE_SECONDS = 0.02


def peer_command(*role: str | int) -> list[str]:
    return [str(compiled(PEER)), *map(str, role)]


def server_command(name: str, backend_port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "bench.web.servers", name, str(backend_port), str(folder)]


def backend_command(kind: str, folder: Path) -> list[str]:
    return peer_command("sink") if kind == UPLOAD else server_command(BACKEND, 0, folder)


@dataclass(frozen=True)
class Setting:
    """The processes of a measurement: ready, and nothing observed yet."""

    client: LineProcess
    front: LineProcess
    backend: LineProcess | None
    port: int  # of the server

    def ask(self, command: str, seconds: float) -> dict[str, Any]:
        """Have the client do what takes it so many seconds."""
        self.client.tell(command)
        answer: dict[str, Any] = json.loads(self.client.answer(seconds + PATIENCE_SECONDS))
        return answer


def measure(folder: Path, server: Server, case: Case, warmup: float, seconds: float) -> Measurement:
    with set_up(folder, server, case) as setting:
        observed = Observed(setting.client, setting.front, setting.backend)
        command = f"measure {warmup} {seconds} {' '.join(map(str, observed.pids))}"
        answer = setting.ask(command, warmup + seconds)
        return observed.measurement(
            answer, answer["messages"] * (1 if case.is_small else case.size)
        )


@contextmanager
def set_up(folder: Path, server: Server, case: Case) -> Iterator[Setting]:
    # All of them new for each measurement, as in bench/measure.py.
    with ExitStack() as stack:
        backend, backend_port = None, 0
        if case.has_backend:
            backend = stack.enter_context(LineProcess(backend_command(case.kind, folder)))
            backend_port = port_of(backend.wait_until_ready())
        command = server_command(server.name, backend_port, folder)
        front = stack.enter_context(LineProcess(command))
        port = port_of(front.wait_until_ready())
        try:
            wait_until_it_answers(port, case)
            role = "post" if case.kind == UPLOAD else "get"
            words = peer_command(role, f"127.0.0.1:{port}", case.path, case.size, case.connections)
            client = stack.enter_context(LineProcess(words))
            client.wait_until_ready()
            yield Setting(client, front, backend, port)
        except ProcessFailed as failure:
            raise blamed_on(front, failure) from None


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def wait_until_it_answers(port: int, case: Case) -> None:
    """It accepts connections by now, but its worker process may not have begun."""
    path = f"/{PROXY if case.has_backend else STATIC}/{PROBE}"
    deadline = time.monotonic() + READY_SECONDS
    while (answer := ask(port, path)) != "200":
        if time.monotonic() > deadline:
            raise ProcessFailed(f"it does not answer a request: {answer}")
        time.sleep(PROBE_SECONDS)


def ask(port: int, path: str) -> str:
    """The status of the answer, or why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
    try:
        connection.request("GET", path)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        connection.close()
