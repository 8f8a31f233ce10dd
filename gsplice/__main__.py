"""``python -m gsplice``."""

import sys

from gsplice.cli import main

if __name__ == "__main__":
    sys.exit(main())
