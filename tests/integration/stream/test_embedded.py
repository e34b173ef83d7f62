"""The agent's own nats-server: start, end, crash, and the death of the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import psutil
import pytest

from integration.conftest import LIMIT_S, until
from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import Address, EmbeddedNats, Nats
from replicated_sqlite_agent.stream.embedded import EmbeddedServer
from replicated_sqlite_agent.stream.session import Session

STREAM_BYTES = 1024 * 1024


def settings(port: int = 0, host: str = "127.0.0.1") -> Nats:
    return Nats(embedded=EmbeddedNats(listen=Address(host, port)))


async def connected(server: EmbeddedServer, user: str | None = None, password: str | None = None) -> Session:
    session = Session(Nats(servers=(server.url,), user=user, password=password), "notes", "a")
    session.start()
    async with asyncio.timeout(LIMIT_S):
        await session.wait_connected()
    return session


async def test_it_starts_serves_and_ends_and_keeps_its_stream(tmp_path: Path) -> None:
    server = EmbeddedServer(settings(), tmp_path / "store", "notes-a")
    await server.start()
    session = await connected(server)
    first = await session.ensure_stream(STREAM_BYTES)
    await session.publish("rsqlite.notes.c.a.000000000001", b"x", "1")
    await session.close()
    pid = server.pid
    assert pid is not None
    await server.stop()
    assert not psutil.pid_exists(pid)
    assert server.pid is None

    again = EmbeddedServer(settings(), tmp_path / "store", "notes-a")
    await again.start()
    session = await connected(again)
    state = await session.stream_state()
    assert (first.id, 1, 0) == (state.id, state.last, again.restarts)
    await session.close()
    await again.stop()


async def test_it_is_started_again_on_its_port_when_it_dies(tmp_path: Path) -> None:
    server = EmbeddedServer(settings(), tmp_path / "store", "notes-a")
    await server.start()
    session = await connected(server)
    await session.ensure_stream(STREAM_BYTES)
    sequence = await session.publish("rsqlite.notes.c.a.000000000001", b"x", "1")
    url, pid = server.url, server.pid
    connects = asyncio.Event()
    session.when_connected(connects.set)
    await connects.wait()
    assert pid is not None
    for _ in range(2):
        connects.clear()
        os.kill(server.pid or 0, signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S):
            await connects.wait()
    assert 2 == server.restarts
    assert url == server.url
    assert pid != server.pid
    assert await session.message(sequence) is not None, "what was acknowledged was on disk"
    await session.close()
    await server.stop()


async def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedServer(settings(port), tmp_path / "store", "notes-a")
        with pytest.raises(ConfigurationError, match=rf"^nats\.embedded\.listen: .*:{port} is taken") as error:
            await server.start()
    assert 2 == error.value.exit_code
    assert server.pid is None


async def test_a_port_that_becomes_free_in_time_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedServer(settings(taken.getsockname()[1]), tmp_path / "store", "notes-a")
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
    await starting
    await server.stop()


async def test_an_unusable_store_is_an_error_with_the_reason(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "jetstream").write_text("a file where a folder should be")
    server = EmbeddedServer(settings(), store, "notes-a")
    with pytest.raises(ConfigurationError, match="storage directory is not a directory"):
        await server.start()


async def test_a_login_in_the_settings_is_asked_of_clients(tmp_path: Path) -> None:
    password = 'p"\\ä'
    server = EmbeddedServer(msgspec.structs.replace(settings(), user="u", password=password), tmp_path / "s", "notes-a")
    await server.start()
    stranger = Session(Nats(servers=(server.url,)), "notes", "x")
    stranger.start()
    session = await connected(server, user="u", password=password)
    await until(lambda: "Authorization" in stranger._away, "the stranger is refused")
    assert 0o600 == (tmp_path / "s" / "nats-server.conf").stat().st_mode & 0o777
    await stranger.close()
    await session.close()
    await server.stop()


@pytest.mark.parametrize(
    ("host", "own", "advertised"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", socket.gethostname()),
        ("::", "[::1]", socket.gethostname()),
    ],
)
def test_the_urls_for_ourselves_and_for_others(tmp_path: Path, host: str, own: str, advertised: str) -> None:
    server = EmbeddedServer(settings(4222, host), tmp_path, "notes-a")
    assert (f"nats://{own}:4222", f"nats://{advertised}:4222") == (server.url, server.advertised_url)


AGENT = """
    import asyncio, sys
    from pathlib import Path
    from replicated_sqlite_agent.settings import Address, EmbeddedNats, Nats
    from replicated_sqlite_agent.stream.embedded import EmbeddedServer

    async def main() -> None:
        settings = Nats(embedded=EmbeddedNats(listen=Address("127.0.0.1", int(sys.argv[2]))))
        server = EmbeddedServer(settings, Path(sys.argv[1]), "notes-a")
        await server.start()
        print(server.pid, server.url, flush=True)
        await asyncio.Event().wait()

    if len(sys.argv) > 3:
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
"""


@pytest.mark.parametrize("loop", [[], ["uvloop"]])
def test_kill_of_the_agent_ends_the_server_and_the_next_start_works(tmp_path: Path, loop: list[str]) -> None:
    port = 0
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(AGENT), str(tmp_path / "store"), str(port), *loop]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            pid, url = agent.stdout.readline().split()
            server = psutil.Process(int(pid))
            assert "nats-server" in server.name()
            agent.kill()
        # The same port at once: the dead agent's server must not be in the way.
        port = int(url.rpartition(":")[2])
    gone, alive = psutil.wait_procs([server], LIMIT_S)
    assert ([server], []) == (gone, alive)
