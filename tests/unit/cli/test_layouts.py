"""`modelmount export` and `import`: there and back again, with and without a network, and what the real `oras` makes of
it.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import push
from tests.fakes.driver import Driver
from tests.fakes.gateway import Fault, Gateway, spoil
from tests.fakes.tools import tool
from tests.unit.cli.conftest import LARGE, Machine, Outcome, contents

pytestmark = [pytest.mark.registry, pytest.mark.mount]  # a network of its own takes the same rights
PLACES = pytest.mark.parametrize("place", ["models", "models.tar"])
NAMED = "harbor.example.com/llm/tiny:v1"


def offline(machine: Machine, *arguments: str) -> Outcome:
    """One command where there is no network, not even this machine's own."""
    machine.driver.write_config()
    command = ["unshare", "--net", *machine.driver.command(*arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=machine.driver.environment())
    return Outcome(done.returncode, done.stdout, done.stderr)


def tree(done: Outcome) -> dict[str, bytes]:
    assert done.code == 0, done.err
    return contents(Path(done.objects[-1]["result"]["tree"]))


def oras(*arguments: str) -> str:
    done = subprocess.run([str(tool("oras")), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@PLACES
def test_a_model_goes_where_no_network_is(machine: Machine, place: str) -> None:
    pushed = machine.push()
    layout = machine.directory / place
    done = machine.run("export", pushed.reference, str(layout), "--json")
    assert done.code == 0, done.err
    result = done.objects[-1]["result"]
    assert (result["digest"], result["blobs"]) == (pushed.digest, 1 + 1 + 3)  # manifest, config, layers
    assert result["bytes"] == result["fetched_bytes"] + len(pushed.document)
    assert list(machine.registry.blob_gets().values()) == [1] * 3  # the config is in the manifest
    assert not machine.driver.store.exists()
    machine.registry.stop()
    done = offline(machine, "import", str(layout), NAMED, "--json")
    assert tree(done) == machine.files
    assert done.objects[-1]["result"]["reference"] == NAMED
    assert done.objects[-1]["result"]["digest"] == pushed.digest
    again = offline(machine, "import", str(layout), NAMED)
    assert "all of it was here" in again.out


@PLACES
def test_without_a_name_it_has_the_one_that_it_was_exported_with(machine: Machine, place: str) -> None:
    pushed = machine.push()
    layout = machine.directory / place
    machine.run("export", pushed.reference, str(layout))
    done = offline(machine, "pull", f"oci:{layout}:v1", "--json")
    assert tree(done) == machine.files
    assert done.objects[-1]["result"]["reference"] == pushed.reference


def test_a_directory_holds_several_and_nothing_is_fetched_twice(machine: Machine) -> None:
    first = machine.push()
    (machine.directory / "model/config.json").write_text("[]")
    second = machine.push(tag="v2")
    layout = machine.directory / "models"
    machine.run("export", first.reference, str(layout))
    machine.registry.forget()
    done = machine.run("export", second.reference, str(layout), "--json").objects[-1]["result"]
    assert done["fetched_bytes"] == 2
    assert len(machine.registry.blob_gets()) == 1
    machine.registry.forget()
    assert "all of it was there" in machine.run("export", second.reference, str(layout)).out
    assert machine.registry.blob_gets() == {}
    assert tree(offline(machine, "import", f"{layout}:v2", NAMED, "--json")) == machine.files


def test_the_same_model_is_the_same_tar(machine: Machine) -> None:
    pushed = machine.push()
    for name in ("one.tar", "two.tar"):
        assert machine.run("export", pushed.reference, str(machine.directory / name)).code == 0
    assert (machine.directory / "one.tar").read_bytes() == (machine.directory / "two.tar").read_bytes()
    refused = machine.run("export", pushed.reference, str(machine.directory / "one.tar"))
    assert refused.code == 2
    assert "exists already" in refused.err


def test_an_index_goes_whole(machine: Machine) -> None:
    """And the digest stays what it is, so that whatever pins or signs it still does."""
    pusher = push.Pusher(machine.registry.host, machine.registry.connection)
    one, two = machine.push(tag="a"), machine.push(tag="b", repository="llm/tiny")
    arm = {"platform": {"os": "linux", "architecture": "arm64"}}
    here = {"platform": {"os": "linux", "architecture": "amd64"}}
    (machine.directory / "model/config.json").write_text('{"for": "arm"}')
    three = machine.push(tag="c")
    index = pusher.index("llm/tiny", "all", [(one, here), (two, {"annotations": {"a": "b"}, **here}), (three, arm)])
    layout = machine.directory / "models"
    done = machine.run("export", index.reference, str(layout), "--json").objects[-1]["result"]
    assert done["digest"] == index.digest
    names = {path.name for path in (layout / "blobs/sha256").iterdir()}
    assert {each.digest.removeprefix("sha256:") for each in (index, one, two, three)} <= names
    assert {layer.removeprefix("sha256:") for layer in three.layers} <= names
    platform = ("--attribute", "platform=linux/arm64")
    found = offline(machine, "import", str(layout), NAMED, "--json", *platform)
    assert tree(found)["config.json"] == b'{"for": "arm"}'


def test_the_real_oras_reads_what_was_exported(machine: Machine) -> None:
    pushed = machine.push()
    layout = machine.directory / "models"
    machine.run("export", pushed.reference, str(layout))
    assert json.loads(oras("manifest", "fetch", "--oci-layout", f"{layout}:v1")) == json.loads(pushed.document)
    copied = f"{machine.registry.host}/llm/copied:v1"
    oras("cp", "--from-oci-layout", f"{layout}:v1", "--to-plain-http", copied)
    assert tree(machine.run("pull", copied, "--json")) == machine.files


def test_what_the_real_oras_exported_is_imported(machine: Machine) -> None:
    pushed = machine.push()
    layout = machine.directory / "theirs"
    oras("cp", "--from-plain-http", pushed.reference, "--to-oci-layout", f"{layout}:v1")
    assert tree(offline(machine, "import", f"{layout}:v1", NAMED, "--json")) == machine.files
    named = offline(machine, "pull", f"oci:{layout}", "--json")
    assert tree(named) == machine.files
    assert named.objects[-1]["result"]["reference"] == "localhost/theirs:v1"


@PLACES
def test_a_layout_goes_into_a_registry_as_it_is(machine: Machine, place: str) -> None:
    """An index of two, with its digest; what is there is not sent again."""
    pusher = push.Pusher(machine.registry.host, machine.registry.connection)
    one = machine.push(tag="a")
    (machine.directory / "model/config.json").write_text("[]")
    platforms = [{"platform": {"os": "linux", "architecture": name}} for name in ("amd64", "arm64")]
    index = pusher.index("llm/tiny", "all", zip((one, machine.push(tag="b")), platforms, strict=True))
    layout = machine.directory / place
    machine.run("export", index.reference, str(layout))
    copied = f"{machine.registry.host}/llm/copied:v1"
    machine.registry.forget()
    done = machine.run("push", f"oci:{layout}", copied, "--json")
    assert done.code == 0, done.err
    result = done.objects[-1]["result"]
    assert result["digest"] == index.digest
    assert result["blobs"] == {"sent": 5, "mounted": 0, "found": 0}  # the config, four files
    puts = [each.path for each in machine.registry.requests() if each.method == "PUT" and "/manifests/" in each.path]
    assert len(puts) == 3
    assert puts[-1].endswith("/manifests/v1")
    machine.registry.forget()
    assert "all of it was there" in machine.run("push", f"oci:{layout}:all", copied).out
    assert {each.method for each in machine.registry.requests()} == {"HEAD"}
    chosen = ("--attribute", "platform=linux/arm64")
    assert tree(machine.run("pull", copied, "--json", *chosen)) == machine.files


def test_a_layout_cannot_be_packaged_otherwise(machine: Machine) -> None:
    refused = machine.run("push", "oci:x", NAMED, "--exclude", "*.bin")
    assert refused.code == 2
    assert "a layout is pushed as it is" in refused.err


def flip(layout: Path, digest: str) -> None:
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def gone(layout: Path, digest: str) -> None:
    (layout / "blobs/sha256" / digest.removeprefix("sha256:")).unlink()


def linked(layout: Path, digest: str) -> None:
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    path.rename(layout / "elsewhere")
    path.symlink_to(layout / "elsewhere")


@pytest.mark.parametrize(
    ("spoiled", "what", "code", "text"),
    [
        (flip, "manifest", 5, "has other bytes for"),
        (flip, "weights", 5, "wrong bytes"),
        (gone, "weights", 3, "has no blob"),
        (linked, "weights", 5, "is a link"),
    ],
)
def test_a_layout_that_is_not_what_its_digests_say_is_refused_and_nothing_held_against_the_model(
    machine: Machine, spoiled: Callable[[Path, str], None], what: str, code: int, text: str
) -> None:
    pushed = machine.push()
    layout = machine.directory / "models"
    machine.run("export", pushed.reference, str(layout))
    weights = max(pushed.layers, key=lambda digest: blob_size(layout, digest))
    spoiled(layout, pushed.digest if what == "manifest" else weights)
    done = offline(machine, "import", str(layout), pushed.reference)
    assert done.code == code, done.err
    assert text in done.err
    assert list(machine.driver.store.glob("trees/*")) == []
    assert list(machine.driver.store.glob("views/*/*")) == []
    assert tree(machine.run("pull", pushed.reference, "--json")) == machine.files


def blob_size(layout: Path, digest: str) -> int:
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).stat().st_size


@PLACES
def test_wrong_bytes_of_a_registry_get_into_no_layout(machine: Machine, place: str) -> None:
    pushed = machine.push()
    weights = max(pushed.layers, key=lambda digest: machine.registry.blob_file(digest).stat().st_size)
    layout = machine.directory / "out" / place
    layout.parent.mkdir()
    with Gateway(machine.registry) as gateway:
        gateway.play(
            Fault(lambda each: each.path.endswith(weights), spoil(body=b"x" * (LARGE // 256 * 256)), times=None)
        )
        done = machine.run("export", f"{gateway.host}/llm/tiny:v1", str(layout), "--plain-http")
    assert done.code == 5, done.err
    assert "wrong bytes" in done.err
    names = {path.name for path in layout.parent.rglob("*")}
    assert weights.removeprefix("sha256:") not in names
    assert not names & {"index.json", "models.tar"}
    assert not any(name.startswith(".") for name in names)
    assert machine.run("import", str(layout), NAMED).code == 2


def test_a_blob_that_breaks_off_goes_on_where_it_was(machine: Machine) -> None:
    pushed = machine.push()
    weights = max(pushed.layers, key=lambda digest: machine.registry.blob_file(digest).stat().st_size)
    with Gateway(machine.registry) as gateway:
        gateway.play(Fault(lambda each: each.path.endswith(weights), spoil(cut_after=300_000)))
        done = machine.run("export", f"{gateway.host}/llm/tiny:v1", str(machine.directory / "x.tar"), "--plain-http")
        assert done.code == 0, done.err
        first, *_, last = gateway.asked(f"/v2/llm/tiny/blobs/{weights}")
    assert "range" not in first.headers
    assert 0 < int(last.headers["range"].removeprefix("bytes=").rstrip("-")) <= 300_000
    with tarfile.open(machine.directory / "x.tar") as tar:
        assert tar.getnames()[0] == "oci-layout"
        assert tar.getnames()[-1] == "index.json"
    assert tree(offline(machine, "import", str(machine.directory / "x.tar"), NAMED, "--json")) == machine.files


def test_only_an_empty_directory_becomes_a_layout(machine: Machine) -> None:
    pushed = machine.push()
    refused = machine.run("export", pushed.reference, str(machine.directory / "model"))
    assert refused.code == 2
    assert "has something else in it" in refused.err
    for name, said in (("model/weights.bin", "is no directory"), ("model.tar.gz", "FILE.tar")):
        (machine.directory / "model" / "weights.bin").touch()
        refused = machine.run("export", pushed.reference, str(machine.directory / name))
        assert refused.code == 2
        assert said in refused.err


@pytest.mark.mount
@pytest.mark.parametrize("auth", [{"verification": "never"}, {"preloaded": ["*"]}])
def test_pods_get_an_imported_model_with_no_registry_where_the_admin_wants_no_proofs(
    machine: Machine, auth: dict[str, Any]
) -> None:
    pushed = machine.push()
    layout = machine.directory / "models"
    machine.run("export", pushed.reference, str(layout))
    machine.registry.stop()
    with Driver(machine.directory / "gap", [machine.registry], settings={"auth": auth}) as driver:
        done = driver.run("import", str(layout), pushed.reference)
        assert done.returncode == 0, done.stderr
        for policy in ("Never", "IfNotPresent"):
            target = driver.target(policy.lower())
            driver.publish(f"volume-{policy}", target, {"model": pushed.reference, "pullPolicy": policy})
            assert contents(target) == machine.files
            driver.unpublish(f"volume-{policy}", target)


def test_an_import_is_nobodys_proof_of_access(private: Machine) -> None:
    """The registry is asked as always: for a pod that may not read it there, it isn't here."""
    pushed = private.push(authorization=push.basic("robot", "s3cret-word"))
    layout = private.directory / "models"
    login = ["--username", "robot", "--password-stdin"]
    command = private.driver.command("export", pushed.reference, str(layout), *login)
    private.driver.write_config()
    done = subprocess.run(
        command, input="s3cret-word\n", capture_output=True, text=True, env=private.driver.environment()
    )
    assert done.returncode == 0, done.stderr
    assert private.run("import", str(layout), pushed.reference).code == 0
    marks = list(private.driver.store.glob("models/*/proofs/*"))
    assert [path.name.partition("-")[0] for path in marks] == ["preloaded"]  # which counts where the admin says so
    target = private.directory / "mnt"
    refused = private.run("mount", pushed.reference, str(target))
    assert refused.code == 4, refused.err
    assert "not found or no access" in refused.err
