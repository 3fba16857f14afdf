"""Failpoints: named places where a test makes a real process fail, set from outside by `MODELMOUNT_FAILPOINTS`.

Grammar, after FreeBSD's fail(9) without percentages: `name=term->term;name=…`, a term is `[count*]type[(argument)]`.
Types: `off`, `exit(status)`, `kill` (SIGKILL to this process), `error(ERRNO)` (raises that OSError),
`delay(milliseconds)`. A term with a count serves that many visits, one without serves all later ones; after the last
counted term the place is off. `a=2*off->kill` dies at the third visit of `a`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ENVIRONMENT_VARIABLE: Final = "MODELMOUNT_FAILPOINTS"
_TERM = re.compile(
    r"(?:(?P<count>[0-9]{1,9})\*)?(?P<kind>off|exit|kill|error|delay)(?:\((?P<argument>[A-Z0-9]{1,16})\))?", re.ASCII
)
_NAME = re.compile(r"[a-z0-9_.]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Term:
    """One step of a failpoint: what to do, for how many visits (None: all that follow). `value` is a status, an errno
    or milliseconds.
    """

    kind: str
    value: int
    count: int | None


class Failpoints:
    """A parsed set of failpoints with the number of visits each has had. Threads share it; the counts belong to this
    process.
    """

    def __init__(self, text: str) -> None:
        """Parse `text`; raises ValueError naming the part that is wrong."""
        self._terms = dict(_parse_point(part) for part in text.split(";") if part.strip())
        self._visits = dict.fromkeys(self._terms, 0)
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._terms)

    def visit(self, name: str) -> None:
        """Count a visit of `name` and do what its current term says."""
        terms = self._terms.get(name)
        if terms is None:
            return
        with self._lock:
            visit = self._visits[name]
            self._visits[name] = visit + 1
        term = _term_of_visit(terms, visit)
        if term is not None:
            _act(term, name)


def failpoint(name: str) -> None:
    """A place that may be made to fail. Costs one truth test when nothing is set.

    Names are literals (`room.function.step`), so that a search of the sources lists them all.
    """
    if _active:
        _active.visit(name)


@contextlib.contextmanager
def armed(text: str) -> Iterator[Failpoints]:
    """Replace this process's failpoints inside the block; for tests that need no process of their own."""
    global _active
    before, _active = _active, Failpoints(text)
    try:
        yield _active
    finally:
        _active = before


def _parse_point(part: str) -> tuple[str, tuple[Term, ...]]:
    name, equals, terms = part.strip().partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: {part!r} is not of the form name=term->term")
    return name, tuple(_parse_term(term.strip()) for term in terms.split("->"))


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: {text!r} is not a term; use off, exit(n), kill, error(ERRNO) or delay(ms)"
        )
    kind, argument = match["kind"], match["argument"]
    if (argument is None) != (kind in {"off", "kill"}):
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: {text!r}: exit, error and delay take an argument, off and kill take none"
        )
    if kind == "error":
        value = getattr(errno, argument, None)
        if not isinstance(value, int):
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {argument} is no errno")
    elif argument is not None and not argument.isdigit():
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: {text!r} needs a number")
    else:
        value = int(argument or 0)
    return Term(kind, value, int(match["count"]) if match["count"] else None)


def _term_of_visit(terms: tuple[Term, ...], visit: int) -> Term | None:
    for term in terms:
        if term.count is None or visit < term.count:
            return term
        visit -= term.count
    return None


def _act(term: Term, name: str) -> None:
    if term.kind == "exit":
        os._exit(term.value)
    if term.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if term.kind == "error":
        raise OSError(term.value, f"{os.strerror(term.value)} [failpoint {name}]")
    if term.kind == "delay":
        time.sleep(term.value / 1000)


# Last in the file: parsing needs all of the above.
_active = Failpoints(os.environ.get(ENVIRONMENT_VARIABLE, ""))
