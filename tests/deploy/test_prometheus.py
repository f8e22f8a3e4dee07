"""The rules, the scrape configuration and the dashboard: read by promtool, and about metrics that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from dockyard import metrics
from dockyard.web.gauges import Gauges
from tests.deploy.commands import run
from tests.support.programs import Programs

METRIC = re.compile(r"\bdockyard_[a-z_]+")
LABEL_LISTS = re.compile(r"(\bdockyard_[a-z_]+)\{([^}]*)\}")
OF_PROMETHEUS = {"job", "instance"}
WIDTH = 24

TYPES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def dockyard_series(tmp_path: Path) -> dict[str, set[str]]:
    """All series that `/metrics` can have, with their labels."""
    found: dict[str, set[str]] = {}
    for each in vars(metrics).values():
        if isinstance(each, (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)):
            for ending in TYPES[type(each).__name__]:
                found[each._name + ending] = {*each._labelnames, *({"le"} if ending == "_bucket" else ())}
    for gauge in Gauges(lambda: 0, tmp_path, lambda: {"docker.io": True}, 1).measure():
        found[gauge.name] = set() if "" in gauge.values else {"upstream"}
    return found


def dashboard(ops: Path) -> dict[str, Any]:
    """The dashboard's document."""
    return dict(json.loads((ops / "grafana" / "dashboard.json").read_text()))


def panels(ops: Path) -> list[dict[str, Any]]:
    """The panels of the dashboard that show data."""
    return [panel for panel in dashboard(ops)["panels"] if panel["type"] != "row"]


def expressions(ops: Path) -> Iterator[str]:
    """Every PromQL expression of the rules and of the dashboard."""
    for group in yaml.safe_load((ops / "prometheus" / "rules.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in panels(ops):
        yield from (target["expr"] for target in panel["targets"])


def test_promtool_accepts_the_scrape_configuration_and_the_rules(ops: Path, programs: Programs) -> None:
    """Prometheus would start with them, and the linter reports nothing."""
    output = run(
        programs.need("promtool"),
        "check",
        "config",
        "--lint=all",
        "--lint-fatal",
        ops / "prometheus" / "prometheus.yml",
    )
    assert "SUCCESS: 1 rule files found" in output
    run(programs.need("promtool"), "check", "rules", "--lint=all", "--lint-fatal", ops / "prometheus" / "rules.yml")


def test_the_alerts_fire_when_they_should(ops: Path, programs: Programs) -> None:
    """The rules are evaluated with series of servers with and without problems."""
    assert ops.is_dir()
    run(programs.need("promtool"), "test", "rules", Path(__file__).parent / "rules_test.yml")


def test_prometheus_can_parse_every_expression_of_the_dashboard(ops: Path, programs: Programs) -> None:
    """With values for Grafana's own variables, each is valid PromQL."""
    for expression in {target["expr"] for panel in panels(ops) for target in panel["targets"]}:
        filled = expression.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".*")
        assert "$" not in filled
        run(programs.need("promtool"), "--experimental", "promql", "format", filled)


def test_every_queried_metric_exists(ops: Path, tmp_path: Path) -> None:
    """No rule and no panel uses a metric, or a label of one, that Dockyard does not have."""
    known = dockyard_series(tmp_path)
    for expression in expressions(ops):
        assert set(METRIC.findall(expression)) <= known.keys(), expression
        for name, inside in LABEL_LISTS.findall(expression):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
            assert labels <= known[name] | OF_PROMETHEUS, expression


def test_the_dashboard_shows_every_metric(ops: Path, tmp_path: Path) -> None:
    """Every metric is in a panel; of a histogram its buckets."""
    shown = {name for panel in panels(ops) for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    wanted = {name for name in dockyard_series(tmp_path) if not name.endswith(("_seconds_sum", "_seconds_count"))}
    assert wanted <= shown


def test_grafana_can_import_the_dashboard(ops: Path) -> None:
    """Grafana is not available here: the fields that its import needs are checked one by one."""
    document = dashboard(ops)
    assert document["title"] == "Dockyard"
    assert document["schemaVersion"] >= 36
    assert document.get("id") is None, "Grafana gives the number"
    names = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert names.keys() == {"datasource", "job", "instance"}
    assert names["datasource"]["type"] == "datasource"
    identifiers = [panel["id"] for panel in document["panels"]]
    assert len(identifiers) == len(set(identifiers))
    for panel in panels(ops):
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


def test_the_panels_do_not_overlap(ops: Path) -> None:
    """Every cell of the grid has one panel at most, and no panel exceeds the grid."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(ops)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(0 <= x < WIDTH for x, _ in cells), panel["title"]
        taken |= cells


def test_the_runbook_has_every_metric_and_every_alert(ops: Path, tmp_path: Path) -> None:
    """Every metric and every alert is explained there; a link of an alert leads to a heading."""
    runbook = (ops / "RUNBOOK.md").read_text()
    for name in dockyard_series(tmp_path):
        short = re.sub(r"_(bucket|sum|count)$", "", name)
        assert short in runbook or short.removeprefix("dockyard_upstream_ratelimit") in runbook, name
    for group in yaml.safe_load((ops / "prometheus" / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["annotations"]["runbook"] == f"RUNBOOK.md#{rule['alert'].lower()}"
                assert f"### {rule['alert']}\n" in runbook


def test_the_runbook_has_every_warning_and_error(ops: Path) -> None:
    """Each line of WARNING and ERROR that the code can log is explained."""
    runbook = (ops / "RUNBOOK.md").read_text()
    lines = set()
    for file in sorted((ops.parent / "dockyard").rglob("*.py")):
        text = file.read_text()
        lines |= set(re.findall(r'\b(?:log(?:ger)?\.(?:warning|error|exception)|StartWarning)\(\s*"([^"]+)"', text))
    assert lines
    missing = [line for line in sorted(lines) if re.split("[:,]", line)[0] not in runbook]
    assert missing == []


@pytest.mark.parametrize("page", ["RUNBOOK.md", "FLEETS.md", "IMAGE.md", "REQUESTS.md", "TIERS.md"])
def test_links_lead_somewhere(ops: Path, page: str) -> None:
    """A link to a file finds it, a link to a heading too."""
    text = (ops / page).read_text()
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        if path.startswith("https://"):
            continue  # nothing is sent to other sites
        if path:
            assert (ops / path).exists(), target
        else:
            assert heading in headings, target
