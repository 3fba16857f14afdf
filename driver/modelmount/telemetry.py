"""One JSON log line per event with its context, and the process's metrics.

Context travels by contextvars: `with context(volume=…, model=…)` puts its fields on every line logged below it in the
same thread. Values are strings that were checked elsewhere; nothing here sees a secret, and no metric label names a
tenant, a model or a namespace.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

_fields: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("modelmount_log_fields")

VALUE_LIMIT = 512
"""Longest logged value in characters: a registry's error body must not flood a log."""
EXCEPTION_LIMIT = 8192
"""Most characters of a logged traceback."""

rpc_total = Counter("modelmount_rpc_total", "CSI calls answered", ["method", "code"], registry=REGISTRY)
rpc_seconds = Histogram(
    "modelmount_rpc_seconds",
    "Time to answer a CSI call",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 120),
    registry=REGISTRY,
)
fetched_bytes_total = Counter(
    "modelmount_fetched_bytes_total", "Bytes of blobs received from registries", registry=REGISTRY
)
blobs_total = Counter("modelmount_blobs_total", "Blobs by how they became available", ["result"], registry=REGISTRY)
mirror_bytes_total = Counter(
    "modelmount_mirror_bytes_total", "Bytes of blobs received from mirrors", ["mirror"], registry=REGISTRY
)
mirror_requests_total = Counter(
    "modelmount_mirror_requests_total",
    "Requests to mirrors for blobs, by what came of them",
    ["mirror", "result"],
    registry=REGISTRY,
)
publishes_total = Counter("modelmount_publishes_total", "Publishes by outcome", ["result"], registry=REGISTRY)
pulls_total = Counter("modelmount_pulls_total", "Pulls by outcome", ["result"], registry=REGISTRY)
jobs_running = Gauge("modelmount_jobs_running", "Pull jobs under way", registry=REGISTRY)
pulls_by_phase = Gauge(
    "modelmount_pulls_by_phase", "Pull jobs under way, by what they do", ["phase"], registry=REGISTRY
)
evictions_total = Counter("modelmount_evictions_total", "Models that went to make room", registry=REGISTRY)
evicted_bytes_total = Counter("modelmount_evicted_bytes_total", "Bytes that went to make room", registry=REGISTRY)
pull_bytes_left = Gauge(
    "modelmount_pull_bytes_left", "Bytes that pulls under way still have to fetch", registry=REGISTRY
)
pull_files_left = Gauge("modelmount_pull_files_left", "Blobs that pulls under way don't have yet", registry=REGISTRY)
pull_bytes_per_second = Gauge(
    "modelmount_pull_bytes_per_second", "Rate of all pulls under way, over the last 10 s", registry=REGISTRY
)
cache_used_bytes = Gauge("modelmount_cache_used_bytes", "Bytes the store takes on its disk", registry=REGISTRY)
cache_reserved_bytes = Gauge(
    "modelmount_cache_reserved_bytes", "Bytes that pulls under way will still write", registry=REGISTRY
)
cache_free_bytes = Gauge(
    "modelmount_cache_free_bytes", "Bytes that further pulls may write before anything goes", registry=REGISTRY
)
cache_budget_bytes = Gauge(
    "modelmount_cache_budget_bytes", "Bytes the store may take, as its disk is now", registry=REGISTRY
)
scrubbed_bytes_total = Counter(
    "modelmount_scrubbed_bytes_total", "Bytes of the store that were read and compared", registry=REGISTRY
)
scrub_results_total = Counter(
    "modelmount_scrub_results_total",
    "Blobs and unpacked layers by what came of their verification",
    ["result"],
    registry=REGISTRY,
)
events_total = Counter(
    "modelmount_events_total", "Events on pods by what became of them", ["result"], registry=REGISTRY
)
publishes_waiting = Gauge("modelmount_publishes_waiting", "Calls that wait for a pull", registry=REGISTRY)

PULLED = "done"
"""The result in `pulls_total` of one that went well; others have their error's reason."""
# What an alert waits for is there from the start: an increase from nothing to 1 is none.
for _result in ("found", "fetched", "shared", "proved", "refused"):
    blobs_total.labels(_result)
for _result in ("good", "mismatch", "unreadable", "gone"):
    scrub_results_total.labels(_result)
for _result in (PULLED, "NoSpace", "IntegrityError", "Unavailable"):
    pulls_total.labels(_result)


@contextlib.contextmanager
def context(**fields: str) -> Iterator[None]:
    """Add fields to every line logged inside the block, in this thread."""
    token = _fields.set({**_fields.get({}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, context; exceptions without the values of their
    variables.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; control characters are escaped by JSON, long values cut."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        extra = getattr(record, "fields", None)
        for key, value in (_fields.get({}) | (extra if isinstance(extra, dict) else {})).items():
            line.setdefault(str(key), _cut(value) if isinstance(value, str) else value)
        if record.exc_info and record.exc_info[1] is not None:
            # The end says what happened, the beginning only how we got there.
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1], limit=30))[-EXCEPTION_LIMIT:]
        return json.dumps(line, ensure_ascii=True, default=str)


class PlainFormatter(logging.Formatter):
    """A record as one line for a person. An exception is its last line only, unless `tracebacks`."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`."""
        text = f"modelmount: {record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            text += "\n" + "".join(lines).rstrip() if self._tracebacks else f" ({lines[-1].strip()})"
        return text


def configure(level: str, *, json_lines: bool) -> None:
    """Set up the root logger on stderr, once a process: JSON for the daemon, plain lines for the command line.

    `level` is one of `log_level`'s values; plain lines have tracebacks at `debug` only.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else PlainFormatter(tracebacks=level == "debug"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("urllib3", "httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(logging.ERROR)  # they log whole URLs, and those may carry signatures


def _cut(value: str) -> str:
    return value if len(value) <= VALUE_LIMIT else value[:VALUE_LIMIT] + "…"
