"""Alert rules and the dashboard are valid, and query only metrics that runs export."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from jobs.label.metrics import COUNTERS, PREFIX, TAGS, exported_names

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DURATION = re.compile(r"(\d+(ms|s|m|h|d|w|y))+")
COLUMNS = 24  # width of Grafana's grid
# Variables that Grafana replaces in an expression, with a possible value.
VARIABLES = {"$output": ".*", "$run": ".*", "$__rate_interval": "2m", "$__range": "12h"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return document


def expressions() -> Iterator[str]:
    """Return all expressions of PromQL in both files."""
    yield from (rule["expr"] for rule in rules())
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            yield text


def selectors(expression: str) -> list[Any]:
    """Return the vector selectors of an expression; ValueError if it is not valid PromQL."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_every_expression_asks_for_what_runs_export() -> None:
    labels = {tag for _, tags in COUNTERS.values() for tag in tags} | set(TAGS)
    used = set()
    for expression in expressions():
        assert "$" not in expression
        for selector in selectors(expression):
            assert selector.name in exported_names(), expression
            assert {m.name for m in selector.matchers.matchers} <= labels, expression
            used.add(selector.name)
    assert used == exported_names() - {f"ray_{PREFIX}planned_images"}


@pytest.mark.parametrize("wrong", ["rate(x[5m]", "sum by (output) x", "max(x) and by y", "x[5q]"])
def test_what_is_no_promql_is_found(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        selectors(wrong)


def test_rules_have_the_fields_that_prometheus_wants() -> None:
    document = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    assert set(document) == {"groups"}
    for group in document["groups"]:
        assert set(group) <= {"name", "interval", "limit", "rules"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
        assert DURATION.fullmatch(rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        said = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= set(TAGS), rule["alert"]


def test_dashboard_is_one_of_grafanas() -> None:
    document = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(document)
    assert "id" not in document  # Grafana chooses it
    variables = {entry["name"]: entry for entry in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for name in ("output", "run"):
        assert variables[name]["datasource"] == source
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"])
        assert asked
        assert asked[2] == name
        assert [s.name for s in selectors(asked[1].replace("$output", ".*"))]
    for panel in document["panels"]:
        assert panel["type"] in ("stat", "timeseries", "table")
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == source
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


def test_grafanas_own_model_loses_nothing_of_the_dashboard() -> None:
    reason = "no grafana-foundation-sdk on this machine"
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    plugins.register_default_plugins()
    understood = encoder.JSONEncoder().encode(model.Dashboard.from_json(dashboard()))
    assert not list(lost(dashboard(), json.loads(understood)))


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Find the paths at which `kept` lacks a value of `given`, or has another value."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{place}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from lost(*pair, f"{place}/{index}")
    elif given != kept:
        yield place


def test_panels_have_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    """Whether two rectangles share a cell."""
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on this machine (Debian's package prometheus has it)")
    return found


def test_prometheus_takes_the_rules(promtool: str) -> None:
    subprocess.run([promtool, "check", "rules", str(ALERTS)], check=True)


RUN = 'output="s3://lake/labels", run="r1", WorkerId="01"'
AGAIN = 'output="s3://lake/labels", run="r1", WorkerId="02"'  # the worker that resumed the run
BLOCK, IMAGES = "last_block_timestamp_seconds", "images_total"
# What is scraped each minute (stale: it has gone), after how many minutes, and which rules fire.
CASES: dict[str, tuple[dict[str, str], int, set[str]]] = {
    "a run that goes well": (
        {
            f"running{{{RUN}}}": "1x59 0 stale",
            f"{BLOCK}{{{RUN}}}": "0+60x60 stale",
            f'{IMAGES}{{{RUN}, status="ok"}}': "0+600x60 36000x60",
            f'{IMAGES}{{{RUN}, status="undecodable"}}': "0+6x60 360x60",
            f"detect_seconds_total{{{RUN}}}": "0+110x60 6600x60",
            f"detectors{{{RUN}}}": "2x60 stale",
            f"usd{{{RUN}}}": "0+0.1x60 stale",
            f"storage_retries_total{{{RUN}}}": "0+2x60 120x60",
            f'runs_total{{{RUN}, result="published"}}': "_x60 1x60",
        },
        62,
        set(),
    ),
    "no block comes": (
        {f"running{{{RUN}}}": "1x40", f"{BLOCK}{{{RUN}}}": "60x40"},
        20,
        {"NoProgress"},
    ),
    "no block comes any more, as the run ended": (
        {f"running{{{RUN}}}": "1x5 0x40", f"{BLOCK}{{{RUN}}}": "60x45"},
        20,
        set(),
    ),
    "many images fail": (
        {
            f"running{{{RUN}}}": "1x9 0 stale",
            f'{IMAGES}{{{RUN}, status="ok"}}': "0+90x10 900x100",
            f'{IMAGES}{{{RUN}, status="timed_out"}}': "0+10x10 100x100",
        },
        30,
        {"FailureShare"},
    ),
    "many images failed, some time ago": (
        {
            f"running{{{RUN}}}": "1x9 0 stale",
            f'{IMAGES}{{{RUN}, status="ok"}}': "900x100",
            f'{IMAGES}{{{RUN}, status="timed_out"}}': "100x100",
        },
        90,
        set(),
    ),
    "it costs too much": ({f"usd{{{RUN}}}": "0+1x60"}, 51, {"OverBudget"}),
    "detectors wait": (
        {
            f"running{{{RUN}}}": "1x60",
            f"detectors{{{RUN}}}": "4x60",
            f"detect_seconds_total{{{RUN}}}": "0+60x60",
        },
        40,
        {"DevicesIdle"},
    ),
    "a store throttles": (
        {f"storage_retries_total{{{RUN}}}": "0+120x60"},
        40,
        {"StorageRetries"},
    ),
    "a run fails": (
        {
            f"running{{{RUN}}}": "1x9 stale",
            f'runs_total{{{RUN}, result="failed"}}': "_x10 1x200",
        },
        30,
        {"RunFailed"},
    ),
    "a run failed an hour ago": (
        {f'runs_total{{{RUN}, result="failed"}}': "_x10 1x200"},
        80,
        set(),
    ),
    "a run fails and is taken up": (
        {
            f'runs_total{{{RUN}, result="failed"}}': "_x10 1x200",
            f'runs_total{{{AGAIN}, result="published"}}': "_x20 1x200",
        },
        30,
        set(),
    ),
    "a run is killed": ({f"running{{{RUN}}}": "1x10 stale"}, 20, {"RunDied"}),
    "a run is killed, and taken up": (
        {f"running{{{RUN}}}": "1x10 stale", f"running{{{AGAIN}}}": "_x12 1x60"},
        20,
        set(),
    ),
    "a run is killed, and was taken up": (
        {
            f"running{{{RUN}}}": "1x10 stale",
            f"running{{{AGAIN}}}": "_x12 1x5 0 stale",
            f'runs_total{{{AGAIN}, result="published"}}': "_x17 1x60",
        },
        40,
        set(),
    ),
    "a cluster of its own ran last night": (
        {f'runs_total{{{RUN}, result="published"}}': "1x10 stale"},
        25 * 60,
        set(),
    ),
    "no night since": (
        {f'runs_total{{{RUN}, result="published"}}': "1x10 stale"},
        27 * 60,
        {"NightMissing"},
    ),
    "no night since, on a cluster that stays": (
        {f'runs_total{{{RUN}, result="published"}}': "_x5 1x2000"},
        27 * 60,
        {"NightMissing"},
    ),
}


def test_every_rule_fires_in_one_of_the_cases() -> None:
    fired = {alert for _, _, fires in CASES.values() for alert in fires}
    assert {f"DetrBatch{alert}" for alert in fired} == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("name", CASES)
def test_rules_fire_when_they_should(name: str, promtool: str, tmp_path: Path) -> None:
    series, minutes, fires = CASES[name]
    expected = [
        {"labels": f'{{alertname="DetrBatch{alert}", output="s3://lake/labels"}}', "value": 1}
        for alert in sorted(fires)
    ]
    fired = {
        "expr": 'count by (alertname, output) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minutes}m",
        "exp_samples": expected,
    }
    scraped = [
        {"series": f"ray_{PREFIX}{which}", "values": values} for which, values in series.items()
    ]
    test = {"interval": "1m", "input_series": scraped, "promql_expr_test": [fired]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
