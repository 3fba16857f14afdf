"""The command line: `python -m bench`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the cases and print what they found; 2 without root."""
    if os.geteuid() != 0:
        print("bench: mounts file systems, so run it as root: sudo make bench", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
