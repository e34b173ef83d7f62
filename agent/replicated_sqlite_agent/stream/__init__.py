"""The only door to NATS JetStream; nothing outside this package imports `nats`.

session.py    one connection that never gives up; the stream, its bucket and its object store; publishing; requests
consumer.py   messages of the stream in order, from any sequence on
embedded.py   a nats-server of our own, as a supervised child

Below them: wire.py (frames on one connection), jetstream.py (its JSON API), definitions.py (pure: what our streams must
look like), keyvalue.py and objects.py (the two stores), errors.py.
"""
