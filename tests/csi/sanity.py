"""Runs the real csi-sanity (github.com/kubernetes-csi/csi-test, pinned in scripts/tools.list) and says which of its
specs ran.

A suite that skips what it can't do reports success; so callers assert the list of specs, not only the exit code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.fakes import mounts
from tests.fakes.tools import tool

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_SECONDS = 300.0

Outcome = Literal["passed", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Spec:
    """One spec of the suite; `detail` is the failure's or the skip's text."""

    name: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one run said. `output` is the suite's own text, for people."""

    specs: tuple[Spec, ...]
    exit_code: int
    output: str

    def named(self, outcome: Outcome) -> list[str]:
        """The names of the specs that ended so, sorted."""
        return sorted(spec.name for spec in self.specs if spec.outcome == outcome)


def program() -> Path:
    """The binary that scripts/tools built. Raises FileNotFoundError when it isn't there."""
    return tool("csi-sanity")


def run(
    endpoint: Path,
    directory: Path,
    *,
    parameters: Mapping[str, str],
    publish_secrets: Mapping[str, str] | None = None,
    controller_endpoint: Path | None = None,
) -> Report:
    """Run all specs, none skipped by us, against the driver at `endpoint`; the target will be `directory`/mount/target.

    `parameters` go to CreateVolume, `publish_secrets` to NodePublishVolume. What an earlier run left in `directory` is
    removed first: the suite makes its directories anew for each spec and fails where one exists.
    """
    mounts.detach_below(directory)
    for name in ("mount", "staging"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    directory.mkdir(parents=True, exist_ok=True)
    junit = directory / "report.xml"
    junit.unlink(missing_ok=True)
    (directory / "parameters.yaml").write_text(json.dumps(dict(parameters)))  # JSON is YAML
    command = [
        str(program()),
        f"--csi.endpoint=unix://{endpoint}",
        f"--csi.mountdir={directory / 'mount'}",
        f"--csi.stagingdir={directory / 'staging'}",
        f"--csi.testvolumeparameters={directory / 'parameters.yaml'}",
        "--csi.testvolumesize=1048576",
        "--ginkgo.v",
        "--ginkgo.no-color",
        f"--ginkgo.timeout={int(TIMEOUT_SECONDS)}s",
        f"--ginkgo.junit-report={junit}",
    ]
    if publish_secrets is not None:
        (directory / "secrets.yaml").write_text(json.dumps({"NodePublishVolumeSecret": dict(publish_secrets)}))
        command.append(f"--csi.secrets={directory / 'secrets.yaml'}")
    if controller_endpoint is not None:
        command.append(f"--csi.controllerendpoint=unix://{controller_endpoint}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS + 30)
    output = done.stdout + done.stderr
    if not junit.exists():
        raise RuntimeError(f"csi-sanity wrote no report; it said:\n{output[-4000:]}")
    return Report(tuple(_specs(junit)), done.returncode, output)


def _specs(junit: Path) -> list[Spec]:
    found = []
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = case.get("name", "")
        if not name.startswith("[It] "):
            name = f"[{case.get('classname')}] {name}"  # set-up and tear-down of the suite
        failure = next((e for e in (case.find("failure"), case.find("error")) if e is not None), None)
        skipped = case.find("skipped")
        if failure is not None:
            found.append(Spec(name, "failed", f"{failure.get('message', '')}\n{failure.text or ''}"))
        elif skipped is not None:
            found.append(Spec(name, "skipped", skipped.get("message", "")))
        else:
            found.append(Spec(name, "passed"))
    return found
