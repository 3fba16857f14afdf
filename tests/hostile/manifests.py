"""M rows: manifests, indexes and configs. Most come from the scripted registry, as no real one would take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.fakes import push
from tests.fakes.wire import Answer
from tests.hostile.case import NO_SPACE, NOT_FOUND, OK, UNAVAILABLE, Case, Prepare
from tests.hostile.world import (
    MODEL_BYTES,
    Attack,
    World,
    asked_of,
    descriptor,
    digest_of,
    manifest,
    raw_model,
    scripted_model,
)

DATA = b"the weights"
ONE = descriptor(DATA, "model.bin")
SHOWN = {"model.bin": DATA}
WINDOWS = {"os": "windows", "architecture": "arm64"}


def text(document: str, *, media_type: str = push.MANIFEST, blobs: bool = True) -> Prepare:
    """This document, byte for byte."""
    return raw(document.encode(), media_type=media_type, blobs=blobs)


def raw(document: bytes, *, media_type: str = push.MANIFEST, blobs: bool = True) -> Prepare:
    """These bytes as the manifest."""
    served = {digest_of(DATA): DATA} if blobs else {}
    return lambda world, repository: world.scripted(
        repository, document, served, media_type=media_type, evidence=asks_no_blob(world, repository)
    )


def asks_no_blob(world: World, repository: str) -> Any:
    """What was asked for; a refused manifest's blobs are not."""

    def evidence() -> str:
        asked = asked_of(world.wire, repository)
        blobs = [each for each in asked if "/blobs/" in each.path]
        assert blobs == []
        return f"{len(asked)} requests, none for a blob"

    return evidence


def spoilt(*layers: Mapping[str, Any], **changes: Any) -> Prepare:
    """A manifest with something wrong."""
    return text(json.dumps(manifest(*(layers or (ONE,)), **changes)))


def harmless(
    document: Mapping[str, Any],
    shows: Mapping[str, bytes] = SHOWN,
    *,
    media_type: str = push.MANIFEST,
    blobs: Sequence[bytes] = (DATA,),
) -> Prepare:
    """A manifest whose oddity is of no effect."""
    served = {digest_of(data): data for data in blobs}
    return lambda world, repository: world.scripted(
        repository, json.dumps(document).encode(), served, media_type=media_type, shows=shows
    )


def replaced(old: str, new: str, **changes: Any) -> Prepare:
    """A good manifest with a piece of text in another's place."""
    document = json.dumps(manifest(ONE, **changes))
    assert document.count(old) == 1, document
    return text(document.replace(old, new))


def index(*entries: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """An index of these."""
    return {"schemaVersion": 2, "mediaType": push.INDEX, "manifests": list(entries), **changes}


def entry(document: bytes, media_type: str = push.MANIFEST, **more: Any) -> dict[str, Any]:
    """Of an index."""
    return descriptor(document, media_type=media_type, **more)


def indexed(*entries: Mapping[str, Any], **changes: Any) -> Prepare:
    """An index with something wrong."""
    return text(json.dumps(index(*entries, **changes)), media_type=push.INDEX)


# -- M1


def endless(world: World, repository: str) -> Attack:
    answer = Answer(200, b" " * (12 << 20), [("Content-Type", push.MANIFEST)], framing="close")
    world.script(repository, "manifests/v1", answer)
    return Attack(f"{world.wire.host}/{repository}:v1", world.wire.host)


def large_config(world: World, repository: str) -> Attack:
    config = b"{" + b" " * (4 << 20) + b"}"
    kit = "application/vnd.kitops.modelkit"
    layers = (push.Layer(f"{kit}.model.v1.raw", DATA),)
    return world.pushed(repository, push.Artifact(push.Layer(f"{kit}.config.v1+json", config), layers))


def large_config_that_lies(world: World, repository: str) -> Attack:
    config = b"{" + b" " * (6 << 20) + b"}"
    kit = "application/vnd.kitops.modelkit"
    declared = {**descriptor(b"{}", media_type=f"{kit}.config.v1+json")}
    document = manifest(descriptor(DATA, media_type=f"{kit}.model.v1.raw"), config=declared, artifactType=None)
    return world.scripted(repository, json.dumps(document).encode(), {declared["digest"]: config})


# -- M7, M8


def other_bytes(world: World, repository: str) -> Attack:
    document, blobs = scripted_model(SHOWN)
    attack = world.scripted(repository, document, blobs, pinned=True)
    changed = document.replace(b"model.bin", b"evil-.bin")
    world.script(repository, f"manifests/{digest_of(document)}", Answer(200, changed))
    return attack


def lying_header(world: World, repository: str) -> Attack:
    document, blobs = scripted_model(SHOWN)
    attack = world.scripted(repository, document, blobs, pinned=True, shows=SHOWN)
    headers = [("Docker-Content-Digest", digest_of(b"something else")), ("Content-Type", push.MANIFEST)]
    world.script(repository, f"manifests/{digest_of(document)}", Answer(200, document, headers))
    return attack


def lying_header_of_a_tag(world: World, repository: str) -> Attack:
    document, blobs = scripted_model(SHOWN)
    attack = world.scripted(repository, document, blobs)
    headers = [("Docker-Content-Digest", digest_of(b"something else")), ("Content-Type", push.MANIFEST)]
    world.script(repository, "manifests/v1", Answer(200, document, headers))
    return attack


def moving_tag(world: World, repository: str) -> Attack:
    first, blobs = scripted_model(SHOWN)
    second, more = scripted_model({"model.bin": b"other weights"})
    attack = world.scripted(repository, first, {**blobs, **more}, shows=SHOWN)
    world.script(repository, "manifests/v1", Answer(200, first), Answer(200, second))
    world.script(repository, f"manifests/{digest_of(first)}", Answer(404))
    return attack


def gone_blob(world: World, repository: str) -> Attack:
    return world.scripted(repository, json.dumps(manifest(ONE)).encode(), {})


# -- M9


def type_of_the_header(world: World, repository: str) -> Attack:
    document = json.dumps(manifest(ONE)).encode()
    return world.scripted(repository, document, {digest_of(DATA): DATA}, media_type=push.INDEX, shows=SHOWN)


# -- M11


def nested(depth: int) -> Prepare:
    def prepare(world: World, repository: str) -> Attack:
        document, blobs = scripted_model(SHOWN)
        media_type = push.MANIFEST
        for _ in range(depth):
            world.script(repository, f"manifests/{digest_of(document)}", Answer(200, document))
            document, media_type = json.dumps(index(entry(document, media_type))).encode(), push.INDEX
        return world.scripted(repository, document, blobs, media_type=push.INDEX, shows=SHOWN)

    return prepare


def cyclic(world: World, repository: str) -> Attack:
    """A names B, and B names A, as far as the registry says."""
    first = json.dumps(index(entry(b"B", push.INDEX))).encode()
    second = json.dumps(index(entry(first, push.INDEX))).encode()
    attack = world.scripted(repository, first, media_type=push.INDEX)
    world.script(repository, f"manifests/{digest_of(b'B')}", Answer(200, second))
    return attack


def index_in_disguise(world: World, repository: str) -> Attack:
    """An entry that says manifest and is an index, of a model all the same."""
    document, blobs = scripted_model(SHOWN)
    inner = json.dumps(index(entry(document))).encode()
    for each in (document, inner):
        world.script(repository, f"manifests/{digest_of(each)}", Answer(200, each))
    outer = json.dumps(index(entry(inner))).encode()
    return world.scripted(repository, outer, blobs, media_type=push.INDEX, shows=SHOWN)


def entry_of_another_size(world: World, repository: str) -> Attack:
    document, blobs = scripted_model(SHOWN)
    world.script(repository, f"manifests/{digest_of(document)}", Answer(200, document))
    outer = json.dumps(index({**entry(document), "size": 1 << 50})).encode()
    return world.scripted(repository, outer, blobs, media_type=push.INDEX, shows=SHOWN)


# -- M12, M13


def listed_often(world: World, repository: str) -> Attack:
    layers = [descriptor(DATA, f"copy-{number}.bin") for number in range(50)]
    document = json.dumps(manifest(*layers)).encode()

    def evidence() -> str:
        gets = len([asked for asked in asked_of(world.wire, repository) if "/blobs/" in asked.path])
        assert gets < 10  # one, unless the machine is so busy that it is asked for again
        return f"{gets} GET for 50 layers"

    shows = {f"copy-{number}.bin": DATA for number in range(50)}
    return world.scripted(repository, document, {digest_of(DATA): DATA}, shows=shows, evidence=evidence)


def sized(size: object) -> Prepare:
    return spoilt({**ONE, "size": size})


def many_that_are_large(world: World, repository: str) -> Attack:
    layers = [{**descriptor(b"%d" % number, f"{number}.bin"), "size": 1 << 53} for number in range(2048)]
    document = json.dumps(manifest(*layers)).encode()
    return world.scripted(repository, document, evidence=asks_no_blob(world, repository))


def longer_than_said(world: World, repository: str) -> Attack:
    data = DATA * 1000
    document = json.dumps(manifest({**descriptor(data, "model.bin"), "size": 100})).encode()
    return world.scripted(repository, document, {digest_of(data): data})


def shorter_than_said(world: World, repository: str) -> Attack:
    document = json.dumps(manifest({**ONE, "size": 1 << 20})).encode()
    return world.scripted(repository, document, {digest_of(DATA): DATA})


# -- M14, M15


def config_of(media_type: str, config: bytes, layer_type: str, shows: Mapping[str, bytes] | None = SHOWN) -> Prepare:
    def prepare(world: World, repository: str) -> Attack:
        layers = (push.Layer(layer_type, DATA, {push.FILEPATH: "model.bin"}),)
        return world.pushed(repository, push.Artifact(push.Layer(media_type, config), layers), shows=shows or {})

    return prepare


def config_that_is_gone(world: World, repository: str) -> Attack:
    kit = "application/vnd.kitops.modelkit"
    document = manifest(
        descriptor(DATA, media_type=f"{kit}.model.v1.raw"),
        config=descriptor(b"{}", media_type=f"{kit}.config.v1+json"),
        artifactType=None,
    )
    return world.scripted(repository, json.dumps(document).encode(), {digest_of(DATA): DATA})


def config_of_other_bytes(world: World, repository: str) -> Attack:
    kit = "application/vnd.kitops.modelkit"
    config = descriptor(b'{"model":{}}', media_type=f"{kit}.config.v1+json")
    document = manifest(descriptor(DATA, media_type=f"{kit}.model.v1.raw"), config=config, artifactType=None)
    served = {config["digest"]: b'{"modem":{}}', digest_of(DATA): DATA}
    return world.scripted(repository, json.dumps(document).encode(), served)


# -- M16


def elsewhere(*, served: bool) -> Prepare:
    def prepare(world: World, repository: str) -> Attack:
        urls = [f"{world.elsewhere.url}/weights", "http://169.254.169.254/latest/meta-data", "file:///etc/shadow"]
        layer = {**ONE, "urls": urls, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}
        blobs = {digest_of(DATA): DATA} if served else {}
        return world.scripted(repository, json.dumps(manifest(layer)).encode(), blobs, shows=SHOWN)

    return prepare


# -- M18 to M20


def many_annotations(world: World, repository: str) -> Attack:
    annotations = {f"k{number}": "\x1b]0;" for number in range(100_000)}
    return harmless(manifest(ONE, annotations=annotations))(world, repository)


def collides_with_an_archive(world: World, repository: str) -> Attack:
    from tests.fakes.archives import END, file

    archive = file(b"model.bin", b"other weights") + END
    layers = (
        push.Layer("application/vnd.cncf.model.weight.v1.raw", DATA, {push.FILEPATH: "model.bin"}),
        push.Layer("application/vnd.cncf.model.weight.v1.tar", archive, {push.FILEPATH: "."}),
    )
    return world.pushed(
        repository, push.Artifact(push.Layer(push.MODELPACK_CONFIG, b"{}"), layers, push.MODELPACK_ARTIFACT)
    )


def modelpack(media_type: str, data: bytes, shows: Mapping[str, bytes] | None = None) -> Prepare:
    """One ModelPack layer of this type."""
    layer = push.Layer(f"application/vnd.cncf.model.weight.v1.{media_type}", data, {push.FILEPATH: "model.bin"})
    artifact = push.Artifact(push.Layer(push.MODELPACK_CONFIG, b"{}"), (layer,), push.MODELPACK_ARTIFACT)
    return lambda world, repository: world.pushed(repository, artifact, shows=shows or {})


def two_titles(world: World, repository: str) -> Attack:
    artifact = raw_model({"model.bin": DATA})
    again = push.Layer(push.ORAS_FILE, b"other weights", {push.TITLE: "model.bin"})
    return world.pushed(repository, replace(artifact, layers=(*artifact.layers, again)))


def hashed_otherwise(world: World, repository: str) -> Attack:
    """A sha512 whose bytes are others."""
    name = f"sha512:{'ab' * 64}"
    document = json.dumps(manifest({**ONE, "digest": name})).encode()
    return world.scripted(repository, document, {name: DATA})


NO_JSON = "not valid JSON in UTF-8"
KIT = "application/vnd.kitops.modelkit"
GZIPPED = push.compress(b"tar" * 400, "tar+gzip")
FIRST, SECOND = b'{"first": 1}', b'{"second": 2}'
AMD, ARM = ({"os": "linux", "architecture": name} for name in ("amd64", "arm64"))

CASES = [
    Case("M1 a manifest of more than 4 MiB", raw(b" " * (4 << 20) + b"{}"), words="larger than the 4194304 bytes"),
    Case("M1 a manifest without end", endless, words="larger than the 4194304 bytes"),
    Case(
        "M1 an index of more than 4 MiB",
        raw(json.dumps(index(entry(b"x"), annotations={"k": "v" * (4 << 20)})).encode(), media_type=push.INDEX),
        words="larger than the 4194304 bytes",
    ),
    Case("M1 a config of more than 4 MiB", large_config, words="at most 4194304 are read"),
    Case("M1 a config that is longer than it says", large_config_that_lies, words="the manifest says"),
    Case("M2 90000 brackets", text("[" * 90_000), words="nested too deeply"),
    Case("M2 50000 objects in each other", text('{"a":' * 50_000), words="nested too deeply"),
    Case("M2 a deep annotation", text('{"annotations":' * 20_000 + "1" + "}" * 20_000), words="nested too deeply"),
    Case("M2 590000 small objects", text('{"x":[' + '{"":0},' * 590_000 + "0]}"), words="objects and lists"),
    Case("M2 1.3 million empty lists", text("[" + "[]," * 1_300_000 + "0]"), words="objects and lists"),
    Case(
        "M2 420000 fields",
        text("{" + ",".join(f'"{number:x}":0' for number in range(420_000)) + "}"),
        words="fields that are read",
    ),
    Case("M3 layers twice", replaced('"layers"', '"layers": [], "layers"'), words="same key twice"),
    Case(
        "M3 two digests in one descriptor",
        replaced(f'"size": {len(DATA)}', f'"digest": "{digest_of(b"x")}", "size": 5'),
        words="same key twice",
    ),
    Case(
        "M3 a key twice by another spelling",
        replaced('"layers"', '"l\\u0061yers": [], "layers"'),
        words="same key twice",
    ),
    Case("M4 NaN", replaced(f'"size": {len(DATA)}', '"size": NaN'), words="NaN, which is not JSON"),
    Case("M4 minus infinity", replaced(f'"size": {len(DATA)}', '"size": -Infinity'), words="-Infinity"),
    Case("M4 an exponent", replaced(f'"size": {len(DATA)}', '"size": 1.1e1'), words="no usable size"),
    Case("M4 a float beyond all", replaced(f'"size": {len(DATA)}', '"size": 1e999'), words="no usable size"),
    Case("M4 true", sized(True), words="no usable size"),
    Case("M4 digits as text", sized("11"), words="no usable size"),
    Case("M4 5000 digits", replaced(f'"size": {len(DATA)}', f'"size": {"9" * 5000}'), words=NO_JSON),
    Case("M4 two to the 64th", sized(1 << 64), words="no usable size"),
    Case("M4 full-width digits", replaced(f'"size": {len(DATA)}', '"size": １１'), words=NO_JSON),
    Case("M5 UTF-16", raw(json.dumps(manifest(ONE)).encode("utf-16")), words=NO_JSON),
    Case("M5 a byte order mark", raw(b"\xef\xbb\xbf" + json.dumps(manifest(ONE)).encode()), words=NO_JSON),
    Case("M5 bytes that are no text", raw(b'{"layers": "\xff\xfe"}'), words=NO_JSON),
    Case("M6 half of a surrogate pair", replaced("model.bin", "\\ud800.bin"), words="surrogate pair"),
    Case("M6 NUL in a title", replaced("model.bin", "a\\u0000b"), words=r"U\+0000"),
    Case("M6 a surrogate as a key", text('{"\\udfff": 1}'), words="surrogate pair"),
    Case("M7 other bytes than the digest", other_bytes, words="other bytes than its digest names"),
    Case("M7 a header that lies about a digest", lying_header, OK),
    Case("M7 a header that lies about a tag", lying_header_of_a_tag, UNAVAILABLE, "other bytes than its digest names"),
    Case("M8 a tag that moves between two requests", moving_tag, OK),
    Case("M8 blobs that are gone", gone_blob, NOT_FOUND, "not found or no access"),
    Case("M9 a manifest and an index at once", spoilt(manifests=[entry(b"x")]), words="at once"),
    Case(
        "M9 an index with a config",
        indexed(entry(b"x"), config=descriptor(b"{}", media_type=push.EMPTY)),
        words="at once",
    ),
    Case("M9 layers and blobs", spoilt(blobs=[ONE]), words="both layers and blobs"),
    Case("M9 a body that says index and has layers", spoilt(mediaType=push.INDEX), words="built otherwise"),
    Case("M9 a Content-Type that says index", type_of_the_header, OK),
    Case(
        "M10 schema 1",
        text(json.dumps({"schemaVersion": 1, "name": "x", "fsLayers": [{"blobSum": digest_of(DATA)}]})),
        words="schema 1",
    ),
    Case("M10 no schemaVersion", spoilt(schemaVersion=None), words="no schemaVersion 2"),
    Case("M10 schemaVersion true", spoilt(schemaVersion=True), words="no schemaVersion 2|schema 1"),
    Case("M10 an unknown type", spoilt(mediaType="application/vnd.evil.v9+json"), words="vnd.evil.v9"),
    Case(
        "M10 a page of HTML",
        text("<html>Please log in</html>", media_type="text/html"),
        words="is this a registry",
    ),
    Case("M10 nothing", raw(b""), words=NO_JSON),
    Case("M10 a list", text("[]"), words="not a JSON object"),
    Case("M10 null", text("null"), words="not a JSON object"),
    Case("M10 two documents", text(json.dumps(manifest(ONE)) * 2), words=NO_JSON),
    Case("M11 indexes that name each other", cyclic, words="other bytes than its digest names"),
    Case("M11 four indexes in each other", nested(4), words="nested more than 3 deep"),
    Case("M11 three indexes in each other", nested(3), OK),
    Case(
        "M11 10000 entries",
        indexed(*(entry(b"%d" % number) for number in range(10_000))),
        words="at most 1000",
    ),
    Case(
        "M11 two for one platform",
        indexed(*(entry(data, platform=platform) for data in (FIRST, SECOND) for platform in (AMD, ARM))),
        words="several models",
    ),
    Case(
        "M11 none for this node",
        indexed(entry(FIRST, platform=WINDOWS), entry(SECOND, platform=WINDOWS)),
        words="several models",
    ),
    Case("M11 only what is no manifest", indexed(entry(FIRST, "application/zip")), words="names no manifest"),
    Case("M11 an empty index", indexed(), words="no manifests"),
    Case("M11 a platform that is no object", indexed(entry(FIRST, platform=["linux"])), words="not a JSON object"),
    Case("M11 an index in disguise", index_in_disguise, OK),
    Case("M11 an entry of another size", entry_of_another_size, OK),
    Case(
        "M12 more layers than anybody has",
        spoilt(*(descriptor(b"%d" % number, f"{number}") for number in range(10_001))),
        words="at most 10000",
    ),
    Case("M12 no layers", text(json.dumps({**manifest(), "layers": []})), words="nothing to mount"),
    Case("M12 layers that are no list", spoilt(layers={"0": ONE}), words="nothing to mount"),
    Case("M12 layers that are no objects", text(json.dumps({**manifest(), "layers": [[]]})), words="not a JSON object"),
    Case("M12 one blob fifty times", listed_often, OK),
    Case("M13 a negative size", sized(-1), words="no usable size"),
    Case("M13 a size of 0 for a blob that isn't empty", sized(0), words="says that it is empty"),
    Case("M13 more than an admin allows", sized(MODEL_BYTES + 1), words="limits.model_bytes"),
    Case("M13 more than the store may take", sized(MODEL_BYTES - 1), NO_SPACE, "cache.max_bytes"),
    Case("M13 sizes whose sum is beyond all", many_that_are_large, words="limits.model_bytes"),
    Case("M13 more bytes than it says", longer_than_said, words="the manifest says|more than the"),
    Case("M13 fewer bytes than it says", shorter_than_said, words="the manifest says"),
    Case("M14 no config", harmless(manifest(ONE, config=None)), OK),
    Case(
        "M14 an empty config of ModelPack",
        config_of(push.EMPTY, b"{}", "application/vnd.cncf.model.weight.v1.raw"),
        OK,
    ),
    Case(
        "M14 a config of a type that nobody knows",
        config_of("application/vnd.evil.config", b"\x80\x04cos\nsystem\n", "application/vnd.cncf.model.weight.v1.raw"),
        OK,
    ),
    Case("M14 a config that is needed and isn't there", config_that_is_gone, NOT_FOUND, "not found or no access"),
    Case("M14 a config of other bytes", config_of_other_bytes, words="wrong bytes|other bytes|digest"),
    Case("M14 a config that is a list", spoilt(config=[]), words="the config is not a JSON object"),
    Case("M15 embedded data of other bytes", spoilt({**ONE, "data": "ZXZpbA=="}), words="embedded data is not what"),
    Case("M15 embedded data that is no base64", spoilt({**ONE, "data": "!!!"}), words="not base64"),
    Case("M15 embedded data of 3 MiB", spoilt({**ONE, "data": "QUFB" * (1 << 18)}), words="embedded data is not what"),
    Case("M16 a layer that lies elsewhere", elsewhere(served=False), NOT_FOUND, "not found or no access"),
    Case("M16 a layer with addresses elsewhere", elsewhere(served=True), OK),
    Case(
        "M17 a subject that leads elsewhere",
        harmless(manifest(ONE, subject={**descriptor(b"x", media_type=push.MANIFEST), "urls": ["http://10.0.0.1/"]})),
        OK,
    ),
    Case("M17 an artifact type that is no text", spoilt(artifactType=["x"]), words="artifactType is not a string"),
    Case(
        "M17 an artifact type of another format",
        spoilt(artifactType="application/vnd.cncf.helm.config.v1+json"),
        words="Helm",
    ),
    Case("M18 100000 annotations with escapes", many_annotations, OK),
    Case("M18 an annotation of 1 MiB", harmless(manifest(ONE, annotations={"x": "v" * (1 << 20)})), OK),
    Case("M18 annotations that are no text", spoilt(annotations={"a": {"b": 1}}), words="must map strings"),
    Case("M18 annotations that are a list", spoilt(annotations=["a"]), words="must map strings"),
    Case("M19 one title, two files", two_titles, words="two layers put different bytes"),
    Case("M19 a title and a file in an archive", collides_with_an_archive, words="two layers put different bytes"),
    Case("M20 a raw layer of gzip", modelpack("raw", GZIPPED, {"model.bin": GZIPPED}), OK),
    Case("M20 a gzip layer that isn't gzip", modelpack("tar+gzip", b"plain" * 500), words="gzip data is damaged"),
    Case("M20 a tar layer of gzip", modelpack("tar", GZIPPED * 20), words="not an octal number|negative|unknown kind"),
    Case("M20 a zstd layer of gzip", modelpack("tar+zstd", GZIPPED), words="zstd data is damaged"),
    Case("M20 a compression that nobody reads", modelpack("tar+lz4", b"x"), words="cannot be read"),
    Case("R2 a digest of md5", spoilt({**ONE, "digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}), words="sha256"),
    Case("R2 a digest with a way in it", spoilt({**ONE, "digest": "sha256:../../../mm-owned"}), words="layer 1"),
    Case("R2 a digest in upper case", spoilt({**ONE, "digest": digest_of(DATA).upper()}), words="layer 1"),
    Case("R2 a digest with a line break", spoilt({**ONE, "digest": digest_of(DATA) + "\n"}), words="layer 1"),
    Case("M7 a sha512 of other bytes", hashed_otherwise, words="wrong bytes"),
    Case("M10 a media type of 1 MiB", spoilt({**ONE, "mediaType": "x" * (1 << 20)}), words="no usable mediaType"),
    Case("M10 a media type that is a number", spoilt({**ONE, "mediaType": 5}), words="mediaType is not a string"),
]
