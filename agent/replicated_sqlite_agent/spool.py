"""A place for bytes of unknown size: memory for small ones, an unnamed file for large ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO, cast

MEMORY_BYTES = 4 << 20
"""More than this goes to a file."""


def spool(folder: Path) -> BinaryIO:
    """An empty one; large contents lie in ``folder``, which must exist."""
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(MEMORY_BYTES, mode="w+b", dir=str(folder)))
