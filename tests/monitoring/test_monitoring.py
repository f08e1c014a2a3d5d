"""What Prometheus and Grafana are given fits what the server says, and what they themselves accept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.e2e.conftest import live_server
from tests.monitoring.scrape import KEY, exposition
from tests.server.api_live import CHAT, body

FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = FOLDER / "grafana-dashboard.json"
ALERTS = FOLDER / "alerts.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
# Of Prometheus' own, not the server's.
PROMETHEUS = {"up"}
SERIES = re.compile(r"\b(vllm:\w+|(?:lorachat|process|http)_\w+|up)\b")


@pytest.fixture(scope="module")
def program(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scrape of the program itself, on a volume with a version that it refuses."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "volume" / "talk" / "20261123-080000-aaaaaa").mkdir(parents=True)
    with live_server(tiny_model, folder / "volume", folder / "log") as server:
        asked = body("hello", max_tokens=4)
        assert httpx.post(f"{server.url}{CHAT}", json=asked, timeout=60).status_code == 200
        return httpx.get(f"{server.url}/metrics").text


@pytest.fixture(scope="module")
def scraped(program: str) -> str:
    """Every kind of request, and after it what only the program has: a volume of adapters."""
    busy = exposition()
    families = re.split(r"^(?=# HELP )", program, flags=re.MULTILINE)
    return busy + "".join(
        f for f in families if f.startswith("# HELP lorachat_adapter") and f.split()[2] not in busy
    )


def series_of(text: str) -> set[str]:
    """Every series' name: with _bucket, _sum, _count, _total."""
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[:1] != "#"}


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, check=False
    )


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text("utf-8")))


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every query and alert."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


def test_every_series_that_is_asked_for_is_one_the_server_has(scraped: str) -> None:
    there = series_of(scraped) | PROMETHEUS
    for where, expression in expressions():
        named = set(SERIES.findall(expression))
        assert named, f"{where}: {expression}"
        assert named <= there, f"{where}: {named - there}"


def test_every_label_that_is_asked_for_is_one_the_server_sets(scraped: str) -> None:
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for where, expression in expressions():
        for name, selector in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
            if name in PROMETHEUS:
                continue
            asked = set(re.findall(r"(\w+)\s*(?:=|!|~)", selector)) - {"instance", "job"}
            assert asked <= labels[name], f"{where}: {name} {asked}"


def test_the_program_exports_nothing_that_the_documentation_does_not_know(program: str) -> None:
    documented = (ROOT / "docs" / "api.md").read_text("utf-8")
    for family in text_string_to_metric_families(program):
        if family.name.startswith(("vllm:", "lorachat_")):
            assert re.search(rf"`{family.name}(_total|_info)?[`{{]", documented), family.name


@needs_promtool
def test_the_exposition_passes_prometheus_own_check(scraped: str) -> None:
    # The colon of vLLM's names is the one thing that the check minds, as it does with vLLM itself.
    minded = promtool("check", "metrics", stdin=scraped)
    complaints = (minded.stdout + minded.stderr).splitlines()
    others = [c for c in complaints if "should not contain ':'" not in c]
    assert others == []
    assert all(complaint.startswith("vllm:") for complaint in complaints)
    renamed = promtool("check", "metrics", stdin=scraped.replace("vllm:", "vllm_"))
    assert (renamed.returncode, renamed.stdout + renamed.stderr) == (0, "")


def test_names_and_types_follow_prometheus_rules(scraped: str) -> None:
    """The same without promtool, as far as its rules concern us."""
    families = list(text_string_to_metric_families(scraped))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"(vllm:)?[a-z][a-z0-9_]*", family.name), family.name
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_milliseconds")), family.name
        for sample in family.samples:
            is_total = sample.name.endswith("_total")
            assert is_total == (family.type == "counter"), sample.name
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in sample.labels)


def test_no_key_is_in_the_exposition(scraped: str) -> None:
    assert KEY not in scraped
    assert "lorachat_key_requests_total{" in scraped


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    for arguments in (
        ("check", "rules", str(ALERTS)),
        ("check", "config", str(FOLDER / "prometheus.yml")),
        ("test", "rules", "tests/monitoring/alerts_test.yml"),
    ):
        result = promtool(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    tests = yaml.safe_load((ROOT / "tests/monitoring/alerts_test.yml").read_text("utf-8"))["tests"]
    fired = {
        rule["alertname"]
        for test in tests
        for rule in test["alert_rule_test"]
        if rule.get("exp_alerts")
    }
    silent = {rule["alertname"] for rule in tests[0]["alert_rule_test"]}
    rules = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == fired == silent
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


@needs_promtool
def test_every_expression_parses(tmp_path: os.PathLike[str]) -> None:
    rules = [
        {"record": f"checked:{number}", "expr": grafana_free(expression)}
        for number, (_, expression) in enumerate(expressions())
        if not expression.startswith("label_values")
    ]
    file = os.path.join(tmp_path, "rules.yml")
    with open(file, "w", encoding="utf-8") as opened:
        yaml.safe_dump({"groups": [{"name": "checked", "rules": rules}]}, opened)
    result = promtool("check", "rules", file)
    assert result.returncode == 0, result.stdout + result.stderr


def grafana_free(expression: str) -> str:
    """With Grafana's variables filled in, as it would."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".+")


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """The fields of its dashboard JSON model that an import needs, and a layout without overlaps."""
    board = dashboard()
    assert board["uid"] == board["title"] == "lorachat"
    assert board["schemaVersion"] >= 39
    assert "id" not in board or board["id"] is None  # else an import would overwrite a stranger's
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat", "table")
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
    names = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", DASHBOARD.read_text("utf-8")))
    assert used == names
