"""Rules of the core switched off one at a time: each must be noticed, else the checks prove nothing.

``python -m simulation.mutants`` (in the folder tests) looks for the first seed that notices each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from replicated_sqlite_agent.capture.triggers import LOG
from replicated_sqlite_agent.changes import CLOCK_SHIFT, Key, Kind, Mention, RowState, Version
from replicated_sqlite_agent.inbound import applier as applier_module
from replicated_sqlite_agent.inbound.applier import Applier
from replicated_sqlite_agent.inbound.assembler import Assembler
from replicated_sqlite_agent.merge import fold as fold_module
from replicated_sqlite_agent.outbound import log_reader
from replicated_sqlite_agent.outbound.log_reader import LogReader
from replicated_sqlite_agent.replica import bulk, local, state
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.replica.state import Replica
from simulation.story import quiet, run_seed

Patch = tuple[object, str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule broken, and a seed whose history shows it."""

    what: str
    seed: int
    patches: tuple[Patch, ...]

    @contextmanager
    def living(self) -> Iterator[None]:
        """The rule is broken within."""
        kept = [(where, name, getattr(where, name)) for where, name, _ in self.patches]
        try:
            for where, name, function in self.patches:
                setattr(where, name, function)
            yield
        finally:
            for where, name, function in kept:
                setattr(where, name, function)

    def noticed_by(self, seed: int) -> bool:
        """Whether the history of a seed goes wrong."""
        with self.living():
            try:
                run_seed(seed)
            except Exception:  # noqa: BLE001 - whatever goes wrong was noticed
                return True
        return False


def _not_strict(clock: int, wall: int) -> int:
    return max(clock, wall << CLOCK_SHIFT)


_apply = Applier._apply


def _apply_without_fold(self: Applier, *arguments: Any) -> Any:
    kept = self.replica.fold_all
    self.replica.fold_all = lambda: None  # type: ignore[method-assign]
    try:
        return _apply(self, *arguments)
    finally:
        self.replica.fold_all = kept  # type: ignore[method-assign]


def _touched_is_a_change(mentions: Sequence[Mention], *arguments: Any, **options: Any) -> RowState | None:
    changed = [m._replace(kind=Kind.UPDATE, mask=-1) if m.kind == Kind.TOUCHED else m for m in mentions]
    return fold_module.fold_key(changed, *arguments, **options)


_blocks = LogReader._blocks


def _half_of_the_blocks(self: LogReader, *arguments: Any) -> Iterator[Any]:
    blocks = list(_blocks(self, *arguments))
    yield from blocks[: max(1, len(blocks) // 2)]


def _trim_the_newest(self: Replica) -> int:
    upto = min(self.progress.published_seq, self.progress.folded_seq)
    self.db.execute(f"DELETE FROM {LOG} WHERE seq <= ?", (upto,))
    return self.db.changes()


_state = LogReader._state


def _hidden_is_deleted(self: LogReader, rows: Rows, key: Key, told: list[Mention], run: int) -> RowState | None:
    if rows.table.unique and rows.hidden(key) is not None and (stored := rows.entry(key)) is not None:
        gone = Version(stored.state.newest().clock + 1, run)
        return RowState(gone, alive=False, update=gone)
    return _state(self, rows, key, told, run)


def _after_the_first_chunk(self: Assembler) -> tuple[int, bytes | None]:
    return self._sequence, self._last_id


def _nothing_is_missing(*_: Any, **__: Any) -> bool:
    return False


_block, _turn = Applier._block, [0]


def _block_left_out(self: Applier, *arguments: Any) -> int:
    _turn[0] += 1
    return 0 if _turn[0] % 25 == 0 else _block(self, *arguments)


def _delete_forgotten(self: Rows, key: Key, state_: RowState, number: int | None = None) -> None:
    if state_.alive:
        _put_entry(self, key, state_, number)
    else:
        self.db.execute(f"DELETE FROM {self.side} WHERE {self.where_side}", key)


_put_entry = Rows.put_entry


def _clock_stays(self: Applier, group: Any, header: Any, seen: Any) -> None:
    clock = self.replica.progress.clock
    _advance(self, group, header, seen)
    self.replica.progress = replace(self.replica.progress, clock=clock)


_advance = Applier._advance


def _no_settling(*_: Any) -> int:
    return 0


MUTANTS = (
    Mutant(
        "a clock that does not grow with each write",
        1,
        ((state, "advance", _not_strict), (bulk, "advance", _not_strict)),
    ),
    Mutant("no fold before others' rows are merged", 4, ((Applier, "_apply", _apply_without_fold),)),
    Mutant(
        "a touched row taken for a changed one",
        7,
        ((local, "fold_key", _touched_is_a_change), (log_reader, "fold_key", _touched_is_a_change)),
    ),
    Mutant("a group cut in the middle", 1, ((LogReader, "_blocks", _half_of_the_blocks),)),
    Mutant("the newest log row trimmed", 2, ((Replica, "trim", _trim_the_newest),)),
    Mutant("a hidden row read as a deleted one", 65, ((LogReader, "_state", _hidden_is_deleted),)),
    Mutant("a position behind the first chunk", 94, ((Assembler, "position", property(_after_the_first_chunk)),)),  # type: ignore[arg-type]
    Mutant("a group applied without what it builds on", 175, ((Applier, "_missing", _nothing_is_missing),)),
    Mutant("a position moved without its rows", 1, ((Applier, "_block", _block_left_out),)),
    Mutant("a delete that leaves no trace", 1, ((Rows, "put_entry", _delete_forgotten),)),
    Mutant("a clock that does not follow what is received", 3, ((Applier, "_advance", _clock_stays),)),
    Mutant("rows that collide under UNIQUE left as they came", 3, ((applier_module, "settle", _no_settling),)),
)


def main() -> None:
    """The first seed that notices each mutant."""
    quiet()
    for mutant in MUTANTS:
        seed = next((seed for seed in range(1, 200) if mutant.noticed_by(seed)), None)
        print(seed, mutant.what)


if __name__ == "__main__":
    main()
