"""The user's triggers that feed virtual tables (FTS5 and the like). Pure.

The agent applies rows with triggers off, so that an audit trigger does not write its row twice: its row arrives as a
row. A virtual table's content does not travel, so the statements of triggers that write one run for applied rows too.
"""

from __future__ import annotations

from replicated_sqlite_agent.database.identifiers import PREFIX, quote
from replicated_sqlite_agent.database.sqltext import trigger_text


def feed_triggers(name: str, sql: str, virtual: frozenset[str]) -> list[str]:
    """The CREATE TEMP TRIGGER statements that repeat what this trigger writes into virtual tables, and only that."""
    text = trigger_text(sql)
    fed = {table.lower() for table in virtual}
    statements = [s for s, target in zip(text.statements, text.targets, strict=True) if target.lower() in fed]
    if not statements:
        return []
    head = f"CREATE TEMP TRIGGER {quote(f'{PREFIX}feed_{name}')} {text.event} ON main.{quote(text.table)}"
    return [f"{head} {text.condition} BEGIN {' '.join(f'{s};' for s in statements)} END"]
