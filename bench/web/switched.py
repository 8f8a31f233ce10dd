"""The application of the bench, in a process that turns gsplice on and off where it is asked to.

``/switch/patched`` calls ``gsplice.patch_all()``, ``/switch/original`` and ``/switch/control`` put
every original back with ``gsplice.unpatch_all()``. So one process does the same work both ways, and
what differs between two processes of the very same program (where its memory is, whom it shares a
CPU with) is in both.

Invariant: no request that is measured has a part in both ways. There is one process and one client,
which asks for the switch when it has all that it asked for before, and goes on when it is answered.
What outlives a request finds its methods in its class each time that it calls one: the server's
socket and handler of a connection that is kept, which is all there is, as the connection to a
backend is made anew for each request. gsplice keeps nothing in any of them between two requests.

Invariant: a switch leaves the classes as changed, whatever it switches to: what the interpreter
remembers of a class's methods has to be learned anew each time. The first requests after it, which
do that, are not measured.

Each answer has the CPU time that the process had used when the application was called. Only the
process itself can tell: to others the kernel tells what it was when it last slept, or at a tick.
"""

from collections.abc import Iterable
from time import process_time_ns

import gsplice
from bench.web import application
from bench.web.application import Application, Environ, StartResponse

# The control is the original once more: what differs between the two is what noise alone does.
VARIANTS = ORIGINAL, PATCHED, CONTROL = ("original", "patched", "control")
SWITCH = "/switch/"
CPU_USED = "X-CPU-Used"  # in nanoseconds


def create(backend_port: int, folder: str) -> Application:
    serve = application.create(backend_port, folder, with_gsplice=False)

    def switched(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        used = (CPU_USED, str(process_time_ns()))
        path = environ["PATH_INFO"]
        if not path.startswith(SWITCH):
            return serve(environ, lambda status, fields: start_response(status, [*fields, used]))
        switch_to(path.removeprefix(SWITCH))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    return switched


def switch_to(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}")
    gsplice.unpatch_all()
    gsplice.patch_all()
    if variant != PATCHED:
        gsplice.unpatch_all()
