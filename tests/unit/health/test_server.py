"""The HTTP interface over an agent that only remembers: status codes, documents, sentences, waits that end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.health import server as module
from replicated_sqlite_agent.health import tokens
from replicated_sqlite_agent.health.server import HealthServer
from replicated_sqlite_agent.settings import Address
from unit.health.facts import FakeFacts, make_measures

LIMIT_S = 30.0
"""How long an event may take on a busy machine before a test fails."""

LOOPBACK = Address("127.0.0.1", 0)


@dataclass
class Answer:
    """What came back."""

    status: int
    text: str
    headers: Any

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


class Asker:
    """A client of one server."""

    def __init__(self, server: HealthServer, session: aiohttp.ClientSession) -> None:
        self._server, self._session = server, session

    async def __call__(self, path: str, method: str = "GET", **parameters: str) -> Answer:
        url = f"http://127.0.0.1:{self._server.port}{path}"
        async with self._session.request(method, url, params=parameters) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for an event; the test fails with `what` at the limit."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


@pytest.fixture
async def facts() -> FakeFacts:
    return FakeFacts()


@pytest.fixture
async def server(facts: FakeFacts) -> AsyncIterator[HealthServer]:
    running = HealthServer(facts, LOOPBACK)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def ask(server: HealthServer) -> AsyncIterator[Asker]:
    async with aiohttp.ClientSession() as session:
        yield Asker(server, session)


# -- probes and documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fact"), [("/startupz", "is_started"), ("/readyz", "is_ready"), ("/healthz", "is_alive")]
)
@pytest.mark.parametrize(("well", "status"), [(True, 200), (False, 503)])
async def test_a_probe_says_its_sentence_with_200_or_503(
    facts: FakeFacts, ask: Asker, path: str, fact: str, well: bool, status: int
) -> None:
    setattr(facts, fact, (well, "because it is so"))
    answer = await ask(path)
    assert (answer.status, answer.text) == (status, "because it is so\n")
    assert answer.headers["Content-Type"].startswith("text/plain")


async def test_a_probe_may_ask_for_the_head_only(ask: Asker) -> None:
    assert (await ask("/healthz", "HEAD")).status == 200


async def test_status_is_the_document_as_it_is(facts: FakeFacts, ask: Asker) -> None:
    facts.document = {"node": "nötes", "members": [{"lag_s": 0.5}], "none": None}
    answer = await ask("/v1/status")
    assert (answer.status, answer.json()) == (200, facts.document)
    assert answer.headers["Content-Type"].startswith("application/json")


async def test_metrics_are_the_numbers_of_the_moment(facts: FakeFacts, ask: Asker) -> None:
    facts.numbers = make_measures(counters=Counters(applied_rows=5), log_rows=3)
    answer = await ask("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert {"rsqlite_applied_rows_total 5.0", "rsqlite_log_rows 3.0"} <= set(answer.text.splitlines())


# -- position and wait ------------------------------------------------------------------------------------------------


async def test_a_position_is_the_token_of_the_vector(facts: FakeFacts, ask: Asker) -> None:
    facts.vector = {1: 10, 2: 20}
    answer = await ask("/v1/position")
    assert (answer.status, answer.json()) == (200, {"token": tokens.encode({1: 10, 2: 20})})


async def test_a_wait_for_what_is_here_is_over_at_once(facts: FakeFacts, ask: Asker) -> None:
    facts.vector = {1: 10, 2: 20}
    answer = await ask("/v1/wait", token=tokens.encode({1: 9}), timeout="3600")
    assert (answer.status, answer.json()) == (200, {"applied": True})


async def test_a_wait_ends_when_the_writes_arrive(facts: FakeFacts, ask: Asker) -> None:
    waiting = asyncio.create_task(ask("/v1/wait", token=tokens.encode({1: 10}), timeout="60"))
    await until(lambda: facts.waiting, "the agent is asked")
    await facts.apply({1: 10})
    assert (await waiting).status == 200


async def test_a_wait_that_takes_too_long_is_504_with_a_sentence(ask: Asker) -> None:
    answer = await ask("/v1/wait", token=tokens.encode({1: 10}), timeout="0.01")
    assert answer.status == 504
    sentence = "not everything that the token names was applied here within 0.01 s"
    assert answer.json() == {"applied": False, "error": sentence}


async def test_a_wait_lasts_30_seconds_if_nothing_else_is_asked(facts: FakeFacts, ask: Asker) -> None:
    await ask("/v1/wait", token=tokens.encode({}))
    assert facts.asked == [({}, 30.0)]


async def test_a_token_of_thousands_of_runs_fits(facts: FakeFacts, ask: Asker) -> None:
    facts.vector = {(1 << 47) + run: (1 << 60) + run for run in range(5_000)}
    token = (await ask("/v1/position")).json()["token"]
    assert (await ask("/v1/wait", token=token)).status == 200


async def test_who_hangs_up_no_longer_waits(facts: FakeFacts, ask: Asker) -> None:
    waiting = asyncio.create_task(ask("/v1/wait", token=tokens.encode({1: 10}), timeout="3600"))
    await until(lambda: facts.waiting, "the agent is asked")
    waiting.cancel()
    await until(lambda: facts.given_up and not facts.waiting, "the wait is cancelled")


# -- flush ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("text", "acks"), [(None, "stream"), ("stream", "stream"), ("all", "all"), ("1", 1), ("12", 12)]
)
async def test_a_flush_asks_for_what_is_wanted(
    facts: FakeFacts, ask: Asker, method: str, text: str | None, acks: str | int
) -> None:
    facts.acknowledged.add(acks)
    answer = await ask("/v1/flush", method, **({} if text is None else {"acks": text}), timeout="2.5")
    assert (answer.status, answer.json()) == (200, {"flushed": True, "acks": acks, "reason": "everything is there"})
    assert facts.asked == [(acks, 2.5)]


async def test_a_flush_ends_when_the_acknowledgement_arrives(facts: FakeFacts, ask: Asker) -> None:
    waiting = asyncio.create_task(ask("/v1/flush", "POST", acks="2"))
    await until(lambda: facts.waiting, "the agent is asked")
    await facts.acknowledge(2)
    assert (await waiting).status == 200


async def test_a_flush_that_takes_too_long_is_504_with_the_sentence(ask: Asker) -> None:
    answer = await ask("/v1/flush", acks="all", timeout="0.01")
    assert (answer.status, answer.json()) == (504, {"flushed": False, "acks": "all", "error": "NATS is away"})


async def test_a_flush_to_s3_is_not_part_of_this_version(facts: FakeFacts, ask: Asker) -> None:
    answer = await ask("/v1/flush", acks="s3")
    assert answer.status == 501
    assert "not part of this version" in answer.json()["error"]
    assert facts.asked == []


# -- conflicts --------------------------------------------------------------------------------------------------------


async def test_conflicts_come_in_pages(facts: FakeFacts, ask: Asker) -> None:
    facts.records = [{"id": number, "table": "notes"} for number in (1, 2, 5, 8, 9)]
    pages: list[list[int]] = []
    after: int | None = 0
    while after is not None:
        page = (await ask("/v1/conflicts", after=str(after), limit="2")).json()
        pages.append([record["id"] for record in page["conflicts"]])
        after = page["next"]
    assert pages == [[1, 2], [5, 8], [9]]


async def test_the_last_page_has_no_next_though_it_is_full(facts: FakeFacts, ask: Asker) -> None:
    facts.records = [{"id": 1}, {"id": 2}]
    page = await ask("/v1/conflicts", limit="2")
    assert page.json() == {"conflicts": [{"id": 1}, {"id": 2}], "next": None}


async def test_a_page_holds_a_hundred_if_nothing_else_is_asked(facts: FakeFacts, ask: Asker) -> None:
    facts.records = [{"id": number} for number in range(1, 150)]
    page = (await ask("/v1/conflicts")).json()
    assert (len(page["conflicts"]), page["next"]) == (100, 100)


async def test_no_conflicts_are_an_empty_page(ask: Asker) -> None:
    assert (await ask("/v1/conflicts", after="7")).json() == {"conflicts": [], "next": None}


# -- what callers do wrong --------------------------------------------------------------------------------------------

TOKEN = tokens.encode({1: 10})


@pytest.mark.parametrize(
    ("path", "parameters", "sentence"),
    [
        ("/v1/wait", {}, "the parameter token is missing; /v1/position of the node that wrote gives it"),
        ("/v1/wait", {"token": "hello"}, "the token is damaged; pass it exactly as /v1/position gave it"),
        ("/v1/wait", {"token": TOKEN, "timeut": "5"}, "/v1/wait has no parameter 'timeut'; it takes token and timeout"),
        ("/v1/wait", {"token": TOKEN, "timeout": "0"}, "timeout takes seconds above 0 and up to 3600, not '0'"),
        ("/v1/wait", {"token": TOKEN, "timeout": "-1"}, "timeout takes seconds above 0 and up to 3600, not '-1'"),
        ("/v1/wait", {"token": TOKEN, "timeout": "3601"}, "timeout takes seconds above 0 and up to 3600, not '3601'"),
        ("/v1/wait", {"token": TOKEN, "timeout": "nan"}, "timeout takes seconds above 0 and up to 3600, not 'nan'"),
        ("/v1/wait", {"token": TOKEN, "timeout": "inf"}, "timeout takes seconds above 0 and up to 3600, not 'inf'"),
        ("/v1/wait", {"token": TOKEN, "timeout": "1m"}, "timeout takes seconds above 0 and up to 3600, not '1m'"),
        ("/v1/flush", {"timeout": ""}, "timeout takes seconds above 0 and up to 3600, not ''"),
        ("/v1/flush", {"acks": "0"}, "acks takes 'stream', 'all', 's3' or a number of members from 1, not '0'"),
        ("/v1/flush", {"acks": "-1"}, "acks takes 'stream', 'all', 's3' or a number of members from 1, not '-1'"),
        ("/v1/flush", {"acks": "²"}, "acks takes 'stream', 'all', 's3' or a number of members from 1, not '²'"),
        ("/v1/flush", {"acks": "ALL"}, "acks takes 'stream', 'all', 's3' or a number of members from 1, not 'ALL'"),
        ("/v1/conflicts", {"after": "x"}, "after takes a whole number from 0 to 9223372036854775807, not 'x'"),
        ("/v1/conflicts", {"limit": "0"}, "limit takes a whole number from 1 to 1000, not '0'"),
        ("/v1/conflicts", {"limit": "1001"}, "limit takes a whole number from 1 to 1000, not '1001'"),
        ("/v1/status", {"verbose": "1"}, "/v1/status has no parameter 'verbose'; it takes none"),
        ("/v1/position", {"run": "1"}, "/v1/position has no parameter 'run'; it takes none"),
    ],
)
async def test_a_wrong_parameter_is_400_with_one_sentence(
    facts: FakeFacts, ask: Asker, path: str, parameters: dict[str, str], sentence: str
) -> None:
    answer = await ask(path, **parameters)
    assert (answer.status, answer.json()) == (400, {"error": sentence})
    assert facts.asked == []


async def test_a_parameter_given_twice_is_400(ask: Asker) -> None:
    answer = await ask("/v1/flush?acks=1&acks=all")
    assert (answer.status, answer.json()) == (400, {"error": "the parameter acks is given twice; give it once"})


async def test_an_unknown_path_is_404_and_names_the_known_ones(ask: Asker) -> None:
    answer = await ask("/v1/positions")
    assert answer.status == 404
    assert answer.json()["error"].startswith("there is no /v1/positions; there are /healthz, /metrics, /readyz, ")


@pytest.mark.parametrize(("path", "allowed"), [("/v1/wait", "GET"), ("/v1/flush", "GET and POST")])
async def test_a_wrong_method_is_405_and_names_the_right_ones(ask: Asker, path: str, allowed: str) -> None:
    answer = await ask(path, "PUT")
    assert (answer.status, answer.json()) == (405, {"error": f"{path} takes {allowed}, not PUT"})
    assert {"GET"} <= set(answer.headers["Allow"].split(","))


# -- what goes wrong in the agent -------------------------------------------------------------------------------------


async def test_an_error_of_the_agent_is_503_with_its_sentence(facts: FakeFacts, ask: Asker) -> None:
    facts.failure = AgentError("the database is being replaced; ask again")
    answer = await ask("/v1/position")
    assert (answer.status, answer.json()) == (503, {"error": "the database is being replaced; ask again"})


async def test_a_bug_is_500_without_its_insides(facts: FakeFacts, ask: Asker) -> None:
    facts.failure = RuntimeError("row of somebody")
    answer = await ask("/v1/status")
    assert answer.status == 500
    assert answer.json() == {"error": "the agent failed to answer /v1/status; its log says why"}


# -- the socket -------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_one_sentence_that_names_the_key(facts: FakeFacts, server: HealthServer) -> None:
    with pytest.raises(AgentError) as refused:
        await HealthServer(facts, Address("127.0.0.1", server.port)).start()
    assert refused.value.exit_code == 2
    expected = f"http: 127.0.0.1:{server.port} is taken by another program; choose another port, or 'off'"
    assert str(refused.value) == expected


async def test_an_address_of_another_machine_is_one_sentence(facts: FakeFacts) -> None:
    with pytest.raises(AgentError, match=r"^http: cannot listen on 192\.0\.2\.1:0 \([A-Z][^()']+\); choose") as refused:
        await HealthServer(facts, Address("192.0.2.1", 0)).start()
    assert refused.value.exit_code == 2


async def test_a_stopping_agent_answers_those_who_wait(facts: FakeFacts, server: HealthServer, ask: Asker) -> None:
    waiting = [
        asyncio.create_task(ask("/v1/wait", token=TOKEN, timeout="3600")),
        asyncio.create_task(ask("/v1/flush", timeout="3600")),
    ]
    await until(lambda: facts.waiting == 2, "the agent is asked twice")
    await server.stop()
    for answer in await asyncio.gather(*waiting):
        expected = {"error": "the agent is stopping; ask again when it is back"}
        assert (answer.status, answer.json()) == (503, expected)


async def test_after_a_stop_the_port_is_free_and_a_second_stop_does_nothing(facts: FakeFacts) -> None:
    server = HealthServer(facts, LOOPBACK)
    await server.start()
    port = server.port
    await server.stop()
    await server.stop()
    again = HealthServer(facts, Address("127.0.0.1", port))
    await again.start()
    assert again.port == port
    await again.stop()


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.0.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.1.2.3", 403),
        ("::ffff:10.1.2.3", 403),
        ("fe80::1%eth0", 403),
    ],
)
async def test_v1_may_be_kept_from_other_machines(
    facts: FakeFacts, monkeypatch: pytest.MonkeyPatch, peer: str, status: int
) -> None:
    monkeypatch.setattr(module, "_peer", lambda _request: peer)
    server = HealthServer(facts, LOOPBACK, v1_loopback_only=True)
    await server.start()
    async with aiohttp.ClientSession() as session:
        ask = Asker(server, session)
        codes = [(await ask(path)).status for path in ("/v1/status", "/v1/conflicts", "/healthz", "/metrics")]
    await server.stop()
    assert codes == [status, status, 200, 200]


async def test_v1_answers_everybody_unless_told_otherwise(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_peer", lambda _request: "10.1.2.3")
    assert (await ask("/v1/status")).status == 200


async def test_ipv6_works(facts: FakeFacts) -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    server = HealthServer(facts, Address("::1", 0), v1_loopback_only=True)
    try:
        await server.start()
    except AgentError:
        pytest.skip("this machine has no IPv6")
    async with aiohttp.ClientSession() as session, session.get(f"http://[::1]:{server.port}/v1/status") as answer:
        assert answer.status == 200
    await server.stop()
