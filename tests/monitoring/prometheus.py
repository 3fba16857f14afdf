"""A real Prometheus, and promtool."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
MONITORING = ROOT / "deploy/helm/monitoring"
ALERTS, DASHBOARD = MONITORING / "alerts.yaml", MONITORING / "dashboard.json"
START_SECONDS = 120.0


def program(name: str) -> str:
    """`prometheus` or `promtool`, as scripts/setup installs them. Raises RuntimeError."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing; scripts/setup installs it")
    return found


def promtool(*arguments: str | Path) -> str:
    """What it says; raises AssertionError with that when it is not content."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    """All rules."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


class Prometheus:
    """One that scrapes a driver every second and evaluates the alert rules; from `with` to its end."""

    def __init__(self, directory: Path, target: str) -> None:
        self._directory, self._target = directory, target
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        directory = self._directory
        directory.mkdir()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "modelmount", "static_configs": [{"targets": [self._target]}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.wait(self._listens, "listens")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Raises AssertionError when it is none."""
        status, answer = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        assert status == 200, f"{expression}: {answer}"
        document = json.loads(answer)
        found: list[dict[str, Any]] = document["data"]["result"]
        return found

    def rules(self) -> dict[str, str]:
        """The health of each alert's evaluation, by its name; `unknown` before the first."""
        _, answer = self._get("/api/v1/rules")
        groups = json.loads(answer)["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def wait(self, condition: Any, what: str) -> None:
        """Return once it holds."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"prometheus never {what}:\n{(self._directory / 'log').read_text()[-3000:]}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        """Which port the kernel chose is only in its table."""
        if not self.port:
            assert self._process is not None
            self.port = _listening(self._process.pid)
        try:
            return bool(self.port) and self._get("/-/ready")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def _listening(pid: int) -> int:
    """The port on which a process listens; 0 while there is none."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(fd.readlink()))
        except FileNotFoundError:
            continue
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            return int(fields[1].partition(":")[2], 16)
    return 0
