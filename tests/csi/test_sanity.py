"""The field's own conformance suite, whole, against the real driver with a model in a real registry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.csi import sanity
from tests.fakes import push
from tests.fakes.driver import Driver
from tests.fakes.registry import Registry

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(400)]

RAN = Path(__file__).with_name("specs_ran.txt")
"""Every spec that runs against our set of capabilities, one a line; a suite that quietly skips one is no proof."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose sockets fit into the 107 bytes of a unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="mm-sanity-") as name:
        yield Path(name)


def expected() -> list[str]:
    return [line for line in RAN.read_text().splitlines() if line and not line.startswith("#")]


def model(registry: Registry, directory: Path) -> push.Pushed:
    files = directory / "model"
    (files / "sub").mkdir(parents=True)
    (files / "config.json").write_text('{"model_type": "llama"}\n')
    (files / "sub/model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      " + bytes(1 << 20))
    return push.Pusher(registry.host, registry.connection).artifact("llm/tiny", "v1", push.modelpack(files))


def test_every_spec_that_applies_passes_and_none_is_skipped_by_us(short: Path, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        pushed = model(registry, tmp_path)
        with Driver(short, [registry], settings={"target_roots": [str(short / "sanity")]}) as driver:
            report = sanity.run(driver.socket, short / "sanity", parameters={"model": pushed.reference})
    assert report.named("failed") == [], report.output[-6000:]
    assert report.exit_code == 0
    assert report.named("passed") == sorted(expected())


def test_the_suite_passes_with_the_pod_s_own_credentials(short: Path, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", users={"robot": "sanity-password"}) as registry:
        pusher = push.Pusher(registry.host, registry.connection, authorization=push.basic("robot", "sanity-password"))
        files = tmp_path / "model"
        files.mkdir()
        (files / "config.json").write_text("{}")
        pushed = pusher.artifact("llm/private", "v1", push.modelpack(files))
        with Driver(short, [registry], settings={"target_roots": [str(short / "sanity")]}) as driver:
            report = sanity.run(
                driver.socket,
                short / "sanity",
                parameters={"model": pushed.reference},
                publish_secrets={"username": "robot", "password": "sanity-password"},
            )
            log = driver.log.read_text()
    assert report.named("failed") == [], report.output[-6000:]
    assert "sanity-password" not in log
