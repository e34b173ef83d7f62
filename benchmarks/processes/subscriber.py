"""The other end of a bare JetStream publish: an ordered consumer of nats-py that notes when each message arrives."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

import nats
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from benchmarks.processes import ready


async def main() -> None:
    """Receive and print {"seen": [ns of each message]}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("subject")
    parser.add_argument("count", type=int)
    given = parser.parse_args()

    connection = await nats.connect(given.url)
    seen: list[int] = []
    everything = asyncio.Event()

    async def note(_message: Msg) -> None:
        seen.append(time.monotonic_ns())
        if len(seen) >= given.count:
            everything.set()

    await connection.jetstream().subscribe(
        given.subject, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW, cb=note
    )
    await connection.flush()
    await asyncio.get_running_loop().run_in_executor(None, ready)
    await everything.wait()
    await connection.close()
    json.dump({"seen": seen[: given.count]}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
