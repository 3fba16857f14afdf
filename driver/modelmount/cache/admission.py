"""Admission: a pull starts once everything it still needs is reserved. Two that don't fit together never both start.

What is missing is made room for first: models go, in order, if that is enough; else nothing goes and the pull is
refused, saying what holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from modelmount.cache import bounds as limits
from modelmount.cache.bounds import Bounds
from modelmount.cache.collector import Collector, Plan
from modelmount.config import Settings
from modelmount.content.pulls import Claim, PullRecord
from modelmount.errors import Cancelled, NoSpace
from modelmount.pull.progress import human_bytes
from modelmount.system import disk
from modelmount.system.lock import LockCancelled

ROUNDS = 3
"""How often room is made for one pull: others may take what was freed, and what goes may be less than it looked."""


class Admission:
    """Thread-safe. `settings` is asked each time, so that a change counts at once."""

    def __init__(self, collector: Collector, settings: Callable[[], Settings]) -> None:
        """Nothing is looked at yet."""
        self._collector, self._settings = collector, settings

    def admit(
        self, record: PullRecord, claims: Sequence[Claim], model_bytes: int, cancelled: Callable[[], bool]
    ) -> None:
        """Reserve what `claims` still need, of a model of so many bytes; make room first where that is missing.

        Raises NoSpace with all figures, and then nothing is reserved; Cancelled; OSError where the disk fails.
        """
        short = self._claim(record, claims)
        if short is None:
            return
        bounds = limits.read(self._settings())
        if model_bytes > bounds.largest:
            raise NoSpace(_too_large(model_bytes, bounds))
        try:
            held = self._collector.exclusively(cancelled=cancelled)
        except LockCancelled as e:
            raise Cancelled("the pull was stopped while room was made for it; its bytes are kept") from e
        with held:
            record.hold(claims)
            for _ in range(ROUNDS):
                short = self._claim(record, claims)
                if short is None:
                    return
                plan = self._collector.plan(short.short_bytes, self._short_inodes())
                if plan.frees < short.short_bytes or (plan.frees_inodes < self._short_inodes()):
                    break
                self._collector.collect(short.short_bytes, self._short_inodes())
            short = self._claim(record, claims)
            if short is None:
                return
        raise self._refusal(short, limits.read(self._settings()), self._collector.plan(0))

    def _claim(self, record: PullRecord, claims: Sequence[Claim]) -> NoSpace | None:
        settings = self._settings()
        bounds = limits.read(settings)

        def room() -> int:
            missing = limits.short_inodes(settings, bounds)
            if missing:
                raise NoSpace(
                    f"{settings.root} is on a file system on which {missing} files more than now must stay free to be "
                    "made; make one with more inodes, or lower cache.free_inodes"
                )
            return bounds.room(disk.free_bytes(Path(settings.root)), self._collector.reader.used_bytes)

        try:
            record.claim(claims, room=room)
        except NoSpace as e:
            return e
        return None

    def _short_inodes(self) -> int:
        settings = self._settings()
        return limits.short_inodes(settings, limits.read(settings))

    def _refusal(self, short: NoSpace, bounds: Bounds, plan: Plan) -> NoSpace:
        """The whole story: needed and free are in `short` already."""
        if not short.short_bytes:
            return short
        free = disk.free_bytes(Path(self._settings().root)) - bounds.keep_free
        why = bounds.reason
        if bounds.budget is not None and bounds.budget - plan.used < free:
            why = f"the cache may take {human_bytes(bounds.budget)}"
        held = ", ".join(f"{human_bytes(count)} {reason}" for reason, count in sorted(plan.held.items()) if count)
        return NoSpace(
            f"{short.message}: {why}. {human_bytes(plan.evictable)} could be evicted; of {human_bytes(plan.used)} in "
            f"the cache the rest is held: {held or 'used just now'}. Unpin models, end pods that use some, or add room",
            short_bytes=short.short_bytes,
        )


def _too_large(model_bytes: int, bounds: Bounds) -> str:
    needed = f"{human_bytes(model_bytes)} are needed for the model"
    if bounds.budget is not None and bounds.budget <= bounds.total - bounds.keep_free:
        return (
            f"{needed}, more than the {human_bytes(bounds.budget)} that all models may take on this node "
            "(cache.max_bytes, cache.share); raise that"
        )
    return (
        f"{needed}, more than this node's disk can ever hold: it has {human_bytes(bounds.total)}, of which "
        f"{human_bytes(bounds.keep_free)} stay free, for {bounds.reason}"
    )
