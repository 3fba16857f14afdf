"""transformers loads shards from a volume, by path and by a repository's name, without a network."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.engines.conftest import ENGINES
from tests.fakes import push

PYTHON = Path(ENGINES or "") / "transformers/bin/python"
PROGRAM = Path(__file__).with_name("sharded.py")
REPOSITORY = "org/tiny"

pytestmark = [
    pytest.mark.mount,
    pytest.mark.registry,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="asked for by scripts/engines --transformers"),
]


def run(home: Path, *arguments: str, **environment: str) -> str:
    """sharded.py with a home of its own, where transformers may write."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(PYTHON), str(PROGRAM), *arguments],
        env={**os.environ, **offline, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    run(tmp_path / "home", "make", str(directory))
    return directory


def test_shards_load_by_path_and_by_name_as_from_plain_files(node: Node, files: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    expected = json.loads(run(home, "say", str(files)))
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    flat = node.pod("flat", pushed.reference)
    cached = node.pod("cached", pushed.reference, layout="hf-cache", hfRepo=REPOSITORY)
    for pod in (flat, cached):
        node.kubelet.wait_running(pod)
    assert json.loads(run(home, "say", str(node.mount(flat)))) == expected
    assert json.loads(run(home, "say", REPOSITORY, HF_HUB_CACHE=str(node.mount(cached)))) == expected
    for pod in (flat, cached):
        node.kubelet.delete(pod)
        node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []
