"""From a file and the environment to frozen structs, and back to a document: every mistake becomes one sentence.

Knows no setting by name: the structs say what they hold by their annotations. A *form* (`Annotated[float, DURATION]`)
says how a value stands in a file. A struct may have `complaints()`: mistakes between its fields.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
import yaml

from replicated_sqlite_agent.errors import ConfigurationError

ENVIRONMENT_PREFIX: Final = "RSQLITE_"
MASK: Final = "***"
"""What stands in a printed document in place of a secret."""

_SHOWN_MAX: Final = 60  # characters of a wrong value that a sentence repeats
_FAILED: Final = object()
# Kubernetes gives every pod such variables for a Service whose name begins with `rsqlite-`; they are none of ours.
_SERVICE_LINK: Final = re.compile(
    r"RSQLITE_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class Complaint(ValueError):
    """Raised by a form's parser: its text is what the sentence says about the key."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one value stands in a file.

    `expected` completes "takes ...". `parse` gets text, a number, a flag, a list or a map, and raises ValueError if
    that is not what is expected, Complaint to say more. `show` is its inverse.
    """

    expected: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], object] = str
    secret: bool = False


@dataclass(slots=True)
class _Reading:
    """What one reading collects: mistakes, and the source of each path that does not come from the file."""

    mistakes: list[str]
    sources: dict[str, str]

    def complain(self, path: str, complaint: str) -> object:
        """Note a mistake, in one sentence that begins with its key; returns _FAILED."""
        origins = (source for at, source in self.sources.items() if path == at or path.startswith((at + ".", at + "[")))
        source = next(origins, None)
        self.mistakes.append(f"{path}{f' (from {source})' if source else ''}: {complaint}")
        return _FAILED


def read_document(path: Path) -> dict[str, Any]:
    """The map that a YAML or JSON file holds. Raises ConfigurationError with one sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the file is not UTF-8 text (byte {error.start})") from error
    try:
        document = _parse_json(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigurationError(f"{path}: the file is not YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigurationError(f"{path}: the file is not {kind}: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: the file must hold keys with values, such as 'cluster: notes'")
    return document


def read_settings(
    kind: type[msgspec.Struct],
    document: dict[str, Any],
    environ: Mapping[str, str],
    defaults: Mapping[str, tuple[str, object]],
) -> tuple[Any, list[str]]:
    """Read a struct from a document and the environment, which wins.

    `defaults` holds values, as a file would, for keys that neither gives, each with its source ("the host name").
    Returns the struct (None if there are mistakes) and one sentence per mistake.
    """
    reading = _Reading([], {})
    document = _with_snake_keys(kind, document, "", reading)
    _overlay(kind, document, environ, reading)
    for key, (source, default) in defaults.items():
        if document.get(key) is None:
            document[key], reading.sources[key] = default, source
    value = _read(kind, document, "", reading)
    return (None if reading.mistakes else value), reading.mistakes


def to_document(kind: Any, value: Any) -> Any:
    """The plain document (maps, lists, text, numbers) of a struct, as `read_settings` takes it; secrets are masked."""
    form = _form(kind)
    if value is None:
        return None
    if form is not None:
        return form.show(value)
    kind = without_none(kind)
    if _is_struct(kind):
        return {field.name: to_document(field.type, getattr(value, field.name)) for field in _fields(kind)}
    if get_origin(kind) is tuple:
        return [to_document(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is dict:
        return {key: to_document(get_args(kind)[1], item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def variable_names(kind: Any, path: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Environment variable -> (path, type) of every key of a struct, sections before what they hold."""
    names: dict[str, tuple[tuple[str, ...], Any]] = {}
    for field in _fields(kind):
        at = (*path, field.name)
        names[ENVIRONMENT_PREFIX + "_".join(at).upper()] = (at, field.type)
        if _is_struct(without_none(field.type)):
            names |= variable_names(without_none(field.type), at)
    return names


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`off`, `12:30`, `2026-11-20` and `007` are text, as people mean them), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_YAML = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in (_YAML + "null", _YAML + "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(_YAML + _tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _parse_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return unique


def _with_snake_keys(kind: Any, raw: Any, path: str, reading: _Reading) -> Any:
    """The document with keys as the structs spell them: the Kubernetes resource spells `max_age` as `maxAge`."""
    kind = without_none(kind)
    if get_origin(kind) is tuple and isinstance(raw, list):
        return [_with_snake_keys(get_args(kind)[0], item, f"{path}[{at}]", reading) for at, item in enumerate(raw)]
    if not _is_struct(kind) or not isinstance(raw, dict):
        return raw
    fields = {field.name: field.type for field in _fields(kind)}
    result: dict[Any, Any] = {}
    for key, value in raw.items():
        snake = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda capital: f"_{capital[0].lower()}", str(key))
        name = snake if snake in fields else key
        if name in result:
            reading.complain(_join(path, name), f"stands twice, once as '{key}'; keep one")
        result[name] = _with_snake_keys(fields[name], value, _join(path, name), reading) if name in fields else value
    return result


def _overlay(kind: Any, document: dict[str, Any], environ: Mapping[str, str], reading: _Reading) -> None:
    """Put what the environment sets into the document. An empty variable counts as not set."""
    known = variable_names(kind)
    for variable, (path, field_kind) in known.items():
        if not environ.get(variable):
            continue
        dotted = ".".join(path)
        reading.sources[dotted] = variable
        section = document
        for part in path[:-1]:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        try:
            section[path[-1]] = _from_text(field_kind, environ[variable])
        except ValueError:
            expected = expected_of(field_kind)
            reading.complain(dotted, f"takes {expected}, written as JSON, not {_shown(field_kind, environ[variable])}")
            section.pop(path[-1], None)
    for variable in sorted(set(environ) - set(known) - {ENVIRONMENT_PREFIX + "CONFIG"}):
        if variable.startswith(ENVIRONMENT_PREFIX) and not _SERVICE_LINK.fullmatch(variable):
            reading.mistakes.append(f"{variable}: there is no such setting{_did_you_mean(variable, known)}")


def _from_text(kind: Any, text: str) -> object:
    """The value that a variable's text stands for. Raises ValueError if it must be JSON and is not."""
    plain = without_none(kind)
    if _is_struct(plain) or get_origin(plain) in (tuple, dict):
        return _parse_json(text)
    base = get_args(plain)[0] if get_origin(plain) is Annotated else plain
    if base is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if base in (int, float) and re.fullmatch(r"[-+]?[0-9]+", text, re.ASCII):
        return int(text)
    if base is float and re.fullmatch(r"[-+]?[0-9]*\.[0-9]+", text, re.ASCII):
        return float(text)
    return text


def _read(kind: Any, raw: object, path: str, reading: _Reading) -> Any:
    """The value of `raw` as `kind`, or _FAILED after a complaint."""
    form = _form(kind)
    if form is not None:
        return _read_form(form, kind, raw, path, reading)
    kind = without_none(kind)
    if _is_struct(kind):
        return _read_struct(kind, raw, path, reading)
    if get_origin(kind) is tuple and isinstance(raw, list):
        items = [_read(get_args(kind)[0], item, f"{path}[{at}]", reading) for at, item in enumerate(raw)]
        return _FAILED if _FAILED in items else tuple(items)
    if get_origin(kind) is dict and isinstance(raw, dict):
        read = {key: _read(get_args(kind)[1], item, _join(path, key), reading) for key, item in raw.items()}
        return _FAILED if _FAILED in read.values() else {str(key): value for key, value in read.items()}
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(raw, str):
        if raw in [member.value for member in kind]:
            return kind(raw)
    elif kind in (bool, int, str) and type(raw) is kind:
        return raw
    return reading.complain(path, f"takes {expected_of(kind)}, not {_shown(kind, raw)}")


def _read_form(form: Form, kind: Any, raw: object, path: str, reading: _Reading) -> Any:
    try:
        return form.parse(raw)
    except Complaint as complaint:
        return reading.complain(path, str(complaint))
    except ValueError:
        return reading.complain(path, f"takes {form.expected}, not {_shown(kind, raw)}")


def _read_struct(kind: type[msgspec.Struct], raw: object, path: str, reading: _Reading) -> Any:
    if not isinstance(raw, dict):
        return reading.complain(path, f"takes {expected_of(kind)}, not {_shown(kind, raw)}")
    fields = {field.name: field for field in _fields(kind)}
    for key in raw:
        if key not in fields:
            hint = _did_you_mean(str(key), fields) or f"; there are {', '.join(fields)}"
            reading.complain(_join(path, key), f"there is no such key{hint}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        # A key without a value (`nats:` above commented lines) counts as not given.
        if raw.get(name) is not None:
            values[name] = _read(field.type, raw[name], _join(path, name), reading)
        elif field.required:
            values[name] = reading.complain(_join(path, name), f"is missing; it takes {expected_of(field.type)}")
    if _FAILED in values.values():
        return _FAILED
    value = kind(**values)
    complaints: Callable[[], Iterator[tuple[str, str]]] = getattr(value, "complaints", lambda: iter(()))
    for name, complaint in complaints():
        reading.complain(_join(path, name), complaint)
    return value


def _fields(kind: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def without_none(kind: Any) -> Any:
    """The type of a key's value where the key is given: `X` of `X | None`."""
    if get_origin(kind) in (Union, UnionType):
        return next(member for member in get_args(kind) if member is not NoneType)
    return kind


def _form(kind: Any) -> Form | None:
    kind = without_none(kind)
    if get_origin(kind) is Annotated:
        return next((extra for extra in get_args(kind)[1:] if isinstance(extra, Form)), None)
    return None


def expected_of(kind: Any) -> str:
    """What a key of this type takes, to complete "takes ..."."""
    form = _form(kind)
    if form is not None:
        return form.expected
    kind = without_none(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.value for member in kind)
    if _is_struct(kind):
        return f"a map with keys out of {', '.join(field.name for field in _fields(kind))}"
    if get_origin(kind) is tuple:
        return f"a list, each item {expected_of(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"a map, each value {expected_of(get_args(kind)[1])}"
    return {bool: "true or false", int: "a whole number", str: "text"}[kind]


def _shown(kind: Any, raw: object) -> str:
    """A wrong value as a sentence repeats it: short, on one line, never a secret."""
    form = _form(kind)
    if form is not None and form.secret:
        return "what stands there"
    if isinstance(raw, dict):
        return "a map"
    if isinstance(raw, list):
        return "a list"
    if isinstance(raw, str):
        return repr(raw if len(raw) <= _SHOWN_MAX else raw[:_SHOWN_MAX] + "...")
    text = json.dumps(raw, default=str)  # null, true, false and numbers as they stand in a file
    kind = without_none(kind)
    takes_text = kind is str or (get_origin(kind) is Annotated and get_args(kind)[0] is str)
    return f"the bare {text} (put it in quotes)" if takes_text else text


def _did_you_mean(word: str, words: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, words, 1, 0.75)
    return f"; did you mean '{close[0]}'?" if close else ""


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
