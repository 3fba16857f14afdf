"""`modelmount doctor`: it finds what is wrong, says what to do, and changes nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from modelmount import config
from modelmount.cache import ground
from modelmount.cli import cli, examinations
from modelmount.cli.examinations import Finding, Level, kubelet, machine, network, storage
from modelmount.content.store import Store
from modelmount.system import confine, mountinfo
from tests.fakes.driver import Driver
from tests.fakes.registry import Registry, Tls
from tests.unit.cli.conftest import Machine
from tests.unit.system.processes import mounted

AS_NOBODY = [
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
]
"""A user without rights, who can read all the same, for the interpreter may lie in root's home."""


def settings(tmp_path: Path, **changes: object) -> config.Settings:
    """Settings whose places lie below a directory of the test."""
    plain = {
        "root": str(tmp_path / "store"),
        "kubelet_root": str(tmp_path / "kubelet"),
        "endpoint": f"unix://{tmp_path}/csi.sock",
        "limits": {"free_bytes": 1},
    }
    return msgspec.convert(plain | changes, config.Settings)


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def levels(findings: Iterator[Finding]) -> dict[str, Level]:
    return {finding.name: finding.level for finding in findings}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments], prog_name="modelmount")


def test_unpacking_says_what_confines_it_and_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "missing", list)
    found = only(machine.unpacking(settings(tmp_path)))
    assert (found.level, found.name) == (Level.OK, "unpacking")
    monkeypatch.setattr(confine, "missing", lambda: ["Landlock", "a user of its own"])
    found = only(machine.unpacking(settings(tmp_path)))
    assert found.level is Level.WARN
    assert "without Landlock, a user of its own" in found.message
    assert found.remedy


def test_it_looks_without_leaving_a_trace(tmp_path: Path) -> None:
    found = list(examinations.examine(settings(tmp_path)))
    assert {f.name for f in found} >= {"rights", "kernel", "security", "memory", "clock", "store", "space", "kubelet"}
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_not_ok_has_a_remedy(tmp_path: Path) -> None:
    for finding in examinations.examine(settings(tmp_path)):
        assert bool(finding.remedy) is (finding.level is not Level.OK), finding


def test_the_exit_code_says_whether_something_must_be_fixed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = run("--root", str(tmp_path / "file"))
    assert failed.exit_code == 1
    assert f"{tmp_path / 'file'} is no directory" in failed.stdout
    failures = sum(line.startswith("FAIL") for line in failed.stdout.splitlines())
    assert failed.stdout.splitlines()[-1].startswith(f"{failures} failure")


def test_json_has_every_finding(tmp_path: Path) -> None:
    said = run("--root", str(tmp_path / "store"), "--json")
    told = json.loads(said.stdout)
    assert told["ok"] is (said.exit_code == 0)
    assert {"level", "name", "message", "remedy"} == set(told["findings"][0])


def test_a_wrong_configuration_is_a_finding_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('mode = "nodes"\nrooot = "/x"\n')
    said = run("--config", str(file))
    assert said.exit_code == 1
    lines = [line for line in said.stdout.splitlines() if line.startswith("FAIL  config")]
    assert len(lines) == 2
    assert "kernel" in said.stdout
    assert "Traceback" not in said.output


def test_without_rights_it_looks_on(directory: Path) -> None:
    command = [sys.executable, "-m", "modelmount", "doctor", "--root", str(directory / "store")]
    done = subprocess.run([*AS_NOBODY, *command], capture_output=True, text=True, env=Driver(directory).environment())
    assert done.returncode == 1
    assert "this process runs as user 65534" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_root_that_this_user_cannot_read_is_told(directory: Path) -> None:
    store = directory / "store"
    store.mkdir(mode=0)
    os.chown(store, 65534, 65534)
    directory.chmod(0o755)
    command = [sys.executable, "-m", "modelmount", "doctor", "--json", "--root", str(store)]
    done = subprocess.run([*AS_NOBODY, *command], capture_output=True, text=True, env=Driver(directory).environment())
    (found,) = [f for f in json.loads(done.stdout)["findings"] if f["name"] == "store"]
    assert (found["level"], done.returncode) == ("FAIL", 1)
    assert found["message"] == f"{store} can't be read and written by user 65534, whose it is"
    assert found["remedy"] == "look at its mode and its file system, or choose another root"


NFS = "36 35 0:52 / {place} rw,relatime shared:7 - nfs4 filer.example.com:/export rw,vers=4.2,hard,proto=tcp"
"""A line of /proc/self/mountinfo, as the kernel writes it for such a mount."""


def test_a_file_system_of_the_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "store")
    line = NFS.format(place=tmp_path / "store")
    there = [*mountinfo.mountinfo(), *mountinfo.parse_mountinfo(line.encode())]
    monkeypatch.setattr(mountinfo, "mountinfo", lambda: there)
    found = {f.name: f for f in storage.store(settings(tmp_path))}["disk"]
    assert (found.level, found.message) == (
        Level.WARN,
        f"{tmp_path}/store is on nfs4: locks and speed are the network's",
    )
    assert found.remedy == "use a local disk"
    (trouble,) = ground.file_system(tmp_path / "store")  # what the driver says when it starts
    assert (trouble.message, trouble.remedy, trouble.fatal) == (found.message, found.remedy, False)


def test_a_controller_needs_no_rights_store_or_kubelet(tmp_path: Path) -> None:
    found = levels(examinations.examine(settings(tmp_path, mode="controller")))
    assert found["rights"] is Level.OK
    assert "store" not in found
    assert "kubelet" not in found


def test_an_empty_directory_can_become_the_store(tmp_path: Path) -> None:
    (tmp_path / "store/lost+found").mkdir(parents=True, mode=0o700)
    (tmp_path / "store").chmod(0o700)
    assert levels(storage.store(settings(tmp_path)))["store"] is Level.OK


def test_a_directory_with_other_things_in_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "store/photos").mkdir(parents=True)
    (tmp_path / "store").chmod(0o700)
    finding = next(storage.store(settings(tmp_path)))
    assert (finding.level, "photos" in finding.message) == (Level.FAIL, True)


def test_a_good_store_is_ok(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    assert next(storage.store(settings(tmp_path))).level is Level.OK


def test_a_store_that_others_can_read_is_told(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store").chmod(0o755)
    finding = next(storage.store(settings(tmp_path)))
    assert (finding.level, "0755" in finding.message) == (Level.WARN, True)


def test_a_store_of_another_version_is_told(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store/version").write_text("99\n")
    finding = next(storage.store(settings(tmp_path)))
    assert (finding.level, "layout version 99" in finding.message) == (Level.FAIL, True)
    assert "upgrade modelmount" in (finding.remedy or "")


def test_an_older_store_is_said_to_be_migrated_at_the_start_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store/version").write_text("1\n")
    finding = next(storage.store(settings(tmp_path)))
    assert (finding.level, "it becomes 2, in place" in finding.message) == (Level.OK, True)
    assert (tmp_path / "store/version").read_text() == "1\n"


def test_what_lies_in_quarantine_is_told(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store/quarantine/1700000000-ab").mkdir()
    assert next(storage.store(settings(tmp_path))).level is Level.WARN


@pytest.mark.mount
def test_a_file_system_in_memory_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", "tmpfs", "size=1m"):
        (tmp_path / "store").chmod(0o700)
        found = {f.name: f for f in storage.store(settings(tmp_path))}
    assert found["disk"].level is Level.WARN
    assert "memory" in found["disk"].message


@pytest.mark.mount
def test_a_file_system_inside_the_store_is_told(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store/trees").rmdir()
    with mounted(tmp_path / "store/trees", "tmpfs"):
        found = [f for f in storage.store(settings(tmp_path)) if f.level is Level.FAIL]
    assert "hard links" in only(iter(found)).remedy


@pytest.mark.mount
def test_a_full_disk_is_told_in_numbers(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", "tmpfs", "size=1m,nr_inodes=100"):
        full = list(storage.space(settings(tmp_path, limits={"free_bytes": 1 << 30})))
        (tmp_path / "store/filler").write_bytes(bytes(950 << 10))
        low = list(storage.space(settings(tmp_path, limits={"free_bytes": 0}, cache={"high_watermark": 80})))
        much = list(storage.space(settings(tmp_path, limits={"free_bytes": 0}, cache={"max_bytes": 1 << 40})))
    assert [f.level for f in full] == [Level.FAIL, Level.WARN]
    assert "1.0 MB are free" in full[0].message
    assert "no pull can ever begin" in full[0].message
    assert [f.level for f in low] == [Level.FAIL, Level.WARN]
    assert "cache.high_watermark is 80 %" in low[0].message
    assert [f.level for f in much] == [Level.OK, Level.WARN, Level.WARN]
    assert "more than the disk" in much[1].message


def test_the_process_that_serves_a_store_is_named(tmp_path: Path) -> None:
    assert list(storage.driver(settings(tmp_path))) == []
    store = Store(tmp_path / "store")
    with store.lock("driver").acquire():
        finding = only(storage.driver(settings(tmp_path)))
    assert "serves" in finding.message
    assert "no driver" in only(storage.driver(settings(tmp_path))).message


def test_the_kubelet_s_directories(tmp_path: Path) -> None:
    assert only(kubelet.directories(settings(tmp_path))).level is Level.WARN
    (tmp_path / "kubelet/pods").mkdir(parents=True)
    finding = only(kubelet.directories(settings(tmp_path)))
    assert (finding.level, "plugins_registry" in finding.message) == (Level.FAIL, True)
    (tmp_path / "kubelet/plugins_registry").mkdir()
    assert only(kubelet.directories(settings(tmp_path))).level is Level.OK


@pytest.mark.mount
def test_mounts_that_would_not_reach_the_host_are_told(tmp_path: Path) -> None:
    (tmp_path / "kubelet").mkdir()
    with mounted(tmp_path / "kubelet/pods", "tmpfs"):
        subprocess.run(["mount", "--make-private", tmp_path / "kubelet/pods"], check=True)
        private = only(kubelet.propagation(settings(tmp_path)))
        subprocess.run(["mount", "--make-shared", tmp_path / "kubelet/pods"], check=True)
        shared = only(kubelet.propagation(settings(tmp_path)))
    assert (private.level, "Bidirectional" in private.remedy) == (Level.WARN, True)
    assert shared.level is Level.OK


def test_a_socket_that_nobody_serves_is_told(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "csi.sock"))
        listener.listen()
        assert only(kubelet.sockets(settings(directory))).level is Level.OK
    assert only(kubelet.sockets(settings(directory))).level is Level.WARN


def test_a_docker_configuration_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    wanted = settings(tmp_path, auth={"docker_config": str(file)})
    assert only(network.credentials(wanted)).level is Level.FAIL
    file.write_text("{")
    assert only(network.credentials(wanted)).level is Level.FAIL
    file.write_text('{"auths": {}}')
    file.chmod(0o644)
    assert only(network.credentials(wanted)).level is Level.WARN
    file.chmod(0o600)
    assert only(network.credentials(wanted)).level is Level.OK


@pytest.mark.registry
def test_registries_are_tried_as_they_are_configured(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path / "tls")
    other = Tls.make(tmp_path / "other")
    with Registry(tmp_path / "plain") as plain, Registry(tmp_path / "secure", tls=tls) as secure:
        found = [
            only(network.registries(settings(tmp_path, registries={host: each})))
            for host, each in (
                (plain.host, {"plain_http": True}),
                (plain.host, {}),
                (secure.host, {"ca_file": str(tls.ca_file)}),
                (secure.host, {"ca_file": str(other.ca_file)}),
                (secure.host, {"ca_file": str(tmp_path / "absent.pem")}),
            )
        ]
    down = only(network.registries(settings(tmp_path, registries={plain.host: {"plain_http": True}})))
    assert [f.level for f in found] == [Level.OK, Level.FAIL, Level.OK, Level.FAIL, Level.FAIL]
    assert "plain_http" in found[1].remedy
    assert "ca_file" in found[3].remedy
    assert down.level is Level.WARN


def test_a_clock_in_the_past_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(machine.clock(settings(tmp_path))).level is Level.OK
    monkeypatch.setattr("modelmount.cli.examinations.machine.time.time", lambda: 86400.0)
    assert only(machine.clock(settings(tmp_path))).level is Level.FAIL


@pytest.mark.registry
@pytest.mark.mount
def test_beside_a_running_driver_it_sees_the_driver(machine: Machine) -> None:
    machine.driver.start()
    told = machine.run("doctor", "--json").object
    messages = [f["message"] for f in told["findings"]]
    assert any(f"process {machine.driver.pid} serves" in message for message in messages)
    assert any("a driver answers at" in message for message in messages)
    assert any(f"{machine.registry.host} answers" in message for message in messages)
