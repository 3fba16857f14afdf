"""The dashboard's queries and the alerts' expressions, answered by a real Prometheus that scrapes a real driver."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import push
from tests.fakes.driver import Driver
from tests.fakes.registry import Registry

from .prometheus import Prometheus, alerts, dashboard

pytestmark = [pytest.mark.mount, pytest.mark.registry]

VARIABLES = {"$instance": ".*", "$__rate_interval": "1m", "$__range": "5m"}
QUERIES = [
    (panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]
]  # one case each


def substituted(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.fixture(scope="module")
def scraping() -> Iterator[Prometheus]:
    """One that has seen a driver pull, publish, and refuse."""
    with tempfile.TemporaryDirectory(prefix="mm-prom-") as name:
        directory = Path(name)
        (directory / "model").mkdir()
        (directory / "model/weights").write_bytes(b"weights" * 1000)
        settings = {"metrics_address": "127.0.0.1:0"}
        with (
            Registry(directory / "registry") as registry,
            Driver(directory / "node", [registry], settings=settings) as driver,
        ):
            port = next(line["port"] for line in driver.lines() if line["message"] == "metrics and health")
            with Prometheus(directory / "prometheus", f"127.0.0.1:{port}") as prometheus:
                prometheus.wait(lambda: prometheus.query("modelmount_rpc_total"), "scraped")
                pushed = push.Pusher(registry.host, registry.connection).artifact(
                    "llm/tiny", "v1", push.modelpack(directory / "model")
                )
                for pod in ("a", "b"):
                    driver.publish(pod, driver.target(pod), {"model": pushed.reference})
                done = 'modelmount_publishes_total{result="cached"} == 1'
                prometheus.wait(lambda: prometheus.query(done), "saw the publishes")
                for seen in ('publishes_total{result="cached"}', 'rpc_seconds_count{method="NodePublishVolume"}'):
                    twice = f"rate(modelmount_{seen}[1m])"  # it takes two scrapes to have one
                    prometheus.wait(lambda rate=twice: prometheus.query(rate), f"had {twice}")
                yield prometheus


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[f"{n}-{t}" for n, (t, _) in enumerate(QUERIES)])
def test_every_query_of_the_dashboard_is_answered(scraping: Prometheus, title: str, expression: str) -> None:
    found = scraping.query(substituted(expression))
    assert found or "by (mirror" in expression, f"{title}: nothing answers {expression}"


def test_every_alert_is_evaluated_and_none_fires(scraping: Prometheus) -> None:
    names = {rule["alert"] for rule in alerts()}
    scraping.wait(lambda: "unknown" not in scraping.rules().values(), "evaluated the rules")
    assert scraping.rules() == dict.fromkeys(names, "ok")
    for rule in alerts():
        assert scraping.query(rule["expr"]) == []


def test_what_is_asked_for_is_what_the_driver_has(scraping: Prometheus) -> None:
    """A misspelt name would be silent for ever."""
    asked = {name for text in (*(rule["expr"] for rule in alerts()), *(query for _, query in QUERIES))
             for name in re.findall(r"modelmount_\w+", text)}  # fmt: skip
    known = {sample["metric"]["__name__"] for sample in scraping.query('{__name__=~"modelmount_.+"}')}
    assert {name for name in asked - known if not name.startswith("modelmount_mirror_")} == set()


def test_the_dashboard_lists_the_nodes(scraping: Prometheus) -> None:
    (variable,) = [each for each in dashboard()["templating"]["list"] if each["name"] == "instance"]
    metric = re.fullmatch(r"label_values\((\w+), instance\)", variable["query"]["query"])
    assert metric is not None
    (sample,) = scraping.query(metric[1])
    assert sample["metric"]["instance"].startswith("127.0.0.1:")
