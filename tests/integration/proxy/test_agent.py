"""The repository agent as the server starts it: a process that is spoken to in lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backup_server.errors import ConflictError, IntegrityError, UnavailableError
from backup_server.services.agent_link import AgentProcess
from pipeline.model import (
    BlobId,
    Consistency,
    DiskPoint,
    PointKind,
    RestorePoint,
    RestorePointId,
    VmIdentity,
)
from proxy_worker.contracts.agent import encode_restore_point
from proxy_worker.turns import turn

TIMEOUT_S = 60.0
POINT = RestorePoint(
    id=RestorePointId("0b54a0f6-3d7b-4d3e-9d53-5a5f1f5b8a01"),
    vm=VmIdentity(instance_uuid="i", bios_uuid="b", name="db01", moref="vm-1", vcenter_uuid="v"),
    created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    kind=PointKind.FULL,
    consistency=Consistency.CRASH,
    previous=None,
    job_name="nightly",
    disks=(
        DiskPoint(
            disk_key=2000,
            label="Hard disk 1",
            disk_uuid="u",
            path="[ds] db01/db01.vmdk",
            capacity_bytes=1 << 30,
            map_root=BlobId("0" * 64),
            change_id="",
            thin=True,
        ),
    ),
    skipped_disks=(),
    vm_config=b'{"any": "thing"}',
    nvram=bytes(range(256)),
)


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    made = AgentProcess()
    yield made
    made.close()


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "repository")


def call(agent: AgentProcess, name: str, **args: object) -> dict[str, object]:
    return agent.call(name, args, timeout_s=TIMEOUT_S)


def create(agent: AgentProcess, location: str) -> dict[str, object]:
    return call(agent, "create", location=location, password="secret words", block_size_bytes=1 << 20)


def test_the_life_of_a_repository(agent: AgentProcess, location: str) -> None:
    made = create(agent, location)
    assert len(str(made["master_key"])) == 64
    encoded = encode_restore_point(POINT)
    assert call(agent, "points") == {"points": []}
    assert call(agent, "commit", point=encoded)["created"] is True
    assert call(agent, "commit", point=encoded)["created"] is False
    assert call(agent, "point", id=POINT.id) == {"point": encoded}
    assert call(agent, "points") == {"points": [encoded]}
    checked = call(agent, "check", read_data=False, sample_share=0.0)
    assert (checked["problems"], checked["points"]) == ([], 1)
    assert call(agent, "check", read_data=True, sample_share=0.5)["problems"] == []
    space = call(agent, "space")
    assert 0 < int(str(space["free_bytes"])) <= int(str(space["total_bytes"]))
    assert call(agent, "forget", ids=[POINT.id, "00000000-0000-0000-0000-000000000000"]) == {
        "forgotten": 1
    }
    pruned = call(agent, "prune", keep_task_ids=[], min_age_s=0)
    assert set(pruned) == {"removed_packs", "removed_bytes", "rewritten_bytes", "kept_packs"}
    again = AgentProcess()
    try:
        opened = call(again, "open", location=location, password="secret words")
        assert opened == made
    finally:
        again.close()


def test_what_cannot_be_done_is_said_in_the_right_kind(
    agent: AgentProcess, location: str, tmp_path: Path
) -> None:
    with pytest.raises(ConflictError, match="not open"):
        call(agent, "points")
    with pytest.raises(ConflictError, match="no call 'dance'"):
        call(agent, "dance")
    with pytest.raises(ConflictError, match="lacks 'password'"):
        call(agent, "open", location=str(tmp_path))
    create(agent, location)
    with pytest.raises(ConflictError, match="open already"):
        create(agent, location)
    other = AgentProcess()
    try:
        with pytest.raises(ConflictError, match="wrong password"):
            call(other, "open", location=location, password="guess")
        call(other, "open", location=location, password="secret words")
    finally:
        other.close()


def test_damage_is_of_the_kind_integrity(agent: AgentProcess, location: str) -> None:
    create(agent, location)
    call(agent, "commit", point=encode_restore_point(POINT))
    points = [path for path in Path(location).rglob("*") if POINT.id in path.name]
    assert points
    points[0].chmod(0o600)
    points[0].write_bytes(points[0].read_bytes()[:-1])
    other = AgentProcess()
    try:
        call(other, "open", location=location, password="secret words")
        with pytest.raises(IntegrityError):
            call(other, "point", id=POINT.id)
    finally:
        other.close()


def test_it_ends_with_its_input_and_keeps_secrets_off_its_log(location: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy_worker.agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines = (
        '{"id": 1, "call": "create", "args": {"location": "relative", "password": "hush-hush", '
        '"block_size_bytes": 1048576}}\nnot json\n[]\n'
    )
    out, err = process.communicate(lines.encode(), timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert len(out.splitlines()) == 3
    assert b'"id": 1, "error"' in out
    assert b"hush-hush" not in out + err


def test_a_long_call_ends_when_the_server_is_gone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"id": 1, "call": "check", "args": {}}\n')
    process.stdin.flush()
    assert process.stdout.readline() == b"checking\n"
    process.stdin.close()
    # it would go on for five minutes
    assert process.wait(TIMEOUT_S) == 0
    process.stdout.close()


_SLOW = """
import sys, threading
from proxy_worker import agent

class Slow(agent.Agent):
    def answer(self, request):
        sys.__stdout__.write("checking\\n")
        sys.__stdout__.flush()
        threading.Event().wait(300)
        return {}

agent.Agent = Slow
agent.main()
"""


def test_no_commit_while_another_agent_prunes_and_the_other_way_round(
    agent: AgentProcess, location: str
) -> None:
    create(agent, location)
    encoded = encode_restore_point(POINT)
    with turn(location, alone=True):
        with pytest.raises(UnavailableError, match="another repository agent is pruning"):
            call(agent, "commit", point=encoded)
        assert call(agent, "points") == {"points": []}
    with turn(location, alone=False):
        assert call(agent, "commit", point=encoded)["created"] is True
        with pytest.raises(UnavailableError, match="is committing to"):
            call(agent, "prune", keep_task_ids=[], min_age_s=0)
    assert call(agent, "prune", keep_task_ids=[], min_age_s=0)["removed_packs"] == 0


def test_repair_asks_the_copies_that_it_is_told(location: str, tmp_path: Path) -> None:
    first, second = AgentProcess(), AgentProcess()
    try:
        create(first, location)
        call(first, "commit", point=encode_restore_point(POINT))
        copy = create(second, str(tmp_path / "copy"))
        source = {
            "name": "copy",
            "location": str(tmp_path / "copy"),
            "repository_id": copy["repository_id"],
            "key": copy["master_key"],
            "storage_secrets": {},
        }
        done = call(first, "repair", copies=[source], dry_run=False)
        assert (done["damage"], done["lost"], done["problems"], done["repaired_blobs"]) == (
            [],
            [],
            [],
            0,
        )
        with pytest.raises(ConflictError):
            call(first, "repair", copies=[{**source, "repository_id": "another"}], dry_run=True)
    finally:
        first.close()
        second.close()
