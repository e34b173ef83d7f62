"""As much reading of SQL text as the agent needs: terms of an index, statements of a trigger. Pure.

SQLite's pragmas tell everything about tables but the text of indexed expressions, of partial-index conditions and of
trigger bodies; those are cut out of ``sqlite_schema.sql``, never interpreted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*\n?|/\*.*?\*/)"""
    r"""|(?P<text>'(?:[^']|'')*')"""
    r"""|(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])"""
    r"""|(?P<word>[^\W\d][\w$]*)"""
    r"""|(?P<other>.)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word, name, literal or sign with its place in the text."""

    kind: str
    text: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these keywords (given in capitals)."""
        return self.kind == "word" and self.text.upper() in words

    @property
    def name(self) -> str:
        """The identifier it stands for, without quotes."""
        if self.kind in ("name", "text"):
            quote = self.text[-1]
            inner = self.text[1:-1]
            return inner if quote == "]" else inner.replace(quote * 2, quote)
        return self.text


def tokens(sql: str) -> list[Token]:
    """The tokens of a text, without white space and comments."""
    found = (Token(m.lastgroup or "other", m.group(), m.start(), m.end()) for m in _TOKEN.finditer(sql))
    return [token for token in found if token.kind != "space"]


@dataclass(frozen=True, slots=True)
class IndexText:
    """The terms of an index without COLLATE, ASC and DESC, and its WHERE condition."""

    terms: tuple[str, ...]
    where: str | None


def index_text(sql: str) -> IndexText:
    """Cut ``CREATE [UNIQUE] INDEX … ON t(term, …) [WHERE condition]`` into its parts."""
    all_tokens = tokens(sql)
    position = next(i for i, t in enumerate(all_tokens) if t.is_word("ON"))
    position = next(i for i in range(position, len(all_tokens)) if all_tokens[i].text == "(")
    terms: list[list[Token]] = [[]]
    depth = 1
    while depth:
        position += 1
        token = all_tokens[position]
        depth += {"(": 1, ")": -1}.get(token.text, 0) if token.kind == "other" else 0
        if depth == 1 and token.kind == "other" and token.text == ",":
            terms.append([])
        elif depth:
            terms[-1].append(token)
    rest = all_tokens[position + 1 :]
    where = sql[rest[0].end :].strip() if rest and rest[0].is_word("WHERE") else None
    return IndexText(tuple(_term(sql, term) for term in terms), where)


def _term(sql: str, term: list[Token]) -> str:
    if term[-1].is_word("ASC", "DESC"):
        term = term[:-1]
    if len(term) > 2 and term[-2].is_word("COLLATE"):
        term = term[:-2]
    return sql[term[0].start : term[-1].end]


@dataclass(frozen=True, slots=True)
class TriggerText:
    """A trigger in parts: everything between name and table, the text from the table's end to BEGIN, the statements."""

    event: str
    table: str
    condition: str
    statements: tuple[str, ...]
    targets: tuple[str, ...]
    """For each statement the table it writes, '' where it writes none."""


def trigger_text(sql: str) -> TriggerText:
    """Cut ``CREATE TRIGGER name BEFORE|AFTER event ON table [FOR EACH ROW] [WHEN …] BEGIN …; END`` into its parts."""
    all_tokens = tokens(sql)
    start = next(i for i, t in enumerate(all_tokens) if t.is_word("TRIGGER")) + 1
    if all_tokens[start].is_word("IF"):
        start += 3
    start += 3 if all_tokens[start + 1].text == "." else 1
    on = next(i for i in range(start, len(all_tokens)) if all_tokens[i].is_word("ON"))
    begin = next(i for i in range(on, len(all_tokens)) if all_tokens[i].is_word("BEGIN"))
    event = sql[all_tokens[start].start : all_tokens[on].start] if on > start else ""
    statements: list[str] = []
    targets: list[str] = []
    current: list[Token] = []
    for token in all_tokens[begin + 1 :]:
        if token.kind == "other" and token.text == ";":
            statements.append(sql[current[0].start : current[-1].end])
            targets.append(_target(current))
            current = []
        else:
            current.append(token)
    return TriggerText(
        event=event.strip(),
        table=all_tokens[on + 1].name,
        condition=sql[all_tokens[on + 1].end : all_tokens[begin].start].strip(),
        statements=tuple(statements),
        targets=tuple(targets),
    )


def _target(statement: list[Token]) -> str:
    """The table that an INSERT, REPLACE, UPDATE or DELETE writes."""
    for position, token in enumerate(statement):
        if token.is_word("INTO", "FROM"):
            return statement[position + 1].name
        if token.is_word("UPDATE") and position == 0:
            after = position + (3 if statement[1].is_word("OR") else 1)
            return statement[after].name
        if token.is_word("SELECT"):
            return ""
    return ""
