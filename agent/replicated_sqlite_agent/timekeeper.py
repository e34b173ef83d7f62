"""Time by the clock of the stream's server, so that a pod with a wrong clock neither wins nor loses for ever."""

from __future__ import annotations

import threading
import time


class Timekeeper:
    """The server's time, carried forward by the monotonic clock, which no jump of the local wall clock moves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server_minus_monotonic_ms: float | None = None

    def measured(self, offset_ms: int) -> None:
        """Server's wall clock minus ours, milliseconds, as just measured."""
        with self._lock:
            self._server_minus_monotonic_ms = offset_ms + time.time() * 1000 - time.monotonic() * 1000

    def now_ms(self) -> int | None:
        """The server's time now, milliseconds since 1970; None before the first measurement."""
        with self._lock:
            if self._server_minus_monotonic_ms is None:
                return None
            return round(self._server_minus_monotonic_ms + time.monotonic() * 1000)

    def offset_ms(self) -> int | None:
        """What to add to the local wall clock now to have the server's, milliseconds."""
        now = self.now_ms()
        return None if now is None else now - round(time.time() * 1000)
