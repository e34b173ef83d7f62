"""Three unmodified PocketBase processes on three replicas of data.db (examples/pocketbase)."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from integration.cluster import query, until
from integration.examples.running import Example, Replica

SUPERUSER = {"identity": "admin@example.com", "password": "change-me-please"}
SCHEMA_TABLES = frozenset({"_collections", "_migrations"})
"""Excluded in the example's configuration: each node fills them by its own migrations."""

RECORDS = 40
"""That each node creates."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example, running."""
    with Example("pocketbase", tmp_path_factory.mktemp("pocketbase"), "data.db") as running:
        yield running


class Client:
    """A client of one PocketBase. Every request must succeed."""

    def __init__(self, replica: Replica, token: str = "") -> None:
        self.replica = replica
        self.token = token

    def ask(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        """One request of the REST API and its answer."""
        headers = {"Content-Type": "application/json", "Authorization": self.token}
        with closing(http.client.HTTPConnection(urlsplit(self.replica.app_url).netloc, timeout=60)) as connection:
            connection.request(method, "/api/" + path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read()
        assert response.status == status, f"{self.replica.name} {method} {path}: {response.status} {answer.decode()}"
        return json.loads(answer) if answer else None

    def login(self, collection: str, identity: str, password: str) -> str:
        """Log in with a password; the token."""
        body = {"identity": identity, "password": password}
        return str(self.ask("POST", f"collections/{collection}/auth-with-password", body)["token"])

    def titles(self, collection: str = "notes") -> list[str]:
        """The titles of all records, as the API lists them."""
        found = self.ask("GET", f"collections/{collection}/records?perPage=500&skipTotal=1")
        return sorted(record["title"] for record in found["items"])


def everywhere(example: Example, work: Callable[[Client], T]) -> list[T]:
    """Do the same on all nodes at once; the results in the order of the nodes."""
    with ThreadPoolExecutor(len(example.replicas)) as threads:
        return list(threads.map(work, [Client(replica) for replica in example.replicas]))


def superuser(replica: Replica) -> Client:
    """A client that is logged in as the administrator."""
    return Client(replica, Client(replica).login("_superusers", **SUPERUSER))


def create_change_delete(client: Client) -> list[str]:
    """Create records, change every third and delete every fifth; the titles that are left."""
    left = []
    for number in range(RECORDS):
        title = f"{client.replica.name} {number}"
        body = {"title": title, "stars": number, "slug": title.replace(" ", "-")}
        record = client.ask("POST", "collections/notes/records", body)["id"]
        if number % 3 == 0:
            title += " changed"
            client.ask("PATCH", f"collections/notes/records/{record}", {"title": title})
        if number % 5 == 0:
            client.ask("DELETE", f"collections/notes/records/{record}", status=204)
        else:
            left.append(title)
    return left


def test_what_is_written_through_three_rest_apis_at_once_is_everywhere_in_the_end(example: Example) -> None:
    """Records are created, changed and deleted through each node's own API at the same time: no request fails, and
    then all APIs list the same records and all files are equal. No agent has a complaint, nothing is in conflict.
    """
    titles = sorted(title for of_node in everywhere(example, create_change_delete) for title in of_node)
    rows = example.assert_equal(SCHEMA_TABLES)
    assert len(titles) == len(rows["notes"])
    for replica in example.replicas:
        assert titles == Client(replica).titles(), replica.name
        status = replica.status()
        assert [[], {}, 0, 0] == [status[key] for key in ("alarms", "left_out", "hidden_rows", "conflicts")]


def test_a_record_of_one_node_is_changed_and_deleted_on_the_others(example: Example) -> None:
    """Created through the first API, changed through the second, deleted through the third."""
    first, second, third = (Client(replica) for replica in example.replicas)
    record = first.ask("POST", "collections/notes/records", {"title": "wanders"})["id"]
    second.replica.wait(first.replica.position())
    second.ask("PATCH", f"collections/notes/records/{record}", {"title": "wandered"})
    third.replica.wait(second.replica.position())
    assert "wandered" == third.ask("GET", f"collections/notes/records/{record}")["title"]
    third.ask("DELETE", f"collections/notes/records/{record}", status=204)
    first.replica.wait(third.replica.position())
    first.ask("GET", f"collections/notes/records/{record}", status=404)


def test_a_login_on_one_node_holds_on_all(example: Example) -> None:
    """A user who registers on one node logs in on all at once, which makes each write the same row of _authOrigins;
    each token is good on every node, and so is the administrator's.
    """
    account = {"email": "ada@example.com", "password": "engine-no-1"}
    first = example.replicas[0]
    superuser(first).ask("POST", "collections/users/records", account | {"passwordConfirm": account["password"]})
    example.converge()
    tokens = everywhere(example, lambda client: client.login("users", account["email"], account["password"]))
    for replica in example.replicas:
        for token in tokens:
            Client(replica, token).ask("POST", "collections/users/auth-refresh")
    rows = example.assert_equal(SCHEMA_TABLES)
    assert 1 == len(rows["users"])
    admin = superuser(first)
    for replica in example.replicas:
        Client(replica, admin.token).ask("GET", "settings")


def test_the_logs_of_each_pocketbase_stay_its_own(example: Example) -> None:
    """PocketBase logs into auxiliary.db beside data.db; the agent leaves that file alone."""
    for replica in example.replicas:
        tables = {name for (name,) in query(replica.folder / "auxiliary.db", "SELECT name FROM sqlite_schema")}
        assert "_logs" in tables
        assert not [name for name in tables if name.startswith("__rsqlite_")]


def test_settings_of_a_peer_hold_after_a_touch_of_its_notify_folder(example: Example) -> None:
    """PocketBase keeps its settings in memory: a changed row alone is not seen, a file in `.notify` makes it look."""
    first, second, _ = example.replicas
    admin = superuser(first)
    admin.ask("PATCH", "settings", {"meta": {"appName": "Three of us"}})
    second.wait(first.position())
    peer = Client(second, admin.token)
    assert "Three of us" != peer.ask("GET", "settings")["meta"]["appName"]
    (second.folder / ".notify" / "settings@peer").touch()
    until(lambda: peer.ask("GET", "settings")["meta"]["appName"] == "Three of us", "the peer reads its settings again")


def test_a_new_collection_waits_for_its_migration_on_the_other_nodes_and_loses_nothing(example: Example) -> None:
    """A collection made through one node's admin API is written by PocketBase as a migration file. Until the others
    have run it they have no such table: its records wait there, visibly. After a restart of the whole they are there,
    and every node writes to it.
    """
    example.converge()
    first, *others = example.replicas
    anyone = dict.fromkeys(("listRule", "viewRule", "createRule"), "")
    tasks = {"name": "tasks", "type": "base", "fields": [{"name": "title", "type": "text"}], **anyone}
    superuser(first).ask("POST", "collections", tasks)
    for number in range(5):
        Client(first).ask("POST", "collections/tasks/records", {"title": f"early {number}"})
    for replica in others:
        replica.wait(first.position())
        assert ["tasks"] == list(replica.status()["paused"])
        Client(replica).ask("GET", "collections/tasks/records", status=404)

    example.stop()
    example.start()

    everywhere(example, lambda client: client.ask("POST", "collections/tasks/records", {"title": client.replica.name}))
    rows = example.assert_equal(SCHEMA_TABLES)
    assert 8 == len(rows["tasks"])
    for replica in example.replicas:
        assert [*"abc", *(f"early {number}" for number in range(5))] == Client(replica).titles("tasks")
        assert {} == replica.status()["paused"]
