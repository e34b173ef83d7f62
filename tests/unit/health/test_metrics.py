"""Numbers of the agent as Prometheus reads them, and as the documentation lists them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.health.metrics import COUNTER_HELP, Measures, exposition
from unit.health.facts import make_measures

ROOT = Path(__file__).resolve().parents[3]
PROCESS = "rsqlite_process_"
"""Metrics of prometheus-client about the process: their texts are its own."""


def shown(measures: Measures) -> str:
    """What `/metrics` answers in the text format."""
    return exposition(lambda: measures, "")[0].decode()


def samples(measures: Measures) -> dict[str, float]:
    """Sample name with labels -> value."""
    found = [sample for family in parse_text(shown(measures)) for sample in family.samples]
    return {
        name + (str(sorted(labels.items())) if labels else ""): value
        for name, labels, value in ((sample.name, sample.labels, sample.value) for sample in found)
    }


def described(text: str) -> dict[str, tuple[str, str]]:
    """name -> (type, help) of every family, with or without a value."""
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return {name: (kinds[name], text) for name, text in helps.items()}


def documented() -> dict[str, tuple[str, str]]:
    """name -> (type, meaning) of every row of the table in the documentation."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(?: [^|]*)?\| (.+) \|$", text, re.MULTILINE)
    return {name: (kind, meaning) for name, kind, meaning in rows}


def test_the_documentation_lists_every_metric_with_its_type_and_nothing_else() -> None:
    expected = {name: kind for name, (kind, _) in described(shown(make_measures())).items()}
    assert expected == {name: kind for name, (kind, _) in documented().items()}


def test_the_documentation_says_what_the_help_text_says() -> None:
    texts = described(shown(make_measures()))
    expected = {name: text.rstrip(".") for name, (_, text) in texts.items() if not name.startswith(PROCESS)}
    assert expected == {name: text for name, (_, text) in documented().items() if not name.startswith(PROCESS)}


def test_every_counter_has_a_help_text() -> None:
    counters = Counters()
    assert {f.name for f in fields(counters) if isinstance(getattr(counters, f.name), int)} == COUNTER_HELP.keys()


def test_every_name_has_our_prefix() -> None:
    assert [name for name in described(shown(make_measures())) if not name.startswith("rsqlite_")] == []


def test_each_integer_of_the_counters_is_a_total() -> None:
    counters = Counters(applied_rows=7, gaps=2)
    found = samples(make_measures(counters=counters))
    assert (found["rsqlite_applied_rows_total"], found["rsqlite_gaps_total"]) == (7, 2)


def test_conflicts_are_counted_by_table_and_rule() -> None:
    counters = Counters(conflicts=Counter({("notes", "later"): 3, ('a "b"\n', "unique"): 1}))
    found = {name: n for name, n in samples(make_measures(counters=counters)).items() if "conflicts" in name}
    assert found == {
        "rsqlite_conflicts_total[('rule', 'later'), ('table', 'notes')]": 3,
        "rsqlite_conflicts_total[('rule', 'unique'), ('table', 'a \"b\"\\n')]": 1,
    }


@pytest.mark.parametrize(
    ("lasted", "expected"),
    [
        pytest.param([], {}, id="none yet"),
        pytest.param([0.004], {"0.5": 0.004, "0.99": 0.004}, id="one"),
        pytest.param([n / 1000 for n in range(100, 0, -1)], {"0.5": 0.05, "0.99": 0.099}, id="a hundred"),
    ],
)
def test_the_write_lock_has_its_median_and_its_99th_percentile(lasted: list[float], expected: dict[str, float]) -> None:
    counters = Counters()
    counters.write_lock_s.extend(lasted)
    families = {family.name: family for family in parse_text(shown(make_measures(counters=counters)))}
    family: Metric = families["rsqlite_write_lock_seconds"]
    assert family.type == "summary"
    assert {sample.labels["quantile"]: sample.value for sample in family.samples} == expected


def test_what_is_not_known_has_a_type_and_no_value() -> None:
    text = shown(make_measures(stream_bytes=None))
    assert "# TYPE rsqlite_stream_bytes gauge" in text
    assert "\nrsqlite_stream_bytes " not in text


def test_a_flag_is_0_or_1() -> None:
    flags = (samples(make_measures(nats_connected=flag))["rsqlite_nats_connected"] for flag in (False, True))
    assert list(flags) == [0, 1]


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    counters = Counters(gaps=2)
    counters.write_lock_s.append(0.1)
    body, content_type = exposition(lambda: make_measures(counters=counters), "application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    parsed = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert families["rsqlite_gaps"].samples[0].value == 2
