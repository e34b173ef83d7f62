"""The processes of the demo: agents of the installed command, and writers. None outlives the demo."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from replicated_sqlite_agent.demo import writer
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.settings_reader import ENVIRONMENT_PREFIX
from replicated_sqlite_agent.stream import launcher

START_LIMIT_S: Final = 120.0
STOP_LIMIT_S: Final = 30.0
ANSWER_LIMIT_S: Final = 10.0

WRITER_RATE: Final = 50.0
"""Transactions per second of each writer."""

_POLL_S: Final = 0.1
_LOG_LINES: Final = 5
