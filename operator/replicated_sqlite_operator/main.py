"""`rsqlite-operator`: the command of the operator image."""

from __future__ import annotations

import sys

from replicated_sqlite_contract import __version__


def main() -> None:
    """Say which version brings the operator, and stop with exit code 2."""
    print(
        f"rsqlite-operator: version {__version__} has no operator yet; it comes with version 0.5.0, "
        "until then run rsqlite-agent beside your application (see README.md)",
        file=sys.stderr,
    )
    sys.exit(2)
