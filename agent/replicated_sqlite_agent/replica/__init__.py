"""What one file holds in the protocol's terms: rows with versions, positions, the fold, visibility under UNIQUE.

Everything here runs on the writer thread, inside a transaction that the caller opened, except `rows`, which readers
use as well.
"""
