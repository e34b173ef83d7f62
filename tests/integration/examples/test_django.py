"""A Django project with its admin and sessions on three replicas of its SQLite database (examples/django)."""

from __future__ import annotations

import http.cookiejar
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

import pytest

from integration.cluster import query
from integration.examples.running import Example, Replica

ADMIN = {"username": "admin", "password": "change-me-please"}
MIGRATIONS = frozenset({"django_migrations"})
"""Excluded in the example's configuration."""

OBJECTS = 6
"""That each node creates."""

T = TypeVar("T")


class Browser:
    """Somebody with a cookie jar. Cookies know no ports: one jar is good for all nodes, as behind a load balancer."""

    def __init__(self) -> None:
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def get(self, replica: Replica, path: str) -> str:
        """A page; every request must end with 200."""
        return self._open(replica, path)

    def post(self, replica: Replica, path: str, /, **form: str) -> str:
        """Send a form and follow to the next page."""
        token = next(cookie.value for cookie in self._cookies if cookie.name == "csrftoken")
        page = self._open(replica, path, form | {"csrfmiddlewaretoken": token or ""})
        assert "errorlist" not in page, f"{replica.name} refuses {path}: {page}"
        return page

    def login(self, replica: Replica, username: str, password: str) -> None:
        """Log in to the admin."""
        self.get(replica, "/admin/login/")
        page = self.post(replica, "/admin/login/?next=/admin/", username=username, password=password)
        assert "Site administration" in page

    def _open(self, replica: Replica, path: str, form: dict[str, str] | None = None) -> str:
        data = urlencode(form).encode() if form is not None else None
        with self._opener.open(replica.app_url + path, data, timeout=60) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example, running."""
    with Example("django", tmp_path_factory.mktemp("django"), "db.sqlite3") as running:
        yield running


@pytest.fixture
def admin(example: Example) -> Browser:
    """The administrator, logged in on the first node; the session has arrived everywhere."""
    browser = Browser()
    browser.login(example.replicas[0], **ADMIN)
    example.converge()
    return browser


def everywhere(example: Example, work: Callable[[Replica], T]) -> list[T]:
    """Do the same on all nodes at once; the results in the order of the nodes."""
    with ThreadPoolExecutor(len(example.replicas)) as threads:
        return list(threads.map(work, example.replicas))


def key(replica: Replica, table: str, column: str, value: str) -> str:
    """The key of a row that this node has just written."""
    ((found,),) = query(replica.database, f"SELECT id FROM {table} WHERE {column} = ?", value)
    return str(found if isinstance(found, int) else uuid.UUID(found))


def test_a_session_of_one_node_is_valid_on_the_others(example: Example, admin: Browser) -> None:
    """Logged in on the first node, the other two know who it is; logged out on the third, nobody does."""
    for replica in example.replicas:
        assert "Site administration" in admin.get(replica, "/admin/")
    admin.post(example.replicas[2], "/admin/logout/")
    example.converge()
    for replica in example.replicas:
        assert "Log in" in admin.get(replica, "/admin/")


def create_change_delete(admin: Browser, replica: Replica) -> list[str]:
    """Through the admin: create authors and books by them, change every second book, delete every third; the titles
    that are left.
    """
    left = []
    for number in range(OBJECTS):
        name, title = f"author {replica.name}{number}", f"book {replica.name}{number}"
        admin.post(replica, "/admin/books/author/add/", name=name)
        author = key(replica, "books_author", "name", name)
        admin.post(replica, "/admin/books/book/add/", title=title, year="1999", authors=author)
        book = key(replica, "books_book", "title", title)
        if number % 2 == 0:
            title += " changed"
            admin.post(replica, f"/admin/books/book/{book}/change/", title=title, year="2001", authors=author)
        if number % 3 == 0:
            admin.post(replica, f"/admin/books/book/{book}/delete/", post="yes")
        else:
            left.append(title)
    return left


def test_what_is_edited_in_three_admins_at_once_is_everywhere_in_the_end(example: Example, admin: Browser) -> None:
    """Objects with many-to-many relations are created, changed and deleted in each node's admin at the same time: no
    request fails, all files are equal afterwards, and the admin's log has an entry for each action: neither UUIDs nor
    the random integer keys of Django's own tables collide.
    """
    before = len(example.assert_equal(MIGRATIONS)["django_admin_log"])
    left = everywhere(example, lambda replica: create_change_delete(admin, replica))
    rows = example.assert_equal(MIGRATIONS)
    titles = sorted(title for of_node in left for title in of_node)
    of_each = 2 * OBJECTS + OBJECTS // 2 + OBJECTS // 3
    assert before + 3 * of_each == len(rows["django_admin_log"])
    assert len(titles) == len(rows["books_book"]) == len(rows["books_book_authors"])
    assert 3 * OBJECTS == len(rows["books_author"])
    for replica in example.replicas:
        assert titles == [title for (title,) in query(replica.database, "SELECT title FROM books_book ORDER BY title")]
        page = admin.get(replica, "/admin/books/book/")
        assert all(title in page for title in titles)
        status = replica.status()
        assert [[], {}, 0] == [status[field] for field in ("alarms", "left_out", "hidden_rows")]


def login(username: str, password: str, replica: Replica) -> None:
    """Log in with a new browser."""
    Browser().login(replica, username, password)


def test_users_and_groups_may_be_made_on_every_node(example: Example, admin: Browser) -> None:
    """Users, groups and their permissions are made on all nodes at once, and each user logs in on each node."""
    password = "correct-horse-7"

    def make(replica: Replica) -> str:
        name = f"user-{replica.name}"
        admin.post(replica, "/admin/auth/group/add/", name=f"group-{replica.name}", permissions="1")
        user = {"username": name, "usable_password": "true", "password1": password, "password2": password}
        admin.post(replica, "/admin/auth/user/add/", **user)
        person, group = (
            key(replica, "auth_user", "username", name),
            key(replica, "auth_group", "name", f"group-{name[5:]}"),
        )
        joined = {"date_joined_0": "2026-01-01", "date_joined_1": "12:00:00"}
        rights = {"is_active": "on", "is_staff": "on", "groups": group}
        admin.post(replica, f"/admin/auth/user/{person}/change/", username=name, **rights, **joined)
        return name

    names = everywhere(example, make)
    rows = example.assert_equal(MIGRATIONS)
    assert [4, 3, 3, 3] == [
        len(rows[table]) for table in ("auth_user", "auth_group", "auth_group_permissions", "auth_user_groups")
    ]
    for name in names:
        everywhere(example, partial(login, name, password))
    example.assert_equal(MIGRATIONS)


def test_a_login_does_not_undo_a_change_of_the_same_user_elsewhere(example: Example, admin: Browser) -> None:
    """A login writes last_login into the user's row; that row merges column by column, so a name that another node
    changes at the same moment stays.
    """
    first, second, _ = example.replicas
    person = key(first, "auth_user", "username", "admin")
    form = {"username": "admin", "email": "admin@example.com", "is_active": "on", "is_staff": "on"}
    joined = {"is_superuser": "on", "date_joined_0": "2026-01-01", "date_joined_1": "12:00:00"}
    with ThreadPoolExecutor(2) as threads:
        change = threads.submit(
            admin.post, first, f"/admin/auth/user/{person}/change/", first_name="Ada", **form, **joined
        )
        threads.submit(Browser().login, second, **ADMIN).result()
        change.result()
    example.assert_equal(MIGRATIONS)
    for replica in example.replicas:
        assert [("Ada",)] == query(replica.database, "SELECT first_name FROM auth_user WHERE username = 'admin'")


def test_all_is_there_after_a_restart(example: Example, admin: Browser) -> None:
    """Everything is stopped and started again: nothing is lost, the session still holds, every node takes writes."""
    before = example.assert_equal(MIGRATIONS)
    example.stop()
    example.start()
    assert before == example.assert_equal(MIGRATIONS)
    everywhere(example, lambda replica: admin.post(replica, "/admin/books/author/add/", name=f"late {replica.name}"))
    assert len(before["books_author"]) + 3 == len(example.assert_equal(MIGRATIONS)["books_author"])
