"""A bare JetStream publisher: nats-py, paced, without waiting for one acknowledgement before the next message."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

import nats

from benchmarks.processes import ready

MESSAGE_BYTES = 200
"""About what the agent sends for one row."""


async def main() -> None:
    """Publish, wait for all acknowledgements, print {"committed": [ns before each publish]}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("subject")
    parser.add_argument("count", type=int)
    parser.add_argument("--rate", type=float, required=True, help="messages per second")
    given = parser.parse_args()

    connection = await nats.connect(given.url)
    stream = connection.jetstream()
    await asyncio.get_running_loop().run_in_executor(None, ready)
    sent: list[int] = []
    acknowledgements = []
    began = time.monotonic_ns()
    for number in range(given.count):
        left = (began + round(number * 1e9 / given.rate) - time.monotonic_ns()) / 1e9
        if left > 0:
            await asyncio.sleep(left)
        sent.append(time.monotonic_ns())
        acknowledgements.append(await stream.publish_async(given.subject, bytes(MESSAGE_BYTES)))
    await asyncio.gather(*acknowledgements)
    await connection.close()
    json.dump({"committed": sent}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
