"""The way in: messages become groups, groups are resolved against what is here, and applied in one transaction.

`assembler` puts chunks together, `applier` decides what to do with each group, `staging` applies thousands of rows
by SQL; `consumer` takes messages from the stream and drives them.
"""
