# SPDX-License-Identifier: MIT
"""`python3 -m socklb` is the command `socklb`."""

import sys

from .features import has, missing

if __name__ == "__main__":
    if not has("cli"):
        sys.exit(missing("the command", "cli"))
    from .cli import main

    sys.exit(main())
