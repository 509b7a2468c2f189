"""Orders carried out with disks in memory and a repository on the disk."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.errors import (
    CancelledError,
    IntegrityError,
    PermanentPipelineError,
    StorageMissingError,
    WrongRepositoryError,
)
from pipeline.model import ReadMode
from pipeline.repository import KdfCost, Repository
from pipeline.storage import open_storage
from proxy_worker import disk_reading
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CompressionLevel,
    CopyDiskOrder,
    Failover,
    ProgressReport,
    RateLimit,
    RepositoryRef,
    RestoreDiskOrder,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
    VsphereAccess,
)
from proxy_worker.disk_work import Tools, carry_out
from proxy_worker.throttle import Throttle
from tests.support.waiting import Clock
from transports.base import DiskReader, DiskRef, DiskWriter, Extent, TransportMode
from transports.errors import (
    ChangeTrackingUnusableError,
    PermanentTransportError,
    SessionExpiredError,
    TransientTransportError,
)
from transports.fence import Fence
from transports.registry import Access
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.vsphere.api import Vsphere
from transports.vsphere.model import CloneTicket, Endpoint

MIB = 1 << 20
ACCESS = VsphereAccess(host="vc", port=443, thumbprint_sha256="AA", clone_ticket="ticket-1")


class FakeVcenter:
    """Answers changed_areas from `areas`; forgets sessions as it is told."""

    def __init__(self) -> None:
        self.tickets: list[str] = []
        self.areas: dict[str, list[Extent] | Exception] = {}
        self.asked: list[str] = []
        self.expire_next = 0
        self.closed = 0

    def connect(self, endpoint: Endpoint, ticket: CloneTicket, clock: Any) -> Vsphere:
        self.tickets.append(ticket.ticket.reveal())
        return cast("Vsphere", _Client(self))

    def spend(self) -> None:
        if self.expire_next:
            self.expire_next -= 1
            raise SessionExpiredError("the session is not known")


class _Client:
    def __init__(self, center: FakeVcenter) -> None:
        self.center = center

    def changed_areas(self, vm: str, snapshot: str, key: int, change_id: str) -> list[Extent]:
        self.center.spend()
        self.center.asked.append(change_id)
        answer = self.center.areas[change_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.center.closed += 1


class Bench:
    """A repository, a disk, and a vCenter; orders go through `carry_out`."""

    def __init__(self, directory: Path) -> None:
        self.location = directory / "repository"
        self.repository = Repository.create(
            open_storage(str(self.location), create=True),
            "password",
            block_size_bytes=MIB,
            clock=time.time,
            kdf_cost=KdfCost(ops=1, memory_kib=64),
        )
        rng = random.Random(7)
        self.disk = MemoryDisk.of(rng.randbytes(3 * MIB) + bytes(2 * MIB) + rng.randbytes(MIB))
        self.center = FakeVcenter()
        self.fence: Fence | None = None
        self.throttle = Throttle()
        self.cancel = threading.Event()
        self.reports: list[ProgressReport] = []
        self.renewals = 0
        self.read_faults: list[Exception] = []
        self.on_open: Callable[[], None] = lambda: None
        self.read_modes: dict[TransportMode, Callable[[], DiskReader]] = {}
        self.write_modes: dict[TransportMode, Callable[[], DiskWriter]] = {}
        self.modes: tuple[TransportMode, ...] = (TransportMode.NBDSSL,)
        self.left: list[Failover] = []

    def _renew(self) -> VsphereAccess:
        self.renewals += 1
        return replace(ACCESS, clone_ticket=f"ticket-{self.renewals + 1}")

    def _open_reader(self, access: Access, disk: DiskRef, mode: TransportMode) -> DiskReader:
        cast("_Client", access.vsphere).center.spend()
        self.on_open()
        if self.read_faults:
            raise self.read_faults.pop(0)
        if mode in self.read_modes:
            return self.read_modes[mode]()
        return MemoryReader(self.disk)

    def _open_writer(self, access: Access, disk: DiskRef, mode: TransportMode) -> DiskWriter:
        cast("_Client", access.vsphere).center.spend()
        if mode in self.write_modes:
            return self.write_modes[mode]()
        return MemoryWriter(self.target)

    def run(
        self,
        request: TaskRequest,
        access: VsphereAccess | None = ACCESS,
        *,
        source_repository_key: str = "",
    ) -> Any:
        self.target = MemoryDisk.of(bytes(len(self.disk.content)))
        secrets = TaskSecrets(
            task_id=request.task_id,
            attempt=request.attempt,
            repository_key=self.repository.key_material,
            source_repository_key=source_repository_key,
            vsphere=access,
        )
        tools = Tools(
            clock=time.time,
            cancel=self.cancel,
            progress=self.reports.append,
            renew=self._renew,
            connect=self.center.connect,
            open_reader=self._open_reader,
            open_writer=self._open_writer,
            left=self.left,
            fence=self.fence,
            throttle=self.throttle,
        )
        return carry_out(request, secrets, tools)

    def request(self, kind: TaskKind, **order: Any) -> TaskRequest:
        return TaskRequest(
            kind=kind,
            task_id=TaskId("11111111-2222-3333-4444-555555555555"),
            session_id=SessionId("s"),
            attempt=Attempt(1),
            proxy_id=ProxyId("p"),
            expires_at_s=0.0,
            title="test",
            mode=self.modes[0],
            fallback_modes=self.modes[1:],
            repository=RepositoryRef(repository_id=self.repository.id, location=str(self.location)),
            **order,
        )

    def ref(self) -> DiskRef:
        return DiskRef(
            vm_moref="vm-1",
            vm_name="db01",
            disk_key=2000,
            path="[ds] a/a.vmdk",
            capacity_bytes=len(self.disk.content),
            datastore="ds",
            snapshot_moref="snapshot-1",
        )

    def backup(self, task: str = "11111111-2222-3333-4444-555555555555", **changes: Any) -> Any:
        values: dict[str, Any] = {
            "disk": self.ref(),
            "previous_map_root": "",
            "previous_change_id": "",
            "current_change_id": "52/2",
            "full_read_reason": "",
            "datastore_is_vmfs": False,
            "compression": CompressionLevel.FAST,
            **changes,
        }
        request = self.request(TaskKind.BACKUP_DISK, backup=BackupDiskOrder(**values))
        return self.run(replace(request, task_id=TaskId(task)))

    def restore_order(self, map_root: str, **changes: Any) -> RestoreDiskOrder:
        return RestoreDiskOrder(
            map_root=map_root,
            capacity_bytes=len(self.disk.content),
            **{"expected_sha256": "", **changes},
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_full_backup_comes_back_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    done = bench.backup()
    assert (done.outcome, done.read_mode) == (TaskOutcome.SUCCESS, ReadMode.FULL)
    assert done.stats.capacity_bytes == 6 * MIB
    assert bench.center.tickets == ["ticket-1"]
    assert bench.center.closed == 1
    assert [report.phase for report in bench.reports[:2]] == ["opening", "querying-changes"]
    assert bench.reports[-1].phase == "finishing"
    target = tmp_path / "disk.raw"
    order = bench.restore_order(done.map_root, target_path=str(target))
    restored = bench.run(bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=order), None)
    assert restored.outcome is TaskOutcome.SUCCESS
    assert target.read_bytes() == bench.disk.content
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    to_vm = bench.restore_order(done.map_root, target_disk=bench.ref())
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=to_vm))
    assert bench.target.content == bench.disk.content


def test_an_increment_reads_what_changed(bench: Bench) -> None:
    first = bench.backup()
    bench.disk.content[MIB : MIB + 512] = b"x" * 512
    bench.disk.reads.clear()
    bench.center.areas["52/1"] = [Extent(offset=MIB, length=512)]
    second = bench.backup(
        "22222222-2222-3333-4444-555555555555",
        previous_map_root=first.map_root,
        previous_change_id="52/1",
    )
    assert (second.read_mode, second.read_mode_reason) == (ReadMode.INCREMENT, "")
    assert {offset // MIB for offset, _ in bench.disk.reads} == {1}
    order = bench.restore_order(second.map_root, target_disk=bench.ref())
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert bench.target.content == bench.disk.content


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"full_read_reason": "the VM was reverted"}, "the VM was reverted"),
        ({"current_change_id": ""}, disk_reading.NOT_TRACKED),
        ({"previous_change_id": ""}, disk_reading.NEVER_TRACKED),
        ({}, "the base is gone"),
    ],
)
def test_tracking_that_cannot_be_used_is_a_full_scan_with_the_reason(
    bench: Bench, changes: dict[str, Any], reason: str
) -> None:
    first = bench.backup()
    bench.disk.reads.clear()
    bench.center.areas["52/1"] = ChangeTrackingUnusableError("the base is gone")
    order = {
        "previous_map_root": first.map_root,
        "previous_change_id": "52/1",
        "datastore_is_vmfs": True,
        **changes,
    }
    second = bench.backup("22222222-2222-3333-4444-555555555555", **order)
    assert (second.read_mode, second.read_mode_reason) == (ReadMode.FULL_SCAN, reason)
    assert second.map_root == first.map_root
    assert sum(length for _, length in bench.disk.reads) == 6 * MIB
    assert "*" not in bench.center.asked


def test_what_is_allocated_is_asked_of_the_mode_first_then_of_tracking(bench: Bench) -> None:
    used = [Extent(offset=0, length=3 * MIB), Extent(offset=5 * MIB, length=MIB)]
    bench.center.areas["*"] = used
    bench.backup(datastore_is_vmfs=True)
    assert bench.center.asked == ["*"]
    assert {offset // MIB for offset, _ in bench.disk.reads} == {0, 1, 2, 5}
    bench.disk.allocated = tuple(used)
    bench.disk.reads.clear()
    bench.backup("22222222-2222-3333-4444-555555555555", datastore_is_vmfs=True)
    assert bench.center.asked == ["*"]
    assert {offset // MIB for offset, _ in bench.disk.reads} == {0, 1, 2, 5}
    bench.disk.allocated = None
    bench.disk.reads.clear()
    bench.center.areas["*"] = ChangeTrackingUnusableError("no epoch")
    bench.backup("33333333-2222-3333-4444-555555555555", datastore_is_vmfs=True)
    assert sum(length for _, length in bench.disk.reads) == 6 * MIB


def test_of_a_delta_everything_is_read(bench: Bench) -> None:
    bench.disk.allocated = (Extent(offset=0, length=MIB),)
    bench.center.areas["*"] = [Extent(offset=0, length=MIB)]
    delta = replace(bench.ref(), is_delta=True)
    bench.backup(disk=delta, datastore_is_vmfs=True)
    assert sum(length for _, length in bench.disk.reads) == 6 * MIB
    assert bench.center.asked == []


def test_a_forgotten_session_is_renewed(bench: Bench) -> None:
    bench.center.expire_next = 1
    done = bench.backup()
    assert done.outcome is TaskOutcome.SUCCESS
    assert bench.center.tickets == ["ticket-1", "ticket-2"]
    assert bench.center.closed == 2
    # one that is forgotten again at once is given up, for the server to see to
    bench.center.expire_next = 2
    with pytest.raises(SessionExpiredError):
        bench.backup("22222222-2222-3333-4444-555555555555")


def test_first_opening_is_tried_once_and_cancel_ends_waiting(bench: Bench) -> None:
    bench.read_faults = [TransientTransportError("cut")]
    with pytest.raises(TransientTransportError, match="cut"):
        bench.backup()
    bench.cancel.set()
    with pytest.raises(CancelledError):
        bench.backup()


def test_no_access_to_vcenter_is_said(bench: Bench) -> None:
    request = bench.request(
        TaskKind.BACKUP_DISK,
        backup=BackupDiskOrder(
            disk=bench.ref(),
            previous_map_root="",
            previous_change_id="",
            current_change_id="",
            full_read_reason="",
            datastore_is_vmfs=False,
            compression=CompressionLevel.NONE,
        ),
    )
    with pytest.raises(PermanentTransportError, match="no access"):
        bench.run(request, None)
    with pytest.raises(PermanentPipelineError, match="names no disk"):
        bench.run(replace(request, backup=None))


def test_another_repository_and_a_missing_one_are_refused(bench: Bench, tmp_path: Path) -> None:
    request = bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=None)
    wrong = replace(request.repository, repository_id="00000000-0000-0000-0000-000000000000")
    with pytest.raises(WrongRepositoryError):
        bench.run(replace(request, repository=wrong))
    gone = replace(request.repository, location=str(tmp_path / "nowhere"))
    with pytest.raises(StorageMissingError):
        bench.run(replace(request, repository=gone))


def test_a_file_that_exists_is_refused_unless_told(bench: Bench, tmp_path: Path) -> None:
    done = bench.backup()
    target = tmp_path / "disk.raw"
    target.write_text("precious")
    order = bench.restore_order(done.map_root, target_path=str(target))
    request = bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=order)
    with pytest.raises(PermanentPipelineError, match="exists already"):
        bench.run(request)
    assert target.read_text() == "precious"
    # the rest of an attempt that died is no obstacle, and goes
    (tmp_path / f".disk.raw.{request.task_id}-a1.part").write_text("half")
    bench.run(replace(request, attempt=Attempt(2), restore=replace(order, overwrite=True)))
    assert target.read_bytes() == bench.disk.content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "repository"]


def test_a_restore_that_fails_leaves_no_half_disk(bench: Bench, tmp_path: Path) -> None:
    bench.backup()
    target = tmp_path / "disk.raw"
    order = bench.restore_order("ab" * 32, target_path=str(target))
    with pytest.raises(IntegrityError):
        bench.run(bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=order))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"]


def test_a_hash_that_the_point_knows_must_be_met(bench: Bench, tmp_path: Path) -> None:
    done = bench.backup()
    order = bench.restore_order(
        done.map_root, target_path=str(tmp_path / "disk.raw"), expected_sha256="00" * 32
    )
    with pytest.raises(IntegrityError, match="SHA-256"):
        bench.run(bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=order))
    with pytest.raises(PermanentPipelineError, match="absolute"):
        bench.run(
            bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=replace(order, target_path="disk.raw"))
        )


def test_an_attempt_that_lost_its_lease_cannot_publish_the_half_of_the_next_one(
    bench: Bench, tmp_path: Path
) -> None:
    done = bench.backup()
    target = tmp_path / "disk.raw"
    order = bench.restore_order(done.map_root, target_path=str(target), overwrite=True)
    first = bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=order)
    failures: list[BaseException] = []
    begun, may_end, halfway = threading.Event(), threading.Event(), threading.Event()

    class OfFirst(list[ProgressReport]):
        def append(self, report: ProgressReport) -> None:
            if report.phase in ("writing", "finishing") and not begun.is_set():
                begun.set()
                assert may_end.wait(20)

    def lost() -> None:
        try:
            bench.run(first)
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    class OfSecond(list[ProgressReport]):
        def append(self, report: ProgressReport) -> None:
            if report.phase in ("writing", "finishing") and not halfway.is_set():
                halfway.set()
                may_end.set()
                thread.join(20)
                assert not target.exists()

    bench.reports = OfFirst()
    thread = threading.Thread(target=lost)
    thread.start()
    assert begun.wait(60), failures
    bench.reports = OfSecond()
    bench.run(replace(first, attempt=Attempt(2)))
    assert halfway.is_set()
    assert [type(error) for error in failures] == [FileNotFoundError]
    assert target.read_bytes() == bench.disk.content


def test_a_disk_is_copied_into_another_repository(bench: Bench, tmp_path: Path) -> None:
    backed_up = bench.backup()
    source, source_location = bench.repository, bench.location
    bench.location = tmp_path / "offsite"
    bench.repository = Repository.create(
        open_storage(str(bench.location), create=True),
        "another secret",
        clock=time.time,
        block_size_bytes=256 << 10,
        kdf_cost=KdfCost(ops=1, memory_kib=64),
    )
    order = CopyDiskOrder(
        source=RepositoryRef(repository_id=source.id, location=str(source_location)),
        map_root=backed_up.map_root,
        capacity_bytes=len(bench.disk.content),
        base_map_root="",
        base_capacity_bytes=0,
        copied_map_root="",
        compression=CompressionLevel.HIGH,
    )
    request = bench.request(TaskKind.COPY_DISK, copy=order)
    request = replace(request, task_id=TaskId("99999999-2222-3333-4444-555555555555"))
    done = bench.run(request, None, source_repository_key=source.key_material)
    assert (done.outcome, done.read_mode) == (TaskOutcome.SUCCESS, ReadMode.FULL)
    assert done.stats.read_bytes == 4 * MIB  # what the source knows to be zeros is not read
    target = tmp_path / "disk.raw"
    restore = bench.restore_order(done.map_root, target_path=str(target))
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_FILE, restore=restore), None)
    assert target.read_bytes() == bench.disk.content
    with pytest.raises(PermanentPipelineError, match="no disk to copy"):
        bench.run(replace(request, copy=None), None, source_repository_key=source.key_material)


def test_a_restore_writes_nothing_when_its_lease_may_have_ended(bench: Bench) -> None:
    done = bench.backup()

    def ended(pause_s: float) -> None:
        raise CancelledError

    bench.fence = Fence(lambda: 10.0, ended)
    order = bench.restore_order(done.map_root, target_disk=bench.ref())
    with pytest.raises(CancelledError):
        bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert not any(bench.target.content)
    bench.fence.open_until(20.0)
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert bench.target.content == bench.disk.content


def test_a_backup_and_a_restore_are_held_to_their_rate(bench: Bench) -> None:
    clock = Clock()
    began_s = clock.now_s

    def held(*, source: bool, target: bool) -> Throttle:
        limit = RateLimit(bytes_per_s=MIB, source=source, target=target)
        return Throttle(limit, clock=clock, changed=clock)

    bench.throttle = held(source=True, target=False)
    done = bench.backup()
    assert done.outcome is TaskOutcome.SUCCESS
    # 6 MiB are read; what is read last is owed for.
    assert clock.now_s - began_s >= 4
    bench.throttle = held(source=False, target=True)
    began_s = clock.now_s
    order = bench.restore_order(done.map_root, target_disk=bench.ref())
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert bench.target.content == bench.disk.content
    assert clock.now_s - began_s >= 2, "4 MiB of data are written"
    bench.throttle = held(source=True, target=False)
    began_s = clock.now_s
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert clock.now_s - began_s >= 2, "and read from the repository"
