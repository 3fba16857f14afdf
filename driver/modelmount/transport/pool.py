"""Connections, kept for each origin and trust, and one request at a time over them.

The only interface of this room to whoever speaks HTTP: a Request goes in, an Answer comes out. Behind it are urllib3's
connections, with everything off that decides on its own: redirects, retries, proxies, decoding, preloading.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

from modelmount import __version__
from modelmount.config import Settings
from modelmount.errors import Forbidden, Unavailable
from modelmount.transport.body import Body, Pace
from modelmount.transport.dial import Dialer, Lookup, Sockets
from modelmount.transport.failures import TROUBLE, translated, was_gone
from modelmount.transport.head import Fields, Head
from modelmount.transport.origin import Connection, Origin
from modelmount.transport.tls import Contexts
from modelmount.transport.trust import Trust, judge
from modelmount.transport.url import Url

USER_AGENT: Final = f"modelmount/{__version__}"
KEPT_ORIGINS: Final = 64
"""Origins with kept connections; pods name hosts, so there is no end to them otherwise."""
KEPT_TRUSTS: Final = 1024
"""Judgements that are kept, which every request needs anew and which are the same as long as the settings are."""


class Content(Protocol):
    """A body that is sent in pieces and never held whole."""

    @property
    def length(self) -> int:
        """How many bytes all pieces together have."""

    def pieces(self) -> Iterator[bytes]:
        """The pieces from the first on, however often; small ones, for each has the connection's time-out to itself.

        Raises only `modelmount.errors`, which come out of `Pool.send` and cost the connection: anything else would be
        taken for trouble with the network.
        """


_OF_BYTES = frozenset({"accept", "range", "content-type", "content-length", "content-range"})


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and on whose behalf: `registry` as it stands in references, whose settings count wherever `url`
    leads. `what` begins every message about it.

    `patience` is how many seconds the answer may take once everything was sent, where it isn't the usual silence.
    """

    method: Literal["GET", "HEAD", "POST", "PUT"]
    url: Url
    registry: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | Content | None = field(default=None, repr=False)
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers, with the body still to be read. Close it, or its body."""

    status: int
    url: Url
    body: Body
    fields: Fields = field(repr=False)
    shown: tuple[str, ...] = field(default=(), repr=False)
    """What was shown with the question in headers that don't only name bytes: it may come back in an error's words."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.body.close()

    def header(self, name: str) -> str | None:
        """The value of a header, those of a repeated one joined by commas."""
        return self.fields.get(name.lower())

    def header_values(self, name: str) -> Sequence[str]:
        """The values of a header that may be repeated."""
        return self.fields.values.get(name.lower(), ())


class Pool:
    """All connections of this process. Thread-safe; blocks on the network for at most what each call says."""

    def __init__(self, settings: Settings, *, pace: Pace | None = None, lookup: Lookup = socket.getaddrinfo) -> None:
        """Connects to nothing yet. `pace` and `lookup` replace the slowest pace and the resolver."""
        self._settings = settings
        self._pace = pace or Pace()
        self._sockets = Sockets()
        self._dialer = Dialer(lookup, self._sockets)
        self._contexts = Contexts(self._sockets)
        self._lock = threading.Lock()
        self._origins: OrderedDict[tuple[Any, ...], Origin] = OrderedDict()
        self._trust = functools.lru_cache(KEPT_TRUSTS)(functools.partial(_trust, settings))
        self._closed = False

    def send(self, request: Request, deadline: float) -> Answer:
        """Ask once and return what was answered, whatever its status; redirects are answers too.

        Name, connection and headers must be there by `deadline` (of `time.monotonic`); with `patience`, only name and
        connection. The body is read afterwards, with the configured silence as its limit. Raises Forbidden for a place
        that isn't allowed, Unavailable for everything that has gone wrong on the way.
        """
        try:
            connection, head = self._response(request, deadline)
        except Forbidden as e:
            raise Forbidden(f"{request.what}: {e.message}") from e
        except Unavailable as e:
            raise Unavailable(
                f"{request.what}: {e.message}", retry_after=e.retry_after, unreachable=e.unreachable
            ) from e
        except TROUBLE as e:
            raise translated(e, request.what, request.url.authority) from e
        body = Body(head, connection, request.what, request.url.authority, self._pace)
        shown = tuple(value for name, value in request.headers.items() if name.lower() not in _OF_BYTES)
        return Answer(head.status, request.url, body, head.fields, shown)

    def close(self) -> None:
        """End all connections: whoever waits for something on one gets Unavailable at once, and nothing can be sent
        afterwards. Twice is harmless.
        """
        with self._lock:
            self._closed = True
            origins, self._origins = list(self._origins.values()), OrderedDict()
        self._dialer.interrupt()
        self._sockets.interrupt()
        for origin in origins:
            origin.close()

    # -- inside

    def _response(self, request: Request, deadline: float) -> tuple[Connection, Head]:
        """A kept connection may turn out to be gone only when it is used: then once more, at once, unless the other
        side may have done already what was asked.
        """
        try:
            return self._ask(request, deadline)
        except TROUBLE as e:
            if request.method in {"POST", "PUT"} or not was_gone(e):
                raise
        return self._ask(request, deadline)

    def _ask(self, request: Request, deadline: float) -> tuple[Connection, Head]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{request.url.authority} didn't answer in time")
        pull = self._settings.pull
        connecting, waiting = min(pull.connect_timeout_seconds, left), min(pull.read_timeout_seconds, left)
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        body: bytes | Iterator[bytes] | None = None
        if isinstance(request.content, bytes):
            headers["Content-Length"] = str(len(request.content))
            body = request.content
        elif request.content is not None:
            headers["Content-Length"] = str(request.content.length)
            body = request.content.pieces()
        elif request.method in {"POST", "PUT"}:
            headers["Content-Length"] = "0"
        connection = self._origin(request).connection()
        try:
            head = connection.ask(
                request.method, request.url.target, headers, body, connecting, request.patience or waiting
            )
        except BaseException:
            connection.close()
            raise
        return connection, head

    def _origin(self, request: Request) -> Origin:
        url = request.url
        trust = self._trust(request.registry, url.scheme, url.host, url.port)
        context = self._contexts.get(trust) if url.scheme == "https" else None
        key = (url.scheme, url.host, url.port, trust, context)
        with self._lock:
            if self._closed:
                raise Unavailable("the driver is stopping; the next one goes on from here")
            known = self._origins.get(key)
            if known is not None:
                self._origins.move_to_end(key)
                return known
            made = self._origins[key] = Origin(url, trust, context, self._dialer)
            evicted = self._origins.popitem(last=False)[1] if len(self._origins) > KEPT_ORIGINS else None
        if evicted is not None:
            evicted.close()
        return made


def _trust(settings: Settings, registry: str, scheme: str, host: str, port: int) -> Trust:
    return judge(settings, registry, Url(scheme, host, port, "/"))
