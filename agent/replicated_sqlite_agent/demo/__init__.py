"""`rsqlite demo`: three agents on three databases, writers on all of them, and a table that shows them converge.

``play`` is the course of the demo, ``processes`` the agents and writers that it starts, ``writer`` the program that
writes (plain sqlite3), ``contents`` what is read from the three files and compared, ``display`` what people see.
"""

from replicated_sqlite_agent.demo.play import run_demo

__all__ = ["run_demo"]
