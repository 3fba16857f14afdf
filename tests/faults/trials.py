"""A node that faults are played to, one after the other, and the six points that must hold after each
(`Trial.judge`): what is there is whole, a publish works, nothing is mounted or held for nobody, verified bytes aren't
fetched again, and what the cache counts is what the disk does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.conftest import contents, random_bytes
from tests.fakes import kubelet_disk, mounts, push
from tests.fakes.registry import Registry
from tests.faults import oracle
from tests.faults.interception import Decision
from tests.faults.processes import connections_at
from tests.faults.scene import assert_free, wait_for
from tests.faults.victim import Answer, Plan, Victim

WEIGHTS_BYTES = 700_000
"""More than a small file, which has no journal; a few pieces."""


@dataclass(frozen=True)
class Model:
    """A model and what a pod must see of it."""

    pushed: push.Pushed
    files: dict[str, bytes]


class Shop:
    """A real registry with a model of raw layers, small ones among them, one of uncompressed archives, and one with a
    compressed archive.
    """

    def __init__(self, directory: Path, registry: Registry) -> None:
        self.registry = registry
        pusher = push.Pusher(registry.host, registry.connection)
        plain, packed, archive = directory / "plain", directory / "packed", directory / "archive"
        for number, path in enumerate((plain, packed, archive)):
            path.mkdir()
            (path / "model.safetensors").write_bytes(random_bytes(WEIGHTS_BYTES, number))
            for name in ("config.json", "generation_config.json"):
                (path / name).write_bytes(random_bytes(500, number) + name.encode())
        (archive / "tokenizer").mkdir()
        (archive / "tokenizer/vocab.txt").write_bytes(random_bytes(300_000, 8))
        self.models = {
            "plain": Model(pusher.artifact("llm/plain", "v1", push.oras(plain)), contents(plain)),
            "packed": Model(
                pusher.artifact("llm/packed", "v1", push.modelpack(packed, packing="tar")), contents(packed)
            ),
            "archive": Model(
                pusher.artifact("llm/archive", "v1", push.oras(archive, packed=["tokenizer"])), contents(archive)
            ),
        }

        digests = {digest for model in self.models.values() for digest in model.pushed.layers}
        self.sizes = {digest: registry.blob_file(digest).stat().st_size for digest in digests}

    def fetched(self) -> Counter[str]:
        """Bytes that the registry sent of each blob since the last `forget`, by its own log."""
        found: Counter[str] = Counter()
        for request in self.registry.requests():
            if request.method == "GET" and request.digest and request.status in {200, 206}:
                found[request.digest] += request.size
        return found

    def forget(self) -> None:
        """What ended processes asked for is over, and counts no more."""
        wait_for(lambda: not connections_at(self.registry.port), "the registry to see that its clients are gone")
        self.registry.forget()


@dataclass
class Verdict:
    """What was wrong after a fault, counted and in sentences, and what shows it. All zeros are well."""

    corrupt: int = 0
    lost: int = 0
    refetched_verified_bytes: int = 0
    leaks: int = 0
    wrong: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)

    def count(self, what: str, sentences: list[str]) -> None:
        setattr(self, what, getattr(self, what) + len(sentences))
        self.wrong += sentences


class Trial:
    """One node. `disk` is where its store lies. Its processes live in `boot`, which `reboot` changes."""

    def __init__(self, directory: Path, shop: Shop, disk: Path | None = None) -> None:
        self.directory, self.shop = directory, shop
        self.store = (disk or directory) / "store"
        self._kubelet = directory / "kubelet"
        (self._kubelet / "pods").mkdir(parents=True)
        kubelet_disk.write_config(self._kubelet)
        self._boots = itertools.count()
        self._boot = "boot"
        self._victims: list[Victim] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "root": str(self.store),
            "kubelet_root": str(self._kubelet),
            "registries": {self.shop.registry.host: {"plain_http": True}},
            "limits": {"free_bytes": 0},
            "cache": {"free_inodes": 0},
        }

    def victim(self, decide: Decision | None = None, failpoints: str = "") -> Victim:
        """A fresh process on this node; `close` ends all."""
        made = Victim(Plan(self.settings, failpoints, self._boot), self.directory, decide)
        self._victims.append(made)
        return made

    def close(self) -> None:
        """Nothing runs and nothing is mounted any more."""
        for victim in self._victims:
            victim.close()
        self._victims.clear()
        mounts.detach_below(self._kubelet)

    def reboot(self) -> None:
        """What a loss of power leaves of a node: its disks."""
        self.close()
        self._boot = f"boot {next(self._boots)}"

    def target(self, name: str) -> Path:
        """Where pod `name` has its model."""
        target = self._kubelet / "pods" / name / "volumes/kubernetes.io~csi/model/mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def volume(self, model: str) -> tuple[str, str, dict[str, str]]:
        """How pod `model` has its model published."""
        return f"volume-{model}", str(self.target(model)), {"model": self.shop.models[model].pushed.reference}

    def shows(self, model: str) -> bool:
        """Whether the pod sees its model, whole."""
        return contents(self.target(model)) == self.shop.models[model].files

    def step(self, victim: Victim, what: str, *models: str) -> Answer:
        """Have one step of a `life` done. Raises DiedError."""
        (volume,) = map(self.volume, models) if models else ((),)
        return victim.ask(what, *(volume[:2] if what == "unpublish" else volume))

    # -- the oracle

    def judge(self, acknowledged: Mapping[str, bool], models: list[str]) -> Verdict:
        """The six points, after which the node is empty again. Everything before is over: no process, no fault.

        `acknowledged` are the models whose publish was answered OK and whose unpublish wasn't asked for, and whether
        their mounts must have survived.
        """
        verdict = Verdict()
        verdict.count("corrupt", oracle.faults(self.store))
        for model, mounted in acknowledged.items():
            verdict.count("lost", self._missing(model, mounted=mounted))
        kept = oracle.kept(self.store)
        self.shop.forget()
        victim = self.victim()
        started = victim.ask("start")
        if not started.ok:
            verdict.count("lost", [f"the next start fails: {started.sentence}"])
            return verdict
        verdict.count("leaks", [f"{path} is left half-made" for path in oracle.half_made(self.store)])
        for model in models:
            done = victim.ask("publish", *self.volume(model))
            if not done.ok or not self.shows(model):
                verdict.count("lost", [f"{model} can't be published: {done.error} {done.sentence}"])
        verdict.count("corrupt", oracle.faults(self.store))
        self._count_fetched(verdict, kept)
        counted, there = victim.ask("used").value, oracle.used(self.store)
        if counted != there:
            verdict.count("leaks", [f"the cache counts {counted} bytes, the disk {there}"])
        verdict.evidence["bytes"] = {"counted": counted, "on disk": there}
        self._clear_away(verdict, victim, models)
        victim.close()
        return verdict

    def missing_bytes(self, models: Iterable[str]) -> float:
        """Bytes of layers that somebody who publishes these models has to fetch."""
        kept = oracle.kept(self.store)
        layers = {digest for model in models for digest in self.shop.models[model].pushed.layers}
        return sum(max(0, self.shop.sizes[digest] - kept.get(digest, 0)) for digest in layers)

    def _missing(self, model: str, *, mounted: bool) -> list[str]:
        """What of an acknowledged publication isn't there."""
        if mounted:
            return [] if self.shows(model) else [f"the mount of {model} shows other files than it did"]
        tree = oracle.leased_tree(self.store, str(self.target(model)))
        if tree is None:
            return [f"{model} was published, and no lease says so"]
        if contents(tree) != self.shop.models[model].files:
            return [f"{model} was published, and its tree isn't whole"]
        return []

    def _count_fetched(self, verdict: Verdict, kept: Mapping[str, float]) -> None:
        fetched, again = self.shop.fetched(), 0.0
        for digest, size in self.shop.sizes.items():
            needed = max(0, size - kept.get(digest, 0))
            if fetched[digest] > needed:
                again += fetched[digest] - needed
                verdict.wrong.append(f"{fetched[digest]} bytes of {digest} were fetched, {needed} were missing")
        verdict.refetched_verified_bytes += int(again)
        known = sum(min(size, kept.get(digest, 0)) for digest, size in self.shop.sizes.items())
        verdict.evidence["registry"] = {"kept": known, "sent": sum(fetched.values())}

    def _clear_away(self, verdict: Verdict, victim: Victim, models: list[str]) -> None:
        """No pod any more, and no model that anybody needs: nothing must be left."""
        leases = list((self.store / "volumes").glob("*.json"))
        shown = mounts.below(self._kubelet)
        if len(leases) != len(models) or len(shown) != len(models):
            verdict.count("leaks", [f"{len(models)} pods have {len(leases)} leases and {len(shown)} mounts"])
        verdict.evidence["mounts"] = len(shown)
        for model in models:
            volume, target, _ = self.volume(model)
            done = victim.ask("unpublish", volume, target)
            if not done.ok:
                verdict.count("leaks", [f"{model} can't be unpublished: {done.sentence}"])
        for step in ("release", "collect", "end"):
            done = victim.ask(step)
            if not done.ok:
                verdict.count("leaks", [f"{step} fails: {done.error} {done.sentence}"])
        victim.wait()
        verdict.count("leaks", [f"{path} is mounted for nobody" for path in mounts.below(self._kubelet)])
        verdict.count("leaks", [f"{path} stays for ever" for path in oracle.remains(self.store)])
        for lock in (self.store / "locks").iterdir():
            assert_free(lock)


def life(models: list[str]) -> Iterator[tuple[str, ...]]:
    """The steps of a life in which everything happens: a start, publishes, unpublishes, a sweep."""
    yield ("start",)
    yield from (("publish", model) for model in models)
    yield from (("unpublish", model) for model in models)
    yield ("collect",)
