"""The rules. Pure functions from values to values: no SQL, no clock, no I/O; the same on every replica.

`fold` gives versions to what the log says; `resolver` joins two states of a row and names what is lost thereby.
"""
