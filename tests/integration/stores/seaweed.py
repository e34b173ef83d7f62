"""A real S3 service for tests: SeaweedFS, on ports that are free now."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from integration.cluster import free_port

BUCKET = "backups"
START_LIMIT_S = 90.0


class Seaweed:
    """A SeaweedFS server in `folder` with one bucket, that anybody may use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Seaweed:
        """Start and wait until the bucket is there."""
        (self.folder / "data").mkdir(parents=True)
        # Each has a gRPC port too, by default 10,000 above: there other connections begin.
        parts = ("master.port", "volume.port", "filer.port")
        ports = {name: free_port() for part in parts for name in (part, f"{part}.grpc")}
        ports["s3.port.grpc"] = free_port()
        arguments = [f"-{name}={port}" for name, port in ports.items()]
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("weed"),
                    "server",
                    "-master.telemetry=false",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-dir={self.folder / 'data'}",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=40",
                    "-s3",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.port={self.port}",
                    *arguments,
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self._make_bucket()
        return self

    def stop(self) -> None:
        """End the process."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)

    def _make_bucket(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
        while True:
            try:
                if self._listens():
                    client.create_bucket(Bucket=BUCKET)
                    client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                    client.delete_object(Bucket=BUCKET, Key="ready")
                    return
            except (BotoCoreError, ClientError):
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                log = (self.folder / "weed.log").read_text(errors="replace")[-2000:]
                pytest.fail(f"SeaweedFS did not start; its log ends with:\n{log}")
            time.sleep(0.2)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
