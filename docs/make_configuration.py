"""Writes docs/configuration.md from the docstrings, types and defaults of the agent's settings: `make docs` runs it.

A field without a docstring is described by the docstring of the struct that it holds.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from replicated_sqlite_agent import settings
from replicated_sqlite_agent.settings_reader import ENVIRONMENT_PREFIX, expected_of, to_document, without_none

PAGE: Final = Path(__file__).with_name("configuration.md")

_ABSENT: Final = "none"
_HEAD: Final = """\
# Configuration

<!-- Written by `make docs` from the docstrings in agent/replicated_sqlite_agent/settings.py: change it there. -->

The agent reads a YAML or JSON file (`--config FILE`, or `RSQLITE_CONFIG`) and then the environment, which wins. Without
a file the environment alone will do. This is all that must be said:

```yaml
cluster: notes
database: ./data/app.db
```

- `rsqlite-agent check-config --config FILE` prints the effective settings with secrets masked, or all mistakes at once,
  one sentence each, and exits with 2. `rsqlite-agent run` refuses the same mistakes.
- **Environment.** Each key is a variable: `RSQLITE_` and its path in capitals joined by `_`. Lists and maps are written
  as JSON; a section given so replaces the file's whole section. An empty variable counts as not set. An unknown
  `RSQLITE_…` is a mistake, but for those that Kubernetes makes of Services.
- **Durations** are numbers with `ms`, `s`, `m`, `h`, `d`, also joined (`1h30m`); a bare number is seconds. **Sizes**
  are numbers with `k`, `M`, `G`, `T` (powers of 1000) or `Ki`, `Mi`, `Gi`, `Ti` (of 1024), and a `B` may follow; a bare
  number is bytes.
- `snake_case` keys may also be written in camelCase (`maxAge`), as in Kubernetes resources.
- Paths are relative to the folder in which the agent was started; `~` is the home folder. A key without a value counts
  as not given; that is what *none* means below.
"""


class Section(NamedTuple):
    """A map of keys: its path (empty for the top), its struct, and whether it is an item of a list."""

    path: str
    kind: type[msgspec.Struct]
    in_list: bool = False


def page() -> str:
    """The whole page."""
    texts = _field_texts()
    sections = ("\n".join(_section(section, texts)) + "\n" for section in _sections(Section("", settings.Settings)))
    return "\n".join([_HEAD, *sections])


def _field_texts() -> dict[tuple[str, str], str]:
    """(struct, field) -> the docstring below the field, on one line."""
    texts: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef):
            for field, below in itertools.pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                    texts[node.name, field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts


def _is_text(statement: ast.stmt) -> TypeGuard[ast.Expr]:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _sections(section: Section) -> Iterator[Section]:
    """A section, then those inside it, as the file has them."""
    yield section
    for field in msgspec.structs.fields(section.kind):
        inner = _inner(section, field)
        if inner is not None:
            yield from _sections(inner)


def _inner(section: Section, field: FieldInfo) -> Section | None:
    """The section that a field holds, directly or as the items of a list."""
    kind = without_none(field.type)
    in_list = get_origin(kind) is tuple
    item = get_args(kind)[0] if in_list else kind
    if not (isinstance(item, type) and issubclass(item, msgspec.Struct)):
        return None
    return Section(_path(section, field) + ("[]" if in_list else ""), item, section.in_list or in_list)


def _path(section: Section, field: FieldInfo) -> str:
    return f"{section.path}.{field.name}" if section.path else field.name


def _section(section: Section, texts: dict[tuple[str, str], str]) -> Iterator[str]:
    title = f"`{section.path}`" if section.path else "Top level"
    variable = "" if section.in_list else " and variable"
    yield from (f"## {title}", "")
    if section.path:
        yield from (_struct_text(section.kind), "")
    yield from (f"| Key{variable} | Takes | Default | Meaning |", "|---|---|---|---|")
    for field in msgspec.structs.fields(section.kind):
        yield _row(section, field, texts)


def _row(section: Section, field: FieldInfo, texts: dict[tuple[str, str], str]) -> str:
    path, inner = _path(section, field), _inner(section, field)
    key = f"`{path}`"
    if not section.in_list:
        key += f"<br>`{ENVIRONMENT_PREFIX}{path.replace('.', '_').upper()}`"
    takes = _takes(field)
    if inner is not None:
        takes = f"{'a list, each item' if inner.in_list else 'a map,'} [see below](#{_anchor(inner.path)})"
    text = texts.get((section.kind.__name__, field.name)) or (_struct_text(inner.kind) if inner else "")
    if not text:
        raise ValueError(f"{section.kind.__name__}.{field.name} has no docstring")
    meaning, _, default = text.partition(" Default: ")
    return f"| {key} | {takes} | {default or _default(field, inner)} | {meaning} |"


def _takes(field: FieldInfo) -> str:
    """What the key takes, with literal words as code."""
    text = re.sub(r"'([^']+)'", r"`\1`", expected_of(field.type))
    before, one_of, words = text.partition("one of ")
    return before + one_of + ", ".join(f"`{word}`" for word in words.split(", ")) if one_of else text


def _struct_text(kind: type[msgspec.Struct]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def _default(field: FieldInfo, inner: Section | None) -> str:
    if field.required:
        return "required"
    if field.default is None:
        return _ABSENT
    if inner is not None and not inner.in_list:
        return "its keys' own"
    value: Any = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    shown = to_document(field.type, value)
    return f"`{shown if isinstance(shown, str) and shown else json.dumps(shown)}`"


def _anchor(heading: str) -> str:
    """How GitHub names a heading in a link."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
