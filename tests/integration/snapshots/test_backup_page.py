"""The commands of docs/backup.md, run as they stand there against an S3 service."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from integration.cluster import differences, dump
from integration.snapshots.taking import make_database, take
from integration.stores.seaweed import BUCKET, Seaweed
from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.stores.base import Threaded
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store

PAGE = (Path(__file__).parents[3] / "docs" / "backup.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("s3_identity")
def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path, seaweed: Seaweed) -> None:
    database = tmp_path / "app.db"
    make_database(database)
    store = S3Store(S3(bucket=BUCKET, prefix="notes", endpoint=seaweed.url, force_path_style=True))
    manifest = asyncio.run(take(Repository(Threaded(store)), database))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": seaweed.url,
    }
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    said = ""
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (0, "") == (done.returncode, done.stderr), command
        said += done.stdout
    assert len(commands) >= 9
    assert said.count(manifest.name) >= 6
    assert differences(dump(database), dump(tmp_path / "restored" / "app.db")) == []
    assert (tmp_path / "restored" / "app.db.before-restore-1").exists()
    assert (tmp_path / "secret.key").stat().st_mode & 0o077 == 0
