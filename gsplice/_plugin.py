"""Turned on by gevent itself, while it patches: see the entry point in ``setup.cfg``.

gevent calls this at the end of every ``gevent.monkey.patch_all()`` in an environment in which
gsplice is installed. It does something only if it was asked to: by ``patch_all(gsplice=True)``, or
by the environment variable ``GSPLICE=1`` where the program says nothing.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, Final

#: What an environment variable that turns something on is set to.
_ON: Final = frozenset({"1", "true", "yes", "on"})


def did_patch_builtins(event: Any) -> None:
    """Call `gsplice.patch_all` if that is wanted; an error is printed, and never gets further.

    :param event: a ``gevent.events.GeventDidPatchBuiltinModulesEvent``.
    """
    try:
        in_environment = os.environ.get("GSPLICE", "").lower() in _ON
        if event.patch_all_kwargs.get("gsplice", in_environment):
            from gsplice.takeover import patch_all

            patch_all()
    except Exception:
        traceback.print_exc()
