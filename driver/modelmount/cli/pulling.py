"""Work that pulls, as a person or a program watches it. What is pulled stays, however the work ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import REGISTRY

from modelmount import wiring
from modelmount.cli import watching
from modelmount.cli.output import Output, counted
from modelmount.errors import Cancelled
from modelmount.oci.reference import Reference
from modelmount.pull import progress
from modelmount.pull.job import Waiter
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots.tree import Tree
from modelmount.volumes.volume import VolumeSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watched(Generic[T]):
    """What the work gave, and what it took: `fetched_bytes` of blobs came over the network in `seconds`."""

    result: T
    fetched_bytes: int
    seconds: float


def watch(node: wiring.Node, reference: Reference, output: Output, work: Callable[[threading.Event], T]) -> Watched[T]:
    """Run `work` and show the progress of the node's pull meanwhile, as `watching.watch` does. Interrupted, the caller
    closes the node, which ends the pull.
    """
    started, before = time.monotonic(), _fetched()
    result = watching.watch(
        str(reference), output, work, lambda: _snapshot(node), lambda snapshot: _kept(snapshot, reference)
    )
    return Watched(result, _fetched() - before, time.monotonic() - started)


def pull(
    node: wiring.Node, spec: VolumeSpec, credential: Credential, cancelled: threading.Event, *, warm: bool = False
) -> tuple[Model, Tree]:
    """Have here what a volume of these attributes would show; the node's job holds it until the node is closed. What is
    fetched stays in the page cache only when `warm`. It counts as preloaded (`auth.preloaded`) where
    that can be noted. Raises what resolving and pulling do.
    """
    model = node.resolver.resolve(spec.reference, spec.pull_policy, credential, spec.choice)
    job = node.puller.ensure(model, spec.selection, credential, prefetch=not warm)
    while (tree := job.wait(Waiter(), watching.LOOK_SECONDS)) is None:
        if cancelled.is_set():
            raise Cancelled("interrupted")
    try:
        node.resolver.preload(spec.reference, model, spec.choice)
    except OSError as e:  # all of it is here
        log.warning("%s doesn't count as preloaded (auth.preloaded): %s", spec.reference, e.strerror)
    return model, tree


def tell(output: Output, named: Reference, done: Watched[tuple[Model, Tree]], verb: str = "fetched") -> None:
    """Print what a pull gave; `verb` says what was done with the bytes that were not here."""
    model, tree = done.result
    if output.json:
        result = {
            "reference": str(named),
            "digest": str(model.manifest),
            "bytes": tree.bytes,
            "files": tree.files,
            "tree": str(tree.root),
            "fetched_bytes": done.fetched_bytes,
            "seconds": round(done.seconds, 3),
        }
        output.object({"result": result})
        return
    how = f"{progress.human_bytes(done.fetched_bytes)} {verb} in {progress.human_seconds(done.seconds)}"
    output.text(
        f"{named}: {progress.human_bytes(tree.bytes)} in {counted(tree.files, 'file')}, "
        f"{how if done.fetched_bytes else 'all of it was here'}",
        f"digest  {model.manifest}",
        f"tree    {tree.root}",
    )


def _kept(snapshot: progress.Snapshot, reference: Reference) -> str:
    if not snapshot.bytes_done:
        return f"interrupted; any bytes of {reference} that came are kept, the same command goes on from there"
    kept = progress.of(snapshot.bytes_done, snapshot.bytes_total)
    return f"interrupted; {kept} of {reference} are kept, the same command goes on from there"


def _snapshot(node: wiring.Node) -> progress.Snapshot:
    """Where the node's only pull stands; before it begins, nothing is known."""
    return next((job.snapshot() for job in node.puller.jobs()), progress.Snapshot())


def _fetched() -> int:
    """Bytes of blobs that this process received so far."""
    return int(REGISTRY.get_sample_value("modelmount_fetched_bytes_total") or 0)
