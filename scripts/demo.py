"""The whole way of one real model, narrated: registry, push, driver, kubelet, publish, read, crash, restart, unpublish.

Nothing in it is staged: Debian's `docker-registry`, the real driver as a child process, real mounts, a reader that maps
the weights. What was fetched is read from the registry's own access log, what is mounted from the kernel. Every figure
of the last line is measured in this run. Whatever happens, all mounts and processes made here are gone afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import filecmp
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import grpc
import safetensors
from rich.console import Console

from csi.v1 import csi_pb2, csi_pb2_grpc
from modelmount import __version__
from modelmount.pull.progress import human_bytes
from tests.fakes import mounts, pods, push
from tests.fakes.driver import Driver
from tests.fakes.kubelet import NOT_FINAL, Call, Kubelet, Pod, Volume
from tests.fakes.kubelet_disk import Directories
from tests.fakes.plugins import connect, outcome
from tests.fakes.registry import Registry

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPOSITORY = "models/all-minilm-l6-v2"
TAG = "v1"
LOG_LINES = 20
CALL_SECONDS = 120.0
"""The kubelet's deadline."""
PULL_SECONDS = 300.0
"""Patience with the cold publish."""
LONGEST_TEMPORARY = 40
"""Bytes of a temporary directory's name below which the sockets' paths still fit into the 107 bytes of unix(7)."""
DIVIDED_BYTES = 16 << 20
"""Blobs that are smaller are never divided among connections (`pull.schedule`)."""


@dataclasses.dataclass
class Figures:
    """The figures of the last line, in its order; None until measured."""

    bytes: int | None = None
    files: int | None = None
    cold_s: float | None = None
    warm_ms_p50: float | None = None
    warm_ms_p99: float | None = None
    tree_identical: bool | None = None
    tensors_identical: bool | None = None
    blobs_fetched_twice: int | None = None


class FailedError(Exception):
    """A promise did not hold; the message says which."""


class Narrator:
    """Tells a person what happens: coloured on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, markup=False)
        self._step = 0

    def step(self, title: str, why: str) -> None:
        """A new step, and what it proves."""
        self._step += 1
        self._console.print(f"\n{self._step}. {title}", style="bold cyan")
        self._console.print(f"   {why}", style="dim")

    def say(self, text: str) -> None:
        """Something that was done or seen."""
        self._console.print(f"   {text}")

    def holds(self, condition: bool, text: str) -> None:
        """A checked fact. Raises FailedError when it isn't one."""
        if not condition:
            self._console.print(f"   ✗ {text}", style="bold red")
            raise FailedError(f"does not hold: {text}")
        self._console.print(f"   ✓ {text}", style="green")


class Demo:
    """One run in `directory`, in which everything lies that it makes. The steps are called once each, in order."""

    def __init__(self, directory: Path, model: Path, rounds: int, tell: Narrator, stack: contextlib.ExitStack) -> None:
        self.figures = Figures()
        self._model, self._rounds, self._tell = model, rounds, tell
        self._registry = stack.enter_context(Registry(directory / "registry"))
        self._directory = directory
        self._driver = Driver(directory, [self._registry], settings={"log_level": "info"})
        stack.push(self._driver.__exit__)  # kills and unmounts, also when it never started
        self._kubelet = stack.enter_context(Kubelet(self._driver.kubelet_root))
        self._paths = push.files_below(model)
        self._reference = f"{self._registry.host}/{REPOSITORY}:{TAG}"
        volume = Volume("model", {"model": self._reference})
        self._first, self._second = (Pod(n, (volume,)) for n in ("first", "second"))
        self._disk = Directories(self._driver.kubelet_root)
        self._gets: Counter[str] = Counter()
        self._served: Counter[str] = Counter()

    def run(self) -> None:
        """All steps. Raises FailedError at the first promise that does not hold."""
        self._push()
        self._start()
        self._cold()
        self._compare()
        self._warm()
        self._crash()
        self._unpublish()
        self._account()

    def _push(self) -> None:
        self._tell.step(
            "A real registry and a real model",
            "Debian's docker-registry on a free loopback port; `modelmount push` puts the model in as a ModelPack "
            "artifact, one raw blob for each file.",
        )
        pushed = self._pushed()
        self.figures.bytes = sum((self._model / path).stat().st_size for path in self._paths)
        self.figures.files = len(self._paths)
        self._tell.say(f"docker-registry (pid {self._registry.pid}) serves http://{self._registry.host}")
        self._tell.say(
            f"pushed {self.figures.files} files, {human_bytes(self.figures.bytes)}, as {pushed['blobs']['sent']} "
            f"distinct blobs in {pushed['seconds']:.2f} s"
        )
        self._tell.say(f"reference {self._reference}, manifest {pushed['digest']}")
        again = self._pushed()
        self._tell.holds(
            again["digest"] == pushed["digest"] and not again["sent_bytes"],
            "pushed once more: the same digest, and nothing is sent",
        )
        self._registry.forget()  # what the pusher asked is not the driver's doing

    def _pushed(self) -> dict[str, Any]:
        """What `modelmount push` says of the model. Raises FailedError when it fails."""
        done = self._driver.run("push", str(self._model), self._reference, "--json")
        *_, last = done.stdout.splitlines() or [done.stderr]
        if done.returncode:
            raise FailedError(f"modelmount push says {last}")
        result: dict[str, Any] = json.loads(last)["result"]
        return result

    def _start(self) -> None:
        self._tell.step(
            "The driver", "`modelmount serve` as one process. It registers itself with the kubelet: no sidecar."
        )
        started = time.monotonic()
        self._driver.start()
        plugin = self._kubelet.wait_registered()
        seconds = time.monotonic() - started
        self._tell.say(f"modelmount {__version__} (pid {self._driver.pid}) on {plugin.endpoint}")
        self._tell.say(f"the kubelet accepted {plugin.name} for node {plugin.node_id} after {seconds:.2f} s")

    def _cold(self) -> None:
        self._tell.step(
            "First pod, cold: nothing is on the node",
            "One NodePublishVolume resolves the tag, pulls each blob once, verifies every byte, mounts read-only.",
        )
        self._kubelet.run(self._first)
        call = self._await_publish(self._first)
        size = self.figures.bytes or 0
        self.figures.cold_s = round(call.seconds, 3)
        self._tell.say(
            f"the pod has its model after {call.seconds:.3f} s: {human_bytes(size)} at "
            f"{human_bytes(size / call.seconds)}/s"
        )
        gets, _ = self._asked()
        self._tell.say(f"the registry's log has {gets.total()} GETs for {len(gets)} blobs")
        options = mounts.options(self._mount(self._first))
        self._tell.holds("ro" in options, f"the kernel mounted it {','.join(sorted(options))}")
        self._tell.holds(self._refuses_writes(), "the kernel refuses root to write there: Read-only file system")

    def _compare(self) -> None:
        self._tell.step(
            "What the pod sees is what was pushed",
            "Every name and byte is compared with the original; then a real reader maps the weights and compares every "
            "tensor.",
        )
        started = time.monotonic()
        self.figures.tree_identical = same_tree(self._model, self._mount(self._first))
        seconds = time.monotonic() - started
        self._tell.holds(
            self.figures.tree_identical,
            f"{self.figures.files} files are identical, name by name and byte by byte ({seconds:.2f} s)",
        )
        started = time.monotonic()
        weights = [path for path in self._paths if path.endswith(".safetensors")]
        counts = [same_tensors(self._model / path, self._mount(self._first) / path) for path in weights]
        seconds = time.monotonic() - started
        self.figures.tensors_identical = bool(counts) and None not in counts
        total = sum(count or 0 for count in counts)
        self._tell.holds(
            self.figures.tensors_identical,
            f"{total} tensors, mapped by safetensors {safetensors.__version__} from the mount, are identical "
            f"({seconds:.2f} s)",
        )

    def _warm(self) -> None:
        self._tell.step(
            f"Second pod, warm: {self._rounds} times published, {self._rounds} times unpublished",
            "The model is on the node. Each publish proves the pod's access with one manifest request and writes a "
            "durable lease, nothing more.",
        )
        # The real kubelet is a process of its own; this one's threads would share an interpreter with the clock.
        self._kubelet.stop()
        with connect(str(self._driver.socket)) as channel:
            node = csi_pb2_grpc.NodeStub(channel)
            milliseconds = sorted(self._publish_bare(node) * 1000 for _ in range(self._rounds))
        gets, asked = self._asked()
        self._kubelet.start()
        self._kubelet.wait_registered()
        self._kubelet.wait_running(self._first)
        self.figures.warm_ms_p50 = round(percentile(milliseconds, 0.50), 3)
        self.figures.warm_ms_p99 = round(percentile(milliseconds, 0.99), 3)
        self._tell.say(
            f"NodePublishVolume as its caller sees it: p50 {self.figures.warm_ms_p50} ms, p99 "
            f"{self.figures.warm_ms_p99} ms, least {milliseconds[0]:.3f} ms"
        )
        self._tell.say(f"the registry's log has {asked} requests for these {self._rounds} publishes")
        self._tell.holds(not gets, f"and {gets.total()} of them for blobs: nothing is fetched again")

    def _crash(self) -> None:
        self._tell.step(
            "The driver is killed (kill -9) and started again",
            "Mounts live in the kernel, not in the driver: the pod must not notice, the next driver must know them.",
        )
        pid = self._driver.pid
        self._driver.kill()
        self._tell.say(f"pid {pid} is gone")
        self._tell.holds(
            same_tree(self._model, self._mount(self._first)), "without a driver, the pod still reads every byte right"
        )
        started = time.monotonic()
        self._driver.start()
        self._tell.say(f"a new driver (pid {self._driver.pid}) is ready after {time.monotonic() - started:.2f} s")
        self._kubelet.restart()
        self._kubelet.wait_registered()
        self._kubelet.wait_running(self._first)
        _, asked = self._asked()
        self._tell.holds(
            asked == 0,
            f"a restarted kubelet publishes the running pod again: OK, with {asked} requests to the registry",
        )
        self._kubelet.run(self._second)
        call = self._await_publish(self._second)
        self._tell.say(f"the second pod gets the model from the new driver in {call.seconds * 1000:.1f} ms")

    def _unpublish(self) -> None:
        self._tell.step("The pods end", "Unpublish takes the mounts away; the verified blobs stay for the next pod.")
        for pod in (self._first, self._second):
            self._kubelet.delete(pod)
            self._kubelet.wait_gone(pod)
        mounted = mounts.below(self._directory)
        self._tell.holds(not mounted, f"/proc/self/mountinfo shows {len(mounted)} mounts of ours")
        leftovers = self._kubelet.leftovers()
        self._tell.holds(not leftovers, f"{len(leftovers)} directories of deleted pods are left")
        self._tell.say(f"the store keeps {human_bytes(allocated_bytes(self._driver.store))} on disk")

    def _account(self) -> None:
        self._tell.step(
            "The registry's account", "Its access log over the whole run: cold, warm, crash and restart together."
        )
        self._asked()
        sizes = {digest: self._registry.blob_file(digest).stat().st_size for digest in self._served}
        self.figures.blobs_fetched_twice = sum(is_twice(served, sizes[d]) for d, served in self._served.items())
        more = self._served.total() - sum(sizes.values())
        self._tell.say(
            f"{self._gets.total()} blob GETs for {len(self._gets)} blobs of {human_bytes(sum(sizes.values()))}; "
            f"{human_bytes(self._served.total())} were served"
        )
        if more > 0:
            self._tell.say(
                f"(a connection was slow, on a busy machine, and others took over parts of a large blob: "
                f"{human_bytes(more)} were on their way to it when it was cut)"
            )
        self._tell.holds(
            self.figures.blobs_fetched_twice == 0, f"{self.figures.blobs_fetched_twice} blobs were fetched twice"
        )

    def explain(self) -> None:
        """Show the end of the driver's log: what a person looks at first after a failure."""
        if self._driver.log.exists():
            for line in self._driver.log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                self._tell.say(f"driver: {line}")

    def _asked(self) -> tuple[Counter[str], int]:
        """The blob GETs and the number of all requests since the last look; blobs are added to the run's account."""
        gets, requests = self._registry.blob_gets(), self._registry.requests()
        self._registry.forget()
        self._gets += gets
        for request in requests:
            if request.method == "GET" and request.digest:
                self._served[request.digest] += request.size
        return gets, len(requests)

    def _mount(self, pod: Pod) -> Path:
        return self._kubelet.target(pod, pod.volumes[0])

    def _await_publish(self, pod: Pod) -> Call:
        """The call that mounted the pod's volume; others before it may have said that the pull goes on. Raises
        FailedError at the first answer that is final for the kubelet.
        """
        self._kubelet.wait_until(
            lambda: any(call.code not in NOT_FINAL for call in self._kubelet.calls_to("NodePublishVolume", pod)),
            f"an answer about {pod.name}'s volume",
            PULL_SECONDS,
        )
        call = self._kubelet.calls_to("NodePublishVolume", pod)[-1]
        if call.code is not grpc.StatusCode.OK:
            raise FailedError(f"the driver answers {call.code.name}: {call.message}")
        return call

    def _publish_bare(self, node: csi_pb2_grpc.NodeStub) -> float:
        """Seconds of one NodePublishVolume for the second pod, over a connection that stays. What a kubelet does around
        it is done, but not timed.
        """
        pod, volume = self._second, self._second.volumes[0]
        handle, target = volume.handle(pod.uid), self._mount(pod)
        record = pods.volume_data(self._kubelet.node, volume.driver, volume, handle)
        self._disk.prepare(pod.uid, volume.spec_name, record)
        request = pods.publish_request(pod, volume, target, {})
        started = time.perf_counter()
        node.NodePublishVolume(request, timeout=CALL_SECONDS)
        seconds = time.perf_counter() - started
        if not mounts.is_mounted(target):
            raise FailedError(f"the driver answered OK, but nothing is mounted at {target}")
        ended = csi_pb2.NodeUnpublishVolumeRequest(volume_id=handle, target_path=str(target))
        node.NodeUnpublishVolume(ended, timeout=CALL_SECONDS)
        self._disk.remove_volume(pod.uid, volume.spec_name)
        self._disk.remove_pod(pod.uid)
        return seconds

    def _refuses_writes(self) -> bool:
        try:
            fd = os.open(self._mount(self._first) / "written-by-the-demo", os.O_CREAT | os.O_WRONLY)
        except OSError as e:
            return e.errno == errno.EROFS
        os.close(fd)
        return False


def same_tree(original: Path, mounted: Path) -> bool:
    """Whether both directories have the same files, directories and bytes; links and devices in either are a
    difference.
    """
    entries = [
        {p.relative_to(top).as_posix(): (p.is_symlink(), p.is_dir(), p.is_file()) for p in top.rglob("*")}
        for top in (original, mounted)
    ]
    if entries[0] != entries[1] or any(link for link, _, _ in entries[1].values()):
        return False
    files = [path for path, (_, _, is_file) in entries[0].items() if is_file]
    _, different, failed = filecmp.cmpfiles(original, mounted, files, shallow=False)
    filecmp.clear_cache()
    return not different and not failed


def same_tensors(original: Path, mounted: Path) -> int | None:
    """How many tensors both files have, when name, type, shape and every bit of each agree; None otherwise."""
    with (
        safetensors.safe_open(original, framework="numpy") as expected,
        safetensors.safe_open(mounted, framework="numpy") as found,
    ):
        names = set(expected.keys())
        if names != set(found.keys()):
            return None
        for name in names:
            wanted, got = expected.get_tensor(name), found.get_tensor(name)
            if wanted.dtype != got.dtype or wanted.shape != got.shape:
                return None
            if wanted.tobytes() != got.tobytes():  # the bits, for NaN is not equal to itself
                return None
        return len(names)


def is_twice(served: int, size: int) -> bool:
    """Whether more of a blob was served than one download of it takes. A large one may be divided among connections
    while it comes; what a registry had sent on one that is cut for that is in its log, and nobody got it.
    """
    return served > size + (size // 2 if size >= DIVIDED_BYTES else 0)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: one that was really measured."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def allocated_bytes(directory: Path) -> int:
    """What the files below `directory` take on disk, each inode once."""
    seen = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory whose sockets have paths that fit. Mounts below it are detached before it is removed."""
    place = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(
        prefix="mm-demo-", dir=place if len(os.fsencode(place)) < LONGEST_TEMPORARY else "/tmp"
    ) as name:
        try:
            yield Path(name).resolve()
        finally:
            mounts.detach_below(Path(name).resolve())


def main() -> int:
    """Run the demo; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a directory with a model in it")
    parser.add_argument("--rounds", type=int, default=200, help="warm publishes to measure (default: 200)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: mounts file systems: run it as root, for example: sudo make demo", file=sys.stderr)
        return 2
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    figures, problem = _run(options.model.resolve(), options.rounds)
    document = dataclasses.asdict(figures)
    if problem:
        print(f"\ndemo: failed {_line({**document, 'error': problem})}")
        return 1
    print(f"\ndemo: ok {_line(document)}")
    return 0


def _run(model: Path, rounds: int) -> tuple[Figures, str]:
    """The figures and, when something went wrong, what. Everything made is gone on return."""
    figures = Figures()
    try:
        with short_directory() as directory, contextlib.ExitStack() as stack:
            demo = Demo(directory, model, rounds, Narrator(), stack)
            figures = demo.figures
            try:
                demo.run()
            except grpc.RpcError as e:
                demo.explain()
                code, message = outcome(e)
                raise FailedError(f"the driver answers {code.name}: {message}") from e
            except (FailedError, RuntimeError, TimeoutError, OSError):
                demo.explain()
                raise
    except KeyboardInterrupt:
        return figures, "interrupted"
    except (FailedError, RuntimeError, TimeoutError, OSError) as e:
        return figures, str(e) or type(e).__name__
    return figures, ""


def _line(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal ends the demo; cleaning up is then left alone, and takes a second or two."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
