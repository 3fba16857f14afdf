"""P rows: names, wherever an artifact may have one. All of them lie in the real registry, which takes any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tests.fakes import push
from tests.fakes.archives import END, file
from tests.hostile.case import OK, Case, Prepare
from tests.hostile.world import OWNED, Attack, World, descriptor, digest_of, manifest, raw_model

DATA = b"the weights"
KIT = "application/vnd.kitops.modelkit"
DOCKER = "application/vnd.docker.ai"
OLLAMA = "application/vnd.ollama.image"


def titled(*titles: str, shows: Mapping[str, bytes] | None = None) -> Prepare:
    """A file for each title."""
    files = {title: f"bytes of {number}".encode() for number, title in enumerate(titles)}
    shown = files if shows is None else shows
    return lambda world, repository: world.pushed(repository, raw_model(files), shows=shown)


def visible(*titles: str) -> Prepare:
    """Files under names that are as good as any."""
    files = {title: f"bytes of {number}".encode() for number, title in enumerate(titles)}
    above = {f"{parent}/": b"" for title in titles for parent in PurePosixPath(title).parents if parent.name}
    return lambda world, repository: world.pushed(repository, raw_model(files), shows=files | above)


def artifact(
    layer_type: str, annotations: Mapping[str, str], config_type: str, config: bytes = b"{}", data: bytes = DATA
) -> Prepare:
    """One layer of a format."""
    layer = push.Layer(layer_type, data, annotations)
    return lambda world, repository: world.pushed(repository, push.Artifact(push.Layer(config_type, config), (layer,)))


def annotated(key: str, value: str) -> Prepare:
    """A ModelPack layer that is named by this annotation."""
    return artifact("application/vnd.cncf.model.weight.v1.raw", {key: value}, push.MODELPACK_CONFIG)


def kitfile(path: str, layer_type: str, data: bytes = DATA) -> Prepare:
    """A ModelKit whose Kitfile alone says where its model is."""
    config = json.dumps({"package": {"name": "x"}, "model": {"path": path}}).encode()
    return artifact(f"{KIT}.model.v1.{layer_type}", {}, f"{KIT}.config.v1+json", config, data)


def descriptor_name(world: World, repository: str) -> Attack:
    layer = descriptor(DATA, media_type=f"{OLLAMA}.json", name=f"../../{OWNED}")
    config = descriptor(b"{}", media_type=push.DOCKER_CONFIG)
    document = manifest(layer, config=config, artifactType=None, mediaType=push.DOCKER_MANIFEST)
    served = {digest_of(DATA): DATA, digest_of(b"{}"): b"{}"}
    return world.scripted(repository, json.dumps(document).encode(), served, media_type=push.DOCKER_MANIFEST)


def archive_in_directory(world: World, repository: str) -> Attack:
    """A directory as `oras push` packs it, with an entry that isn't in it."""
    packed = push.compress(file(b"elsewhere/x") + END, "tar+gzip")
    layer = push.Layer(push.ORAS_DIRECTORY, packed, {push.TITLE: "weights", push.UNPACK: "true"})
    return world.pushed(repository, push.Artifact(push.Layer(push.EMPTY, b"{}"), (layer,), "application/x.model"))


def same_in_other_case(world: World, repository: str) -> Attack:
    files = {"Model.bin": b"one", "model.bin": b"two"}
    return world.pushed(repository, raw_model(files), shows=files)


def metadata(name: Any) -> str:
    return json.dumps({"name": name, "size": len(DATA), "typeflag": 0})


CASES = [
    Case("P1 parent", titled(f"../{OWNED}"), words="has the component '..'"),
    Case("P1 parent in the middle", titled(f"a/../../../../../../tmp/{OWNED}"), words="has the component '..'"),
    Case("P1 absolute", titled(f"/etc/{OWNED}"), words="is absolute"),
    Case("P1 absolute after a dot", titled(f".//etc/{OWNED}"), words="is absolute"),
    Case("P1 two slashes", titled("a//b"), words="empty component"),
    Case("P1 a slash at the end", titled("a/"), words="ends with a slash"),
    Case("P1 a dot", titled("."), words="has the component '.'"),
    Case("P1 dots in the middle", titled("a/./b"), words="has the component '.'"),
    Case("P1 nothing", titled(""), words="file with a name"),
    Case("P1 nothing but ./", titled("./"), words="is empty"),
    Case("P1 a leading ./ means nothing", titled("./a.bin", shows={"a.bin": b"bytes of 0"}), OK),
    Case("P1 backslashes", titled(f"..\\..\\{OWNED}"), words="contains a backslash"),
    Case("P1 parent by ModelPack's annotation", annotated(push.FILEPATH, f"../../{OWNED}"), words="component '..'"),
    Case(
        "P1 absolute by the annotation's old name",
        annotated("org.cnai.model.filepath", f"/tmp/{OWNED}"),
        words="is absolute",
    ),
    Case("P1 parent by file metadata", annotated(push.METADATA, metadata(f"../{OWNED}")), words="component '..'"),
    Case("P1 metadata whose name is a number", annotated(push.METADATA, metadata(5)), words="file with a name"),
    Case("P1 metadata that is nested", annotated(push.METADATA, "[" * 10_000), words="file with a name"),
    Case("P1 parent by the descriptor's name", descriptor_name, words="component '..'"),
    Case("P1 parent by a Kitfile", kitfile(f"../../{OWNED}", "raw"), words="component '..'"),
    Case(
        "P1 parent by an old Kitfile's directory",
        kitfile(f"../../tmp/{OWNED}", "tar", file(OWNED.encode()) + END),
        words="component '..'",
    ),
    Case(
        "P1 parent by Docker Model Runner's path",
        artifact(
            f"{DOCKER}.model.file",
            {push.FILEPATH: f"../{OWNED}"},
            f"{DOCKER}.model.config.v0.2+json",
        ),
        words="component '..'",
    ),
    Case("P1 an entry outside of its directory", archive_in_directory, words="lies outside of it"),
    Case("P2 NUL", titled("a\0b"), words=r"U\+0000"),
    Case("P2 a line break", titled("a\nb"), words=r"U\+000A"),
    Case("P2 an escape sequence", titled("\x1b[2Ja"), words=r"U\+001B"),
    Case("P2 right to left in a title", titled("a\u202enib.exe"), words=r"U\+202E"),
    Case("P2 zero width", titled("mo\u200bdel.bin"), words=r"U\+200B"),
    Case("P2 a line separator", titled("a\u2028b"), words=r"U\+2028"),
    Case("P2 private use", titled("a\ue000b"), words=r"U\+E000"),
    Case("P2 a tag character", titled("a\U000e0041b"), words=r"U\+E0041"),
    Case("P3 a component of 256 bytes", titled("a" * 256), words="component longer than 255 bytes"),
    Case("P3 a component of 128 letters and 256 bytes", titled("é" * 128), words="component longer than 255 bytes"),
    Case("P3 33 levels", titled("/".join("a" * 33)), words="more than 32 levels deep"),
    Case("P3 1025 bytes", titled("/".join(["a" * 204] * 5) + "b"), words="longer than 1024 bytes"),
    Case("P3 a name of 1 MiB", titled("a/" * (1 << 19)), words="longer than 1024 bytes"),
    Case("P4 a file and a directory", titled("a", "a/b"), words="both a file and a directory"),
    Case("P4 a file and a directory far below", titled("a/b/c/d", "a/b"), words="both a file and a directory"),
    Case("P5 composed and decomposed", titled("caf\u00e9", "cafe\u0301"), words="look the same"),
    Case("P5 directories, composed and decomposed", titled("\u00e9/a", "e\u0301/b"), words="look the same"),
    Case("P5 upper and lower case", same_in_other_case, OK),
    Case("P6 a reserved name", titled(".modelmount-ready"), words="reserved for the driver"),
    Case("P6 a reserved name of a directory", titled("a/.modelmount/b"), words="reserved for the driver"),
    Case("P6 names that others reserve", visible("lost+found/a", ".ready", ".git/config", "tree.json"), OK),
    Case(
        "P7 names that look like commands",
        visible("-rf", "~root", "%2e%2e/a", f"$(touch /tmp/{OWNED})", "`id`", "a;b", "*", "con", "{}", "a b"),
        OK,
    ),
    Case("P7 a name that looks like a format", visible("%s%n", "{0.__class__}", "${jndi:ldap:x}/a"), OK),
    Case("P8 a whiteout as a title", titled(".wh.config.json"), words="is a whiteout"),
    Case("P8 an opaque directory as a title", titled("a/.wh..wh..opq"), words="is a whiteout"),
]
