"""Reading the stream in order through every kind of trouble, against a real nats-server."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from integration.conftest import LIMIT_S, STREAM_BYTES, NewSession, until
from integration.servers import NatsServer
from replicated_sqlite_agent.stream.consumer import Consumer, Delivery, parse_ack_subject
from replicated_sqlite_agent.stream.errors import ApiRefused, ConsumerLost, NatsUnavailable
from replicated_sqlite_agent.stream.jetstream import Answer
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import names

SUBJECT = names.changes_subject("notes", "a", 1)
STREAM = names.stream_name("notes")
MANY = 1_000_000_000


_ids = itertools.count()


class _Consumers(Answer, frozen=True):
    consumers: tuple[dict[str, Any], ...] = ()


async def publish(session: Session, *payloads: bytes) -> None:
    """Publish and wait for all acknowledgements."""
    await asyncio.gather(*(session.publish_soon(SUBJECT, payload, f"{next(_ids)}") for payload in payloads))


async def read(consumer: Consumer, count: int) -> list[Delivery]:
    """The next `count` messages."""
    found: list[Delivery] = []
    async with asyncio.timeout(LIMIT_S):
        while len(found) < count:
            found += await consumer.next_batch(count - len(found), MANY)
    return found


async def lost(consumer: Consumer) -> str:
    """The reason with which the consumer is lost."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await consumer.next_batch(1000, MANY)
            except ConsumerLost as error:
                return str(error)


async def test_messages_come_in_order_from_the_sequence_asked_for(session: Session) -> None:
    await publish(session, *(b"%d" % n for n in range(1, 101)))
    consumer = session.consumer()
    await consumer.open(41)
    assert 60 == consumer.pending
    found = await read(consumer, 60)
    assert [(n, b"%d" % n) for n in range(41, 101)] == [(d.sequence, d.data) for d in found]
    assert {SUBJECT} == {d.subject for d in found}
    assert 0 == consumer.pending

    await publish(session, b"new")
    [delivery] = await read(consumer, 1)
    state = await session.stream_state()
    assert (101, b"new") == (delivery.sequence, delivery.data)
    assert state.server_ms is not None
    assert 0 <= state.server_ms - delivery.time_ms < LIMIT_S * 1000
    await consumer.close()


async def test_a_batch_has_what_is_there_within_its_bounds(session: Session) -> None:
    await publish(session, *(bytes(100) for _ in range(10)))
    consumer = session.consumer()
    await consumer.open(1)
    await read(consumer, 1)
    await until(lambda: consumer.pending == 0, "all deliveries")
    assert 3 == len(await consumer.next_batch(3, MANY))
    assert 2 == len(await consumer.next_batch(100, 250))
    assert 1 == len(await consumer.next_batch(100, 1)), "a message above the bound comes alone"
    assert 3 == len(await consumer.next_batch(100, MANY))
    await consumer.close()


async def test_one_consumer_reads_far_more_than_it_may_hold(session: Session) -> None:
    consumer = Consumer(session, STREAM, max_messages=10, max_bytes=4000)
    await consumer.open(1)
    await publish(session, *(bytes(300) for _ in range(200)))
    found = await read(consumer, 200)
    assert list(range(1, 201)) == [d.sequence for d in found]
    await consumer.close()


async def test_a_slow_reader_holds_no_more_than_the_bound(session: Session) -> None:
    bound = 100_000
    consumer = Consumer(session, STREAM, max_bytes=bound)
    await consumer.open(1)
    held = 0
    for start in range(0, 500, 50):
        await publish(session, *(b"%d" % start + bytes(5000) for _ in range(50)))
        # The acknowledgements came over the same connection as what was delivered meanwhile.
        held = max(held, consumer.held_bytes)
        assert consumer.held_bytes <= bound
    assert held > bound / 2, "the reader was really too slow"
    found = await read(consumer, 500)
    assert list(range(1, 501)) == [d.sequence for d in found]
    await consumer.close()


async def test_a_message_larger_than_the_bound_comes_too(session: Session) -> None:
    consumer = Consumer(session, STREAM, max_bytes=10_000)
    await consumer.open(1)
    await publish(session, b"small", bytes(50_000), b"last", bytes(50_000), bytes(50_000))
    assert [5, 50_000, 4, 50_000, 50_000] == [len(d.data) for d in await read(consumer, 5)]
    await consumer.close()


async def test_a_standing_request_is_renewed_when_it_ends(session: Session) -> None:
    consumer = Consumer(session, STREAM, pull_expires_s=1.0, idle_heartbeat_s=0.4)
    await consumer.open(1)
    await asyncio.sleep(2.5)
    await publish(session, b"x")
    assert [b"x"] == [d.data for d in await read(consumer, 1)]
    await consumer.close()


async def test_a_reader_that_gives_up_waiting_loses_nothing(session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await consumer.next_batch(1, MANY)
    await publish(session, b"x")
    assert [b"x"] == [d.data for d in await read(consumer, 1)]
    await consumer.close()


async def test_a_start_beyond_the_end_waits_and_one_before_the_first_begins_there(session: Session) -> None:
    await publish(session, *(b"%d" % n for n in range(1, 11)))
    await session.purge(6)
    behind, ahead = session.consumer(), session.consumer()
    await behind.open(2)
    await ahead.open(12)
    await publish(session, b"11", b"12")
    assert [6, 7, 8, 9, 10, 11, 12] == [d.sequence for d in await read(behind, 7)]
    assert [12] == [d.sequence for d in await read(ahead, 1)]
    await behind.close()
    await ahead.close()


# -- loss -------------------------------------------------------------------------------------------------------------


async def test_a_consumer_deleted_by_hand_is_noticed_and_opens_again(session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    await publish(session, b"1")
    listed = await session.api(f"CONSUMER.LIST.{STREAM}", None, _Consumers)
    [name] = [c["name"] for c in listed.consumers]
    await session.api(f"CONSUMER.DELETE.{STREAM}.{name}", None, Answer)
    assert "Consumer Deleted" in await lost(consumer)

    await consumer.open(2)
    await publish(session, b"2")
    assert [(2, b"2")] == [(d.sequence, d.data) for d in await read(consumer, 1)]
    await consumer.close()


async def test_a_deleted_stream_is_noticed(session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    await session.api(f"STREAM.DELETE.{STREAM}", None, Answer)
    await lost(consumer)
    with pytest.raises(ApiRefused, match="stream not found"):
        await consumer.open(1)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_restart_loses_nothing(nats_server: NatsServer, session: Session, end: str) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    await publish(session, b"1", b"2")
    seen = await read(consumer, 2)
    getattr(nats_server, end)()
    await lost(consumer)
    with pytest.raises(NatsUnavailable):
        await consumer.open(3)

    nats_server.restart()
    async with asyncio.timeout(LIMIT_S):
        await session.wait_connected()
    await publish(session, b"3")
    await consumer.open(seen[-1].sequence + 1)
    assert [(3, b"3")] == [(d.sequence, d.data) for d in await read(consumer, 1)]
    await consumer.close()


async def test_what_arrived_before_a_loss_is_still_read(nats_server: NatsServer, session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    await publish(session, b"1", b"2", b"3")
    await session.message(3)
    nats_server.kill()
    await asyncio.sleep(0.1)
    assert [1, 2, 3] == [d.sequence for d in await read(consumer, 3)]
    await lost(consumer)


async def test_a_silent_server_is_noticed_by_the_missing_heartbeats(
    nats_server: NatsServer, new_session: NewSession
) -> None:
    session = await new_session()
    await session.ensure_stream(STREAM_BYTES)
    consumer = Consumer(session, STREAM, idle_heartbeat_s=0.3)
    await consumer.open(1)
    await asyncio.sleep(1.0)
    await publish(session, b"1")
    assert 1 == len(await read(consumer, 1)), "heartbeats kept an idle consumer alive"
    nats_server.pause()
    assert "silent" in await lost(consumer)
    nats_server.resume()
    await consumer.open(2)
    await publish(session, b"2")
    assert [2] == [d.sequence for d in await read(consumer, 1)]
    await consumer.close()


async def test_a_gap_in_the_deliveries_is_a_loss(session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    reply = b"$JS.ACK.rsqlite-notes.c.1.7.%d.1700000000000000000.0"
    consumer._on_message(SUBJECT.encode(), reply % 1, b"x", b"")
    consumer._on_message(SUBJECT.encode(), reply % 3, b"y", b"")
    assert [b"x"] == [d.data for d in await read(consumer, 1)]
    assert "delivery 3 came after delivery 1" in await lost(consumer)


async def test_closing_removes_the_consumer_from_the_server(session: Session) -> None:
    consumer = session.consumer()
    await consumer.open(1)
    await consumer.open(1)
    await consumer.close()
    # Nobody waits for the answer of a removal, so the server may still be at it.
    for _ in range(1000):
        if not (await session.api(f"CONSUMER.LIST.{STREAM}", None, _Consumers)).consumers:
            return
    raise AssertionError("the consumer is still there")


def test_both_forms_of_a_delivery_are_parsed() -> None:
    plain = b"$JS.ACK.rsqlite-notes.cons.1.42.7.1700000000123456789.3"
    domain = b"$JS.ACK.hub.account.rsqlite-notes.cons.1.42.7.1700000000123456789.3.random"
    assert (42, 7, 1700000000123456789, 3) == parse_ack_subject(plain) == parse_ack_subject(domain)
    with pytest.raises(ValueError, match="no JetStream delivery"):
        parse_ack_subject(b"_INBOX.x")
