"""An application that opens its database with SQLITE_DBCONFIG_DEFENSIVE and untrusted schema, and inserts notes.

The standard library can set DEFENSIVE only from Python 3.12 on, so this one program speaks through apsw. Prints the
number of rows it inserted; every error ends it with a traceback.
"""

from __future__ import annotations

import argparse
import sys

import apsw

from integration.writers.connecting import add_arguments


def main() -> None:
    """Insert, update, replace and delete, one transaction each."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--writer", required=True)
    parser.add_argument("--rows", type=int, required=True)
    given = parser.parse_args()

    connection = apsw.Connection(str(given.database))
    connection.set_busy_timeout(int(given.busy_timeout * 1000))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    for pragma in given.pragma:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    for n in range(given.rows):
        key = f"{given.writer}-{n}"
        connection.execute("INSERT INTO notes VALUES (?, ?, ?, 'first')", (key, given.writer, n))
        connection.execute("UPDATE notes SET value = 'second' WHERE id = ?", (key,))
        connection.execute("REPLACE INTO notes VALUES (?, ?, ?, 'third')", (key, given.writer, n))
        if n % 10 == 9:
            connection.execute("DELETE FROM notes WHERE id = ?", (key,))
    connection.close()
    print(given.rows, file=sys.stdout)


if __name__ == "__main__":
    main()
