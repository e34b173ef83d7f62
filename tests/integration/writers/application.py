"""An application with one open connection that does what it is told, one JSON request per line.

Request: `{"sql": text, "parameters": [...]}` for one statement, `{"script": text}` for several. Answer: `{"rows":
[...]}` or `{"error": class, "message": text}`. A blob travels as `{"hex": text}`. Ends when its standard input is
closed.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from typing import Any

from integration.writers.connecting import add_arguments, connect


def from_wire(value: Any) -> Any:
    """A parameter as sqlite3 takes it."""
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def to_wire(value: Any) -> Any:
    """A result as JSON takes it."""
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def answer(connection: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request."""
    try:
        if "script" in request:
            connection.executescript(request["script"])
            return {"rows": []}
        parameters = [from_wire(value) for value in request["parameters"]]
        rows = connection.execute(request["sql"], parameters).fetchall()
    except sqlite3.Error as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"rows": [[to_wire(value) for value in row] for row in rows]}


def main() -> None:
    """Answer until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    given = parser.parse_args()
    connection = connect(given.database, given.busy_timeout, given.pragma)
    for line in sys.stdin:
        print(json.dumps(answer(connection, json.loads(line))), flush=True)
    connection.close()


if __name__ == "__main__":
    main()
