"""One seed, one history: what happens, in which order, and that all is right at the end.

In the folder tests, ``python -m simulation.story FIRST COUNT`` runs seeds and lists the kinds of failures.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import structlog

from replicated_sqlite_agent.changes import least
from simulation.world import AbortedError, FlawError, Node, World

Step = Callable[[World, Node], "str | None"]

UNFINISHED_MS = 700_000
"""After this the assembler forgets a group whose last chunk never came."""


def _write(_world: World, node: Node) -> str:
    return node.write_something()


def _publish(world: World, node: Node) -> str | None:
    return node.publish(world.chance.choice(("ok", "ok", "late")))


def _publish_badly(world: World, node: Node) -> str | None:
    return node.publish(world.chance.choice(("unknown", "torn", "lost", "twice")))


def _acknowledge(world: World, node: Node) -> str | None:
    if not node.underway:
        return None
    node.acknowledge(world.chance.randint(1, len(node.underway)))
    return f"to {node.acknowledged}"


def _pull(world: World, node: Node) -> str:
    return node.pull(world.chance.choice((1, 2, 5, 99)))


def _fold(world: World, node: Node) -> str:
    node.write(lambda: node.replica.fold(world.chance.choice((1, 2, 7, 999))))
    return f"to {node.replica.progress.folded_seq}"


def _housekeeping(_world: World, node: Node) -> str:
    with node.noting():
        node.applier.housekeeping()
    return f"log from {node.replica.db.execute('SELECT min(seq) FROM __rsqlite_log').get}"


def _restart(world: World, node: Node) -> str:
    node.stop()
    node.start()
    world.hit("restart")
    return f"as run {node.run}"


def _crash_in_publish(world: World, node: Node) -> str:
    told = node.publish(world.chance.choice(("unknown", "torn", "late", "lost")))
    return f"{told}; restart {_restart(world, node)}"


def _abort(world: World, node: Node) -> str | None:
    """A transaction of the agent is undone at its end."""
    if world.chance.random() < 0.3:
        node.write_something()
    try:
        with node.refusing_commits():
            _pull(world, node) if world.chance.random() < 0.7 else _fold(world, node)
    except AbortedError:
        world.hit("aborted")
        node.deliver_again()
        return "undone"
    return None


def _deliver_again(world: World, node: Node) -> str:
    node.deliver_again()
    world.hit("delivered again")
    return f"from {node.cursor + 1}"


def _vacuum(world: World, node: Node) -> str:
    node.app.vacuum()
    return ""


def _skew(world: World, node: Node) -> str:
    node.skew_ms = world.chance.choice((0, 600_000, -600_000, 3_000, -40))
    if world.chance.random() < 0.5:
        node.write(node.replica.follow_clock)
    return f"{node.skew_ms} ms"


def _add_column(world: World, node: Node) -> str:
    node.app.add_column()
    world.hit("column added")
    return ""


def _clone(world: World, node: Node) -> str | None:
    if not world.room() or len(world.nodes) > 3:
        return None
    world.hit("clone")
    world.exact_notes = False
    return world.clone(node).name


def _lose(world: World, node: Node) -> str | None:
    """The stream loses its last messages, acknowledged or not; everybody notices and says again what may be missing."""
    count = min(world.stream.last, world.chance.choice((1, 2, 4)))
    if not count:
        return None
    del world.stream.messages[-count:]
    for other in world.nodes:
        other.notice_loss()
    world.hit("stream lost messages")
    world.oracle.torn = world.lossy = True
    return f"{count} messages, refill from {_refill(world)}"


def _refill(world: World) -> dict[int, int]:
    """Everybody says again what somebody may lack."""
    lo = least([node.replica.runs.vector() for node in world.nodes])
    for node in world.nodes:
        node.refill(lo)
    return lo


COMMON: tuple[tuple[int, Step], ...] = (
    (38, _write),
    (16, _publish),
    (18, _pull),
    (4, _fold),
    (4, _housekeeping),
    (4, _acknowledge),
)
NEMESES: dict[str, Step] = {
    "badly": _publish_badly,
    "restart": _restart,
    "crash": _crash_in_publish,
    "abort": _abort,
    "again": _deliver_again,
    "vacuum": _vacuum,
    "skew": _skew,
    "column": _add_column,
    "clone": _clone,
    "lose": _lose,
    "slow": _pull,
}


def run(seed: int, folder: Path) -> World:
    """The whole history of a seed; raises whatever goes wrong, with the history as a note."""
    world = World(seed, folder)
    try:
        with world.thresholds():
            _live(world)
            settle(world)
            world.oracle.at_the_end()
    except BaseException as error:
        error.add_note("\n".join([*world.history, f"replay: python -m pytest tests/simulation --seed {seed}"]))
        raise
    finally:
        world.close()
    return world


def _live(world: World) -> None:
    chance = world.chance
    nemeses = chance.sample(sorted(NEMESES), chance.choice((0, 2, 3, 5, len(NEMESES))))
    world.history.append(
        f"seed {world.seed}: {len(world.nodes)} nodes, {world.journal}, chunks of {world.chunk_bytes}, "
        f"by column {world.by_column}, images from {world.image_rows} rows, measured {world.measured}, {nemeses}"
    )
    steps = chance.choice((30, 60, 100))
    common = [step for weight, step in COMMON for _ in range(weight)]
    for number in range(steps):
        world.now_ms += chance.choice((0, 0, 1, 1, 5, 50))
        node = chance.choice(world.nodes)
        step = NEMESES[chance.choice(nemeses)] if nemeses and chance.random() < 0.2 else chance.choice(common)
        world.history.append(f"{node.name} {step.__name__[1:]}: ...")
        told = step(world, node)
        world.history[-1] = f"{node.name} {step.__name__[1:]}: {told}"
        if number % 10 == 9:
            world.oracle.at_a_moment(chance.choice(world.nodes))


def settle(world: World) -> None:
    """Everybody publishes and reads until there is nothing left to say."""
    world.history.append("settling")
    for node in world.nodes:
        if any(n.app.column_added for n in world.nodes):
            node.app.add_column()
    world.now_ms += UNFINISHED_MS
    for node in world.nodes:
        world.history.append(f"{node.name} last words: {node.write_something()}")
    for turn in range(16):
        said = False
        for node in world.nodes:
            node.read_again()
            with node.noting():
                node.applier.housekeeping()
            while (told := node.publish("ok")) is not None:
                world.history.append(f"{node.name} publish: {told}")
                said = True
                node.write(lambda: None)
        for node in world.nodes:
            while node.cursor < world.stream.last:
                world.history.append(f"{node.name} pull: {node.pull(99)}")
                said = True
        waiting = any(node.applier.parked() for node in world.nodes)
        if not said and not waiting:
            break
        if waiting and not (world.lossy or world.hits.get("publish lost")):
            raise FlawError("groups wait for what came before them although the stream lost nothing")
        if not said and turn < 8:
            world.history.append(f"refill from {_refill(world)}")
        elif not said:
            world.history.append(f"gaps forced: {[_forced(world, node) for node in world.nodes]}")
    else:
        raise FlawError("the replicas do not come to rest")
    for node in world.nodes:
        with node.noting():
            node.applier.housekeeping()


def _forced(world: World, node: Node) -> int:
    """What a dead run sent after a group that was lost: nobody can fill the gap, so it is taken after a while."""
    forced = node.applier.force_gaps() if node.applier.parked() else 0
    world.hit("gaps forced", forced)
    world.oracle.torn = world.oracle.torn or forced > 0
    return forced


def run_seed(seed: int) -> World:
    """`run` in a folder of its own, in memory if there is such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory if memory.is_dir() else None))
    try:
        return run(seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def quiet() -> None:
    """What the agent logs about simulated faults is no news here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def main() -> None:
    """Run seeds and say which are bad, by kind."""
    quiet()
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    bad: dict[str, list[int]] = {}
    shown: dict[str, str] = {}
    hits: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(first, first + count):
        try:
            hits.update(run_seed(seed).hits)
        except Exception as error:  # noqa: BLE001 - every kind of failure is a finding
            kind = f"{type(error).__name__} {str(error)[:50]}"
            bad.setdefault(kind, []).append(seed)
            shown.setdefault(kind, traceback.format_exc() if count == 1 else f"{error}"[:1500])
    took = time.monotonic() - began
    print(f"{count} seeds, {sum(map(len, bad.values()))} bad, {took:.1f} s", dict(sorted(hits.items())))
    for kind, seeds in sorted(bad.items(), key=lambda item: -len(item[1])):
        print(len(seeds), kind, seeds[:8], "\n    ", shown[kind])


if __name__ == "__main__":
    main()
