"""docs/configuration.md: what `make docs` writes, complete, and honest about what is not there yet."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from replicated_sqlite_agent.settings import Settings, load, unsupported
from replicated_sqlite_agent.settings_reader import variable_names

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def rows() -> dict[str, str]:
    """Key -> its row."""
    return {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `")}


def test_the_page_is_what_make_docs_writes() -> None:
    expected: str = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    assert expected == PAGE, "docs/configuration.md does not say what settings.py says; run: make docs"


def test_the_page_has_every_key_with_its_variable() -> None:
    expected = {".".join(path): variable for variable, (path, _) in variable_names(Settings).items()}
    told = {key: re.findall(r"`(RSQLITE_\w+)`", row)[0] for key, row in rows().items() if "[]" not in key}
    assert expected == told


def test_every_row_has_four_filled_cells() -> None:
    cells = {key: [cell.strip() for cell in row.strip("|").split("|")] for key, row in rows().items()}
    assert {key: row for key, row in cells.items() if len(row) != 4 or "" in row} == {}


@pytest.mark.parametrize(
    "text",
    [
        "mode: independent",
        "tables: {policies: [{table: t, merge: first-write}]}",
        "tables: {policies: [{table: t, columns: {c: counter}}]}",
        "archive: {enabled: true}",
        "schema: {migrations: dir}",
    ],
)
def test_what_is_refused_is_told_to_be_not_there_yet(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump({"cluster": "c", "node": "n", "database": "d"} | yaml.safe_load(text)))
    (sentence,) = unsupported(load(path, {}))
    key = re.sub(r"\[\d+\]", "[]", sentence.split(":")[0]).removesuffix(".c")
    assert "Not part of this version yet" in rows()[key]
