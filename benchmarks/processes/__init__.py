"""Programs that run as processes of their own: an application, a reader of a replica, a bare publisher and subscriber.

Each prints "ready", begins at a line on its standard input and prints its result as JSON. Times are nanoseconds of the
system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import sys


def ready() -> None:
    """Say so and wait for the signal to begin."""
    print("ready", flush=True)
    sys.stdin.readline()
