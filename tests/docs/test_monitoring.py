"""The page of metrics, the dashboard and the alert rules name what exists, and the rules fire when they should."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

from tests.docs import metrics_page

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
PROMTOOL = ROOT / ".venv" / "prometheus" / "promtool"
NAME = re.compile(r"\bvmhaul_[a-z_]+")


def documented() -> set[str]:
    return set(re.findall(r"^\| `(vmhaul_\w+)` \|", PAGE.read_text(), re.MULTILINE))


def promtool(*words: str) -> str:
    done = subprocess.run(
        [str(PROMTOOL), *words], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboard", MONITORING / "make_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_metrics_is_current() -> None:
    """Run `python -m tests.docs.metrics_page > docs/reference/metrics.md` when this fails."""
    assert PAGE.read_text() == metrics_page.markdown()


def test_the_dashboard_is_current_and_names_what_exists() -> None:
    """Run `python monitoring/make_dashboard.py` when this fails."""
    module = maker()
    text = module.TARGET.read_text()
    assert text == module.text()
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for query in queries for name in NAME.findall(query)} <= documented()


def test_alerts_name_what_exists() -> None:
    text = (MONITORING / "alerts.yml").read_text()
    assert set(NAME.findall(text)) <= documented()
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(set(alerts)) == len(alerts) > 10
    assert len(re.findall(r"description:", text)) == len(alerts)


def test_prometheus_takes_rules_and_configuration() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
