"""The names on the wire. They are a contract: these literals change only with a new format."""

from __future__ import annotations

import pytest

from replicated_sqlite_contract import names
from replicated_sqlite_contract.names import StreamSubject, SubjectKind

RUN = 0x0000_12AB_34CD_56EF


def test_names_are_as_agreed() -> None:
    assert names.stream_name("notes") == "rsqlite-notes"
    assert names.bucket_name("notes") == "rsqlite-notes"
    assert names.stream_subjects("notes") == ("rsqlite.notes.c.>", "rsqlite.notes.h.>")
    assert names.changes_subject("notes", "n-0", RUN) == "rsqlite.notes.c.n-0.12ab34cd56ef"
    assert names.heartbeat_subject("notes", "n-0", 1) == "rsqlite.notes.h.n-0.000000000001"
    assert names.agent_subject("notes", "n-0") == "rsqlite.notes.r.n-0"
    assert names.any_agent_subject("notes") == "rsqlite.notes.r"
    assert names.member_key("n-0") == "member.n-0"
    assert names.lease_key("trim") == "lease.trim"
    assert (names.CLUSTER_KEY, names.ROLLOUT_KEY, names.AGENTS_QUEUE) == ("cluster", "rollout", "agents")
    assert names.TABLE_PREFIX == "__rsqlite_"


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 63, "default_notes"])
def test_names(name: str) -> None:
    assert names.is_name(name)


@pytest.mark.parametrize("name", ["", "x" * 64, "a.b", "a b", "a\n", "*", ">", "ä", "٣"])
def test_no_names(name: str) -> None:
    assert not names.is_name(name)


def test_subjects_are_taken_apart_as_they_were_made() -> None:
    expected = StreamSubject(cluster="notes", kind=SubjectKind.CHANGES, node="n-0", run=RUN)
    assert names.parse_stream_subject(names.changes_subject("notes", "n-0", RUN)) == expected


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "rsqlite.notes.c.n-0",
        "rsqlite.notes.r.n-0.12ab34cd56ef",
        "other.notes.c.n-0.12ab34cd56ef",
        "rsqlite.notes.c.n-0.12AB34CD56EF",
        "rsqlite.notes.c.n-0.1_2ab34cd56ef",
        "rsqlite.notes.c.n-0.+12ab34cd56ef",
        "rsqlite.notes.c.n-0.112ab34cd56ef",
        "rsqlite.notes.c.n-0.xyz",
        "rsqlite.notes.c.n 0.12ab34cd56ef",
    ],
)
def test_other_subjects_are_not_ours(subject: str) -> None:
    assert names.parse_stream_subject(subject) is None
