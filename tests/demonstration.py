"""The demonstration, as it is started, and with sizes that take no time."""

from __future__ import annotations

import sys

DEMO = (sys.executable, "-m", "gsplice", "demo")
QUICK = (*DEMO, "--megabytes", "4", "--rounds", "1")
