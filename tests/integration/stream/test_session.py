"""The connection, the stream and publishing, against a real nats-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from integration.conftest import LIMIT_S, STREAM_BYTES, NewSession, until
from integration.servers import NatsServer
from replicated_sqlite_agent.settings import Nats
from replicated_sqlite_agent.stream.errors import (
    ApiRefused,
    MessageTooLarge,
    NatsUnavailable,
    NoResponder,
    PublishUnacknowledged,
    RequestFailed,
    StreamFull,
    StreamMisconfigured,
)
from replicated_sqlite_agent.stream.jetstream import Answer
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import names

SUBJECT = names.changes_subject("notes", "a", 1)


# -- the stream -------------------------------------------------------------------------------------------------------


async def test_the_stream_is_created_as_the_design_says(new_session: NewSession) -> None:
    session = await new_session()
    state = await session.ensure_stream(STREAM_BYTES)
    config: dict[str, Any] = await session._stream_config("rsqlite-notes") or {}
    expected = {
        "subjects": ["rsqlite.notes.c.>", "rsqlite.notes.h.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "max_bytes": STREAM_BYTES,
        "duplicate_window": 120_000_000_000,
        "allow_direct": True,
        "num_replicas": 1,
    }
    assert expected == {key: config[key] for key in expected}
    assert (1, 0, 0, STREAM_BYTES) == (state.first, state.last, state.messages, state.max_bytes)


async def test_the_stream_id_survives_a_second_check_and_another_stream_has_another(new_session: NewSession) -> None:
    session = await new_session()
    first = await session.ensure_stream(STREAM_BYTES)
    assert first.id == (await session.ensure_stream(STREAM_BYTES)).id
    assert "/" not in first.id
    await session.api("STREAM.DELETE.rsqlite-notes", None, Answer)
    assert first.id != (await session.ensure_stream(STREAM_BYTES)).id


async def test_many_agents_that_start_at_once_make_one_stream(new_session: NewSession) -> None:
    sessions = [await new_session(node) for node in ("a", "b", "c", "d")]
    states = await asyncio.gather(*(s.ensure_stream(STREAM_BYTES) for s in sessions))
    assert 1 == len({state.id for state in states})


@pytest.mark.parametrize(
    ("setting", "value", "phrase"),
    [
        ("discard", "old", "discard is old and must be new"),
        ("max_age", 3600 * 1_000_000_000, "max_age is 3600000000000 and must be 0"),
        ("subjects", ["rsqlite.notes.>"], "subjects is rsqlite.notes.> and must be"),
        ("duplicate_window", 1_000_000_000, "duplicate_window is 1000000000"),
        ("max_msgs", 10, "max_msgs is 10"),
    ],
)
async def test_a_stream_that_would_lose_data_is_refused(
    new_session: NewSession, setting: str, value: object, phrase: str
) -> None:
    session = await new_session()
    config = {
        "name": "rsqlite-notes",
        "subjects": list(names.stream_subjects("notes")),
        "discard": "new",
        "allow_direct": True,
        "storage": "file",
        "retention": "limits",
        "max_bytes": STREAM_BYTES,
        "num_replicas": 1,
    }
    await session.api("STREAM.CREATE.rsqlite-notes", config | {setting: value}, Answer)
    with pytest.raises(StreamMisconfigured) as refused:
        await session.ensure_stream(STREAM_BYTES)
    assert "rsqlite-notes" in str(refused.value)
    assert phrase in str(refused.value)
    assert "nats stream edit rsqlite-notes" in str(refused.value)


async def test_a_stream_made_by_others_with_the_right_settings_is_taken(new_session: NewSession) -> None:
    session = await new_session()
    config = {
        "name": "rsqlite-notes",
        "subjects": list(reversed(names.stream_subjects("notes"))),
        "discard": "new",
        "allow_direct": True,
        "storage": "file",
        "retention": "limits",
        "num_replicas": 1,
    }
    await session.api("STREAM.CREATE.rsqlite-notes", config, Answer)
    state = await session.ensure_stream(STREAM_BYTES)
    assert -1 == state.max_bytes
    assert state.id


async def test_a_stream_larger_than_the_servers_storage_is_refused_with_advice(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", max_file="1MB").start()
    session = Session(Nats(servers=(server.url,)), "notes", "a")
    try:
        session.start()
        await session.wait_connected()
        with pytest.raises(StreamMisconfigured, match=r"lower limits\.stream_max_bytes"):
            await session.ensure_stream(STREAM_BYTES)
    finally:
        await session.close()
        server.stop()


async def test_a_missing_stream_that_may_not_be_made_is_an_error_with_the_command(new_session: NewSession) -> None:
    session = await new_session()
    with pytest.raises(StreamMisconfigured, match="nats stream add rsqlite-notes"):
        await session.ensure_stream(STREAM_BYTES, may_create=False)


async def test_a_user_without_the_permission_is_told_the_subject_and_the_command(tmp_path: Path) -> None:
    users = """authorization { users: [
        {user: admin, password: a},
        {user: agent, password: b, permissions: {
            publish: ["$JS.API.STREAM.INFO.>", "rsqlite.notes.>"], subscribe: ["_INBOX.>", "rsqlite.notes.>"]}}]}"""
    server = NatsServer(tmp_path / "nats", users).start()
    session = Session(Nats(servers=(server.url,), user="agent", password="b"), "notes", "a")
    admin = Session(Nats(servers=(server.url,), user="admin", password="a"), "notes", "x")
    try:
        session.start()
        await session.wait_connected()
        with pytest.raises(StreamMisconfigured) as refused:
            await session.ensure_stream(STREAM_BYTES)
        assert "$JS.API.STREAM.CREATE.rsqlite-notes" in str(refused.value)
        assert "nats stream add rsqlite-notes" in str(refused.value)

        admin.start()
        await admin.wait_connected()
        await admin.ensure_stream(STREAM_BYTES)
        state = await session.ensure_stream(STREAM_BYTES)
        assert 1 == await session.publish(SUBJECT, b"x", "1")
        assert 0 == state.last
    finally:
        await session.close()
        await admin.close()
        server.stop()


async def test_the_clock_of_the_server_is_measured(session: Session) -> None:
    state = await session.stream_state()
    assert state.server_ms is not None
    assert state.asked_at_ms <= state.answered_at_ms
    # Server and test share a clock, so the offset is within half a round trip (and one millisecond of rounding).
    assert state.clock_offset_ms is not None
    assert abs(state.clock_offset_ms) <= (state.answered_at_ms - state.asked_at_ms) / 2 + 2


# -- publishing -------------------------------------------------------------------------------------------------------


async def test_messages_are_stored_in_the_order_of_calls(session: Session) -> None:
    futures = [session.publish_soon(SUBJECT, b"%d" % n, f"id{n}") for n in range(500)]
    assert list(range(1, 501)) == await asyncio.gather(*futures)
    third = await session.message(3)
    assert third is not None
    assert (SUBJECT, 3, b"2") == (third.subject, third.sequence, third.data)
    assert await session.message(501) is None


async def test_a_message_id_is_stored_once(session: Session) -> None:
    first = await session.publish(SUBJECT, b"x", "same")
    assert first == await session.publish(SUBJECT, b"x", "same")
    assert 1 == (await session.stream_state()).messages


async def test_a_full_stream_refuses_and_takes_again_after_a_purge(new_session: NewSession) -> None:
    session = await new_session()
    await session.ensure_stream(100_000)
    stored = 0
    while stored < 9:
        stored = await session.publish(SUBJECT, bytes(10_000), f"id{stored}")
    with pytest.raises(StreamFull, match=SUBJECT):
        await session.publish(SUBJECT, bytes(10_000), "one-more")
    assert stored == (await session.stream_state()).messages
    assert stored - 1 == await session.purge(stored)
    assert stored + 1 == await session.publish(SUBJECT, bytes(10_000), "after")
    assert stored == (await session.stream_state()).first


async def test_a_message_above_the_server_limit_is_refused_before_it_is_sent(session: Session) -> None:
    with pytest.raises(MessageTooLarge, match="max_payload"):
        await session.publish(SUBJECT, bytes(session.max_payload), "big")
    assert 1 == await session.publish(SUBJECT, bytes(session.max_payload - 200), "fits")
    # It also comes back in one piece, although the answer is larger than a message may be.
    found = await session.message(1)
    assert found is not None
    assert session.max_payload - 200 == len(found.data)


async def test_without_a_stream_a_publish_says_so(new_session: NewSession) -> None:
    session = await new_session()
    with pytest.raises(NoResponder, match="no stream takes"):
        await session.publish(SUBJECT, b"x", "1")
    with pytest.raises(ApiRefused, match="stream not found"):
        await session.stream_state()


# -- NATS away --------------------------------------------------------------------------------------------------------


async def test_a_session_without_nats_raises_only_when_used_and_connects_later(nats_server: NatsServer) -> None:
    nats_server.stop()
    session = Session(Nats(servers=(nats_server.url,)), "notes", "a")
    session.start()
    try:
        with pytest.raises(NatsUnavailable):
            await session.publish(SUBJECT, b"x", "1")
        with pytest.raises(NatsUnavailable):
            await session.stream_state()
        assert not session.connected
        nats_server.restart()
        async with asyncio.timeout(LIMIT_S):
            await session.wait_connected()
        await session.ensure_stream(STREAM_BYTES)
    finally:
        await session.close()


async def test_kill_of_the_server_leaves_the_outcome_unknown_and_the_session_recovers(
    nats_server: NatsServer, session: Session
) -> None:
    ups, downs = [0], [0]
    session.when_connected(lambda: ups.__setitem__(0, ups[0] + 1))
    session.when_disconnected(lambda: downs.__setitem__(0, downs[0] + 1))
    nats_server.pause()
    futures = [session.publish_soon(SUBJECT, b"%d" % n, f"id{n}") for n in range(20)]
    nats_server.kill()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert {PublishUnacknowledged} == {type(result) for result in results}
    await until(lambda: downs[0] == 1, "the session notices")
    with pytest.raises(NatsUnavailable):
        await session.publish(SUBJECT, b"x", "later")

    nats_server.restart()
    async with asyncio.timeout(LIMIT_S):
        await session.wait_connected()
    await until(lambda: ups[0] == 2, "the callback of the second connect")
    # Whatever the stream has of them, sending all again stores each exactly once.
    for n in range(20):
        await session.publish(SUBJECT, b"%d" % n, f"id{n}")
    assert 20 == (await session.stream_state()).messages


async def test_a_silent_server_leaves_the_outcome_unknown_in_time(
    nats_server: NatsServer, new_session: NewSession
) -> None:
    session = await new_session(timeout_s=0.5)
    await session.ensure_stream(STREAM_BYTES)
    nats_server.pause()
    with pytest.raises(PublishUnacknowledged, match="in time"):
        await session.publish(SUBJECT, b"x", "1")
    with pytest.raises(NatsUnavailable):
        await session.stream_state()
    nats_server.resume()


async def test_wrong_credentials_are_said_and_do_not_raise(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "authorization { user: u, password: right }").start()
    session = Session(Nats(servers=(server.url,), user="u", password="wrong"), "notes", "a")
    session.start()
    try:
        await until(lambda: "Authorization" in session._away, "the reason is known")
        with pytest.raises(NatsUnavailable, match="Authorization Violation"):
            await session.stream_state()
    finally:
        await session.close()
        server.stop()


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_by_one_of_the_queue_also_after_a_reconnect(
    nats_server: NatsServer, new_session: NewSession
) -> None:
    asker, one, other = [await new_session(node) for node in ("a", "b", "c")]
    answered: list[str] = []

    def answers(name: str) -> Callable[[bytes], Any]:
        async def handler(data: bytes) -> bytes:
            answered.append(name)
            return data.upper()

        return handler

    one.serve("rsqlite.notes.r", answers("one"), queue="agents")
    other.serve("rsqlite.notes.r", answers("other"), queue="agents")
    assert b"HELLO" == await _ask(asker, b"hello")
    assert 1 == len(answered)

    nats_server.kill()
    nats_server.restart()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(s.wait_connected() for s in (asker, one, other)))
    assert b"AGAIN" == await _ask(asker, b"again")


async def _ask(session: Session, data: bytes) -> bytes:
    """Ask until the other sessions' subscriptions have reached the server."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return await session.request("rsqlite.notes.r", data, 5.0)
        except NatsUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_nobody_there_and_an_error_of_the_other_side_are_told_apart(session: Session) -> None:
    with pytest.raises(NoResponder):
        await session.request("rsqlite.notes.r.b", b"", 5.0)

    async def fails(data: bytes) -> bytes:
        raise StreamFull("no room\nfor it")

    stop = session.serve("rsqlite.notes.r.b", fails)
    with pytest.raises(RequestFailed, match="no room for it"):
        await session.request("rsqlite.notes.r.b", b"", 5.0)
    stop()
    with pytest.raises(NoResponder):
        await session.request("rsqlite.notes.r.b", b"", 5.0)


def test_a_socket_that_died_unnoticed_is_a_lost_connection(nats_server: NatsServer) -> None:
    """uvloop raises RuntimeError on a write to a socket that it has closed; the reader hears of the end only later."""

    async def publish_after_the_end() -> None:
        session = Session(Nats(servers=(nats_server.url,)), "notes", "a", 10.0)
        session.start()
        await session.wait_connected()
        await session.ensure_stream(STREAM_BYTES)
        wire: Any = session._wire
        socket = wire._transport._io_writer.transport
        socket.abort()
        while "closed=True" not in repr(socket):
            await asyncio.sleep(0)
        assert wire.usable, "the loss is noticed already: nothing is tested"
        with pytest.raises(PublishUnacknowledged):
            await session.publish(SUBJECT, b"lost", "1")
        await session.wait_connected()
        assert await session.publish(SUBJECT, b"kept", "2") == 1
        await session.close()

    uvloop.run(publish_after_the_end())
