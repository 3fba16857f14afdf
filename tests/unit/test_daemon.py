"""The daemon as a process: how it comes up, what it says, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
import pytest

from csi.v1 import csi_pb2, csi_pb2_grpc
from modelmount.content.store import Store
from modelmount.daemon.endpoint import Endpoint
from modelmount.system import mount
from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.plugins import connect
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.unit.system.processes import mounted

pytestmark = pytest.mark.mount

WITHOUT_MOUNTING = ["setpriv", "--bounding-set", "-sys_admin"]
"""Root as in a container that isn't privileged."""
AS_CONTROLLER = [
    *("setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
]
"""The user of the controller's manifest, who can read all the same: the interpreter may lie in root's home."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mm-daemon-") as name:
        yield Path(name)
        mounts.detach_below(Path(name))


@pytest.fixture
def driver(directory: Path) -> Iterator[Driver]:
    with Driver(directory) as started:
        yield started


def messages(driver: Driver) -> list[str]:
    return [line["message"] for line in driver.lines()]


def line(driver: Driver, message: str) -> dict[str, object]:
    """The first log line with this message."""
    return next(line for line in driver.lines() if line["message"] == message)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(12_000):
        if condition():
            return
        pause.wait(0.01)
    raise TimeoutError("it never happened")


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def serve(directory: Path, *arguments: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `serve` to its end; for starts that fail."""
    own = Driver(directory)
    return subprocess.run(
        [*(prefix or []), sys.executable, "-m", "modelmount", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=own.environment(),
    )


def test_it_logs_json_from_its_first_line_to_its_last(driver: Driver) -> None:
    assert driver.stop() == 0
    said = messages(driver)
    assert said[0] == "starting"
    assert said[-1] == "stopped"
    for message in ("recovered", "serving", "stopping: got SIGTERM"):
        assert message in said
    assert said.index("recovered") < said.index("serving")
    start = line(driver, "starting")
    assert {"version", "kernel", "mount_calls", "settings"} <= start.keys()


def test_after_a_signal_the_sockets_are_gone_and_the_exit_status_is_zero(driver: Driver) -> None:
    registration = driver.kubelet_root / "plugins_registry"
    assert driver.socket.exists()
    assert any(registration.iterdir())
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait_exit() == 0
    assert not driver.socket.exists()
    assert not any(registration.iterdir())


def test_what_it_makes_and_what_it_holds_is_its_own(driver: Driver) -> None:
    status = Path(f"/proc/{driver.pid}/status").read_text()
    assert "Umask:\t0077" in status
    assert driver.store.stat().st_mode & 0o777 == 0o700
    assert driver.socket.stat().st_mode & 0o077 == 0


def test_its_memory_cannot_be_dumped() -> None:
    code = (
        "import ctypes; from modelmount.system import process; process.harden(); "
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=Driver(Path("/")).environment()
    )
    assert done.stdout == "0\n", done.stderr


def test_a_second_driver_waits_until_the_first_one_ends(driver: Driver, directory: Path) -> None:
    second = Driver(directory)
    second.log = directory / "second.log"
    second.start(wait=False)
    try:
        wait_until(lambda: f"another driver uses {driver.store}; waiting until it ends" in messages(second))
        assert "recovered" not in messages(second)
        driver.stop()
        second.wait_ready()
        assert second.stop() == 0
    finally:
        second.kill()


def _port(driver: Driver) -> int:
    wait_until(lambda: "metrics and health" in messages(driver))
    port = line(driver, "metrics and health")["port"]
    assert isinstance(port, int)
    return port


def test_a_driver_that_waits_for_another_is_alive_and_says_why_it_is_not_ready(directory: Path) -> None:
    settings = {"metrics_address": "127.0.0.1:0"}
    with Driver(directory, settings=settings) as first:
        second = Driver(directory, settings=settings)
        second.log = directory / "second.log"
        second.start(wait=False)
        try:
            why = f"another driver uses {first.store}; waiting until it ends\n"
            port = _port(second)
            assert get(port, "/healthz") == (200, why)
            assert get(port, "/readyz") == (503, why)
            assert get(_port(first), "/readyz") == (200, "ok\n")
            first.stop()
            second.wait_ready()
            served = [each["port"] for each in second.lines() if each["message"] == "metrics and health"]
            assert get(served[-1], "/readyz") == (200, "ok\n")
            assert second.stop() == 0
        finally:
            second.kill()


def test_a_driver_that_waits_takes_over_the_address_of_the_other_one(directory: Path) -> None:
    """On a host, where both have the same configuration."""
    host = "127.31.9.7"  # nobody else's, who could take the port in between
    with Driver(directory, settings={"metrics_address": f"{host}:0"}) as first:
        port = _port(first)
        second = Driver(directory, settings={"metrics_address": f"{host}:{port}"})
        second.log = directory / "second.log"
        second.start(wait=False)
        try:
            wait_until(lambda: any(each.startswith("no metrics and health until then: ") for each in messages(second)))
            assert first.stop() == 0
            second.wait_ready()
            assert get(port, "/readyz", host=host) == (200, "ok\n")
            assert second.stop() == 0
        finally:
            second.kill()


def test_a_driver_that_waits_can_be_stopped(driver: Driver, directory: Path) -> None:
    second = Driver(directory)
    second.log = directory / "second.log"
    second.start(wait=False)
    wait_until(lambda: len(messages(second)) >= 2)
    assert second.stop() == 0
    assert driver.socket.exists()


def test_a_killed_driver_leaves_nothing_that_hinders_the_next(driver: Driver) -> None:
    driver.kill()
    assert driver.socket.exists()
    driver.start()
    assert driver.stop() == 0


def test_whoever_loses_its_socket_ends_with_a_failure(driver: Driver) -> None:
    driver.socket.unlink()
    assert driver.wait_exit() == 1
    assert any(m.startswith("stopping: ") and str(driver.socket) in m for m in messages(driver))


def test_a_directory_that_is_missing_fails_the_start_with_a_sentence(directory: Path) -> None:
    driver = Driver(directory, settings={"registration_dir": str(directory / "absent")})
    driver.start(wait=False)
    assert driver.wait_exit() == 1
    (failed,) = [line for line in driver.lines() if line["message"].startswith("cannot serve: ")]
    assert failed["reason"] == "Precondition"
    assert "absent" in failed["message"]
    assert "exception" not in failed
    assert not driver.socket.exists()


def test_a_wrong_configuration_fails_before_anything_happens(directory: Path) -> None:
    (directory / "config.toml").write_text('mode = "nodes"\nrooot = "/x"\n')
    done = serve(directory, "--config", str(directory / "config.toml"))
    assert done.returncode == 2
    assert done.stderr.startswith("modelmount: the configuration has mistakes:\n")
    assert len(done.stderr.splitlines()) == 3


def test_a_store_of_another_layout_is_refused(directory: Path) -> None:
    Store(directory / "store")
    (directory / "store/version").write_text("99\n")
    driver = Driver(directory)
    driver.start(wait=False)
    assert driver.wait_exit() == 1
    assert any("layout version 99, made by a newer modelmount" in message for message in messages(driver))


def test_without_the_right_to_mount_a_node_does_not_start(directory: Path) -> None:
    done = serve(directory, "--root", str(directory / "store"), "--mode", "node", prefix=WITHOUT_MOUNTING)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (failed,) = [line for line in lines if line["message"].startswith("cannot serve: ")]
    assert "CAP_SYS_ADMIN" in failed["message"]
    assert "privileged: true" in failed["message"]
    assert not (directory / "store").exists()


def test_a_controller_needs_no_rights_no_store_and_no_kubelet(directory: Path) -> None:
    socket = directory / "c" / "csi.sock"
    os.chown(directory, 65532, 65532)
    command = [sys.executable, "-m", "modelmount", "serve", "--mode", "controller", "--root", str(directory / "no")]
    process = subprocess.Popen(
        [*AS_CONTROLLER, *command],
        stderr=subprocess.PIPE,
        text=True,
        env=Driver(directory).environment() | {"CSI_ENDPOINT": f"unix://{socket}"},
    )
    try:
        wait_until(socket.exists)
        with connect(str(socket)) as channel:
            assert (
                csi_pb2_grpc.IdentityStub(channel)
                .Probe(csi_pb2.ProbeRequest(), timeout=30, wait_for_ready=True)
                .ready.value
            )
            with pytest.raises(grpc.RpcError) as refused:
                csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert json.loads(err.splitlines()[-1])["message"] == "stopped"
    assert not (directory / "no").exists()


class TestEndpoint:
    """/metrics, /healthz and /readyz."""

    @pytest.fixture
    def driver(self, directory: Path) -> Iterator[Driver]:
        with Driver(directory, settings={"metrics_address": "127.0.0.1:0"}) as started:
            yield started

    @pytest.fixture
    def port(self, driver: Driver) -> int:
        port = line(driver, "metrics and health")["port"]
        assert isinstance(port, int)
        return port

    def test_metrics_are_served(self, driver: Driver, port: int) -> None:
        status, text = get(port, "/metrics")
        assert status == 200
        assert "modelmount_rpc_total{" in text
        assert "modelmount_jobs_running 0.0" in text

    def test_health_is_said(self, port: int) -> None:
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/healthz", "HEAD") == (200, "")
        assert get(port, "/readyz") == (200, "ok\n")

    def test_other_paths_are_not_there(self, port: int) -> None:
        assert get(port, "/../etc/passwd")[0] == 404

    def test_health_and_probe_notice_a_store_that_went_away(self, driver: Driver, port: int) -> None:
        driver.store.rename(driver.directory / "gone")
        for path in ("/healthz", "/readyz"):
            status, text = get(port, path)
            assert status == 503
            assert str(driver.store) in text
        with connect(str(driver.socket)) as channel, pytest.raises(grpc.RpcError) as broken:
            csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=30)
        assert broken.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    def test_clients_that_say_nothing_do_not_keep_others_out(self, port: int) -> None:
        silent = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(40)]
        for connection in silent:
            connection.connect()
        try:
            wait_until(lambda: _answers(port))
        finally:
            for connection in silent:
                connection.close()

    def test_an_address_that_is_taken_fails_the_start(self, port: int) -> None:
        with tempfile.TemporaryDirectory(prefix="mm-daemon-") as name:
            other = Driver(Path(name), settings={"metrics_address": f"127.0.0.1:{port}"})
            other.start(wait=False)
            assert other.wait_exit() == 1
            assert any("choose another metrics_address" in message for message in messages(other))


def test_who_still_brings_store_and_mounts_together_is_alive_and_not_ready() -> None:
    state = "starting"
    with Endpoint("127.0.0.1", 0, health=lambda: state) as endpoint:
        assert get(endpoint.port, "/healthz") == (200, "starting\n")
        assert get(endpoint.port, "/readyz") == (503, "starting\n")
        state = ""
        assert get(endpoint.port, "/readyz") == (200, "ok\n")


def _answers(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.registry
def test_health_does_not_depend_on_a_registry(directory: Path) -> None:
    with Registry(directory / "registry") as registry:
        settings = {"metrics_address": "127.0.0.1:0"}
        with Driver(directory / "node", [registry], settings=settings) as driver:
            port = line(driver, "metrics and health")["port"]
            assert isinstance(port, int)
            registry.stop()
            assert get(port, "/healthz") == (200, "ok\n")


@pytest.mark.registry
def test_a_pod_s_model_stays_when_the_driver_goes(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model/config.json").write_text("{}")
    with Registry(directory / "registry") as registry, Driver(directory / "node", [registry]) as driver:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("llm/tiny", "v1", push.oras(directory / "model"))
        target = driver.target("pod-1")
        driver.publish("volume-1", target, {"model": pushed.reference})
        assert driver.stop() == 0
        assert (target / "config.json").read_text() == "{}"
        registry.stop()
        driver.start()
        driver.publish("volume-1", target, {"model": pushed.reference})
        driver.unpublish("volume-1", target)
        assert not target.exists()


@dataclass
class Call:
    """A publish under way in a thread, and how it failed."""

    thread: threading.Thread
    errors: list[grpc.RpcError]

    @classmethod
    def begin(cls, driver: Driver, reference: str) -> Self:
        """Publish; return once the driver has the call."""
        errors: list[grpc.RpcError] = []

        def publish() -> None:
            try:
                driver.publish("volume-1", driver.target("pod-1"), {"model": reference})
            except grpc.RpcError as e:
                errors.append(e)

        thread = threading.Thread(target=publish)
        thread.start()
        wait_until(lambda: any("NodePublishVolume called" in message for message in messages(driver)))
        return cls(thread, errors)

    def code(self) -> grpc.StatusCode:
        """The code it ended with; it did fail."""
        self.thread.join()
        (error,) = self.errors
        return error.code()


@pytest.mark.registry
def test_a_stop_tells_calls_that_wait_for_a_pull_to_come_again(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model/weights.bin").write_bytes(bytes(2_000_000))
    with Registry(directory / "registry") as registry, Proxy(registry.port, hold_at=1_000_000) as slow:
        pusher = push.Pusher(registry.host, registry.connection)
        pusher.artifact("llm/tiny", "v1", push.oras(directory / "model"))
        with Driver(directory / "node", [slow]) as driver:
            call = Call.begin(driver, f"{slow.host}/llm/tiny:v1")
            wait_until(lambda: any((driver.store / "ingest").iterdir()))
            assert driver.stop() == 0
            assert call.code() is grpc.StatusCode.ABORTED
            assert any((driver.store / "ingest").iterdir())
            slow.hold_at = None
            driver.start()
            driver.publish("volume-1", driver.target("pod-1"), {"model": f"{slow.host}/llm/tiny:v1"})


PATIENT = {"connect_timeout_seconds": 600, "read_timeout_seconds": 600, "document_timeout_seconds": 600}
"""With these a silent registry would be waited for longer than any test does."""


@pytest.mark.registry
def test_a_registry_that_does_not_answer_cannot_keep_the_driver_from_ending(directory: Path) -> None:
    with (
        Registry(directory / "registry") as registry,
        Driver(directory / "node", [registry], settings={"pull": PATIENT}) as driver,
        registry.frozen(),
    ):
        call = Call.begin(driver, f"{registry.host}/llm/tiny:v1")
        assert driver.stop() == 0
        assert call.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert not any("do not end" in message for message in messages(driver))


@pytest.mark.registry
def test_a_registry_that_falls_silent_in_a_blob_cannot_either_and_its_bytes_are_kept(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model/weights.bin").write_bytes(os.urandom(2_000_000))
    with Registry(directory / "registry") as registry, Proxy(registry.port, hold_at=1_000_000) as slow:
        pusher = push.Pusher(registry.host, registry.connection)
        pusher.artifact("llm/tiny", "v1", push.oras(directory / "model"))
        with Driver(directory / "node", [slow], settings={"pull": PATIENT}) as driver:
            call = Call.begin(driver, f"{slow.host}/llm/tiny:v1")
            wait_until(lambda: slow.passed >= 1_000_000)
            assert driver.stop() == 0
            assert call.code() is grpc.StatusCode.ABORTED
            slow.hold_at = None
            before = slow.passed
            driver.start()
            driver.publish("volume-1", driver.target("pod-1"), {"model": f"{slow.host}/llm/tiny:v1"})
            assert slow.passed - before < 1_700_000


@pytest.mark.registry
def test_a_second_signal_ends_it_at_once(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model/config.json").write_text("{}")
    with Registry(directory / "registry") as registry, Driver(directory / "node", [registry]) as driver:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("llm/tiny", "v1", push.oras(directory / "model"))
        driver.stop()
        driver.start(failpoints="volumes.publish.after_mount=delay(600000)")
        call = Call.begin(driver, pushed.reference)
        wait_until((driver.target("pod-1") / "config.json").exists)
        os.kill(driver.pid, signal.SIGTERM)
        wait_until(lambda: messages(driver).count("stopping: got SIGTERM") == 2)
        os.kill(driver.pid, signal.SIGTERM)
        assert driver.wait_exit() == -signal.SIGTERM
        call.code()
        driver.start()


def refusal(driver: Driver) -> str:
    """The sentence of a driver that didn't start."""
    driver.start(wait=False)
    assert driver.wait_exit() == 1
    return next(message for message in messages(driver) if message.startswith("cannot serve: "))


def doctor(driver: Driver) -> dict[str, str]:
    """What is wrong with the store before a start, by level."""
    found = json.loads(driver.run("doctor", "--json").stdout)["findings"]
    return {f["level"]: f["message"] for f in found if f["name"] in {"store", "disk", "space"} and f["level"] != "OK"}


def test_a_root_that_belongs_to_somebody_else_is_refused(directory: Path) -> None:
    driver = Driver(directory)
    Store(driver.store)
    os.chown(driver.store, 1234, 1234)
    assert f"{driver.store} belongs to user 1234" in doctor(driver)["FAIL"]
    assert f"{driver.store} belongs to user 1234" in refusal(driver)


def test_a_root_that_is_a_file_is_refused(directory: Path) -> None:
    driver = Driver(directory)
    driver.store.write_text("mine")
    assert f"{driver.store} is no directory" in doctor(driver)["FAIL"]
    assert f"{driver.store} is no directory" in refusal(driver)
    assert driver.store.read_text() == "mine"


@pytest.mark.mount
def test_a_root_that_cannot_even_be_looked_at_is_refused(directory: Path) -> None:
    driver = Driver(directory)
    driver.store.mkdir()
    mounts.dead(driver.store)
    try:
        found = doctor(driver)["FAIL"]
        said = refusal(driver)
    finally:
        mount.unmount(driver.store)
    assert found == f"the store {driver.store} cannot be looked at: Transport endpoint is not connected"
    assert f"{found}; choose another root" in said


@pytest.mark.mount
def test_parts_on_another_file_system_and_read_only_ones_are_refused(directory: Path) -> None:
    driver = Driver(directory)
    Store(driver.store)
    (driver.store / "unpacked").rmdir()
    with mounted(driver.store / "unpacked", "tmpfs"):
        assert f"{driver.store}/unpacked is a file system inside the store" in doctor(driver)["FAIL"]
        assert f"{driver.store}/unpacked is a file system inside the store" in refusal(driver)
    (directory / "other").mkdir()
    driver = Driver(directory / "other")
    with mounted(driver.store, "tmpfs", "ro"):
        assert "is on tmpfs, mounted read-only" in doctor(driver)["FAIL"]
        assert "is on tmpfs, mounted read-only; mount it read-write" in refusal(driver)


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_place_that_works_badly_is_warned_of_and_used(directory: Path, kind: str) -> None:
    driver = Driver(directory, settings={"cache": {"max_bytes": 1 << 55}})
    (directory / "layers/lower").mkdir(parents=True)
    with mounted(directory / "layers/upper", "tmpfs"):
        for name in ("data", "work"):
            (directory / "layers/upper" / name).mkdir()
        layers = f"{directory}/layers"
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper/data,workdir={layers}/upper/work"
        with mounted(driver.store, kind, options if kind == "overlay" else "size=64m"):
            driver.store.chmod(0o755)
            driver.start()
            said = messages(driver)
            assert driver.stop() == 0
            assert (driver.store.stat().st_mode & 0o777) == 0o700
    assert any(f"{driver.store} is on {kind}" in message for message in said)
    assert any("has mode 0755: other users can read every model" in message for message in said)
    assert any("more than the disk" in message for message in said)
