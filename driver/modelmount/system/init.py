"""The first process of a pid namespace, as a container's is: nobody else takes in orphans, and signals that it doesn't
handle don't reach it (man 7 pid_namespaces). Both are the work of a small process, so that a program is one like any
other.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final, NoReturn

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_BY_SIGNAL: Final = 128
"""Exit status of a process that a signal ended, less the signal's number, as shells have it."""


def stand_in() -> None:
    """Return in a child of this process where this is the first one, which stays: it passes signals on, takes in
    whoever lost its parent, and ends as the child does, and with it the namespace. Elsewhere return at once.

    For a process with one thread, before it did anything that a copy of it shouldn't have.
    """
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # none is lost until somebody can take it
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _take_in(child)


def _take_in(child: int) -> NoReturn:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else _BY_SIGNAL - code)
