"""Every way to reach and to log in to NATS, against real servers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
import trustme

from integration.conftest import LIMIT_S, STREAM_BYTES, until
from integration.servers import NatsServer
from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import Nats, Tls
from replicated_sqlite_agent.stream.errors import NatsUnavailable
from replicated_sqlite_agent.stream.session import Session


@asynccontextmanager
async def opened(server: NatsServer, settings: Nats) -> AsyncIterator[Session]:
    """A session that begins to connect; session and server end with the block."""
    session = Session(settings, "notes", "a")
    session.start()
    try:
        yield session
    finally:
        await session.close()
        server.stop()


async def works(session: Session) -> None:
    """The session connects, makes its stream, and what it publishes comes out again."""
    async with asyncio.timeout(LIMIT_S):
        await session.wait_connected()
    await session.ensure_stream(STREAM_BYTES)
    consumer = session.consumer()
    await consumer.open(1)
    await session.publish("rsqlite.notes.c.a.000000000001", b"x" * 200_000, "1")
    [delivery] = await consumer.next_batch(10, 1)
    assert b"x" * 200_000 == delivery.data
    await consumer.close()


async def test_a_token(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "authorization { token: secret }").start()
    async with opened(server, Nats(servers=(server.url,), token="secret")) as session:
        await works(session)


async def test_a_wrong_password_is_said_and_does_not_raise(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "authorization { user: u, password: right }").start()
    async with opened(server, Nats(servers=(server.url,), user="u", password="wrong")) as session:
        await until(lambda: "Authorization" in session._away, "the reason is known")
        with pytest.raises(NatsUnavailable, match="Authorization Violation"):
            await session.stream_state()


async def test_an_nkey(tmp_path: Path) -> None:
    public, seed = new_key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    server = NatsServer(tmp_path / "nats", f"authorization {{ users: [{{nkey: {public}}}] }}").start()
    async with opened(server, Nats(servers=(server.url,), nkey=tmp_path / "seed")) as session:
        await works(session)


async def test_a_credentials_file(tmp_path: Path) -> None:
    operator, operator_seed = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    system, _ = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    account, account_seed = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    user, user_seed = new_key(nkeys.PREFIX_BYTE_USER)
    limits = ("mem_storage", "disk_storage", "streams", "consumer", "subs", "conn", "data", "payload")
    operator_jwt = claims(operator_seed, operator, operator, {"type": "operator"})
    account_jwt = claims(operator_seed, operator, account, {"type": "account", "limits": dict.fromkeys(limits, -1)})
    system_jwt = claims(operator_seed, operator, system, {"type": "account"})
    user_jwt = claims(account_seed, account, user, {"type": "user", "subs": -1, "data": -1, "payload": -1})
    (tmp_path / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed.decode()}\n------END USER NKEY SEED------\n"
    )
    resolver = (
        f"operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account}: {account_jwt}, {system}: {system_jwt} }}"
    )
    server = NatsServer(tmp_path / "nats", resolver).start()
    async with opened(server, Nats(servers=(server.url,), credentials=tmp_path / "user.creds")) as session:
        await works(session)


@pytest.mark.parametrize("content", [b"nothing of use", b"\xff", None])
def test_a_credentials_file_that_is_none_is_a_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "user.creds"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^nats\.credentials: .*user\.creds"):
        Session(Nats(servers=("nats://127.0.0.1:1",), credentials=path), "notes", "a")


# -- TLS and web sockets ----------------------------------------------------------------------------------------------


class Certificates:
    """An authority, a server certificate for 127.0.0.1 and a client certificate, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.cert, self.key = self._issue(folder / "server", "127.0.0.1")
        self.client_cert, self.client_key = self._issue(folder / "client", "agent.example")

    def _issue(self, stem: Path, name: str) -> tuple[Path, Path]:
        issued = self.authority.issue_cert(name)
        cert, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        issued.cert_chain_pems[0].write_to_path(str(cert))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key

    def block(self, *further: str) -> str:
        """The `tls` block of the server's configuration."""
        lines = [f'cert_file: "{self.cert}"', f'key_file: "{self.key}"', *further]
        return "tls {\n" + "\n".join(lines) + "\n}"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_tls_with_our_own_authority_and_a_client_certificate(tmp_path: Path, certificates: Certificates) -> None:
    block = certificates.block(f'ca_file: "{certificates.ca}"', "verify: true")
    server = NatsServer(tmp_path / "nats", block).start()
    tls = Tls(ca=certificates.ca, cert=certificates.client_cert, key=certificates.client_key)
    async with opened(server, Nats(servers=(f"tls://127.0.0.1:{server.port}",), tls=tls)) as session:
        await works(session)


async def test_a_certificate_that_cannot_be_verified_is_refused(tmp_path: Path, certificates: Certificates) -> None:
    server = NatsServer(tmp_path / "nats", certificates.block()).start()
    async with opened(server, Nats(servers=(f"tls://127.0.0.1:{server.port}",))) as session:
        await until(lambda: "CERTIFICATE_VERIFY_FAILED" in session._away, "the reason is known")


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_where_tls_is_configured_a_plain_server_gets_no_password(
    nats_server: NatsServer, certificates: Certificates, scheme: str
) -> None:
    url = f"{scheme}://127.0.0.1:{nats_server.port}"
    settings = Nats(servers=(url,), user="u", password="p", tls=Tls(ca=certificates.ca))
    async with opened(nats_server, settings) as session:
        await until(lambda: "secure connection" in session._away, "the reason is known")


def test_certificates_that_are_none_are_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"^nats\.tls: "):
        Session(Nats(servers=("tls://127.0.0.1:1",), tls=Tls(ca=tmp_path / "ca.pem")), "notes", "a")


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float' is deprecated")
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_web_socket(tmp_path: Path, certificates: Certificates, scheme: str) -> None:
    block = certificates.block() if scheme == "wss" else "no_tls: true"
    server = NatsServer(tmp_path / "nats", f'websocket {{\nlisten: "127.0.0.1:-1"\n{block}\n}}').start()
    ports = json.loads(next((tmp_path / "nats").glob("*.ports")).read_text())
    port = int(ports["websocket"][0].rpartition(":")[2])
    tls = Tls(ca=certificates.ca) if scheme == "wss" else Tls()
    async with opened(server, Nats(servers=(f"{scheme}://127.0.0.1:{port}",), tls=tls)) as session:
        await works(session)


# -- keys and tokens --------------------------------------------------------------------------------------------------


def new_key(prefix: int) -> tuple[str, bytes]:
    """(public key, seed) of a new key pair."""
    seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
    return nkeys.from_seed(bytearray(seed)).public_key.decode(), seed


def claims(seed: bytes, issuer: str, subject: str, body: dict[str, Any]) -> str:
    """A token of NATS's decentralised logins, signed with the issuer's seed."""
    payload = {"jti": subject, "iat": int(time.time()), "iss": issuer, "name": "test", "sub": subject}
    payload["nats"] = body | {"version": 2}
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, payload]
    signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_base64(nkeys.from_seed(bytearray(seed)).sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
