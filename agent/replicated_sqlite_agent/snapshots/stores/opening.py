"""From settings or a URL to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import S3, FileStore, FsspecStore, Snapshots, StoreKind
from replicated_sqlite_agent.snapshots.stores.base import Blocking, Store, Threaded
from replicated_sqlite_agent.snapshots.stores.directory import Directory


def configured(settings: Snapshots) -> Store | None:
    """The store that the settings name; None for the NATS object store, which needs a session."""
    match settings.store:
        case StoreKind.NATS:
            return None
        case StoreKind.FILE:
            assert settings.file is not None
            return Threaded(Directory(settings.file.path))
        case StoreKind.S3:
            assert settings.s3 is not None
            return Threaded(_s3(settings.s3))
        case StoreKind.FSSPEC:
            assert settings.fsspec is not None
            return Threaded(_remote(settings.fsspec.url))


def from_url(url: str, s3: S3 | None = None) -> Store:
    """The store at a URL, or in a folder. ``s3``: options for `s3://` URLs; its bucket and prefix are the URL's.

    Raises ConfigurationError for a URL that names no place.
    """
    found = settings_of(url, s3)
    store = configured(found)
    assert store is not None
    return store


def settings_of(url: str, s3: S3 | None = None) -> Snapshots:
    """The settings that name the place of a URL. Raises ConfigurationError."""
    if "://" not in url:
        return Snapshots(store=StoreKind.FILE, file=FileStore(path=Path(url).expanduser()))
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigurationError(f"{url}: a folder is written with three slashes, such as file:///backups/notes")
        return Snapshots(store=StoreKind.FILE, file=FileStore(path=Path(unquote(parts.path))))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ConfigurationError(f"{url}: the bucket is missing; write s3://bucket/prefix")
        options = s3 or S3(bucket=parts.netloc)
        place = msgspec.structs.replace(options, bucket=parts.netloc, prefix=parts.path.strip("/"))
        return Snapshots(store=StoreKind.S3, s3=place)
    return Snapshots(store=StoreKind.FSSPEC, fsspec=FsspecStore(url=url))


def _s3(settings: S3) -> Blocking:
    try:
        from replicated_sqlite_agent.snapshots.stores.s3 import S3Store  # boto3 takes a while to import
    except ImportError as error:
        raise ConfigurationError(f"S3 needs the package boto3, which is not installed: {error}") from error
    return S3Store(settings)


def _remote(url: str) -> Blocking:
    from replicated_sqlite_agent.snapshots.stores.remote import Remote

    return Remote(url)
