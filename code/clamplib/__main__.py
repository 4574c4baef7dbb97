"""`python -m clamplib` is the `clamp3` command."""

import sys

from clamplib.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
