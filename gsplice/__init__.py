"""Relays for gevent whose bytes stay in the kernel.

Bytes that go from one socket to another need not visit user space: ``splice(2)`` and
``sendfile(2)`` move them, gevent's hub waits for them, and where they cannot be spliced they are
copied without anyone noticing.
"""

from gsplice._account import Stats
from gsplice._direction import TransferStopped
from gsplice._hub import stats
from gsplice.relay import Relay, RelayResult, relay
from gsplice.takeover import (
    is_patched,
    patch_all,
    patch_gunicorn,
    patch_http,
    patch_pywsgi,
    patch_shutil,
    patch_socket,
    unpatch_all,
)
from gsplice.transfer import Transfer, can_splice, copy

__version__ = "1.0.0.dev0"

__all__ = [
    "Relay",
    "RelayResult",
    "Stats",
    "Transfer",
    "TransferStopped",
    "can_splice",
    "copy",
    "is_patched",
    "patch_all",
    "patch_gunicorn",
    "patch_http",
    "patch_pywsgi",
    "patch_shutil",
    "patch_socket",
    "relay",
    "stats",
    "unpatch_all",
]
