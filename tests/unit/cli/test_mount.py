"""`modelmount mount` and `umount`: a model at a directory, without Kubernetes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import mounts
from tests.unit.cli.conftest import Machine, contents

pytestmark = [pytest.mark.registry, pytest.mark.mount]


def test_a_model_is_pulled_and_shown_read_only_until_it_is_unmounted(machine: Machine) -> None:
    pushed = machine.push()
    target = machine.directory / "here"
    done = machine.run("mount", pushed.reference, str(target))
    assert done.code == 0, done.err
    first, digest = done.out.splitlines()
    assert first == f"{pushed.reference} is at {target}: 700 kB in 3 files"
    assert digest == f"digest  {pushed.digest}"
    assert contents(target) == machine.files
    assert {"ro", "nosuid", "nodev"} <= mounts.options(target)

    (model,) = machine.run("ls", "--json").object["models"]
    assert [(use["owner"], use["target"]) for use in model["in_use"]] == [("cli", str(target))]

    assert machine.run("umount", str(target)).out == f"{target} is unmounted\n"
    assert mounts.below(machine.directory) == []
    (model,) = machine.run("ls", "--json").object["models"]
    assert model["in_use"] == []


def test_mounting_again_is_success_and_fetches_nothing(machine: Machine) -> None:
    pushed = machine.push()
    target = machine.directory / "here"
    assert machine.run("mount", pushed.reference, str(target)).code == 0
    machine.registry.stop()
    again = machine.run("mount", pushed.reference, str(target), "--json")
    assert again.code == 0, again.err
    assert again.objects[-1]["result"]["fetched_bytes"] == 0
    assert len(mounts.below(machine.directory)) == 1
    how = machine.run("mount", pushed.reference, str(target), "--pull", "always")
    assert how.code == 0, how.err
    what = machine.run("mount", pushed.reference, str(target), "--attribute", "include=config.json")
    assert what.code == 1
    assert f"modelmount umount {target}" in what.err
    assert len(mounts.below(machine.directory)) == 1


def test_a_mount_keeps_its_files_when_the_tag_moves(machine: Machine) -> None:
    first = machine.push()
    old, new = machine.directory / "old", machine.directory / "new"
    machine.run("mount", first.reference, str(old))
    before = dict(machine.files)
    (machine.directory / "model/config.json").write_text("{}")
    second = machine.push()
    assert (
        machine.run("mount", second.reference, str(new), "--pull", "always", "--json").objects[-1]["result"]["digest"]
        == second.digest
    )
    assert contents(old) == before
    assert contents(new) == machine.files


def test_what_is_not_here_is_not_mounted_with_pull_never(machine: Machine) -> None:
    pushed = machine.push()
    done = machine.run("mount", pushed.reference, str(machine.directory / "here"), "--pull", "never")
    assert done.code == 1
    assert "modelmount pull" in done.err
    assert machine.registry.blob_gets() == {}
    assert mounts.below(machine.directory) == []


def test_a_directory_with_files_in_it_is_left_alone(machine: Machine) -> None:
    pushed = machine.push()
    target = machine.directory / "full"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    done = machine.run("mount", pushed.reference, str(target))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "files in it" in line
    assert (target / "mine.txt").read_text() == "mine"


def test_the_kubelet_s_directories_are_the_kubelet_s(machine: Machine) -> None:
    pushed = machine.push()
    target = machine.driver.kubelet_root / "pods/uid/volumes/x/mount"
    target.parent.mkdir(parents=True)
    done = machine.run("mount", pushed.reference, str(target))
    assert done.code == 2
    assert "belongs to the kubelet" in done.err


def test_nothing_is_unmounted_that_was_not_mounted_here(machine: Machine, tmp_path: Path) -> None:
    done = machine.run("umount", str(tmp_path), "--json")
    assert done.code == 3
    assert "no model was mounted" in done.object["error"]["message"]
