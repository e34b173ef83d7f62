"""S3, and what speaks like it, as a store. Imported only when it is used: boto3 takes a while.

Credentials are found as boto3 finds them (environment, shared file, web identity, pod or instance identity), or read
from the file that the settings name, again whenever that file changes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots.stores.base import (
    PIECE_BYTES,
    Entry,
    Moved,
    ObjectAbsentError,
    ObjectExistsError,
    StoreError,
)

_MULTIPART_BYTES: Final = 8 << 20
"""Larger files go in pieces of this size, one after the other, each in memory: parts move side by side."""
_PIECES_MOST: Final = 10_000
"""What S3 takes of one object; a larger file goes in larger pieces."""

_ATTEMPTS: Final = 5
"""Attempts to read an object on, each from where the last one was cut."""

_SETTLE_S: Final = 2.0
"""A service without conditional writes: how long a rival's write may take before we look whose object it is."""

_ABSENT: Final = {"NoSuchKey", "404", "NotFound"}
_TAKEN: Final = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_NO_CONDITIONS: Final = {"NotImplemented", "501"}


class S3Store:
    """Implements `Blocking` on a bucket and a prefix."""

    def __init__(self, settings: S3) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        prefix = settings.prefix.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.place = f"s3://{settings.bucket}/{prefix}".rstrip("/")
        self._made: tuple[float, Any] | None = None
        self._making = threading.Lock()

    @property
    def _client(self) -> Any:
        """The client; made anew when the credentials file has changed."""
        path = self._settings.credentials
        stamp = path.stat().st_mtime if path is not None else 0.0
        with self._making:
            if self._made is None or self._made[0] != stamp:
                self._made = (stamp, _client(self._settings))
            return self._made[1]

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    # ---- write -----------------------------------------------------------------------------------------------------

    def put_file(self, name: str, source: Path, moved: Moved) -> None:
        """See `Store`. Files above 8 MiB go in several parts; after a failure they are taken back."""
        with self._explained(f"{name} cannot be written"), source.open("rb") as file:
            if source.stat().st_size > _MULTIPART_BYTES:
                self._put_pieces(name, file, moved)
            else:
                data = file.read()
                self._client.put_object(**self._at(name), Body=data)
                moved(len(data))

    def _put_pieces(self, name: str, file: IO[bytes], moved: Moved) -> None:
        """A multipart upload, taken back if it fails; what even that cannot take back, `sweep` finds."""
        client, at = self._client, self._at(name)
        upload = client.create_multipart_upload(**at)["UploadId"]
        piece_bytes = max(_MULTIPART_BYTES, -(-os.fstat(file.fileno()).st_size // _PIECES_MOST))
        done: list[dict[str, object]] = []
        try:
            while data := file.read(piece_bytes):
                answer = client.upload_part(**at, UploadId=upload, PartNumber=len(done) + 1, Body=data)
                done.append({"PartNumber": len(done) + 1, "ETag": answer["ETag"]})
                moved(len(data))
            client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": done})
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                client.abort_multipart_upload(**at, UploadId=upload)
            raise

    def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be written"):
            self._client.put_object(**self._at(name), Body=data)

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store`.

        Where the service refuses conditions or ignores them, looking before and after stands in: two writers at the
        same moment then both see the later one's object, so at most one of them goes on.
        """
        if self._content(name) is not None:
            raise ObjectExistsError(f"{self.place} already holds {name}")
        with self._explained(f"{name} cannot be written"):
            try:
                self._client.put_object(**self._at(name), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) in _TAKEN:
                    if self._content(name) == data:
                        return  # an attempt of ours had arrived though its answer had not
                    raise ObjectExistsError(f"{self.place} already holds {name}") from error
                if _code(error) not in _NO_CONDITIONS:
                    raise
                self._client.put_object(**self._at(name), Body=data)
                time.sleep(_SETTLE_S)
        if self.get_bytes(name) != data:
            raise ObjectExistsError(f"{self.place} already holds {name}, written by another at the same moment")

    def _content(self, name: str) -> bytes | None:
        try:
            return self.get_bytes(name)
        except ObjectAbsentError:
            return None

    # ---- read ------------------------------------------------------------------------------------------------------

    def get_file(self, name: str, target: Path, moved: Moved) -> None:
        """See `Store`. A body that is cut is read on from there."""
        with self._explained(f"{name} cannot be read"), target.open("wb") as out:

            def take(piece: bytes) -> None:
                out.write(piece)
                moved(len(piece))

            self._read(name, take)

    def get_bytes(self, name: str) -> bytes:
        """See `Store`."""
        pieces: list[bytes] = []
        with self._explained(f"{name} cannot be read"):
            self._read(name, pieces.append)
        return b"".join(pieces)

    def _read(self, name: str, take: Callable[[bytes], object]) -> None:
        """Give an object's bytes to ``take``, of one version of the object and all of them."""
        done, size = 0, -1
        condition: dict[str, str] = {}
        for attempt in range(_ATTEMPTS):
            rest = condition | ({"Range": f"bytes={done}-"} if done else {})
            answer = self._client.get_object(**self._at(name), **rest)
            if size < 0:
                size, condition = int(answer["ContentLength"]), {"IfMatch": answer["ETag"]}
            reason: Exception | None = None
            try:
                for piece in answer["Body"].iter_chunks(PIECE_BYTES):
                    done += len(piece)
                    take(piece)
            except (BotoCoreError, HTTPClientError, OSError) as error:
                if isinstance(error, OSError) and not isinstance(error, ConnectionError):
                    raise
                reason = error
            if done == size:
                return
            if done > size or attempt + 1 == _ATTEMPTS:
                raise StoreError(
                    f"{self.place}: {name} was cut after {done} of {size} bytes, {attempt + 1} times; try again"
                ) from reason
            time.sleep(0.1 * 2**attempt)

    # ---- list and delete -------------------------------------------------------------------------------------------

    def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""
        with self._explained("it cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [item for page in pages for item in page.get("Contents", ())]
        entries = (Entry(item["Key"].removeprefix(self._prefix), int(item["Size"])) for item in found)
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be removed"):
            self._client.delete_object(**self._at(name))

    def sweep(self, older_than_s: float) -> int:
        """See `Store`: multipart uploads that were begun and neither ended nor taken back."""
        swept = 0
        with self._explained("it cannot be cleaned"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                if (datetime.now(UTC) - upload["Initiated"]).total_seconds() >= older_than_s:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    swept += 1
        return swept

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in _ABSENT:
                raise ObjectAbsentError(f"{self.place}: {what}: it is not there") from error
            raise StoreError(f"{self.place}: {what}: {_sentence(error, self._bucket)}") from error
        except (BotoCoreError, HTTPClientError) as error:
            raise StoreError(f"{self.place}: {what}: {' '.join(str(error).split())}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _sentence(error: ClientError, bucket: str) -> str:
    """The reason of a refusal, with the way out where it is known."""
    answer = error.response.get("Error", {})
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    match code:
        case "NoSuchBucket":
            return f"there is no bucket '{bucket}'; create it"
        case "AccessDenied" | "403":
            return "access is denied; the credentials need s3:GetObject, PutObject, DeleteObject, ListBucket"
        case "ExpiredToken" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "TokenRefreshRequired":
            return f"the credentials are refused ({code}); renew them"
    return f"the service answers {status} {code}: {answer.get('Message', '')}".rstrip(": ")


def _client(settings: S3) -> Any:
    explicit = settings.credentials is not None
    # A named profile keeps variables of the environment from winning over the file that the settings name.
    core = botocore.session.Session(profile="default" if explicit else None)
    if explicit:
        core.set_config_variable("credentials_file", str(settings.credentials))
    return boto3.Session(botocore_session=core).client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region or core.get_config_variable("region") or "us-east-1",
        verify=str(settings.ca) if settings.ca is not None else None,
        config=Config(
            s3={"addressing_style": "path"} if settings.force_path_style else {},
            # Many services besides AWS refuse the checksums that boto3 sends unasked; our own cover every byte.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=10,
            read_timeout=60,
            tcp_keepalive=True,
        ),
    )
