"""The commands of `rsqlite` that read a store of snapshots: restore, snapshots …, keygen. No server is needed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import S3, seconds_of
from replicated_sqlite_agent.snapshots import age
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.restore import Wish, check_target
from replicated_sqlite_agent.snapshots.restore import restore as restore_file
from replicated_sqlite_agent.snapshots.retention import Held
from replicated_sqlite_agent.snapshots.stores.base import Moved
from replicated_sqlite_agent.snapshots.stores.opening import from_url

T = TypeVar("T")

From = Annotated[
    str, typer.Option("--from", metavar="URL", help="s3://bucket/prefix, file:///folder, or a URL that fsspec knows.")
]
Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="Of an S3 service besides AWS.")]
Region = Annotated[str | None, typer.Option(help="Of the bucket.")]
Credentials = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Shared credentials file; default: as the environment says.")
]
Authority = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="PEM of the authorities to trust.")]
IdentityFile = Annotated[
    Path | None, typer.Option("--identity", metavar="FILE", help="Secret key (age) that opens encrypted snapshots.")
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the newest.")]

snapshots = typer.Typer(help="Look at the snapshots in a store.", rich_markup_mode=None, no_args_is_help=False)


def add_to(application: typer.Typer) -> None:
    """Give the command its subcommands of backups."""
    application.command()(restore)
    application.command()(keygen)
    application.add_typer(snapshots, name="snapshots")


def restore(
    source: From,
    to: Annotated[Path, typer.Option(metavar="FILE", help="The database to make.")],
    snapshot: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the newest.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there; it is kept beside.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Without the agent's tables and triggers.")] = False,
    identity: IdentityFile = None,
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Restore a database from a snapshot: verified before it takes its name. Stop its application and agent before."""
    repository = _repository(source, endpoint, region, credentials, ca)
    wish = Wish(to.absolute(), snapshot, force, plain, age.read_identities(identity))
    check_target(wish)

    async def work(moved: Callable[[Manifest], Moved]) -> int:
        manifest = await repository.choose(wish.snapshot)
        restored = await restore_file(repository, manifest, wish, moved(manifest))
        print(
            f"restored snapshot {manifest.name} of {_when(manifest.taken_ms)} to {to}: {manifest.rows} rows, verified"
        )
        if restored.kept is not None:
            print(f"the former file is kept as {restored.kept}")
        return 0

    return _with_progress("restoring", work)


def keygen(
    to: Annotated[Path, typer.Option(metavar="FILE", help="Where the secret key goes; keep it away from the backups.")],
) -> int:
    """Make a key pair to encrypt snapshots: the secret key into a file, the public one on the screen."""
    secret, public = age.new_identity()
    try:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{to} cannot be created: {error.strerror}") from error
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(f"# public key: {public}\n{secret}\n")
    print(public)
    return 0


@snapshots.command("list")
def list_snapshots(
    source: From,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Show every snapshot, the newest first."""
    held = asyncio.run(_repository(source, endpoint, region, credentials, ca).held())
    rows = [_row(one) for one in reversed(held)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("name", "taken", "state", "rows", "size", "stored", "node")
    for row in rows:
        taken = _when(row["taken_ms"]) if row["taken_ms"] is not None else None
        cells = (row["name"], taken, row["state"], row["rows"], _size(row["bytes"]), _size(row["stored_bytes"]))
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in (*cells, row["node"])))
    Console(width=None if Console().is_terminal else 200).print(table)
    return 0


@snapshots.command()
def show(
    source: From,
    name: Name = None,
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Print the manifest of a snapshot, and what its last check said, as JSON."""
    repository = _repository(source, endpoint, region, credentials, ca)

    async def work() -> dict[str, object]:
        manifest = await repository.choose(name)
        held = next((one for one in await repository.held() if one.name == manifest.name), None)
        return {
            "manifest": msgspec.to_builtins(manifest, str_keys=True),
            "verification": msgspec.to_builtins(held.verification) if held is not None else None,
            "state": held.state if held is not None else None,
        }

    print(json.dumps(asyncio.run(work()), indent=2, ensure_ascii=False))
    return 0


@snapshots.command()
def verify(
    source: From,
    name: Name = None,
    identity: IdentityFile = None,
    scratch: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to restore to meanwhile.")] = None,
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Restore a snapshot to a scratch file, compare it with its manifest, note the result beside it."""
    repository = _repository(source, endpoint, region, credentials, ca)
    identities = age.read_identities(identity)

    async def work(moved: Callable[[Manifest], Moved]) -> int:
        manifest = await repository.choose(name)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="rsqlite-verify-") as folder:
            file = Path(folder) / "verify.db"
            result = await repository.verify(
                manifest, file, f"rsqlite on {socket.gethostname()}", identities, moved(manifest)
            )
        if not result.ok:
            print(f"snapshot {manifest.name} is not right: {result.problem}")
            return 1
        depth = "every row" if result.depth == "content" else "every stored byte (give --identity to compare the rows)"
        print(f"snapshot {manifest.name} is right: compared {depth} in {result.took_s:.1f} s")
        return 0

    return _with_progress("verifying", work)


@snapshots.command()
def prune(
    source: From,
    keep: Annotated[int | None, typer.Option(min=1, help="Most snapshots to keep.")] = None,
    max_age: Annotated[str | None, typer.Option(metavar="DURATION", help="Remove older ones, such as 30d.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Remove old snapshots, never the last verified one, and what cut-off uploads have left."""
    try:
        seconds = seconds_of(max_age) if max_age is not None else None
    except ValueError as error:
        raise ConfigurationError(f"--max-age takes a duration such as '12h' or '30d', not '{max_age}'") from error
    repository = _repository(source, endpoint, region, credentials, ca)
    names = asyncio.run(repository.prune(keep, seconds, dry=dry_run))
    for name in names:
        print(f"{'would remove' if dry_run else 'removed'} {name}")
    return 0


@snapshots.command()
def accept(
    source: From,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot.")],
    endpoint: Endpoint = None,
    region: Region = None,
    credentials: Credentials = None,
    ca: Authority = None,
) -> int:
    """Say that a snapshot is right though it has less than half of the rows of the one before."""
    asyncio.run(_repository(source, endpoint, region, credentials, ca).accept(name))
    print(f"snapshot {name} counts as good from now on")
    return 0


def _repository(
    url: str, endpoint: str | None, region: str | None, credentials: Path | None, ca: Path | None
) -> Repository:
    for option, path in (("--credentials", credentials), ("--ca", ca)):
        if path is not None and not path.is_file():
            raise ConfigurationError(f"{option}: the file '{path}' does not exist")
    # A service of one's own rarely has host names for its buckets.
    path_style = endpoint is not None or any(name in os.environ for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    options = S3(
        bucket="-", endpoint=endpoint, region=region, credentials=credentials, ca=ca, force_path_style=path_style
    )
    return Repository(from_url(url, options))


def _with_progress(title: str, work: Callable[[Callable[[Manifest], Moved]], Awaitable[int]]) -> int:
    """Run it with a bar on the terminal, if there is one; nothing of it in a log."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:

        def watched(manifest: Manifest) -> Moved:
            task = bar.add_task(f"{title} {manifest.name}", total=manifest.packed_bytes)
            return lambda count: bar.advance(task, count)

        async def run() -> int:
            return await work(watched)

        return asyncio.run(run())


def _row(held: Held) -> dict[str, Any]:
    manifest = held.manifest
    return {
        "name": held.name,
        "state": held.state,
        "problem": held.problem or (held.verification.problem if held.verification is not None else None),
        "taken_ms": manifest.taken_ms if manifest is not None else None,
        "rows": manifest.rows if manifest is not None else None,
        "bytes": manifest.bytes if manifest is not None else None,
        "stored_bytes": manifest.packed_bytes if manifest is not None else None,
        "node": manifest.node if manifest is not None else None,
        "encrypted": manifest.encryption is not None if manifest is not None else None,
        "verified_ms": held.verification.verified_ms if held.verification is not None else None,
    }


def _when(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _size(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / 1024**2:.1f} MiB" if count >= 1024**2 else f"{count / 1024:.1f} KiB"
