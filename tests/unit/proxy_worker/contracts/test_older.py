"""What a proxy of the release before is sent."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CompressionLevel,
    LeaseAnswer,
    LeaseVerdict,
    RepositoryRef,
    RestoreDiskOrder,
    ResultAck,
    TaskKind,
    TaskRequest,
)
from proxy_worker.contracts.older import PRESENT, down_for, known_to_0_2, release_of, request_for
from transports.base import DatastoreRef, DiskRef, TransportMode

NEW = {
    "storage",
    "known_changes",
    "sampled_blocks",
    "sample_when_unchanged",
    "fallback_modes",
    "preferred_networks",
    "lease_s",
    "continue_work",
    "continue_change_id",
    "continue_changes",
}
DISK = DiskRef(
    vm_moref="vm-1",
    vm_name="db01",
    disk_key=2000,
    path="[ds1] a/a.vmdk",
    capacity_bytes=10,
    datastore="ds1",
    storage=DatastoreRef(name="ds1", kind="VMFS", vmfs_uuid="5e"),
)


def request(**order: Any) -> TaskRequest:
    return TaskRequest(
        kind=TaskKind.BACKUP_DISK,
        task_id=TaskId("t"),
        session_id=SessionId("s"),
        attempt=Attempt(1),
        proxy_id=ProxyId("p"),
        expires_at_s=1.0,
        title="x",
        mode=TransportMode.NBDSSL,
        repository=RepositoryRef(repository_id="r", location="/r", immutable_days=7),
        fallback_modes=(TransportMode.NBD,),
        preferred_networks=("10.0.0.0/8",),
        lease_s=30.0,
        **order,
    )


def names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {name for one in value.values() for name in names(one)}
    return {name for one in value for name in names(one)} if isinstance(value, list) else set()


BACKUP = request(
    backup=BackupDiskOrder(
        disk=DISK,
        previous_map_root="ab" * 32,
        previous_change_id="1/1",
        current_change_id="1/2",
        full_read_reason="",
        datastore_is_vmfs=True,
        compression=CompressionLevel.FAST,
        known_changes="x",
        sampled_blocks=16,
        sample_when_unchanged=True,
        continue_work="w",
        continue_change_id="1/1",
        continue_changes="x",
    )
)
RESTORE = request(
    restore=RestoreDiskOrder(
        map_root="ab" * 32, capacity_bytes=10, expected_sha256="", target_disk=DISK
    )
)


def test_nothing_that_it_does_not_know_is_in_an_order() -> None:
    assert names(to_json(BACKUP)) >= NEW
    for order in (BACKUP, RESTORE):
        sent = to_json(known_to_0_2(order))
        assert not names(sent) & NEW
        # What 0.2.0 knows stays, what it added itself as well.
        assert sent["repository"]["immutable_days"] == 7
        assert names(to_json(order)) - names(sent) <= names(to_json(DISK.storage)) | NEW


def test_an_order_without_news_is_as_it_was() -> None:
    plain = known_to_0_2(BACKUP)
    assert known_to_0_2(plain) == plain


def test_an_order_is_made_for_the_version_that_the_worker_says() -> None:
    assert request_for(BACKUP, "0.2.1") == known_to_0_2(BACKUP)
    for_0_3 = request_for(BACKUP, "0.3.0")
    assert not names(to_json(for_0_3)) & {
        "lease_s",
        "continue_work",
        "continue_change_id",
        "continue_changes",
    }
    assert for_0_3.backup is not None
    assert for_0_3.backup.known_changes == "x"
    assert for_0_3.fallback_modes == BACKUP.fallback_modes
    for version in ("0.4.0", "0.5.0", "0.10.2", "unknown", None):
        assert request_for(BACKUP, version) == BACKUP


def test_releases_are_numbers() -> None:
    assert release_of("0.10.2") > release_of("0.9.0") > release_of("0.3")


def test_the_present_release_is_that_of_the_project() -> None:
    """By which proxies are told apart that are too old or too new."""
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    assert release_of(project["version"]) == PRESENT


def test_answers_are_made_for_the_version_that_the_worker_says() -> None:
    held = LeaseAnswer(task_id=TaskId("t"), attempt=Attempt(1), verdict=LeaseVerdict.HELD, sequence=7)
    ack = ResultAck(task_id=TaskId("t"), attempt=Attempt(1))
    for version in ("0.4.0", "0.5.0"):
        assert down_for([held, ack], version) == [held, ack]
    assert [to_json(message) for message in down_for([held, ack], "0.3.0")] == [
        {"schema_version": 1, "task_id": "t", "attempt": 1, "verdict": "held"},
        to_json(ack),
    ]


def test_a_release_of_endless_figures_is_none() -> None:
    assert release_of("9" * 10_000 + ".1") == release_of("unknown")
    assert release_of("0.3.1") == (0, 3)
