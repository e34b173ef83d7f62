"""The settings of an agent: a YAML or JSON file, and over it the environment.

Every key is also an environment variable: `RSQLITE_` and its path in capitals joined by `_`
(`limits.start_without_nats` is `RSQLITE_LIMITS_START_WITHOUT_NATS`), lists and maps written as JSON. The environment
wins. Durations are seconds here and texts such as '5s' or '1h30m' in a file; sizes are bytes here and texts such as
'512KiB' or '2Gi' there.

The docstrings of sections and fields are what docs/configuration.md says, in Markdown: `make docs` writes it. A
default that is no plain value stands last in its docstring, after "Default:". Where a feature is not there yet, the
docstring of its setting says "Not part of this version yet", and `unsupported` refuses it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings_reader import MASK, Complaint, Form, read_document, read_settings, to_document
from replicated_sqlite_contract import __version__, names

_KIB: Final = 1024
_MIB: Final = 1024**2
_GIB: Final = 1024**3
_MINUTE: Final = 60.0
_DAY: Final = 86400.0


class Address(NamedTuple):
    """A host and a TCP port; port 0 asks for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# How values stand in a file. Each parser raises ValueError for the usual sentence, Complaint for an own one.


def _parse_name(raw: Any) -> str:
    if not isinstance(raw, str) or not names.is_name(raw):
        raise ValueError
    return raw


def _parse_text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
        raise ValueError
    return raw


def _parse_path(raw: Any) -> Path:
    try:
        return Path(_parse_text(raw)).expanduser()
    except RuntimeError as error:
        raise Complaint("names a home folder that is not known; write the whole path") from error


def _parse_existing_file(raw: Any) -> Path:
    path = _parse_path(raw)
    if not path.is_file():
        raise Complaint(f"the file '{path}' does not exist")
    return path


def _parse_address(raw: Any) -> Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", _parse_text(raw), re.ASCII)
    if match is None or int(match[3]) > 65535:
        raise ValueError
    return Address(match[1] or match[2], int(match[3]))


def _parse_http(raw: Any) -> Address | None:
    # YAML 1.1 writers print the word `off` as false.
    return None if raw == "off" or raw is False else _parse_address(raw)


def _parse_server(raw: Any) -> str:
    text = _parse_text(raw)
    parts = urlsplit(text if "://" in text else f"nats://{text}")
    # `.port` raises ValueError when it is no number or too large.
    if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname or parts.port == 0 or " " in text:
        raise ValueError
    return text


def _parse_url(raw: Any) -> str:
    text = _parse_text(raw)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY}


def _parse_duration(raw: Any) -> float:
    """Seconds of '1h30m', '5s', '250ms', '7d', or of a bare number of seconds; more than zero."""
    if isinstance(raw, str):
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", raw, re.ASCII)
        if not parts or "".join(number + unit for number, unit in parts) != raw:
            raise ValueError
        raw = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if type(raw) not in (int, float):
        raise ValueError
    if not 0 < raw <= 100 * 366 * _DAY:
        raise Complaint("must be more than zero and at most a hundred years")
    return float(raw)


def seconds_of(duration: str) -> float:
    """The seconds of a duration as settings spell it. Raises ValueError."""
    return _parse_duration(duration)


def _parse_duration_or_zero(raw: Any) -> float:
    return 0.0 if raw in (0, "0", "0s") and not isinstance(raw, bool) else _parse_duration(raw)


def show_duration(seconds: float) -> str:
    """A duration as people write it, in its largest whole unit: 900.0 -> '15m'."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms"):
        number = seconds / _DURATION_UNITS[unit]
        if number >= 1 and number == int(number):
            return f"{int(number)}{unit}"
    return f"{seconds:f}s"


_SIZE_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_SIZE_UNITS_BINARY: Final = {"ki": _KIB, "mi": _MIB, "gi": _GIB, "ti": 1024**4}


def _parse_size(raw: Any) -> int:
    """Bytes of '2Gi', '64KiB', '10MB', or of a bare number of bytes; more than zero."""
    if isinstance(raw, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KkMGT]?i?)B?", raw, re.ASCII)
        factor = (_SIZE_UNITS | _SIZE_UNITS_BINARY).get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ValueError
        raw = round(float(match[1]) * factor)
    if type(raw) is not int:
        raise ValueError
    if not 0 < raw < 2**63:
        raise Complaint("must be more than zero and less than 2^63 bytes")
    return raw


def show_size(size: int) -> str:
    """A size as people write it, in its largest whole binary unit: 2147483648 -> '2Gi'."""
    for unit, factor in reversed(_SIZE_UNITS_BINARY.items()):
        if size % factor == 0:
            return f"{size // factor}{unit.title()}"
    return str(size)


def _parse_count(raw: Any) -> int:
    if type(raw) is not int:
        raise ValueError
    if not 0 < raw < 2**63:
        raise Complaint("must be at least 1 and less than 2^63")
    return raw


_CRON_FIELDS: Final[tuple[tuple[int, int, tuple[str, ...]], ...]] = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    (0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


def _is_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) == len(_CRON_FIELDS) and all(
        all(_is_cron_range(part, *limits) for part in field.split(","))
        for field, limits in zip(fields, _CRON_FIELDS, strict=True)
    )


def _is_cron_range(part: str, low: int, high: int, words: tuple[str, ...]) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step) > 0):
        return False
    if span == "*":
        return True
    # Words count from the least number: jan is 1, sun is 0.
    ends = [str(words.index(end) + low) if end in words else end for end in span.lower().split("-")]
    if len(ends) > 2 or not all(end.isascii() and end.isdigit() and low <= int(end) <= high for end in ends):
        return False
    return int(ends[0]) <= int(ends[-1])


def _parse_schedule(raw: Any) -> str:
    text = _parse_text(raw).strip()
    if not _is_cron(text):
        _parse_duration(text)
    return text


def _show_server(server: str) -> str:
    """A server's URL without the password or token that may stand in it."""
    return re.sub(r"(^|//)[^/@]*@", rf"\1{MASK}@", server)


def _masked(_: str) -> str:
    return MASK


Name = Annotated[str, Form("1 to 63 of letters, digits, '_' and '-'", _parse_name)]
Text = Annotated[str, Form("text", _parse_text)]
Secret = Annotated[str, Form("text in quotes", _parse_text, _masked, secret=True)]
FilePath = Annotated[Path, Form("a path", _parse_path)]
ExistingFile = Annotated[Path, Form("the path of a file", _parse_existing_file)]
HostPort = Annotated[Address, Form("HOST:PORT", _parse_address)]
HttpAddress = Annotated[Address, Form("HOST:PORT, or 'off'", _parse_http)]
ServerUrl = Annotated[str, Form("a URL such as 'nats://host:4222'", _parse_server, _show_server)]
HttpUrl = Annotated[str, Form("a URL such as 'https://s3.example.com'", _parse_url)]
Duration = Annotated[float, Form("a duration such as '30s' or '1h'", _parse_duration, show_duration)]
DurationOrZero = Annotated[float, Form("a duration such as '30s', or 0", _parse_duration_or_zero, show_duration)]
ByteSize = Annotated[int, Form("a size such as '512KiB' or '2Gi'", _parse_size, show_size)]
Count = Annotated[int, Form("a whole number of at least 1", _parse_count, int)]
Schedule = Annotated[str, Form("five cron fields such as '15 * * * *', or a duration such as '1h'", _parse_schedule)]

Complaints = Iterator[tuple[str, str]]
"""Mistakes between the fields of a struct: (key, what is wrong with it)."""


class Mode(StrEnum):
    """Who may write."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    SINGLE_PRIMARY = "single-primary"
    INDEPENDENT = "independent"


class Adopt(StrEnum):
    """What becomes of a file that holds rows but was never part of this cluster."""

    MERGE = "merge"
    REPLACE = "replace"
    REFUSE = "refuse"


class Merge(StrEnum):
    """How two concurrent changes of one row meet."""

    ROW_LWW = "row-lww"
    COLUMN_LWW = "column-lww"
    FIRST_WRITE = "first-write"
    ORIGIN = "origin"


class ColumnMerge(StrEnum):
    """How two concurrent changes of one column meet, where the latest write shall not win."""

    COUNTER = "counter"
    MAX = "max"
    MIN = "min"


class StoreKind(StrEnum):
    """Where snapshots are kept."""

    NATS = "nats"
    FILE = "file"
    S3 = "s3"
    FSSPEC = "fsspec"


class LogLevel(StrEnum):
    """The least severe line that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line looks."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """A map of settings. Its fields are its keys."""


class Tls(_Section, frozen=True, kw_only=True):
    """TLS of the connection to NATS: used for `tls://` and `wss://`, and always if `ca` or `cert` is given."""

    ca: ExistingFile | None = None
    """PEM file of the certificate authorities to trust. None: those of the system."""

    cert: ExistingFile | None = None
    """PEM file of the client's certificate. None: the client shows none."""

    key: ExistingFile | None = None
    """PEM file of the client's key; together with `cert`."""

    def complaints(self) -> Complaints:
        if (self.cert is None) != (self.key is None):
            yield ("cert" if self.cert is None else "key"), "is missing; cert and key go together"


class EmbeddedNats(_Section, frozen=True, kw_only=True):
    """The NATS server that the agent runs as its child when `nats.servers` is absent. It asks clients for `nats.user`
    and `nats.password`, or for `nats.token`, if they are given."""

    listen: HostPort = Address("127.0.0.1", 4222)
    """Where it listens. Loopback unless said otherwise, so that nothing is open to the network unasked; port 0: any
    free port."""

    store: FilePath = Path()
    """Folder of JetStream's files. Default: `<database>.rsqlite/nats`"""

    advertise: HostPort | None = None
    """Address that the log and `/v1/status` tell for other agents. None: `listen`, with the host name where that is a
    wildcard."""


class Nats(_Section, frozen=True, kw_only=True):
    """How to reach NATS."""

    servers: tuple[ServerUrl, ...] = ()
    """URLs of one NATS cluster, any order. Empty: the agent runs the embedded server."""

    credentials: ExistingFile | None = None
    """`.creds` file (JWT and seed). Give at most one of credentials, user, token and nkey; without any: no login."""

    user: Text | None = None
    """User name; together with `password`."""

    password: Secret | None = None
    """Password of `user`. Better given by the environment than in a file."""

    token: Secret | None = None
    """Token. Better given by the environment than in a file."""

    nkey: ExistingFile | None = None
    """File with the seed of an NKey."""

    tls: Tls = Tls()
    """Certificates of the connection."""

    embedded: EmbeddedNats = EmbeddedNats()
    """The agent's own server; not used when `servers` is given."""

    replicas: Count = 1
    """On how many servers the stream is kept when the agent creates it: 1, 3 or 5. 1 fits any NATS, 3 a cluster."""

    def complaints(self) -> Complaints:
        if (self.user is None) != (self.password is None):
            yield ("user" if self.user is None else "password"), "is missing; user and password go together"
        for name in ("credentials", "nkey"):
            if getattr(self, name) is not None and not self.servers:
                yield name, "only goes with nats.servers; the embedded server takes user and password, or a token"
        if self.tls != Tls() and not self.servers:
            yield "tls", "only goes with nats.servers; the embedded server speaks without TLS"
        logins = [name for name in ("credentials", "user", "token", "nkey") if getattr(self, name) is not None]
        for second in logins[1:]:
            yield second, f"stands beside {logins[0]}; keep one of credentials, user, token and nkey"
        if self.replicas not in (1, 3, 5):
            yield "replicas", f"takes 1, 3 or 5, not {self.replicas}"


class Policy(_Section, frozen=True, kw_only=True):
    """How concurrent changes of one table's rows meet."""

    table: Text
    """Name of the table, as SQLite compares names: without regard to case."""

    merge: Merge = Merge.ROW_LWW
    """`row-lww`: the latest write of a row wins whole. `column-lww`: column by column, at the price of triggers that
    name the columns. Not part of this version yet: `first-write`, the first insert stays; `origin`, each row belongs to
    one node."""

    owner: Text | None = None
    """Column that names the node a row belongs to, for `origin` and only there. Not part of this version yet."""

    columns: dict[str, ColumnMerge] = {}
    """Column to merge: `counter` adds up, `max` and `min` keep the extreme. Not part of this version yet."""

    def complaints(self) -> Complaints:
        if self.merge is Merge.ORIGIN and self.owner is None:
            yield "owner", "is missing; 'merge: origin' needs the column that names the owner"
        if self.merge is not Merge.ORIGIN and self.owner is not None:
            yield "owner", f"only goes with 'merge: origin', not with '{self.merge}'"
        if self.merge in (Merge.FIRST_WRITE, Merge.ORIGIN) and self.columns:
            yield "columns", f"do not go with 'merge: {self.merge}', where a row has one writer"


class Tables(_Section, frozen=True, kw_only=True):
    """Which tables take part, and how they merge."""

    include: tuple[Text, ...] = ("*",)
    """Globs (`*`, `?`, `[a-z]`) of the tables that take part, without regard to case."""

    exclude: tuple[Text, ...] = ()
    """Globs of tables that stay local, though `include` names them."""

    policies: tuple[Policy, ...] = ()
    """Tables that merge otherwise than `row-lww`; at most one entry per table, and the same on all nodes."""

    def complaints(self) -> Complaints:
        if not self.include:
            yield "include", "is empty, so no table takes part; leave it out to include all"
        seen: set[str] = set()
        for at, policy in enumerate(self.policies):
            if policy.table.lower() in seen:
                yield f"policies[{at}].table", f"'{policy.table}' has a policy already; keep one"
            seen.add(policy.table.lower())

    def selects(self, table: str) -> bool:
        """Whether a table of this name takes part."""
        name = table.lower()
        return any(fnmatchcase(name, glob.lower()) for glob in self.include) and not any(
            fnmatchcase(name, glob.lower()) for glob in self.exclude
        )

    def policy(self, table: str) -> Policy:
        """The policy of a table; `row-lww` where none is given."""
        return next((policy for policy in self.policies if policy.table.lower() == table.lower()), Policy(table=table))


class S3(_Section, frozen=True, kw_only=True):
    """A bucket of S3 or of what speaks like it."""

    bucket: Text
    """Name of the bucket."""

    prefix: str = ""
    """What all object names begin with. Empty: the agent takes the whole bucket for its own."""

    endpoint: HttpUrl | None = None
    """URL of the service. None: AWS."""

    region: Text | None = None
    """Region. None: as the environment says."""

    force_path_style: bool = False
    """Address the bucket in the path instead of the host name; most services besides AWS want it."""

    credentials: ExistingFile | None = None
    """Shared credentials file. None: the environment, web identity or pod identity."""

    ca: ExistingFile | None = None
    """PEM file of the certificate authorities to trust. None: those of the system."""


class FileStore(_Section, frozen=True, kw_only=True):
    """A folder, for instance on a network volume."""

    path: FilePath
    """The folder; made if it is not there."""


class FsspecStore(_Section, frozen=True, kw_only=True):
    """Any place that fsspec knows. It and the package of the protocol must be installed beside the agent."""

    url: Text
    """URL of the folder, such as 'sftp://host/path'."""


class Retention(_Section, frozen=True, kw_only=True):
    """Which snapshots are kept; the last verified one always is."""

    keep: Count | None = None
    """Most snapshots to keep. None: no bound by number."""

    max_age: Duration | None = None
    """Snapshots older than this are deleted. None: no bound by age."""


class Encryption(_Section, frozen=True, kw_only=True):
    """Encryption of snapshots before they leave the agent, in the age format."""

    recipients: tuple[Text, ...] = ()
    """Public keys (X25519, 'age1...') that can open a snapshot."""

    recipients_file: ExistingFile | None = None
    """File with one such key per line."""

    def complaints(self) -> Complaints:
        if not self.recipients and self.recipients_file is None:
            yield "recipients", "is missing; give recipients or recipients_file"


class Snapshots(_Section, frozen=True, kw_only=True):
    """Copies from which replicas join."""

    store: StoreKind = StoreKind.NATS
    """Where they are kept. `nats`, the object store of the cluster, needs no other setting and holds the newest; use
    the same store on all nodes."""

    s3: S3 | None = None
    """The bucket, with `store: s3`."""

    file: FileStore | None = None
    """The folder, with `store: file`."""

    fsspec: FsspecStore | None = None
    """The place, with `store: fsspec`."""

    schedule: Schedule | None = None
    """When one is taken by one of the members and verified: cron in UTC, or every so long; the first at once. None:
    when a replica joins or the stream is trimmed."""

    retention: Retention | None = None
    """Which are kept. None: one in the NATS object store, all in another store."""

    encryption: Encryption | None = None
    """To whom they are readable; with another store than `nats`. None: they are not encrypted."""

    def complaints(self) -> Complaints:
        for kind in (StoreKind.S3, StoreKind.FILE, StoreKind.FSSPEC):
            given = getattr(self, kind.value) is not None
            if given and self.store is not kind:
                yield kind.value, f"is not used with 'store: {self.store}'; write 'store: {kind}' or leave it out"
            if not given and self.store is kind:
                yield kind.value, f"is missing; 'store: {kind}' needs it"
        if self.encryption is not None and self.store is StoreKind.NATS:
            yield "encryption", "goes with 'store: s3', 'file' or 'fsspec'; from NATS the members themselves read"


class Archive(_Section, frozen=True, kw_only=True):
    """The stream of changes, kept in the store, for a restore to any moment. Not part of this version yet."""

    enabled: bool = False
    """Whether it is written. Not part of this version yet."""

    interval: Duration = 1.0
    """Longest time that a change waits before it is written, with `enabled`: the recovery point."""


class Schema(_Section, frozen=True, kw_only=True):
    """Schema upgrades by the agent. Not part of this version yet."""

    migrations: FilePath | None = None
    """Folder of SQL files `0001_name.sql`. None: the application migrates by itself. Not part of this version yet."""


class Limits(_Section, frozen=True, kw_only=True):
    """Bounds of time, rows and bytes."""

    start_without_nats: DurationOrZero = 30.0
    """How long `/startupz` waits for NATS when the file exists already. 0: not at all."""

    stream_max_bytes: ByteSize = 2 * _GIB
    """Size of the stream when the agent creates it. When it is full, publishing waits, the log stays, and an alarm says
    so."""

    log_max_rows: Count = 10_000_000
    """Rows of unpublished changes at which the log counts as full: alarms at 50 and 80 %, nothing is ever dropped."""

    log_max_bytes: ByteSize = _GIB
    """Bytes of unpublished changes at which the log counts as full: alarms at 50 and 80 %, nothing is ever dropped."""

    message_bytes: ByteSize = 512 * _KIB
    """Largest message, 16KiB to 64MiB. Half of NATS's default `max_payload`; a server's smaller one is respected."""

    conflicts_rows: Count = 100_000
    """Records kept of the values that merges discarded; the oldest go first."""

    member_ttl: Duration = 7 * _DAY
    """A member silent for so long no longer keeps the stream from being trimmed; what it misses by that, the others say
    again when it returns."""

    max_ahead: Duration = 15 * _MINUTE
    """Changes whose clock is further ahead of NATS's time than this wait, with an alarm, until the time has come."""

    gap_timeout: Duration = 5 * _MINUTE
    """How long changes wait for a lost predecessor before they are applied without it, counted."""

    heartbeat: Duration = 10.0
    """Time between two heartbeats; at most a third of `member_ttl`."""

    flush_timeout: Duration = 20.0
    """How long publishing the log may take after SIGTERM; what is left stays on disk, and a log line says so."""

    def complaints(self) -> Complaints:
        if not 16 * _KIB <= self.message_bytes <= 64 * _MIB:
            yield "message_bytes", f"takes 16KiB to 64MiB, as NATS does, not {show_size(self.message_bytes)}"
        if self.heartbeat * 3 > self.member_ttl:
            yield "heartbeat", f"must be at most a third of member_ttl ({show_duration(self.member_ttl)})"


class Log(_Section, frozen=True, kw_only=True):
    """What the agent says on stderr."""

    level: LogLevel = LogLevel.INFO
    """`info` tells of changes of state, `debug` of mechanics."""

    format: LogFormat = LogFormat.AUTO
    """`auto`: for people on a terminal, JSON otherwise."""


class Settings(_Section, frozen=True, kw_only=True):
    """All settings of an agent. Only `cluster` and `database` have no default."""

    cluster: Name
    """The replication group; names the stream and its subjects."""

    node: Name
    """This replica; unique in the cluster. Default: the host name, each dot as `_`"""

    database: FilePath
    """The SQLite file. It need not exist yet."""

    nats: Nats = Nats()
    http: HttpAddress | None = Address("127.0.0.1", 8081)
    """Where probes, metrics and the API listen; `off`: nowhere."""

    mode: Mode = Mode.READ_WRITE
    """`read-only`: the application's own writes fail with a sentence. Not part of this version yet: `single-primary`,
    `independent`."""

    adopt: Adopt = Adopt.MERGE
    """What becomes of a file that was never part of the cluster, once the cluster exists: `merge` (rows that differ
    from the cluster's lose and are recorded), `replace` (the file's own rows go), or `refuse` to start."""

    tables: Tables = Tables()
    snapshots: Snapshots = Snapshots()
    archive: Archive = Archive()
    schema: Schema = Schema()
    limits: Limits = Limits()
    log: Log = Log()


def load(path: Path | None, environ: Mapping[str, str], host_name: Callable[[], str] = socket.gethostname) -> Settings:
    """The settings of a file (None: no file) and the environment.

    Raises ConfigurationError with one sentence for each mistake in either.
    """
    document = read_document(path) if path is not None else {}
    node = ("the host name", names.node_from_host(host_name()))
    read, mistakes = read_settings(Settings, document, environ, {"node": node})
    if mistakes:
        raise ConfigurationError(*mistakes)
    settings: Settings = read
    if settings.nats.embedded.store == Path():
        store = settings.database.with_name(settings.database.name + ".rsqlite") / "nats"
        embedded = msgspec.structs.replace(settings.nats.embedded, store=store)
        settings = msgspec.structs.replace(settings, nats=msgspec.structs.replace(settings.nats, embedded=embedded))
    return settings


def effective(settings: Settings) -> dict[str, Any]:
    """The settings as the document that would give them, with secrets masked."""
    document: dict[str, Any] = to_document(Settings, settings)
    if settings.http is None:
        document["http"] = "off"
    return document


def unsupported(settings: Settings) -> list[str]:
    """One sentence for each setting whose feature this version does not have yet."""
    later: list[tuple[str, str]] = []
    if settings.mode in (Mode.SINGLE_PRIMARY, Mode.INDEPENDENT):
        later.append((f"mode: '{settings.mode}'", "use 'read-write' or 'read-only'"))
    for at, policy in enumerate(settings.tables.policies):
        if policy.merge in (Merge.FIRST_WRITE, Merge.ORIGIN):
            later.append((f"tables.policies[{at}].merge: '{policy.merge}'", "use 'row-lww' or 'column-lww'"))
        later += [
            (f"tables.policies[{at}].columns.{column}: '{merge}'", "leave it out")
            for column, merge in policy.columns.items()
        ]
    if settings.archive.enabled:
        later.append(("archive.enabled:", "leave it out"))
    if settings.schema.migrations is not None:
        later.append(("schema.migrations:", "leave it out and let the application migrate"))
    return [f"{setting} is not part of version {__version__} yet; {way_out}" for setting, way_out in later]
