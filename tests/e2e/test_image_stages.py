"""The image, without a container engine: the Dockerfile's own RUN lines are run in a directory, and what they made is
started.
"""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

import modelmount
from tests.e2e import dockerfile

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stages() -> list[dockerfile.Stage]:
    return dockerfile.parse((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def built(stages: list[dockerfile.Stage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in the place of the image's root, after the first stage."""
    root = tmp_path_factory.mktemp("image")
    dockerfile.build(stages[0], ROOT, root)
    return root


def start(built: Path, stages: list[dockerfile.Stage], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start the entry point of the last stage as a container would: nothing but the image's own PATH."""
    (entry,) = stages[-1].all("ENTRYPOINT")
    program = dockerfile.relocated(entry.words[0], built, dockerfile.PLACES)
    environment = {"PATH": f"{built}/opt/modelmount/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [program, *entry.words[1:], *arguments], cwd="/", env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_installed_driver_says_its_version(built: Path, stages: list[dockerfile.Stage]) -> None:
    said = start(built, stages, "--version")
    assert said.returncode == 0, said.stderr
    assert modelmount.__version__ in said.stdout


def test_the_installed_driver_examines_its_machine(built: Path, stages: list[dockerfile.Stage]) -> None:
    said = start(built, stages, "doctor")
    assert "Traceback" not in said.stderr
    assert said.returncode in {0, 1}, said.stderr  # 1: this machine lacks something, and it says what
    assert said.stdout.strip()


def test_the_wheel_holds_the_driver_the_stubs_and_nothing_else(built: Path) -> None:
    (wheel,) = (built / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "modelmount",
        "csi",
        f"modelmount-{modelmount.__version__}.dist-info",
    }
    for path in [*(ROOT / "driver").rglob("*.py"), *(ROOT / "csi").rglob("*.py")]:
        inside = path.relative_to(ROOT / "driver" if path.is_relative_to(ROOT / "driver") else ROOT)
        assert inside.as_posix() in names
    assert {n for n in names if n.startswith("csi/") and n.endswith("py.typed")} == {"csi/py.typed"}


def test_exactly_the_pinned_packages_are_installed(built: Path) -> None:
    site = next((built / "opt/modelmount/lib").glob("python3*/site-packages"))
    installed = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name, _, _ in (path.name.removesuffix(".dist-info").rpartition("-") for path in site.glob("*.dist-info"))
    }
    lines = [
        line for name in ("runtime", "verify") for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    ]
    pinned = {m[1] for line in lines if (m := re.match(r"([a-z0-9-]+)==", line))}
    assert installed - {"modelmount"} <= pinned
    assert "modelmount" in installed
    assert not {"pip", "setuptools", "hatchling", "build"} & installed


def test_the_last_stage_only_takes_what_was_built(stages: list[dockerfile.Stage], built: Path) -> None:
    last = stages[-1]
    assert last.all("RUN") == []
    (taken,) = last.all("COPY")
    assert taken.words == [f"--from={stages[0].name}", "/opt/modelmount", "/opt/modelmount"]
    assert (built / "opt/modelmount/bin/modelmount").exists()


def test_both_stages_have_the_same_slim_base_with_a_tag(stages: list[dockerfile.Stage]) -> None:
    bases = {stage.base for stage in stages}
    assert len(bases) == 1
    name, _, tag = bases.pop().partition(":")
    assert name == "python"
    assert re.fullmatch(r"3\.\d+-slim-\w+", tag)


def test_every_download_is_pinned_by_hash(stages: list[dockerfile.Stage]) -> None:
    installs = [part for step in stages[0].all("RUN") for part in step.text.split("&&") if " install " in part]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command


def test_nothing_in_the_image_was_compiled_here(stages: list[dockerfile.Stage]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"\bapt-get\b|\bgcc\b|build-essential", text)
    assert "--only-binary :all:" in text


def test_the_image_serves_by_default_as_root(stages: list[dockerfile.Stage]) -> None:
    assert [i.words for i in stages[-1].all("CMD")] == [["serve"]]
    assert [i.text for i in stages[-1].all("USER")] == ["0"]
