"""A registry behind an HTTP proxy that plays faults: what no fault concerns is the real registry's own answer.

`tests.fakes.proxy` works below HTTP, on whole connections; this one picks single requests, and can spoil what only HTTP
has: statuses, headers, lengths, ranges, redirects, credentials.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from tests.fakes.registry import Registry, Tls
from tests.fakes.wire import Answer, Asked, WireServer

Act = Callable[[Asked, "Gateway"], Answer]
Concerns = Callable[[Asked], bool]

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
"""Headers of one connection, not of what comes over it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of the next `times` requests (None: of all) that it `concerns`."""

    concerns: Concerns
    act: Act
    times: int | None = 1


class Gateway(WireServer):
    """Listens like a WireServer and asks `upstream` what it was asked, with the asker's headers, unless a fault has it
    otherwise. `authorization` is shown to the registry in the asker's place, as storage needs none.
    """

    def __init__(
        self,
        upstream: Registry,
        *,
        tls: Tls | None = None,
        context: ssl.SSLContext | None = None,
        authorization: str | None = None,
    ) -> None:
        super().__init__(tls=tls, context=context)
        self._upstream, self._authorization = upstream, authorization
        self._faults: list[list[Any]] = []

    def play(self, *faults: Fault) -> None:
        """From now on; of several that concern a request, the first that isn't used up acts."""
        with self._lock:
            self._faults += [[fault, fault.times] for fault in faults]

    def calm(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults = []

    def forward(self, asked: Asked, *, without: Collection[str] = (), **headers: str) -> Answer:
        """The registry's answer. Request headers in `without` are left out, others replaced (`_` stands for `-`)."""
        sent = {name: value for name, value in asked.headers.items() if name not in {*_HOP, *without}}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if self._authorization is not None:
            sent["authorization"] = self._authorization
        connection = self._upstream.connection()
        try:
            target = f"{asked.path}?{asked.query}" if asked.query else asked.path
            connection.request(asked.method, target, body=asked.body or None, headers=sent)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in {*_HOP, "content-length"}]
        length = response.headers["Content-Length"]  # none in a 304
        declared = int(length) if length and asked.method == "HEAD" and not body else None
        return Answer(response.status, body, kept, declared=declared)

    def _next(self, asked: Asked) -> Answer:
        fault = None
        with self._lock:
            self._asked.append(asked)
            for entry in self._faults:
                if entry[1] != 0 and entry[0].concerns(asked):
                    entry[1] = None if entry[1] is None else entry[1] - 1
                    fault = entry[0]
                    break
        return self.forward(asked) if fault is None else fault.act(asked, self)


def spoil(**changes: Any) -> Act:
    """The registry's answer with these fields of it replaced."""
    return lambda asked, gateway: replace(gateway.forward(asked), **changes)


def edit(change: Callable[[Answer], Answer]) -> Act:
    """The registry's answer, changed."""
    return lambda asked, gateway: change(gateway.forward(asked))


def instead(answer: Answer) -> Act:
    """This answer; the registry isn't asked."""
    return lambda asked, gateway: answer


def header(answer: Answer, name: str, value: str | None) -> Answer:
    """The answer with a header replaced, added, or (None) taken out."""
    kept = [each for each in answer.headers if each[0].lower() != name.lower()]
    return replace(answer, headers=[*kept, *([(name, value)] if value is not None else [])])
