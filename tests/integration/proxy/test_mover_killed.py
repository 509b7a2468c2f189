"""A real data mover killed in the middle of a disk: the next attempt goes on, in another mode."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite, digest
from vmhaul_lab.testing import labvc_binary

from pipeline.rawfile import RawFileWriter
from pipeline.repository import KdfCost, Repository
from pipeline.repository.work import WorkRecord, read_work
from pipeline.restore import restore_disk
from pipeline.storage import open_storage
from proxy_worker.config import MOVER_COMMAND
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CompressionLevel,
    ProgressReport,
    RepositoryRef,
    ResultReport,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
    VsphereAccess,
)
from proxy_worker.runner import Runner
from proxy_worker.slots import TaskHandle
from tests.e2e.platform import wait_until
from transports.base import DiskRef, TransportMode
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login, Secret

__all__ = ["labvc_binary"]
pytestmark = pytest.mark.lab

MIB = 1 << 20
BLOCKS = 48
TASK = TaskId("11111111-2222-3333-4444-555555555555")
PLAN = VmPlan(
    name="vm01",
    disks=(DiskPlan(label="disk0", capacity_bytes=BLOCKS * MIB, layout="raw", thin=False),),
)


class Pids:
    """A log that notes the mover's process."""

    def __init__(self) -> None:
        self.started: list[int] = []

    def bind(self, **_: Any) -> Pids:
        return self

    def info(self, _event: str, **values: Any) -> None:
        if "pid" in values:
            self.started.append(int(values["pid"]))

    def error(self, event: str, **values: Any) -> None:
        structlog.get_logger().info(event, **values)


class Stage:
    def __init__(self, directory: Path, site: LabSite, vsphere: Vsphere) -> None:
        self.site = site
        self.vsphere = vsphere
        location = directory / "repository"
        self.repository = Repository.create(
            open_storage(str(location), create=True),
            "password",
            block_size_bytes=MIB,
            clock=time.time,
            kdf_cost=KdfCost(ops=1, memory_kib=64),
        )
        [vm] = vsphere.inventory().vms
        snapshot = vsphere.create_snapshot(vm.moref, name="test", description="", quiesce=False)
        [disk] = snapshot.disks
        self.request = TaskRequest(
            kind=TaskKind.BACKUP_DISK,
            task_id=TASK,
            session_id=SessionId("s"),
            attempt=Attempt(1),
            proxy_id=ProxyId("p"),
            expires_at_s=0.0,
            title="backup",
            mode=TransportMode.NBD,
            repository=RepositoryRef(repository_id=self.repository.id, location=str(location)),
            backup=BackupDiskOrder(
                disk=DiskRef(
                    vm_moref=vm.moref,
                    vm_name=vm.name,
                    disk_key=disk.key,
                    path=disk.path,
                    capacity_bytes=disk.capacity_bytes,
                    datastore=disk.datastore,
                    snapshot_moref=snapshot.moref,
                ),
                previous_map_root="",
                previous_change_id="",
                current_change_id="",
                full_read_reason="",
                datastore_is_vmfs=True,
                compression=CompressionLevel.FAST,
            ),
        )
        self.log = Pids()
        self.progress: list[ProgressReport] = []

    def secrets(self, handle: TaskHandle) -> TaskSecrets:
        return TaskSecrets(
            task_id=handle.request.task_id,
            attempt=handle.request.attempt,
            repository_key=self.repository.key_material,
            vsphere=VsphereAccess(
                host=self.site.vcenter_host,
                port=self.site.vcenter_port,
                thumbprint_sha256=self.site.thumbprint_sha256,
                clone_ticket=self.vsphere.clone_ticket().reveal(),
            ),
        )

    def run(self, request: TaskRequest) -> ResultReport:
        handle = TaskHandle(request)
        runner = Runner(MOVER_COMMAND, kill_grace_s=5.0, log=self.log)
        return runner.run(handle, self.secrets(handle), self.secrets, self.progress.append)

    def record(self) -> WorkRecord | None:
        return read_work(self.repository.storage, self.repository.keyring, TASK)

    def read_bytes(self) -> int:
        return sum(self.site.control.stats()["disk_bytes_read"].values())


@pytest.fixture
def stage(tmp_path: Path, labvc_binary: Path) -> Iterator[Stage]:
    with LabSite.quick(tmp_path / "site", (PLAN,), binary=labvc_binary) as site:
        endpoint = Endpoint(
            host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
        )
        login = Login(username=site.user, password=Secret(site.password))
        vsphere = connect(endpoint, login, clock=time.time)
        try:
            yield Stage(tmp_path, site, vsphere)
        finally:
            vsphere.close()


def test_a_killed_mover_costs_no_more_than_what_came_after_its_last_checkpoint(
    stage: Stage, tmp_path: Path
) -> None:
    # Slow enough that a checkpoint is written while there is more to read.
    stage.site.control.fault("nfc-delay", 1_000_000, delay_s=1.0)
    ended: list[ResultReport] = []
    first = threading.Thread(target=lambda: ended.append(stage.run(stage.request)))
    first.start()

    def durable() -> bool:
        record = stage.record()
        return record is not None and 0 < record.next_block < BLOCKS

    wait_until("a checkpoint is written", durable, 120)
    os.kill(stage.log.started[0], signal.SIGKILL)
    first.join()
    assert ended[0].outcome is TaskOutcome.RETRY
    assert "SIGKILL" in ended[0].reason
    record = stage.record()
    assert record is not None
    kept = record.next_block
    assert 0 < kept < BLOCKS

    stage.site.control.clear_faults()
    before = stage.read_bytes()
    again = replace(stage.request, attempt=Attempt(2), mode=TransportMode.NBDSSL)
    result = stage.run(again)
    assert (result.outcome, result.mode) == (TaskOutcome.SUCCESS, TransportMode.NBDSSL)
    assert stage.read_bytes() - before == (BLOCKS - kept) * MIB

    target = tmp_path / "restored.raw"
    writer = RawFileWriter.create(target, BLOCKS * MIB, overwrite=False)
    restore_disk(
        repository=stage.repository,
        map_root=result.map_root,
        capacity_bytes=BLOCKS * MIB,
        writer=writer,
        skip_zeros=True,
        cancel=threading.Event(),
        progress=lambda _: None,
        clock=time.time,
    )
    writer.close()
    assert digest(target) == stage.site.live_sha256(stage.site.disk("vm01"))
