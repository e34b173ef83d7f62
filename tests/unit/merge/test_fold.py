"""What the log says about a key -> its versions."""

from __future__ import annotations

from replicated_sqlite_agent.changes import Kind, Mention, RowState, Version
from replicated_sqlite_agent.merge.fold import fold_key

RUN = 7


def fold(
    *mentions: Mention, entry: RowState | None = None, present: bool = True, hidden: bool = False
) -> RowState | None:
    """`fold_key` of a table with the columns a and b that merges column by column."""
    return fold_key(mentions, entry, present=present, hidden=hidden, run=RUN, columns=("a", "b"), by_column=True)


def alive(life: int, update: int | None = None) -> RowState:
    """A living row written by this run."""
    return RowState(Version(life, RUN), alive=True, update=Version(update or life, RUN))


def test_upsert_on_another_unique_value_touches_a_row_that_was_inserted_in_the_same_fold() -> None:
    touched = fold(Mention(Kind.INSERT, -1, 10), Mention(Kind.TOUCHED, 0, 11), Mention(Kind.UPDATE, -1, 12))
    assert touched == alive(10, 12)


def test_touched_and_inserted_again_is_a_new_life() -> None:
    replaced = fold(Mention(Kind.TOUCHED, 0, 11), Mention(Kind.INSERT, -1, 12), entry=alive(5))
    assert replaced == alive(12)


def test_touched_and_still_there_is_nothing() -> None:
    assert fold(Mention(Kind.TOUCHED, 0, 11), entry=alive(5)) is None


def test_touched_and_gone_is_a_delete() -> None:
    gone = fold(Mention(Kind.TOUCHED, 0, 11), entry=alive(5), present=False)
    assert gone is not None
    assert (gone.alive, gone.life) == (False, Version(11, RUN))


def test_touched_and_gone_moves_a_delete_that_the_first_part_of_the_log_has_shown() -> None:
    """The fold in parts sees rows as they are at the end: the row was there when it was touched."""
    first = fold(Mention(Kind.TOUCHED, 0, 11), entry=alive(5), present=False)
    second = fold(Mention(Kind.UPDATE, -1, 12), entry=first, present=False)
    third = fold(Mention(Kind.TOUCHED, 0, 13), entry=second, present=False)
    assert third is not None
    assert third.life == Version(13, RUN)


def test_a_touched_row_that_waits_hidden_is_not_deleted() -> None:
    assert fold(Mention(Kind.TOUCHED, 0, 11), entry=alive(5), present=False, hidden=True) is None
