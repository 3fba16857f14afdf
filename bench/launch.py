"""Start a program and write its account: `launch.py <account file> <program> [argument...]`, run by `python -I -S`.

A process of its own, because a child's peak memory begins with that of the process it was made from (getrusage,
ru_maxrss across execve): the benchmark holds gigabytes of pinned files, this one some megabytes.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> int:
    """Exit with the program's status, 128 + n for signal n."""
    account, *argv = sys.argv[1:]
    started = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    figures = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss * 1024}
    with open(account, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib would double what is imported here
        json.dump(figures, file)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
