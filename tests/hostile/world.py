"""One node with one driver for the whole corpus: real and scripted registries, a kubelet, a pod that runs all the time,
and a tree of canaries around everything that an attack could reach.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import ssl
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme

from tests.e2e.conftest import contents, directories, is_read_only
from tests.fakes import mounts, push
from tests.fakes.driver import ROOT, Driver, Host
from tests.fakes.gateway import Act, Fault, Gateway
from tests.fakes.kubelet import NOT_FINAL, Call, Kubelet, Pod, State, Volume
from tests.fakes.registry import Registry, Tls
from tests.fakes.wire import Answer, Asked, Scripted, WireServer, blob
from tests.faults import oracle

OWNED = "mm-owned"
"""The name that every attack wants to appear somewhere."""
NEIGHBOUR = "neighbour"
PLACES = ("/", "/etc", "/tmp", "/root", "/var", "/var/lib", "/dev/shm")
MODEL_BYTES = 64 << 20
STORE_BYTES = 48 << 20
ENTRIES = 1000
SCALE = 0.04
"""Of the kubelet's times: a call has 5 seconds, and is made again after 20 ms."""
SECONDS = 100.0
"""Until something that has to happen has happened, on whatever machine."""
PASSWORD = "open-sesame-7"
POLICY = """[default]
[[rule]]
name = "attested"
models = ["{host}/hostile/h22-referrers-*"]
attestations = [{{ type = "sbom" }}]
"""
"""Of what matters of referrers, the list is asked for; of nothing else."""


@dataclass(frozen=True)
class Attack:
    """What is to be published, once everything is in place for it.

    `host` is where it comes from. `shows` is what the volume shows where the attack is of no effect. `evidence` asserts
    what else must be true afterwards, and says it.
    """

    reference: str
    host: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    password: str | None = None
    shows: Mapping[str, bytes] = field(default_factory=dict)
    evidence: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Listed:
    """A host as an admin's configuration names it."""

    host: str
    tls: Tls | None


@dataclass
class Figures:
    """What was seen in the course of the corpus."""

    escapes: list[str] = field(default_factory=list)
    restarts: int = 0
    peak_rss: int = 0


class World:
    """Use as a context manager. One thread at a time."""

    def __init__(self, short: Path, long: Path) -> None:
        """`short` is a directory whose sockets have short paths; registries live in `long`."""
        self.directory, self._long = short, long
        self.figures = Figures()
        self._stack = ExitStack()
        self._begun: list[str] = []

    def __enter__(self) -> World:
        stack = self._stack
        self.registry = stack.enter_context(Registry(self._long / "registry"))
        self.locked = stack.enter_context(Registry(self._long / "locked", users={"alice": PASSWORD}))
        self.front = stack.enter_context(Gateway(self.registry))
        self.guarded = stack.enter_context(Gateway(self.locked))
        self.wire = stack.enter_context(WireServer())
        self.elsewhere = stack.enter_context(WireServer())
        self.tls = Tls.make(self._long / "tls", "localhost")
        self.secure = stack.enter_context(Gateway(self.registry, tls=self.tls))
        self.certified = {
            fault: (stack.enter_context(Gateway(self.registry, context=context)), ca_file)
            for fault, context, ca_file in _certificates(self._long)
        }
        self.names = self._long / "names.json"
        self._name_hosts()
        home = self._long / "home"
        home.mkdir()
        (home / ".netrc").write_text(f"default login mallory password {PASSWORD}\n")
        policy = self._long / "policy.toml"
        policy.write_text(POLICY.format(host=self.front.host))
        self.driver = stack.enter_context(
            Driver(self.directory, self._hosts(), settings=self._settings(policy), environment=self._environment(home))
        )
        self.pid, self.born = self.driver.pid, self.driver.born()
        self.kubelet = stack.enter_context(Kubelet(self.driver.kubelet_root, scale=SCALE))
        self.kubelet.wait_registered(timeout=SECONDS)
        self.pusher = push.Pusher(self.registry.host, self.registry.connection)
        self._plant()
        self._resident()
        self._before = self._canaries()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.__exit__(None, None, None)

    # -- to attack with

    def pushed(self, repository: str, artifact: push.Artifact, **attack: Any) -> Attack:
        """The artifact in the real registry."""
        made = self.pusher.artifact(repository, "v1", artifact)
        return Attack(made.reference, self.registry.host, **attack)

    def scripted(
        self,
        repository: str,
        document: bytes,
        blobs: Mapping[str, bytes] | None = None,
        *,
        media_type: str = push.MANIFEST,
        pinned: bool = False,
        **attack: Any,
    ) -> Attack:
        """A manifest that no real registry would take, with its blobs, which are served under whatever digest."""
        digest = digest_of(document)
        answer = Answer(200, document, [("Content-Type", media_type)])
        self.script(repository, "manifests/v1", answer)
        self.script(repository, f"manifests/{digest}", answer)
        for name, data in (blobs or {}).items():
            self.script(repository, f"blobs/{name}", blob(data))
        reference = f"{self.wire.host}/{repository}{f'@{digest}' if pinned else ':v1'}"
        return Attack(reference, self.wire.host, **attack)

    def script(self, repository: str, path: str, *answers: Scripted) -> None:
        """What the scripted registry answers."""
        self.wire.on(f"/v2/{repository}/{path}", *answers)

    def fault(
        self, repository: str, concerns: str, act: Act, *, gateway: Gateway | None = None, times: int | None = None
    ) -> None:
        """What becomes of requests whose path has these words, in this repository."""
        gateway = gateway or self.front
        gateway.play(
            Fault(lambda asked: asked.path.startswith(f"/v2/{repository}/") and concerns in asked.path, act, times)
        )

    def model(
        self, repository: str, files: Mapping[str, bytes], *, gateway: Gateway | None = None, locked: bool = False
    ) -> push.Pushed:
        """A good model of raw files, behind a gateway that may spoil it."""
        artifact = raw_model(files)
        made = self.locked_pusher if locked else self.pusher
        pushed = made.artifact(repository, "v1", artifact)
        return dataclasses.replace(pushed, host=(gateway or (self.guarded if locked else self.front)).host)

    @property
    def locked_pusher(self) -> push.Pusher:
        """Pushes to the registry with a password."""
        authorization = push.basic("alice", PASSWORD)
        return push.Pusher(self.locked.host, self.locked.connection, authorization=authorization)

    # -- what happens

    def publish(self, attack: Attack, name: str, code: grpc.StatusCode, words: str = "") -> tuple[Pod, Call]:
        """A pod that wants it, and the first answer that is final, or has this code and these words."""
        secret = None
        if attack.password is not None:
            secret = f"secret-{name}"
            host = attack.reference.partition("/")[0]
            auths = {"auths": {host: {"username": "alice", "password": attack.password}}}
            self.kubelet.secrets["default", secret] = {".dockerconfigjson": json.dumps(auths)}
        volume = Volume("model", {"model": attack.reference, **attack.attributes}, secret=secret)
        pod = self.kubelet.run(Pod(name, (volume,)))

        def settled() -> Call | None:
            calls = self.kubelet.calls_to("NodePublishVolume", pod)
            return next((call for call in calls if call.code not in NOT_FINAL or awaited(call)), None)

        def awaited(call: Call) -> bool:
            return call.code is code and re.search(words, call.message) is not None

        self.kubelet.wait_until(lambda: settled() is not None, f"{name} to be answered with {code.name}", SECONDS)
        call = settled()
        assert call is not None
        return pod, call

    def shown(self, pod: Pod) -> dict[str, bytes]:
        """What a pod sees, which has to be plain files and directories and nothing that anybody could write to."""
        mount = self.kubelet.target(pod, pod.volumes[0])
        self.kubelet.wait_until(lambda: self.kubelet.state(pod, pod.volumes[0]) is State.MOUNTED, "the mount", SECONDS)
        assert {"ro", "nosuid", "nodev"} <= mounts.options(mount)
        assert is_read_only(mount)
        for path in mount.rglob("*"):
            status = path.lstat()
            assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), path
            assert stat.S_IMODE(status.st_mode) == (0o444 if stat.S_ISREG(status.st_mode) else 0o555), path
            assert (status.st_uid, status.st_gid) == (0, 0), path
        return contents(mount) | {f"{name}/": b"" for name in directories(mount)}

    def remove(self, pod: Pod) -> None:
        """Delete the pod and wait until the kubelet is done with it."""
        self.kubelet.delete(pod)
        self.kubelet.wait_gone(pod, SECONDS)

    def good(self, host: str, repository: str) -> None:
        """The next model, from the same gateway if it was one, mounts, right to the last byte, and goes again."""
        files = {"config.json": repository.encode(), "weights/model.bin": hashlib.sha256(repository.encode()).digest()}
        if host in {self.front.host, self.guarded.host}:
            locked = host == self.guarded.host
            reference = self.model(f"good/{repository}", files, locked=locked).reference
        else:
            document, blobs = scripted_model(files)
            reference = self.scripted(f"good/{repository}", document, blobs).reference
        password = PASSWORD if host == self.guarded.host else None
        pod, call = self.publish(Attack(reference, host, password=password), "good", grpc.StatusCode.OK)
        assert call.code is grpc.StatusCode.OK, call
        assert self.shown(pod) == files | {"weights/": b""}
        self.remove(pod)

    def calm(self) -> None:
        """No faults are played any more."""
        for gateway in (self.front, self.guarded, self.secure):
            gateway.calm()

    def tidy(self) -> None:
        """Whatever became of a case: nothing of it is in the next one's way."""
        self.calm()
        for pod in list(self.kubelet.pods.values()):
            if pod is not self.resident:
                self.remove(pod)
        self._begun = self.ingests()
        self.kubelet.calls.clear()
        self.kubelet.events.clear()

    # -- what must be true

    @property
    def calls(self) -> int:
        """How many publishes there were since the case began."""
        return len(self.kubelet.calls_to("NodePublishVolume"))

    def trees(self) -> set[str]:
        """The trees in the store."""
        return {path.name for path in (self.driver.store / "trees").iterdir()}

    def ingests(self) -> list[str]:
        """Downloads that were begun and aren't finished."""
        return sorted(path.name for path in (self.driver.store / "ingest").iterdir())

    def assert_nothing_left(self, *, partial: bool) -> None:
        """No lease, mount, pull, half-made thing or directory of others than the resident; no begun download, unless it
        may be `partial`.
        """
        store = self.driver.store
        self.kubelet.wait_until(
            lambda: not list((store / "pulls").iterdir()) and not oracle.half_made(store), "pulls to end", SECONDS
        )
        assert mounts.below(self.directory) == [self.kubelet.target(self.resident, self.resident.volumes[0])]
        assert len(list((store / "volumes").iterdir())) == 1
        assert [left for left in self.kubelet.leftovers() if NEIGHBOUR not in left] == []
        assert partial or self.ingests() == self._begun

    def look_for_escapes(self) -> list[str]:
        """Whatever an attack reached that it must not; noted for the end."""
        found = [f"{place}/{OWNED}" for place in self._places() if (Path(place) / OWNED).exists()]
        now = self._canaries()
        found += sorted(name for name in self._before.keys() | now.keys() if self._before.get(name) != now.get(name))
        if self.elsewhere.connections:
            found.append(f"{self.elsewhere.connections} connections to a foreign host")
        self.figures.escapes += [each for each in found if each not in self.figures.escapes]
        return found

    def look_at_the_driver(self) -> None:
        """Whether it still is the same process, and how large it was."""
        if (self.driver.pid, self.driver.born()) != (self.pid, self.born):
            self.figures.restarts += 1
        self.figures.peak_rss = max(self.figures.peak_rss, self.driver.memory())

    # -- inside

    def _hosts(self) -> Iterator[Host]:
        yield self.registry
        yield from (Listed(server.host, None) for server in (self.front, self.guarded, self.wire))
        yield Listed(self.secure.host, self.tls)
        for gateway, ca_file in self.certified.values():
            yield Listed(gateway.host, Tls(ca_file, ca_file, ca_file))
        for name in self._names():
            yield Listed(f"{name}:{self.front.port}", None)

    def _names(self) -> dict[str, list[list[str] | float]]:
        """Names of registries and of their storage, and what they resolve to each time."""
        good = ["127.0.0.1"]
        return {
            "gone.test": [[]],
            "silent.test": [600.0],
            "six.test": [["::1"]],
            "rebinding.test": [good, ["169.254.169.254"]],
            "mixed.test": [["169.254.169.254", "127.0.0.1"]],
            "metadata.test": [["169.254.169.254"]],
        }

    def _name_hosts(self) -> None:
        self.names.write_text(json.dumps(self._names()))

    def _environment(self, home: Path) -> dict[str, str]:
        """As hostile as an environment may be: proxies and passwords that nobody asked for."""
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"), self.elsewhere.url)
        path = [ROOT / "tests/fakes/names", ROOT / "driver", ROOT]
        return {
            **proxies,
            "HOME": str(home),
            "NETRC": str(home / ".netrc"),
            "TEST_NAMES": str(self.names),
            "PYTHONPATH": ":".join(map(str, path)),
        }

    @staticmethod
    def _settings(policy: Path) -> dict[str, Any]:
        return {
            "policy_file": str(policy),
            "limits": {"model_bytes": MODEL_BYTES, "archive_entries": ENTRIES, "free_bytes": 1 << 20},
            "cache": {"max_bytes": STORE_BYTES},
            "pull": {
                "connect_timeout_seconds": 2,
                "read_timeout_seconds": 2,
                "document_timeout_seconds": 2,
                "idle_seconds": 1,
            },
        }

    def _plant(self) -> None:
        """Canaries: beside the store, beside the socket, in the pods of others, and beside targets."""
        pods = self.driver.kubelet_root / "pods"
        self._gardens = [
            self.directory / "store-neighbour",
            self.directory / "store.canary",
            self.directory / "etc",
            self.directory / "csi/canary",
            self.driver.kubelet_root / "plugins/another",
        ]
        for number in range(3):
            self._gardens.append(pods / f"{NEIGHBOUR}-{number}/volumes/kubernetes.io~csi/model/mount")
        for garden in self._gardens:
            garden.mkdir(parents=True)
            (garden / "precious").write_bytes(b"precious\n")
            (garden / "passwd").write_bytes(b"root:x:0:0::/root:/bin/sh\n")
            (garden / "link").symlink_to("precious")
            (garden / "precious").chmod(0o600)

    def _resident(self) -> None:
        """A pod whose model is private and mounted all the time."""
        self.secret_files = {"secret.bin": b"nobody else's weights", "config.json": b"{}"}
        pushed = self.model("private/resident", self.secret_files, locked=True)
        self.secret_digests = pushed.layers
        attack = Attack(pushed.reference, pushed.host, password=PASSWORD)
        self.resident, call = self.publish(attack, "resident", grpc.StatusCode.OK)
        assert call.code is grpc.StatusCode.OK, call
        assert self.shown(self.resident) == self.secret_files

    def _places(self) -> Iterator[str]:
        yield from PLACES
        yield from (str(self.directory), str(self.driver.store), str(self.driver.kubelet_root))
        yield from (f"/proc/{self.driver.pid}/cwd", str(ROOT), str(self.driver.kubelet_root / "pods"))
        for room in self.driver.store.iterdir():
            if room.is_dir():
                yield str(room)

    def _canaries(self) -> dict[str, Any]:
        """Everything about every canary, and what the resident pod sees."""
        found: dict[str, Any] = {}
        mount = self.kubelet.target(self.resident, self.resident.volumes[0])
        for top in [*self._gardens, mount]:
            for path in (top, *sorted(top.rglob("*"))):
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                whole = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
                found[str(path)] = (*whole, content)
        for top in (self.directory, self.driver.kubelet_root):
            found[f"in {top}"] = sorted(path.name for path in top.iterdir())
        return found


def digest_of(data: bytes) -> str:
    """sha256, as it stands in manifests."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, title: str | None = None, media_type: str = push.ORAS_FILE, **more: Any) -> dict[str, Any]:
    """Of a blob, with its title."""
    annotations = {} if title is None else {"annotations": {push.TITLE: title}}
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **annotations, **more}


def manifest(*layers: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """An ORAS manifest; keys that are changed to None are left out."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": push.MANIFEST, "artifactType": "application/x.model"}
    document |= {"config": descriptor(b"{}", media_type=push.EMPTY), "layers": list(layers), **changes}
    return {key: value for key, value in document.items() if value is not None}


def scripted_model(files: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """A good model for the scripted registry: manifest and blobs."""
    document = manifest(*(descriptor(data, name) for name, data in files.items()))
    return json.dumps(document).encode(), {digest_of(data): data for data in files.values()}


def raw_model(files: Mapping[str, bytes]) -> push.Artifact:
    """Files as ORAS pushes them."""
    layers = tuple(push.Layer(push.ORAS_FILE, data, {push.TITLE: name}) for name, data in files.items())
    return push.Artifact(push.Layer(push.EMPTY, b"{}"), layers, "application/x.model")


def asked_of(server: WireServer, repository: str) -> list[Asked]:
    """What a repository of it was asked for."""
    return [asked for asked in server.asked() if asked.path.startswith(f"/v2/{repository}/")]


def _certificates(directory: Path) -> Iterator[tuple[str, ssl.SSLContext, Path]]:
    """Servers with something wrong about their certificates, and what the admin trusts of each."""
    ca, other = trustme.CA(), trustme.CA()
    ca_file = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    leaves = {
        "another CA": other.issue_cert("localhost"),
        "another name": ca.issue_cert("harbor.example.com"),
        "expired": ca.issue_cert("localhost", not_after=now - day),
        "not yet valid": ca.issue_cert("localhost", not_before=now + day),
        "an old protocol": ca.issue_cert("localhost"),
    }
    for fault, leaf in leaves.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        if fault == "an old protocol":
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                context.maximum_version = ssl.TLSVersion.TLSv1_1
        yield fault, context, ca_file
