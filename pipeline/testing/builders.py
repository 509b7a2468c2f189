"""A small repository and the calls that tests make of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from uuid import UUID, uuid4

from pipeline.continuing import Continuation
from pipeline.crypto.aead import Aead
from pipeline.crypto.kdf import KdfCost
from pipeline.model import (
    BlobId,
    Consistency,
    DiskPoint,
    PointKind,
    RestorePoint,
    RestorePointId,
    VmIdentity,
)
from pipeline.mover import DiskBackup, MoverOptions, backup_disk
from pipeline.planning import ZERO_ROOT, BackupPlan, plan_backup
from pipeline.progress import MoverProgress
from pipeline.repository.repository import Repository
from pipeline.restore import restore_disk
from pipeline.storage.base import Storage
from pipeline.testing.disks import MemoryDisk, MemoryTarget
from transports.base import DiskReader, Extent

BLOCK_SIZE_BYTES = 4096
PASSWORD = "open sesame"
CHEAP_KDF = KdfCost(ops=1, memory_kib=8)


class ManualClock:
    """A clock that moves when it is told to, from any thread."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Workbench:
    """A repository with small blocks and packs, and short ways to use it."""

    def __init__(
        self,
        storage: Storage,
        clock: Callable[[], float],
        *,
        repository: Repository | None = None,
        block_size_bytes: int = BLOCK_SIZE_BYTES,
        pack_target_bytes: int = 16 * BLOCK_SIZE_BYTES,
        aead: Aead | None = None,
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.repository = repository or Repository.create(
            storage,
            PASSWORD,
            clock=clock,
            block_size_bytes=block_size_bytes,
            kdf_cost=CHEAP_KDF,
            aead=aead,
        )
        self.repository.pack_target_bytes = pack_target_bytes

    def on(self, storage: Storage) -> Workbench:
        """The same repository through another storage object: a new process, or one that will fail."""
        repository = Repository.open_with_key(
            storage,
            self.repository.key_material,
            expected_id=self.repository.id,
            clock=self.clock,
        )
        return Workbench(
            storage,
            self.clock,
            repository=repository,
            pack_target_bytes=self.repository.pack_target_bytes,
        )

    def plan(
        self,
        capacity_bytes: int,
        *,
        previous: str = "",
        previous_capacity_bytes: int = 0,
        changed: Iterable[Extent] | None = None,
        allocated: Iterable[Extent] | None = None,
    ) -> BackupPlan:
        return plan_backup(
            capacity_bytes=capacity_bytes,
            block_size_bytes=self.repository.block_size_bytes,
            previous_map_root=previous,
            previous_capacity_bytes=previous_capacity_bytes,
            changed=changed,
            allocated=allocated,
        )

    def backup(
        self,
        disk: DiskReader | bytes | bytearray,
        *,
        plan: BackupPlan | None = None,
        work_id: str = "",
        compression: str = "fast",
        cancel: threading.Event | None = None,
        progress: Callable[[MoverProgress], None] = lambda _progress: None,
        options: MoverOptions | None = None,
        continued: Continuation | None = None,
    ) -> DiskBackup:
        """Back a disk up; a full without a plan."""
        reader = MemoryDisk(disk) if isinstance(disk, bytes | bytearray) else disk
        return backup_disk(
            repository=self.repository,
            reader=reader,
            plan=continued.plan if continued else plan or self.plan(reader.size_bytes),
            compression=compression,
            work_id=work_id or f"work-{uuid4().hex}",
            cancel=cancel or threading.Event(),
            progress=progress,
            clock=self.clock,
            options=options or MoverOptions(workers=2),
            continued=continued,
        )

    def restored(self, map_root: str, capacity_bytes: int, *, fill: int = 0) -> bytearray:
        """The image of a disk; a target that is not zeros before gets its zeros written."""
        target = MemoryTarget(capacity_bytes, fill=fill)
        restore_disk(
            repository=self.repository,
            map_root=map_root,
            capacity_bytes=capacity_bytes,
            writer=target,
            skip_zeros=fill == 0,
            cancel=threading.Event(),
            progress=lambda _progress: None,
            clock=self.clock,
        )
        return target.image

    def commit(self, point: RestorePoint) -> RestorePoint:
        self.repository.commit_point(point)
        return point

    def problems(self, *, read_data: bool = True) -> tuple[str, ...]:
        return self.repository.check(read_data=read_data).problems


def vm_identity(number: int = 1) -> VmIdentity:
    return VmIdentity(
        instance_uuid=str(UUID(int=number)),
        bios_uuid=str(UUID(int=1000 + number)),
        name=f"vm{number:02}",
        moref=f"vm-{number}",
        vcenter_uuid=str(UUID(int=7)),
    )


def disk_point(map_root: str, capacity_bytes: int, *, disk_key: int = 2000) -> DiskPoint:
    return DiskPoint(
        disk_key=disk_key,
        label=f"Hard disk {disk_key - 1999}",
        disk_uuid=f"6000C29{disk_key}",
        path=f"[datastore1] vm01/vm01_{disk_key}.vmdk",
        capacity_bytes=capacity_bytes,
        map_root=BlobId(map_root),
        change_id="52 de c0 d9/4",
        thin=True,
    )


def restore_point(
    *disks: DiskPoint,
    vm: VmIdentity | None = None,
    created_at: datetime | None = None,
    previous: RestorePoint | None = None,
    point_id: str = "",
) -> RestorePoint:
    return RestorePoint(
        id=RestorePointId(point_id or str(uuid4())),
        vm=vm or vm_identity(),
        created_at=created_at or datetime(2025, 11, 20, 21, 30, tzinfo=UTC),
        kind=PointKind.INCREMENT if previous else PointKind.FULL,
        consistency=Consistency.CRASH,
        previous=previous.id if previous else None,
        job_name="nightly",
        disks=disks or (disk_point(ZERO_ROOT, 1 << 20),),
        skipped_disks=("Hard disk 9: independent disks are not in snapshots",),
        vm_config=b'{"name": "vm01"}',
        nvram=b"\x00\x01nvram",
    )
