"""Where the kubelet and the driver meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from modelmount.cli.examinations.finding import Finding, fail, ok, warn
from modelmount.config import Settings
from modelmount.system import mountinfo

ANSWER_SECONDS = 2.0
MANY_MOUNTS = 0.5


def directories(settings: Settings) -> Iterator[Finding]:
    """The kubelet's directories that the driver uses."""
    if settings.mode == "controller":
        return
    root = Path(settings.kubelet_root)
    if not root.exists():
        remedy = "set kubelet_root to the kubelet's root directory; without Kubernetes it doesn't matter"
        yield warn("kubelet", f"{root} isn't there", remedy)
        return
    wanted = [*settings.publish_roots, *([settings.plugins_registry] if settings.plugins_registry else [])]
    missing = [path for path in wanted if not path.is_dir()]
    for path in missing:
        remedy = "mount the host's directory into the container, or set kubelet_root; the kubelet makes it when it runs"
        yield fail("kubelet", f"{path} isn't there", remedy)
    if not missing:
        yield ok("kubelet", f"{', '.join(str(path) for path in wanted)} are there")


def propagation(settings: Settings) -> Iterator[Finding]:
    """Whether the host sees what is mounted below the kubelet's directories."""
    if settings.mode == "controller":
        return
    for root in settings.publish_roots:
        entry = mountinfo.mount_of(root) if root.is_dir() else None
        if entry is None:
            continue
        if any(tag.startswith("shared:") for tag in entry.propagation):
            yield ok("propagation", f"mounts below {root} reach the host")
        else:
            remedy = "give the volume mountPropagation: Bidirectional; on the host: mount --make-rshared /"
            yield warn(
                "propagation", f"mounts below {root} stay in this mount namespace: pods elsewhere see nothing", remedy
            )
    most = int(Path("/proc/sys/fs/mount-max").read_text(encoding="ascii"))
    count = Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    if count > most * MANY_MOUNTS:
        yield warn("mounts", f"{count} of at most {most} mounts exist", "raise the sysctl fs.mount-max")


def sockets(settings: Settings) -> Iterator[Finding]:
    """The CSI socket."""
    path = settings.socket_path
    if not path.exists():
        yield ok("socket", f"{path} isn't there: no driver serves it")
        return
    if not os.access(path, os.W_OK):
        yield warn("socket", f"{path} can't be reached by user {os.geteuid()}", "run as root")
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as e:
            yield warn(
                "socket", f"nobody answers at {path}: {e.strerror or e}", "start the driver; it replaces the socket"
            )
        else:
            yield ok("socket", f"a driver answers at {path}")
