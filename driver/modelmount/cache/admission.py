"""Admission: a pull starts once everything it still needs is reserved. Two that don't fit together never both start.

What is missing is made room for first: models go, in order, if that is enough; else nothing goes and the pull is
refused, saying what holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelmount.cache import bounds as limits
from modelmount.cache.bounds import Bounds
from modelmount.cache.collector import Collector, Plan
from modelmount.cache.shares import Quotas
from modelmount.config import Settings
from modelmount.content import pulls
from modelmount.content.pulls import Claim, PullRecord
from modelmount.errors import Cancelled, NoSpace
from modelmount.pull.progress import human_bytes
from modelmount.system import disk
from modelmount.system.lock import LockCancelled

ROUNDS = 3
"""How often room is made for one pull: others may take what was freed, and what goes may be less than it looked."""


@dataclass(frozen=True, slots=True)
class _Short:
    """Why a pull doesn't fit: the node has too little room, or the namespace `within` would exceed its quota."""

    error: NoSpace
    within: str | None = None

    @property
    def bytes(self) -> int:
        return self.error.short_bytes


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
        self._refuse_too_large(model_bytes, pulls.namespace_of(claims))
        try:
            held = self._collector.exclusively(cancelled=cancelled)
        except LockCancelled as e:
            raise Cancelled("the pull was stopped while room was made for it; its bytes are kept") from e
        with held:
            record.hold(claims)
            for _ in range(2 * ROUNDS):  # for the quota, and for the disk
                short = self._claim(record, claims)
                if short is None:
                    return
                inodes = self._short_inodes() if short.within is None else 0
                plan = self._collector.plan(short.bytes, inodes, within=short.within)
                if plan.frees < short.bytes or plan.frees_inodes < inodes:
                    break
                self._collector.collect(short.bytes, inodes, within=short.within)
            short = self._claim(record, claims)
            if short is None:
                return
        raise self._refusal(short, self._collector.plan(0, within=short.within))

    def _claim(self, record: PullRecord, claims: Sequence[Claim]) -> _Short | None:
        settings = self._settings()
        bounds = limits.read(settings)
        namespace = pulls.namespace_of(claims)
        quota = Quotas.of(settings.cache).quota(namespace)
        within: str | None = None

        def room() -> int:
            missing = limits.short_inodes(settings, bounds)
            if missing:
                raise NoSpace(
                    f"{settings.root} is on a file system on which {missing} files more than now must stay free to be "
                    "made; make one with more inodes, or lower cache.free_inodes"
                )
            return bounds.room(disk.free_bytes(Path(settings.root)), self._collector.reader.used_bytes)

        def fits(needed: int, promised: int) -> None:
            nonlocal within
            # Counted after what was promised: what is committed meanwhile counts twice rather than not at all.
            used = self._collector.shares().charged.get(namespace, 0)
            over = needed + promised + used - (quota or 0)
            if needed and over > 0:
                within = namespace
                others = f" and its other pulls will bring {human_bytes(promised)}" if promised else ""
                raise NoSpace(
                    f"{human_bytes(needed)} more are needed for namespace {namespace!r}, which has {human_bytes(used)}"
                    f"{others}, of {human_bytes(quota or 0)} that it may take on this node",
                    short_bytes=over,
                )

        try:
            record.claim(claims, room=room, quota=None if quota is None else fits)
        except NoSpace as e:
            return _Short(e, within)
        return None

    def _refuse_too_large(self, model_bytes: int, namespace: str) -> None:
        """What can't ever be here, however much goes."""
        settings = self._settings()
        quota = Quotas.of(settings.cache).quota(namespace)
        if quota is not None and model_bytes > quota:
            raise NoSpace(
                f"{human_bytes(model_bytes)} are needed for the model, more than the {human_bytes(quota)} that all "
                f"models of namespace {namespace!r} may take on this node (cache.namespaces, cache.namespace_bytes); "
                "raise that"
            )
        bounds = limits.read(settings)
        if model_bytes > bounds.largest:
            raise NoSpace(_too_large(model_bytes, bounds))

    def _short_inodes(self) -> int:
        settings = self._settings()
        return limits.short_inodes(settings, limits.read(settings))

    def _refusal(self, short: _Short, plan: Plan) -> NoSpace:
        """The whole story: needed and free are in `short` already."""
        error = short.error
        if not error.short_bytes:
            return error
        held = ", ".join(f"{human_bytes(count)} {reason}" for reason, count in sorted(plan.held.items()) if count)
        if short.within is not None:
            text = (
                f"{error.message} (cache.namespaces, cache.namespace_bytes). {human_bytes(plan.evictable)} of it could "
                f"be evicted; the rest is held: {held or 'used just now, or shared'}. End pods of the namespace that "
                "use models, or raise its quota"
            )
            return NoSpace(text, short_bytes=error.short_bytes)
        bounds = limits.read(self._settings())
        free = disk.free_bytes(Path(self._settings().root)) - bounds.keep_free
        why = bounds.reason
        if bounds.budget is not None and bounds.budget - plan.used < free:
            why = f"the cache may take {human_bytes(bounds.budget)}"
        return NoSpace(
            f"{error.message}: {why}. {human_bytes(plan.evictable)} could be evicted; of {human_bytes(plan.used)} in "
            f"the cache the rest is held: {held or 'used just now'}. Unpin models, end pods that use some, or add room",
            short_bytes=error.short_bytes,
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
