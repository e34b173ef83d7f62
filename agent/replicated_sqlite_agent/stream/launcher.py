"""Becomes nats-server, and makes the kernel end it when the agent dies, even by kill -9.

Run as a script: `launcher.py <pid of the agent> <program> <arguments>`. It is a program of its own because the request
must be made in the child, and Python code between fork and exec is not safe in a process with threads. The request
survives exec. The kernel counts the death of the *thread* that started us: the agent starts us from its main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tie our life to the parent's, then turn into the command."""
    if sys.platform == "linux":
        # SIGKILL: the store is synchronous, and an agent that starts again at once needs the port and the folder.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # The agent died before the request was made.
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
