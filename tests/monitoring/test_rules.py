"""The alert rules, by promtool: valid, each of them tested, and the stock rule for volumes that fill up silent about
models.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from modelmount.volumes.stats import shown_available

from .prometheus import ALERTS, ROOT, alerts, promtool

CASES = Path(__file__).parent / "alerts.test.yaml"
GB = 10**9
STOCK = """\
(
  kubelet_volume_stats_available_bytes{job="kubelet", namespace=~".*", metrics_path="/metrics"}
    / kubelet_volume_stats_capacity_bytes{job="kubelet", namespace=~".*", metrics_path="/metrics"}
) < %s
and kubelet_volume_stats_used_bytes{job="kubelet", namespace=~".*", metrics_path="/metrics"} > 0
%s
unless on(cluster, namespace, persistentvolumeclaim)
  kube_persistentvolumeclaim_access_mode{access_mode="ReadOnlyMany"} == 1
unless on(cluster, namespace, persistentvolumeclaim)
  kube_persistentvolumeclaim_labels{label_excluded_from_alerts="true"} == 1
"""
"""KubePersistentVolumeFillingUp of the kubernetes-mixin."""
SHRINKING = (
    'and predict_linear(kubelet_volume_stats_available_bytes{job="kubelet", namespace=~".*", metrics_path="/metrics"}'
    "[6h], 4 * 24 * 3600) < 0"
)


def test_the_rules_are_valid() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", ALERTS)


def test_every_alert_fires_when_it_should_and_is_silent_when_it_should(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(CASES, tmp_path)
    promtool("test", "rules", tmp_path / CASES.name)


def test_every_alert_has_a_case_of_each_kind() -> None:
    kinds: dict[str, set[bool]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        (tested,) = case["promql_expr_test"]
        name = re.search(r'alertname="(\w+)"', tested["expr"])
        assert name is not None
        kinds.setdefault(name[1], set()).add(bool(tested["exp_samples"]))
    assert kinds == {rule["alert"]: {True, False} for rule in alerts()}


def test_every_alert_says_what_it_means_and_is_in_the_handbook() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
    handbook = (ROOT / "docs/operations/monitoring.md").read_text()
    assert set(re.findall(r"^\| `(Modelmount\w+)` \|", handbook, re.MULTILINE)) == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("free", [0, GB, 500 * GB], ids=["full disk", "full cache", "room"])
@pytest.mark.parametrize("used", [1, 16 * GB, 700 * GB])
def test_the_stock_alert_for_volumes_that_fill_up_is_silent_about_models(tmp_path: Path, used: int, free: int) -> None:
    """While the disk fills up from what there is to that, in a claim with ReadWriteOnce: others are exempt."""
    assert fires(tmp_path, used, [shown_available(2 * free + used, used), shown_available(free, used)]) == ""


def test_the_stock_alert_would_fire_about_a_volume_that_says_what_a_full_disk_has_left(tmp_path: Path) -> None:
    """The test of the test."""
    assert "KubePersistentVolumeFillingUp" in fires(tmp_path, 70 * GB, [GB, GB])


def fires(directory: Path, used: int, available: list[int]) -> str:
    """What promtool says about the expectation that nothing fires, when `available` goes from one to the other."""
    rules = {
        "groups": [
            {
                "name": "stock",
                "rules": [
                    {"alert": "KubePersistentVolumeFillingUp", "expr": STOCK % ("0.03", "")},
                    {"alert": "KubePersistentVolumeFillingUp", "expr": STOCK % ("0.15", SHRINKING)},
                ],
            }
        ]
    }
    labels = '{job="kubelet", metrics_path="/metrics", namespace="team", persistentvolumeclaim="model"}'
    step = (available[1] - available[0]) / 480
    series = {
        "kubelet_volume_stats_available_bytes": f"{available[0]}+{step:.3f}x480",
        "kubelet_volume_stats_used_bytes": f"{used}x480",
        "kubelet_volume_stats_capacity_bytes": f"{used + available[0]}+{step:.3f}x480",
    }
    case = {
        "rule_files": ["stock.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name + labels, "values": text} for name, text in series.items()],
                "alert_rule_test": [
                    {"eval_time": f"{hours}h", "alertname": "KubePersistentVolumeFillingUp", "exp_alerts": []}
                    for hours in (1, 7, 8)
                ],
            }
        ],
    }
    (directory / "stock.yaml").write_text(yaml.safe_dump(rules))
    (directory / "case.yaml").write_text(yaml.safe_dump(case).replace("+-", "-"))
    try:
        promtool("test", "rules", directory / "case.yaml")
    except AssertionError as e:
        return str(e)
    return ""
