"""The members of a cluster as they describe themselves in the KV bucket, and the record of the cluster itself."""

from __future__ import annotations

import msgspec

from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import names


class ClusterRecord(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=False):
    """KV key ``cluster``: made once, by compare-and-set, by the member that founds the cluster."""

    lineage: str
    """Random id of the data: a file of another lineage is adopted, not resumed."""
    founder: str
    founded_ms: int
    policies: dict[str, str] = {}
    """Tables that merge otherwise than row by row, as the founder was configured: table -> merge."""
    generation: int = 1
    version: int = 1


class Member(msgspec.Struct, omit_defaults=True):
    """KV key ``member.<node>``: what an agent says about itself."""

    node: str
    run: int
    agent: str
    """Version of the agent."""
    state: str
    vector: Vector = {}
    sequence: int = 0
    """Stream sequence up to which it has applied."""
    seen_ms: int = 0
    """When it wrote this, milliseconds since 1970 by the server's clock."""
    version: int = 1


async def read_cluster(session: Session) -> ClusterRecord | None:
    """The record of the cluster, None if nobody has founded it."""
    found = await session.kv_get(names.CLUSTER_KEY)
    return msgspec.json.decode(found[0], type=ClusterRecord) if found is not None else None


async def found_cluster(session: Session, record: ClusterRecord) -> None:
    """Write the record; raises KeyExists if somebody else founded the cluster first."""
    await session.kv_create(names.CLUSTER_KEY, msgspec.json.encode(record))


async def write_member(session: Session, member: Member) -> None:
    """Write the own record."""
    await session.kv_put(names.member_key(member.node), msgspec.json.encode(member))


async def read_members(session: Session) -> dict[str, Member]:
    """node -> record of all members."""
    items = await session.kv_items(names.member_key(""))
    members = (msgspec.json.decode(value, type=Member) for value, _ in items.values())
    return {member.node: member for member in members}
