"""`modelmount push` into a real registry, and what comes out of it again: by our own pull, and by the real `oras`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.fakes import push
from tests.fakes.driver import Driver
from tests.fakes.gateway import Fault, Gateway, instead
from tests.fakes.registry import Registry, Tls
from tests.fakes.s3 import S3
from tests.fakes.tools import tool
from tests.fakes.wire import Answer, Asked
from tests.unit.cli.conftest import Machine, contents, write_model

pytestmark = pytest.mark.registry
FORMATS = pytest.mark.parametrize("form", ["modelpack", "oras"])
WAIT_SECONDS = 60.0


@pytest.fixture
def model(directory: Path) -> Path:
    """A model with files of every size there is, an empty one among them."""
    made = directory / "model"
    write_model(made)
    (made / "empty").write_bytes(b"")
    (made / "copy.json").write_bytes((made / "config.json").read_bytes())
    return made


def sent(machine: Machine) -> list[str]:
    """The digests whose bytes the registry took, in the order of its log."""
    return [
        parse_qs(each.query)["digest"][0]
        for each in machine.registry.requests()
        if (each.method, each.status) == ("PUT", 201) and "/blobs/uploads/" in each.path
    ]


def reference(machine: Machine, name: str = "tiny") -> str:
    return f"{machine.registry.host}/llm/{name}:v1"


def oras(machine: Machine, *arguments: str, cwd: Path) -> str:
    """The real one, over http; what it prints."""
    command = [str(tool("oras")), arguments[0], "--plain-http", *arguments[1:]]
    environment = {**os.environ, "HOME": str(machine.directory), "DOCKER_CONFIG": str(machine.directory)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=WAIT_SECONDS, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@FORMATS
def test_what_is_pushed_is_pulled_as_the_same_tree(machine: Machine, model: Path, form: str) -> None:
    pushed = machine.run("push", str(model), reference(machine), "--format", form)
    assert pushed.code == 0, pushed.err
    first, digest, pinned = pushed.out.splitlines()
    assert first.startswith(f"{reference(machine)}: 700 kB in 5 files, 700 kB sent in ")
    assert pinned == f"pinned  {machine.registry.host}/llm/tiny@{digest.removeprefix('digest').strip()}"
    pulled = machine.run("pull", pinned.removeprefix("pinned").strip(), "--json").objects[-1]["result"]
    assert contents(Path(pulled["tree"])) == contents(model)


@FORMATS
def test_again_nothing_is_sent_and_the_digest_is_the_same(machine: Machine, model: Path, form: str) -> None:
    first = machine.run("push", str(model), reference(machine), "--format", form, "--json").objects[-1]["result"]
    assert len(sent(machine)) == len(set(sent(machine))) == 5  # four distinct files and a config
    assert first["blobs"] == {"sent": 4, "mounted": 0, "found": 0}
    elsewhere = machine.directory / "elsewhere"
    shutil.copytree(model, elsewhere, copy_function=shutil.copyfile)
    for path in elsewhere.rglob("*"):
        path.chmod(0o700)
    machine.registry.forget()
    second = machine.run("push", str(elsewhere), reference(machine), "--format", form, "--json").objects[-1]["result"]
    assert {each.method for each in machine.registry.requests()} == {"HEAD"}
    assert second["digest"] == first["digest"]
    assert second["blobs"] == {"sent": 0, "mounted": 0, "found": 4}
    assert second["sent_bytes"] == 0
    told = machine.run("push", str(model), reference(machine), "--format", form)
    assert "all of it was there" in told.out


def test_the_real_oras_pulls_what_was_pushed(machine: Machine, model: Path) -> None:
    machine.run("push", str(model), reference(machine), "--format", "oras")
    out = machine.directory / "out"
    out.mkdir()
    oras(machine, "pull", reference(machine), cwd=out)
    assert contents(out) == contents(model)


def test_what_the_real_oras_pushed_is_pulled_as_the_same_tree(machine: Machine, model: Path) -> None:
    names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    oras(machine, "push", reference(machine), *names, cwd=model)
    pulled = machine.run("pull", reference(machine), "--json").objects[-1]["result"]
    assert contents(Path(pulled["tree"])) == contents(model)
    machine.registry.forget()
    assert machine.run("push", str(model), reference(machine, "tiny"), "--format", "oras").code == 0
    assert sent(machine) == []  # the same blobs, the empty config among them


def test_a_directory_that_the_real_oras_packed_is_what_it_unpacks_itself(machine: Machine, model: Path) -> None:
    (model / "tokenizer/deep").mkdir()
    (model / "tokenizer/deep/merges.txt").write_text("a b")
    oras(
        machine,
        "push",
        reference(machine),
        "config.json",
        "model.safetensors:application/x.weights",
        "tokenizer",
        cwd=model,
    )
    out = machine.directory / "out"
    out.mkdir()
    oras(machine, "pull", reference(machine), cwd=out)
    pulled = machine.run("pull", reference(machine), "--json").objects[-1]["result"]
    assert "tokenizer/deep/merges.txt" in contents(out)
    assert contents(Path(pulled["tree"])) == contents(out)


def test_files_of_another_repository_are_mounted(machine: Machine, model: Path) -> None:
    machine.run("push", str(model), reference(machine, "base"))
    (model / "README.md").write_text("tuned")
    machine.registry.forget()
    done = machine.run("push", str(model), reference(machine), "--mount-from", "llm/base", "--json")
    assert done.objects[-1]["result"]["blobs"] == {"sent": 1, "mounted": 4, "found": 0}
    assert done.objects[-1]["result"]["sent_bytes"] == 5
    assert len(sent(machine)) == 2  # the new file, and the config
    pulled = machine.run("pull", reference(machine), "--json").objects[-1]["result"]
    assert contents(Path(pulled["tree"])) == contents(model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_push_goes_on_with_what_is_missing(
    machine: Machine, model: Path, number: signal.Signals
) -> None:
    """The largest file gets nowhere; by then the others are there."""
    weights = push.measure(model / "model.safetensors")[0]

    def is_weights(asked: Asked) -> bool:
        return asked.method == "PUT" and parse_qs(asked.query).get("digest") == [weights]

    with Gateway(machine.registry) as gateway:
        gateway.play(Fault(is_weights, instead(Answer(raw=b"", stall_after=0)), times=None))
        target = f"{gateway.host}/llm/tiny:v1"
        machine.driver.write_config()
        process = subprocess.Popen(
            # Whoever runs the tests in the background has them ignore SIGINT.
            ["env", "--default-signal=INT", *machine.driver.command("push", str(model), target, "--plain-http")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=machine.driver.environment(),
        )
        before = wait_for_blobs(machine, gateway, is_weights)
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert out == ""
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 130, err
            assert f"of {target} are there, the same command goes on from there" in err
        gateway.calm()
        machine.registry.forget()
        done = machine.run("push", str(model), target, "--plain-http", "--json")
        assert done.code == 0, done.err
    after = sent(machine)
    assert weights in after
    assert not set(before) & set(after)
    assert done.objects[-1]["result"]["blobs"] == {"sent": 1, "mounted": 0, "found": 3}


def wait_for_blobs(machine: Machine, gateway: Gateway, is_weights: Callable[[Asked], bool]) -> list[str]:
    """Return what was sent, once the weights are on their way and everything else has arrived."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        begun = any(is_weights(each) for each in gateway.asked())
        if begun and len(found := sent(machine)) == 3:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"only {sent(machine)} arrived")


def test_a_prefix_of_s3_is_the_same_model_as_its_directory(machine: Machine, model: Path) -> None:
    with S3() as s3:
        s3.put("models", {f"llm/tiny/{name}": data for name, data in contents(model).items()})
        s3.put("models", {"llm/tiny-other/x": b"of another model"})
        done = machine.run("push", "s3://models/llm/tiny", reference(machine), "--json", **s3.environment)
        assert done.code == 0, done.err
    from_s3 = done.objects[-1]["result"]
    local = machine.run("push", str(model), reference(machine), "--json").objects[-1]["result"]
    assert (from_s3["digest"], from_s3["files"], from_s3["bytes"]) == (local["digest"], local["files"], local["bytes"])
    assert local["sent_bytes"] == 0


def test_only_the_files_that_are_meant_go(machine: Machine, model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git/config").write_text("")
    chosen = ("--include", "*.json", "--include", "tokenizer/", "--exclude", "copy.json")
    assert machine.run("push", str(model), reference(machine), *chosen).code == 0
    pulled = machine.run("pull", reference(machine), "--json").objects[-1]["result"]
    assert set(contents(Path(pulled["tree"]))) == {"config.json", "tokenizer/vocab.txt"}


def test_annotations_and_what_the_files_say_are_there_to_read(machine: Machine, model: Path) -> None:
    version = "org.opencontainers.image.version=7"
    assert machine.run("push", str(model), reference(machine), "--annotation", version).code == 0
    shown = machine.run("inspect", reference(machine), "--json").object
    assert shown["format"] == "ModelPack"
    assert shown["facts"] == {"version": "7", "family": "llama", "weights": "safetensors"}
    assert shown["warnings"] == []


def test_with_tls_and_a_password(directory: Path, model: Path) -> None:
    tls = Tls.make(directory / "tls")
    with Registry(directory / "private", tls=tls, users={"robot": "s3cret-word"}) as registry:
        config = directory / "docker.json"
        auth = push.basic("robot", "s3cret-word").removeprefix("Basic ")
        config.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        machine = Machine(directory, Driver(directory / "node", []), registry)
        arguments = ("push", str(model), f"{registry.host}/llm/tiny:v1", "--ca-file", str(tls.ca_file))
        refused = machine.run(*arguments)
        assert refused.code == 4
        assert "takes it from nobody without a credential" in refused.err
        assert "--password-stdin" in refused.err
        done = machine.run(*arguments, "--docker-config", str(config), "-vv")
        assert done.code == 0, done.err
        assert "s3cret-word" not in done.err + done.out
        assert auth not in done.err + done.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("{model}", "{host}/llm/tiny@sha256:" + "0" * 64), 2, "a digest follows from the files"),
        (("{model}/absent", "{host}/llm/tiny:v1"), 2, "doesn't exist"),
        (("{model}", "tiny"), 2, "names no registry host"),
        (("{model}", "{host}/llm/tiny:v1", "--annotation", "x"), 2, "is no KEY=VALUE"),
        (("{model}", "{host}/llm/tiny:v1", "--include", "***"), 2, "three stars"),
        (("{model}", "{host}/llm/tiny:v1", "--exclude", "*"), 2, "nothing to push"),
        (("nosuch://x/y", "{host}/llm/tiny:v1"), 2, "nosuch://x/y"),
        (("{model}", "{host}/llm/tiny:v1", "--mount-from", "../x"), 2, "has a bad repository path"),
    ],
)
def test_mistakes_are_said_before_anything_is_sent(
    machine: Machine, model: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    filled = [each.format(model=model, host=machine.registry.host) for each in arguments]
    done = machine.run("push", *filled)
    assert done.code == code
    assert text in done.err
    assert "Traceback" not in done.err
    assert machine.registry.requests() == []
