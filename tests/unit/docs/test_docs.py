"""What the documents say exists: commands, addresses, links, files, keys, exit codes, configurations, make targets."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from pathlib import Path

import apsw
import pytest
import typer
import yaml
from aiohttp import ClientSession

import replicated_sqlite_agent
from replicated_sqlite_agent import cli, errors, people
from replicated_sqlite_agent.database.own_tables import create
from replicated_sqlite_agent.errors import AgentError, ConfigurationError, FileUnusableError, HeldByAnotherError
from replicated_sqlite_agent.health.server import HealthServer
from replicated_sqlite_agent.settings import Address, Policy, Settings
from replicated_sqlite_agent.settings_reader import ENVIRONMENT_PREFIX, variable_names
from unit.health.facts import FakeFacts

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
KEYS = {".".join(path) for path, _ in variable_names(Settings).values()}
SMALLEST = {"cluster": "notes", "node": "notes-0", "database": "app.db"}

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)


def command_names(application: typer.Typer) -> set[str]:
    commands = {
        command.name or command.callback.__name__ for command in application.registered_commands if command.callback
    }
    return commands | {group.name for group in application.registered_groups if group.name}


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def subclasses(kind: type[AgentError]) -> set[type[AgentError]]:
    return {kind}.union(*(subclasses(inner) for inner in kind.__subclasses__()))


@pytest.mark.parametrize(
    ("program", "application"), [("rsqlite-agent", cli.application), ("rsqlite", people.application)]
)
def test_the_readme_names_the_commands(program: str, application: typer.Typer) -> None:
    sentence = re.search(rf"^`{program}` has ([^.]+)\.", README, re.MULTILINE)
    assert sentence is not None
    outside_brackets = re.sub(r"\([^)]*\)", "", sentence[1])
    assert command_names(application) == set(re.findall(r"`([\w-]+)`", outside_brackets))


@every_page
def test_commands_in_a_page_exist(page: Path) -> None:
    known = {"rsqlite-agent": command_names(cli.application), "rsqlite": command_names(people.application)}
    said = re.findall(r"[`\s](rsqlite-agent|rsqlite) ([a-z][\w-]*)[`\s]", page.read_text(encoding="utf-8"))
    assert [(program, name) for program, name in said if name not in known[program]] == []


async def test_the_readme_lists_the_http_paths() -> None:
    server = HealthServer(FakeFacts(), Address("127.0.0.1", 0))
    await server.start()
    try:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}/unknown") as answer:
            known = set(re.findall(r"/[\w/]+", (await answer.text()).partition("there are")[2]))
    finally:
        await server.stop()
    first_cells = [row.split("|")[1] for row in table_rows(README)]
    assert known
    assert known == {path for cell in first_cells for path in re.findall(r"`(/[\w/]+)", cell)}


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith(("http://", "https://")) and not (
            target.exists() and (not anchor or anchor in anchors(target))
        ):
            broken.append(link)
    assert broken == []


def test_the_files_that_the_architecture_names_exist() -> None:
    folders = (ROOT, ROOT / "agent" / "replicated_sqlite_agent")
    named = [name for row in table_rows(ARCHITECTURE) for name in re.findall(r"`([\w/]+(?:\.py|/))`", row)]
    assert len(named) > 10
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_the_architecture_lists_the_agents_own_tables() -> None:
    db = apsw.Connection(":memory:")
    create(db)
    made = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    db.close()
    named = {name for row in table_rows(ARCHITECTURE) for name in re.findall(r"`(__rsqlite_\w+)", row)}
    assert made == named - {"__rsqlite_v_"}


@every_page
def test_keys_in_a_page_are_settings(page: Path) -> None:
    sections = "|".join(sorted({key.split(".")[0] for key in KEYS if "." in key}))
    text = re.sub(r"\[\]|\[\d+\]", "", page.read_text(encoding="utf-8"))
    said = re.findall(rf"(?<![\w./:-])(?:{sections})\.[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*(?!\w)", text)
    in_lists = {f"tables.policies.{key}" for key in Policy.__struct_fields__}
    assert sorted(set(said) - KEYS - in_lists) == []


@every_page
def test_variables_in_a_page_exist(page: Path) -> None:
    said = set(re.findall(rf"{ENVIRONMENT_PREFIX}[A-Z][A-Z0-9_]*", page.read_text(encoding="utf-8")))
    assert sorted(said - set(variable_names(Settings)) - {"RSQLITE_CONFIG"}) == []


def test_the_readme_tells_the_exit_codes() -> None:
    sentence = re.search(r"Exit codes: ([^.]+)\.", README)
    assert sentence is not None
    told = {int(code): text.strip() for code, text in re.findall(r"(\d) ([^,.]+)", " ".join(sentence[1].split()))}
    assert told == {
        0: "stopped cleanly",
        ConfigurationError.exit_code: "configuration or usage",
        FileUnusableError.exit_code: "the file cannot be used",
        HeldByAnotherError.exit_code: "another agent holds the name or the file",
        AgentError.exit_code: "anything else",
    }
    for module in pkgutil.walk_packages(replicated_sqlite_agent.__path__, "replicated_sqlite_agent."):
        importlib.import_module(module.name)
    assert {kind.exit_code for kind in subclasses(AgentError)} == told.keys() - {0}


def test_the_tree_of_errors_tells_their_exit_codes() -> None:
    told = {name: int(code) for name, code in re.findall(r"(\w+Error) +exit (\d)", errors.__doc__ or "")}
    assert told == {
        kind.__name__: kind.exit_code for kind in subclasses(AgentError) if kind.__module__ == errors.__name__
    }


@every_page
def test_configurations_in_a_page_pass_check_config(page: Path, tmp_path: Path) -> None:
    """Blocks marked `yaml`; one that shows only some keys is completed. Those with `apiVersion` are no agent's."""
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        document = yaml.safe_load(block)
        if "apiVersion" not in document:
            path = tmp_path / "agent.yaml"
            missing = [f"{key}: {value}\n" for key, value in SMALLEST.items() if key not in document]
            path.write_text(block + "".join(missing))
            assert cli.check_config(path) == 0


def test_the_readme_has_configurations() -> None:
    assert README.count("```yaml\n") >= 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_configurations_of_the_examples_pass_check_config(path: Path) -> None:
    if "apiVersion" not in yaml.safe_load(path.read_text()):
        assert cli.check_config(path) == 0


@every_page
def test_make_targets_in_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = set(re.findall(r"(?:^    |`)make (?:[A-Z]+=\S+ )*([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(said - targets) == []


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert set(phony.split()) - {"help"} == set(re.findall(r"@echo 'make ([a-z]+)", makefile))
