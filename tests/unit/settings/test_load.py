"""Settings from files and the environment: what they become, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import (
    Address,
    ColumnMerge,
    Merge,
    Mode,
    Settings,
    effective,
    load,
    show_duration,
    show_size,
    unsupported,
)
from replicated_sqlite_agent.settings_reader import variable_names

SMALLEST = "cluster: notes\nnode: notes-0\ndatabase: ./data/app.db\n"


def written(folder: Path, text: str, name: str = "agent.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def settings(folder: Path, text: str, **environ: str) -> Settings:
    return load(written(folder, SMALLEST + text), environ)


def mistakes(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(written(folder, text), environ)
    assert caught.value.exit_code == 2
    return list(caught.value.mistakes)


def test_the_smallest_file_gets_all_defaults(tmp_path: Path) -> None:
    read = settings(tmp_path, "")
    assert (read.cluster, read.node, read.database) == ("notes", "notes-0", Path("data/app.db"))
    assert read.nats.servers == ()
    assert read.nats.embedded.listen == Address("127.0.0.1", 4222)
    assert read.nats.embedded.store == Path("data/app.db.rsqlite/nats")
    assert read.http == Address("127.0.0.1", 8081)
    assert read.mode is Mode.READ_WRITE
    assert read.limits.start_without_nats == 30
    assert read.limits.stream_max_bytes == 2 * 1024**3
    assert unsupported(read) == []


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    as_json = '{"cluster": "notes",\n\t"node": "notes-0", "database": "./data/app.db", "http": "off"}'
    assert load(written(tmp_path, as_json, "agent.json"), {}) == settings(tmp_path, "http: off\n")


def test_the_node_is_the_host_name_with_its_dots_replaced() -> None:
    environ = {"RSQLITE_CLUSTER": "notes", "RSQLITE_DATABASE": "app.db"}
    assert load(None, environ, lambda: "web-0.example.org").node == "web-0_example_org"
    with pytest.raises(ConfigurationError, match=r"^node \(from the host name\): takes 1 to 63 of"):
        load(None, environ, lambda: "x" * 64)


@pytest.mark.parametrize("text", ["http: off", "http: 'off'", "http: false"])
def test_http_can_be_off(tmp_path: Path, text: str) -> None:
    assert settings(tmp_path, text).http is None


def test_a_section_without_a_value_is_not_given(tmp_path: Path) -> None:
    assert settings(tmp_path, "nats:\nlimits:\n  heartbeat:\n") == settings(tmp_path, "")


def test_plain_words_and_numbers_with_zeros_are_text(tmp_path: Path) -> None:
    read = load(written(tmp_path, "cluster: off\nnode: 007\ndatabase: 2026-11-20"), {})
    assert (read.cluster, read.node, read.database) == ("off", "007", Path("2026-11-20"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("1h", 3600), ("1h30m", 5400), ("250ms", 0.25), ("7d", 604800), ("1.5m", 90), ("20", 20)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    assert settings(tmp_path, "", RSQLITE_LIMITS_FLUSH_TIMEOUT=text).limits.flush_timeout == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2 << 30), ("64KiB", 65536), ("10MB", 10**7), ("1.5Mi", 3 << 19), ("4096", 4096), ("3k", 3000)],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert settings(tmp_path, "", RSQLITE_LIMITS_STREAM_MAX_BYTES=text).limits.stream_max_bytes == size


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (900, "15m"), (5400, "90m"), (0.25, "250ms"), (86400, "1d")])
def test_a_duration_is_shown_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(1 << 31, "2Gi"), (65536, "64Ki"), (1000, "1000")])
def test_a_size_is_shown_in_its_largest_whole_unit(size: int, text: str) -> None:
    assert show_size(size) == text


def test_policies_apply_without_regard_to_case(tmp_path: Path) -> None:
    text = "tables: {exclude: ['tmp_*'], policies: [{table: Stock, merge: column-lww, columns: {amount: counter}}]}"
    tables = settings(tmp_path, text).tables
    assert tables.policy("STOCK").columns == {"amount": ColumnMerge.COUNTER}
    assert tables.policy("other").merge is Merge.ROW_LWW
    assert tables.selects("stock")
    assert not tables.selects("TMP_1")


def test_keys_may_be_spelled_as_in_the_resource(tmp_path: Path) -> None:
    text = "snapshots: {store: s3, retention: {maxAge: 720h}, s3: {bucket: b, forcePathStyle: true}}"
    snapshots = settings(tmp_path, text).snapshots
    assert snapshots.s3 is not None
    assert snapshots.s3.force_path_style
    assert snapshots.retention is not None
    assert snapshots.retention.max_age == 720 * 3600


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    read = settings(
        tmp_path,
        "http: 127.0.0.1:1\nlimits: {conflicts_rows: 7, heartbeat: 1s}\nlog: {level: error}\n",
        RSQLITE_HTTP="off",
        RSQLITE_NATS_SERVERS='["nats://a:1", "b:2"]',
        RSQLITE_LIMITS_CONFLICTS_ROWS="9",
        RSQLITE_LOG='{"format": "json"}',
        RSQLITE_SNAPSHOTS_S3_FORCE_PATH_STYLE="",
        RSQLITE_TABLES_POLICIES='[{"table": "t", "merge": "column-lww"}]',
    )
    assert read.http is None
    assert read.nats.servers == ("nats://a:1", "b:2")
    assert (read.limits.conflicts_rows, read.limits.heartbeat) == (9, 1)
    # A section given as a whole replaces that of the file.
    assert (read.log.level, read.log.format) == ("info", "json")
    assert read.tables.policy("t").merge is Merge.COLUMN_LWW


def test_every_key_has_its_variable() -> None:
    names = variable_names(Settings)
    assert {"RSQLITE_CLUSTER", "RSQLITE_NATS", "RSQLITE_NATS_TLS_CA", "RSQLITE_SNAPSHOTS_S3_BUCKET"} <= set(names)
    assert all(name == name.upper() for name in names)


def test_service_links_of_kubernetes_are_no_settings(tmp_path: Path) -> None:
    links = {
        "RSQLITE_SERVICE_HOST": "10.0.0.1",
        "RSQLITE_PORT": "tcp://10.0.0.1:80",
        "RSQLITE_NOTES_NATS_SERVICE_PORT_CLIENT": "4222",
        "RSQLITE_NOTES_NATS_PORT_4222_TCP_ADDR": "10.0.0.1",
    }
    assert settings(tmp_path, "", **links) == settings(tmp_path, "")


MISTAKES = {
    "unknown key": ("clustr: x", "clustr: there is no such key; did you mean 'cluster'?"),
    "unknown key inside": (
        "limits: {hartbeat: 5s}",
        "limits.hartbeat: there is no such key; did you mean 'heartbeat'?",
    ),
    "unknown key in a list": (
        "tables: {policies: [{table: t, merg: row-lww}]}",
        "tables.policies[0].merg: there is no such key; did you mean 'merge'?",
    ),
    "map wanted": ("nats: nats://h:4222", "nats: takes a map with keys out of servers, credentials,"),
    "list wanted": ("nats: {servers: 'nats://h:4222'}", "nats.servers: takes a list, each item a URL such as"),
    "number wanted": (
        "limits: {conflicts_rows: many}",
        "limits.conflicts_rows: takes a whole number of at least 1, not 'many'",
    ),
    "number in quotes": (
        "limits: {conflicts_rows: '5'}",
        "limits.conflicts_rows: takes a whole number of at least 1, not '5'",
    ),
    "number too small": ("limits: {conflicts_rows: 0}", "limits.conflicts_rows: must be at least 1"),
    "flag wanted": ("archive: {enabled: yes}", "archive.enabled: takes true or false, not 'yes'"),
    "word wanted": ("mode: rw", "mode: takes one of read-write, read-only, single-primary, independent, not 'rw'"),
    "duration": ("limits: {heartbeat: soon}", "limits.heartbeat: takes a duration such as '30s' or '1h', not 'soon'"),
    "duration of zero": ("limits: {heartbeat: 0s}", "limits.heartbeat: must be more than zero"),
    "size": ("limits: {message_bytes: 5 apples}", "limits.message_bytes: takes a size such as '512KiB' or '2Gi', not"),
    "size out of range": ("limits: {message_bytes: 1Ki}", "limits.message_bytes: takes 16KiB to 64MiB"),
    "http": ("http: 8081", "http: takes HOST:PORT, or 'off', not 8081"),
    "http port": ("http: 127.0.0.1:99999", "http: takes HOST:PORT, or 'off', not '127.0.0.1:99999'"),
    "server": (
        "nats: {servers: ['http://h']}",
        "nats.servers[0]: takes a URL such as 'nats://host:4222', not 'http://h'",
    ),
    "server port": ("nats: {servers: ['nats://h:x']}", "nats.servers[0]: takes a URL such as"),
    "file": ("nats: {credentials: no/such.creds}", "nats.credentials: the file 'no/such.creds' does not exist"),
    "login": ("nats: {user: u}", "nats.password: is missing; user and password go together"),
    "two logins": ("nats: {user: u, password: p, token: t}", "nats.token: stands beside user; keep one of"),
    "secret": ("nats: {token: 12345}", "nats.token: takes text in quotes, not what stands there"),
    "replicas": ("nats: {replicas: 2}", "nats.replicas: takes 1, 3 or 5, not 2"),
    "policy": ("tables: {policies: [{table: t, merge: lww}]}", "tables.policies[0].merge: takes one of row-lww,"),
    "policy without table": ("tables: {policies: [{merge: row-lww}]}", "tables.policies[0].table: is missing"),
    "policy twice": ("tables: {policies: [{table: t}, {table: T}]}", "tables.policies[1].table: 'T' has a policy"),
    "owner missing": ("tables: {policies: [{table: t, merge: origin}]}", "tables.policies[0].owner: is missing;"),
    "owner in vain": ("tables: {policies: [{table: t, owner: c}]}", "tables.policies[0].owner: only goes with"),
    "schedule": ("snapshots: {schedule: '61 * * * *'}", "snapshots.schedule: takes five cron fields such as"),
    "store": ("snapshots: {store: s3}", "snapshots.s3: is missing; 'store: s3' needs it"),
    "store in vain": ("snapshots: {file: {path: x}}", "snapshots.file: is not used with 'store: nats'"),
    "twice": ("http: off\nhttp: off", "the key 'http' stands twice (line 5)"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_key(tmp_path: Path, case: str) -> None:
    text, sentence = MISTAKES[case]
    said = mistakes(tmp_path, SMALLEST + text)
    assert len(said) == 1
    assert sentence in said[0]
    assert "\n" not in said[0]
    assert "12345" not in said[0]


@pytest.mark.parametrize("key", ["cluster", "node"])
@pytest.mark.parametrize("name", ["a.b", "a b", "''", "'*'", "x" * 64, "ä", "'a\n'"])
def test_names_are_single_tokens(tmp_path: Path, key: str, name: str) -> None:
    lines = {"cluster": "notes", "node": "notes-0", "database": "app.db"} | {key: name}
    said = mistakes(tmp_path, "\n".join(f"{k}: {v}" for k, v in lines.items()))
    assert [sentence.split(" takes")[0] for sentence in said] == [f"{key}:"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    said = mistakes(
        tmp_path,
        "cluster: 5\nfoo: 1\nlimits: {conflicts_rows: x}",
        RSQLITE_LIMITS_HEARTBEAT="x",
        RSQLITE_NATS_SERVERS="nats://h",
        RSQLITE_NOSUCH="1",
    )
    starts = [sentence.split(": ")[0] for sentence in said]
    assert starts == [
        "nats.servers (from RSQLITE_NATS_SERVERS)",
        "RSQLITE_NOSUCH",
        "foo",
        "cluster",
        "database",
        "limits.conflicts_rows",
        "limits.heartbeat (from RSQLITE_LIMITS_HEARTBEAT)",
    ]
    assert "the bare 5 (put it in quotes)" in said[3]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.yaml", b"- 1\n", "the file must hold keys with values"),
        ("a.yaml", b"a: [\n", "the file is not YAML"),
        ("a.yaml", b"\xff\xfe\x00", "the file is not UTF-8 text (byte 0)"),
        ("a.yaml", b"a: \x01", "the file is not YAML"),
        ("a.yaml", b"? [1, 2]\n: 3\n", "the file is not YAML"),
        ("a.json", b"{'a': 1}", "the file is not JSON"),
        ("a.json", b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("a.json", b"[" * 100_000, "the file is not JSON"),
    ],
)
def test_a_file_that_is_no_map_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(path, {})
    assert len(str(caught.value).splitlines()) == 1
    assert sentence in str(caught.value)


@pytest.mark.parametrize("schedule", ["15 * * * *", "*/5 0-6 1,15 jan-mar mon", "0 4 * * 7", "5s", "1h30m"])
def test_schedules_are_cron_or_durations(tmp_path: Path, schedule: str) -> None:
    assert settings(tmp_path, f"snapshots: {{schedule: '{schedule}'}}").snapshots.schedule == schedule


def test_effective_settings_read_back_the_same(tmp_path: Path) -> None:
    read = settings(
        tmp_path,
        "nats: {embedded: {listen: '[::1]:0', advertise: 'h:1'}}\nhttp: off\nlimits: {start_without_nats: 0}\n"
        "tables: {policies: [{table: t, columns: {c: max}}]}\n"
        "snapshots: {store: file, file: {path: x}, schedule: 1h}\n",
    )
    text = yaml.safe_dump(effective(read), sort_keys=False)
    assert load(written(tmp_path, text, "effective.yaml"), {}) == read


def test_effective_settings_hold_no_secret(tmp_path: Path) -> None:
    read = settings(tmp_path, "nats: {servers: ['nats://me:hush1@h:1', 'hush2@h'], user: me, password: hush3}")
    shown = effective(read)["nats"]
    assert "hush" not in str(shown)
    assert shown["servers"] == ["nats://***@h:1", "***@h"]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("mode: single-primary", "mode: 'single-primary'"),
        ("mode: independent", "mode: 'independent'"),
        ("tables: {policies: [{table: t, merge: first-write}]}", "tables.policies[0].merge: 'first-write'"),
        ("tables: {policies: [{table: t, merge: origin, owner: o}]}", "tables.policies[0].merge: 'origin'"),
        ("tables: {policies: [{table: t, columns: {c: counter}}]}", "tables.policies[0].columns.c: 'counter'"),
        ("archive: {enabled: true}", "archive.enabled:"),
        ("schema: {migrations: dir}", "schema.migrations:"),
    ],
)
def test_what_this_version_cannot_do_is_said(tmp_path: Path, text: str, setting: str) -> None:
    said = unsupported(settings(tmp_path, text))
    assert len(said) == 1
    assert said[0].startswith(f"{setting} is not part of version ")


@pytest.mark.parametrize(
    "text",
    [
        "mode: read-only",
        "tables: {policies: [{table: t, merge: column-lww}]}",
        "snapshots: {store: file, file: {path: x}, schedule: 1h, retention: {keep: 3}, encryption: {recipients: [k]}}",
        "snapshots: {store: s3, s3: {bucket: b}}",
        "snapshots: {store: fsspec, fsspec: {url: 'sftp://host/path'}}",
    ],
)
def test_what_this_version_can_do_is_not_refused(tmp_path: Path, text: str) -> None:
    assert unsupported(settings(tmp_path, text)) == []
