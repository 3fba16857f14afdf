"""`modelmount pull` against a real registry."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.fakes import push
from tests.fakes.proxy import Proxy
from tests.fakes.residency import resident
from tests.unit.cli.conftest import LARGE, Machine, contents

pytestmark = pytest.mark.registry


def test_a_pull_brings_every_byte_and_says_so(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", pushed.reference)
    assert done.code == 0, done.err
    first, digest, tree = done.out.splitlines()
    assert first.startswith(f"{pushed.reference}: 700 kB in 3 files, ")
    assert digest == f"digest  {pushed.digest}"
    assert contents(Path(tree.removeprefix("tree").strip())) == machine.files
    assert set(machine.registry.blob_gets().values()) == {1}
    assert "Traceback" not in done.err


def test_the_second_pull_fetches_nothing(machine: Machine) -> None:
    pushed = machine.push()
    machine.run("pull", pushed.reference)
    machine.registry.forget()
    done = machine.run("pull", pushed.reference)
    assert done.code == 0, done.err
    assert "all of it was here" in done.out
    assert machine.registry.blob_gets() == {}


def test_a_pull_follows_a_tag_that_moved(machine: Machine) -> None:
    first = machine.push()
    machine.run("pull", first.reference)
    (machine.directory / "model/config.json").write_text("{}")
    second = machine.push()
    machine.registry.forget()
    done = machine.run("pull", second.reference)
    assert second.digest in done.out
    assert len(machine.registry.blob_gets()) == 1


def test_json_streams_progress_and_ends_with_the_result(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", pushed.reference, "--json")
    *progress, last = done.objects
    assert all(set(line) == {"progress"} for line in progress)
    result = last["result"]
    assert contents(Path(result.pop("tree"))) == machine.files
    assert result.pop("seconds") >= 0
    assert result == {
        "reference": pushed.reference,
        "digest": pushed.digest,
        "bytes": sum(len(data) for data in machine.files.values()),
        "files": 3,
        "fetched_bytes": pushed.size,
    }
    assert done.err == ""


def test_a_pull_by_digest(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", f"oci://{pushed.pinned}", "--json")
    assert done.objects[-1]["result"]["reference"] == pushed.pinned


def test_a_missing_model_is_not_found(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", f"{pushed.host}/llm/absent:v1")
    assert done.code == 3
    assert done.out == ""
    *_, line = done.err.splitlines()
    assert line.startswith("modelmount: ")
    assert "llm/absent" in line
    missing_tag = machine.run("pull", f"{pushed.host}/llm/tiny:v9", "--json")
    assert missing_tag.code == 3
    assert missing_tag.object["error"]["reason"] == "NotFound"
    assert missing_tag.err == ""


def test_a_registry_that_is_down_is_unavailable(machine: Machine) -> None:
    pushed = machine.push()
    machine.registry.stop()
    done = machine.run("pull", pushed.reference)
    assert done.code == 7
    *_, line = done.err.splitlines()
    assert pushed.host in line


def test_wrong_bytes_are_a_bad_model(machine: Machine) -> None:
    pushed = machine.push()
    blob = machine.registry.blob_file(pushed.layers[1])
    blob.write_bytes(bytes(blob.stat().st_size))
    done = machine.run("pull", pushed.reference)
    assert done.code == 5
    *_, line = done.err.splitlines()
    assert pushed.layers[1] in line


def test_too_little_space_is_said_in_numbers(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", pushed.reference, MODELMOUNT_LIMITS_FREE_BYTES=str(1 << 59))
    assert done.code == 6
    *_, line = done.err.splitlines()
    assert "free" in line


def test_without_a_credential_the_remedy_is_named(private: Machine) -> None:
    pushed = private.push(authorization=push.basic("robot", "s3cret-word"))
    done = private.run("pull", pushed.reference)
    assert done.code == 4
    *_, line = done.err.splitlines()
    assert pushed.host in line
    assert "--password-stdin" in line


@pytest.fixture
def login(private: Machine) -> list[str]:
    """A command line that logs in; its password comes on standard input."""
    pushed = private.push(authorization=push.basic("robot", "s3cret-word"))
    private.driver.write_config()
    return private.driver.command("pull", pushed.reference, "--username", "robot", "--password-stdin")


def test_a_password_on_standard_input_opens(private: Machine, login: list[str]) -> None:
    done = subprocess.run(
        login, input="s3cret-word\n", capture_output=True, text=True, env=private.driver.environment()
    )
    assert done.returncode == 0, done.stderr
    stored = b"".join(p.read_bytes() for p in private.driver.store.rglob("*") if p.is_file())
    assert b"s3cret" not in stored


def test_a_wrong_password_is_refused_and_never_shown(private: Machine, login: list[str]) -> None:
    done = subprocess.run(
        [*login, "-vv"], input="wr0ng-word", capture_output=True, text=True, env=private.driver.environment()
    )
    assert done.returncode == 4
    assert "wr0ng-word" not in done.stdout + done.stderr
    assert base64.b64encode(b"robot:wr0ng-word").decode() not in done.stdout + done.stderr


def test_a_docker_configuration_opens(private: Machine) -> None:
    pushed = private.push(authorization=push.basic("robot", "s3cret-word"))
    auth = base64.b64encode(b"robot:s3cret-word").decode()
    file = private.directory / "docker.json"
    file.write_text(json.dumps({"auths": {private.registry.host: {"auth": auth}}}))
    assert private.run("pull", pushed.reference, "--docker-config", str(file)).code == 0


def test_the_docker_configuration_of_this_user_is_the_default(private: Machine) -> None:
    pushed = private.push(authorization=push.basic("robot", "s3cret-word"))
    auth = base64.b64encode(b"robot:s3cret-word").decode()
    (private.directory / ".docker").mkdir()
    (private.directory / ".docker/config.json").write_text(
        json.dumps({"auths": {private.registry.host: {"auth": auth}}})
    )
    assert private.run("pull", pushed.reference, HOME=str(private.directory)).code == 0


def test_plain_http_is_said_on_the_command_line_for_a_host_nobody_listed(machine: Machine) -> None:
    pushed = machine.push()
    with Proxy(machine.registry.port) as unlisted:
        reference = f"{unlisted.host}/llm/tiny:v1"
        refused = machine.run("pull", reference)
        assert refused.code == 7
        assert "plain" in refused.err
        done = machine.run("pull", reference, "--plain-http")
        assert done.code == 0, done.err
        assert pushed.digest in done.out


def test_on_a_terminal_a_bar_moves_beside_the_result(machine: Machine) -> None:
    machine.push()
    machine.driver.write_config()
    terminal, end = os.openpty()
    with Proxy(machine.registry.port, rate=500_000) as slow:
        process = subprocess.Popen(
            machine.driver.command("pull", f"{slow.host}/llm/tiny:v1", "--plain-http"),
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            env=machine.driver.environment() | {"TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(end)
        shown = b""
        try:
            while data := os.read(terminal, 65536):
                shown += data
        except OSError:
            pass  # EIO: the other end is closed
        finally:
            os.close(terminal)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "700 kB in 3 files" in out
    assert b"pulling" in shown
    assert b"of 3 files" in shown


def test_elsewhere_a_slow_pull_is_told_in_lines_and_objects(machine: Machine) -> None:
    machine.push()
    with Proxy(machine.registry.port, rate=200_000) as slow:
        plain = machine.run("pull", f"{slow.host}/llm/tiny:v1", "--plain-http")
        objects = machine.run(
            "pull", f"{slow.host}/llm/tiny:v1", "--plain-http", "--json", "--root", str(machine.directory / "other")
        )
    assert plain.err.startswith(f"pulling {slow.host}/llm/tiny:v1: ")
    progress = [told["progress"] for told in objects.objects if "progress" in told]
    told = next(each for each in progress if 0 < each["bytes_done"] < each["bytes_total"])
    assert told["phase"] == "pulling"
    assert {file["name"] for file in told["files"]} == {"config.json", "model.safetensors", "tokenizer"}
    assert [file["state"] for file in told["files"] if file["name"] == "model.safetensors"] == ["fetching"]
    assert objects.err == ""


def test_only_a_warm_pull_leaves_the_model_in_the_page_cache(machine: Machine) -> None:
    pushed = machine.push()
    trees = [
        machine.run("pull", pushed.reference, "--json", "--root", str(machine.directory / name), *options)
        for name, options in (("cold", []), ("warm", ["--warm"]))
    ]
    cold, warm = (resident(Path(tree.object["result"]["tree"]) / "model.safetensors") for tree in trees)
    assert cold < 0.02
    assert warm > 0.5


def test_a_quiet_pull_says_nothing_unless_it_fails(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("pull", pushed.reference, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    missing = machine.run("pull", f"{pushed.host}/llm/absent:v1", "-q")
    assert missing.code == 3
    assert "llm/absent" in missing.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pull_says_what_is_kept_and_goes_on_from_there(machine: Machine, number: signal.Signals) -> None:
    machine.push()
    with Proxy(machine.registry.port, hold_at=LARGE * 2 // 3) as slow:
        # Whoever runs the tests in the background has them ignore SIGINT.
        command = [
            "env",
            "--default-signal=INT",
            *machine.driver.command("pull", f"{slow.host}/llm/tiny:v1", "--plain-http"),
        ]
        machine.driver.write_config()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=machine.driver.environment()
        )
        wait_for_bytes(machine.driver.store, LARGE // 4)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert out == ""
        *_, last = err.splitlines()
        assert last.startswith("modelmount: interrupted; ")
        assert "are kept, the same command goes on from there" in last
        slow.hold_at = None
        before = slow.passed
        done = machine.run("pull", f"{slow.host}/llm/tiny:v1", "--plain-http", "--json")
        assert done.code == 0, done.err
        assert done.objects[-1]["result"]["fetched_bytes"] < LARGE
        assert slow.passed - before < LARGE


def wait_for_bytes(store: Path, count: int) -> None:
    """Return once some download has `count` bytes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(path.stat().st_size >= count for path in store.glob("ingest/*/data")):
            return
        time.sleep(0.01)
    raise TimeoutError("nothing arrives")


def test_a_store_that_cannot_be_used_is_named(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = machine.run("pull", f"{machine.registry.host}/llm/tiny:v1", "--root", str(tmp_path / "file"))
    assert done.code == 1
    *_, line = done.err.splitlines()
    assert str(tmp_path / "file") in line


def test_attributes_choose_as_a_volumes_do(machine: Machine) -> None:
    pushed = machine.push()
    chosen = ("--attribute", "include=*.json", "--attribute", "include=*.txt", "--attribute", "subDir=model")
    done = machine.run("pull", pushed.reference, "--json", *chosen)
    tree = Path(done.objects[-1]["result"]["tree"])
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert found == {"model/config.json", "model/tokenizer/vocab.txt"}


@pytest.mark.parametrize("value", ["include", "model=x", "Include=*", "=x", ""])
def test_an_attribute_that_is_none_lists_those_there_are(machine: Machine, value: str) -> None:
    done = machine.run("pull", "registry.example.com/llm/x:v1", "--attribute", value)
    assert done.code == 2
    assert "include, exclude, path" in done.err


def test_an_attribute_without_sense_is_refused_before_anything_is_asked(machine: Machine) -> None:
    done = machine.run("pull", "registry.example.com/llm/x:v1", "--attribute", "files=everything")
    assert done.code == 2
    assert "'files' must be one of all, vllm" in done.err
