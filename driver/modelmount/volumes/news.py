"""What a pod is told in its events: its model is pulled, has been, was here already; or was refused, and why.

Only what that pod's owner may know anyway: its own reference, the digest that it got, the size of the whole model. Not
how much of that had to be fetched, which would tell what others have on the node.
"""

from __future__ import annotations

from collections.abc import Callable

from modelmount.errors import ModelMountError
from modelmount.kube.notes import Note, Pod
from modelmount.pull.job import Job, Timing
from modelmount.pull.progress import human_bytes, human_seconds
from modelmount.registry.recent import Recent
from modelmount.volumes.leases import Lease

Tell = Callable[[Note], None]
"""Tells it without waiting: `kube.recorder.Recorder.tell`."""
REMEMBERED = 4096
"""Targets that wait for a pull, at most."""


class News:
    """Thread-safe; nothing here waits or fails."""

    def __init__(self, tell: Tell | None) -> None:
        """Without `tell` nobody is told anything."""
        self._tell = tell
        self._pulls: Recent[str, Timing] = Recent(REMEMBERED)

    def pulling(self, pod: Pod | None, path: str, reference: str, job: Job) -> None:
        """The pod's volume at this target waits for a job that fetches; said again by each of its calls."""
        if self._tell is not None and pod is not None:
            self._pulls.put(path, job.timing)
            what = _called(reference, str(job.model.manifest))
            self._tell(Note(pod, "Normal", "ModelPulling", f"pulling {what}"))

    def mounted(self, pod: Pod | None, lease: Lease) -> None:
        """The pod has its model: after the pull that one of its calls waited for, or because it was here."""
        if self._tell is None or pod is None:
            return
        what, timing = _called(lease.reference, lease.manifest), self._pulls.get(lease.target)
        if timing is None:
            self._tell(Note(pod, "Normal", "ModelCached", f"{what} is on this node already"))
        else:
            took = f"{human_bytes(lease.bytes)} in {human_seconds(timing.seconds)}"
            self._tell(Note(pod, "Normal", "ModelPulled", f"pulled {what}: {took}"))

    def refused(self, pod: Pod | None, error: ModelMountError) -> None:
        """The pod doesn't get its model, by somebody's decision: the sentence names whose."""
        if self._tell is not None and pod is not None:
            self._tell(Note(pod, "Warning", "ModelRefused", error.message))


def _called(reference: str, digest: str) -> str:
    return reference if digest in reference else f"{reference} ({digest})"
