"""One order carried out: where a transport mode and the data mover meet.

Errors of `transports` and `pipeline` pass through; `outcomes` says what they mean.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline import copy, mover, planning, restore, verify
from pipeline.errors import CancelledError, IntegrityError, PermanentPipelineError
from pipeline.model import BlockCounts, DiskStats
from pipeline.planning import BackupPlan
from pipeline.progress import MoverProgress
from pipeline.rawfile import RawFileWriter
from pipeline.repository import Repository
from pipeline.repository.immutability import keeping
from pipeline.storage import open_storage
from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.extents import unpack_extents
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CopyDiskOrder,
    ProgressReport,
    RepositoryRef,
    RestoreDiskOrder,
    ResultReport,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
)
from proxy_worker.progress import ProgressMeter, phase_report
from proxy_worker.vsphere_session import Connect, RenewableSession, RenewAccess
from transports import registry
from transports.base import Ability, DiskReader, DiskRef, DiskWriter, Extent, Presenter, TransportMode
from transports.errors import ChangeTrackingUnusableError, TransportError
from transports.registry import Access, ModeOptions, NothingPresented
from transports.vsphere.api import Vsphere
from transports.wrappers import ReconnectingReader, ReconnectingWriter

RECONNECTS: Final = 6
"""Failures in a row before the task is handed back: about a minute with the pauses in between."""
ALLOCATED: Final = "*"
"""Instead of a change id: what is allocated."""
NOT_TRACKED: Final = "the disk is not tracked: the snapshot has no change id"
NEVER_TRACKED: Final = "the disk was not tracked when the previous restore point was made"

OpenReader = Callable[[Access, DiskRef, TransportMode], DiskReader]
OpenWriter = Callable[[Access, DiskRef, TransportMode], DiskWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the work is done with; the composition root chooses."""

    clock: Clock
    cancel: threading.Event
    progress: Callable[[ProgressReport], None]
    renew: RenewAccess
    connect: Connect
    open_reader: OpenReader = registry.open_reader
    open_writer: OpenWriter = registry.open_writer
    presenter: Presenter = field(default_factory=NothingPresented)
    options: ModeOptions = field(default_factory=ModeOptions)
    cache_dir: Path | None = None
    """Where this machine keeps caches of indexes; None: in memory."""

    def access(self, vsphere: Vsphere) -> Access:
        return Access(vsphere=vsphere, presenter=self.presenter, options=self.options)


def carry_out(request: TaskRequest, secrets: TaskSecrets, tools: Tools) -> ResultReport:
    """Do what the order says; the result of a success or a warning."""
    tools.progress(phase_report(request, "opening"))
    repository = _open(request.repository, secrets.repository_key, secrets.storage_secrets, tools)
    if request.kind is TaskKind.BACKUP_DISK:
        if request.backup is None:
            raise PermanentPipelineError("the order names no disk to back up")
        return _backup(request, request.backup, repository, secrets, tools)
    if request.kind is TaskKind.COPY_DISK:
        if request.copy is None:
            raise PermanentPipelineError("the order names no disk to copy")
        return _copy(request, request.copy, repository, secrets, tools)
    if request.restore is None:
        raise PermanentPipelineError("the order names no disk to restore")
    if request.kind is TaskKind.RESTORE_DISK_TO_FILE:
        return _restore_to_file(request, request.restore, repository, tools)
    return _restore_to_vm(request, request.restore, repository, secrets, tools)


def _open(ref: RepositoryRef, key: str, storage_secrets: str, tools: Tools) -> Repository:
    storage = open_storage(
        ref.location, secrets=storage_secrets_of(storage_secrets), cancel=tools.cancel
    )
    return Repository.open_with_key(
        keeping(storage, ref.immutable_days, tools.clock),
        key,
        expected_id=ref.repository_id,
        clock=tools.clock,
        cache_dir=tools.cache_dir,
    )


def storage_secrets_of(text: str) -> dict[str, str]:
    """The secrets of a storage, as a task's secrets have them. Raises PermanentPipelineError."""
    if not text:
        return {}
    try:
        secrets = json.loads(text)
        return {str(name): str(value) for name, value in secrets.items()}
    except (ValueError, AttributeError):
        raise PermanentPipelineError(
            "the storage's secrets came in a form that is not understood; update server and proxies to the same release"
        ) from None


# ---- backup ---------------------------------------------------------------------------------------


def _backup(
    request: TaskRequest,
    order: BackupDiskOrder,
    repository: Repository,
    secrets: TaskSecrets,
    tools: Tools,
) -> ResultReport:
    session = RenewableSession(secrets.vsphere, tools.renew, tools.connect, tools.clock)
    try:
        reader = ReconnectingReader(
            lambda: session.use(lambda v: tools.open_reader(tools.access(v), order.disk, request.mode)),
            RECONNECTS,
            lambda pause_s: _pause(tools.cancel, pause_s),
        )
        try:
            tools.progress(phase_report(request, "querying-changes"))
            plan = plan_disk(order, reader, session, repository.block_size_bytes)
            done = mover.backup_disk(
                repository=repository,
                reader=reader,
                plan=plan,
                compression=order.compression.value,
                work_id=request.task_id,
                cancel=tools.cancel,
                progress=ProgressMeter(request, "reading", tools.progress),
                clock=tools.clock,
            )
        finally:
            reader.close()
    finally:
        session.close()
    return _stored(request, plan, done, request.mode)


def plan_disk(
    order: BackupDiskOrder, reader: DiskReader, session: RenewableSession, block_size_bytes: int
) -> BackupPlan:
    """What to read. Whatever change tracking cannot answer plainly is a full read with its reason."""
    changed, reason = changes(order, session)
    allocated = None
    if changed is None:
        allocated = _allocated(order, reader, session)
    return planning.plan_backup(
        capacity_bytes=order.disk.capacity_bytes,
        block_size_bytes=block_size_bytes,
        previous_map_root=order.previous_map_root,
        changed=changed,
        # Of an increment everything that changed is read: a list of allocated blocks that missed one
        # would store zeros where there is data, and it saves little.
        allocated=allocated,
        full_read_reason=reason,
    )


def changes(order: BackupDiskOrder, session: RenewableSession) -> tuple[list[Extent] | None, str]:
    """Changed extents, or None and why everything has to be read."""
    if not order.previous_map_root or order.full_read_reason:
        return None, order.full_read_reason
    if not order.current_change_id:
        return None, NOT_TRACKED
    if not order.previous_change_id:
        return None, NEVER_TRACKED
    disk = order.disk
    if order.known_changes:
        return _known_changes(order)
    snapshot = disk.snapshot_moref
    if snapshot is None:
        return None, "the disk is read without a snapshot, so vSphere cannot tell what changed"
    try:
        found = session.use(
            lambda v: v.changed_areas(disk.vm_moref, snapshot, disk.disk_key, order.previous_change_id)
        )
    except ChangeTrackingUnusableError as error:
        return None, str(error)
    return found, ""


def _known_changes(order: BackupDiskOrder) -> tuple[list[Extent] | None, str]:
    """What the server asked while the VM snapshot existed, which is gone by now."""
    try:
        return unpack_extents(order.known_changes, size_bytes=order.disk.capacity_bytes), ""
    except ValueError as error:
        return None, f"what the server said of changes is not to be used: {error}"


def _allocated(
    order: BackupDiskOrder, reader: DiskReader, session: RenewableSession
) -> list[Extent] | None:
    """What may hold data; None when nobody can tell. The mode knows best; tracking's own answer is to be
    had on VMFS only, and on a disk that is tracked.
    """
    disk = order.disk
    if disk.is_delta:
        return None  # both would speak of the delta alone, and what lies below it would be lost
    if reader.capabilities.allocated_extents is Ability.NATIVE:
        return list(reader.allocated_extents(0, reader.size_bytes))
    snapshot = disk.snapshot_moref
    if snapshot is None or not order.datastore_is_vmfs or not order.current_change_id:
        return None
    if order.previous_map_root:
        return None  # tracking was found wanting for this disk just now
    try:
        return session.use(lambda v: v.changed_areas(disk.vm_moref, snapshot, disk.disk_key, ALLOCATED))
    except TransportError:
        return None  # it only saves reading; the mover finds zeros by itself


def _pause(cancel: threading.Event, pause_s: float) -> None:
    if cancel.wait(pause_s):
        raise CancelledError("cancelled while the connection to the host was lost")


# ---- copy -----------------------------------------------------------------------------------------


def _copy(
    request: TaskRequest,
    order: CopyDiskOrder,
    target: Repository,
    secrets: TaskSecrets,
    tools: Tools,
) -> ResultReport:
    source = _open(order.source, secrets.source_repository_key, secrets.source_storage_secrets, tools)
    tools.progress(phase_report(request, "querying-changes"))
    plan = copy.plan_copy(
        source=source,
        target_block_size_bytes=target.block_size_bytes,
        map_root=order.map_root,
        capacity_bytes=order.capacity_bytes,
        base_map_root=order.base_map_root,
        base_capacity_bytes=order.base_capacity_bytes,
        copied_map_root=order.copied_map_root,
    )
    done = copy.copy_disk(
        source=source,
        target=target,
        plan=plan,
        map_root=order.map_root,
        compression=order.compression.value,
        work_id=request.task_id,
        cancel=tools.cancel,
        progress=ProgressMeter(request, "reading", tools.progress),
        clock=tools.clock,
    )
    return _stored(request, plan, done, None)


def _stored(
    request: TaskRequest, plan: BackupPlan, done: mover.DiskBackup, mode: TransportMode | None
) -> ResultReport:
    return ResultReport(
        task_id=request.task_id,
        attempt=request.attempt,
        outcome=TaskOutcome.SUCCESS,
        reason="",
        read_mode=plan.read_mode,
        read_mode_reason=plan.reason,
        map_root=done.map_root,
        mode=mode,
        stats=done.stats,
    )


# ---- restore --------------------------------------------------------------------------------------


def _restore_to_vm(
    request: TaskRequest,
    order: RestoreDiskOrder,
    repository: Repository,
    secrets: TaskSecrets,
    tools: Tools,
) -> ResultReport:
    target = order.target_disk
    if target is None:
        raise PermanentPipelineError("the order names no target disk")
    _check_image(order, repository, tools)
    session = RenewableSession(secrets.vsphere, tools.renew, tools.connect, tools.clock)
    try:
        writer = ReconnectingWriter(
            lambda: session.use(lambda v: tools.open_writer(tools.access(v), target, request.mode)),
            RECONNECTS,
            lambda pause_s: _pause(tools.cancel, pause_s),
        )
        try:
            # Another attempt may have written to it: only a disk that nobody touched may skip zeros,
            # but zeros are what an earlier attempt of ours left alone as well.
            skip = writer.capabilities.reads_as_zero_when_new
            stats = _write(request, order, repository, writer, skip, tools)
        finally:
            writer.close()
    finally:
        session.close()
    return _restored(request, request.mode, stats)


def _restore_to_file(
    request: TaskRequest, order: RestoreDiskOrder, repository: Repository, tools: Tools
) -> ResultReport:
    """Under a name of its own until it is whole: nobody takes half a disk for a disk.

    The name is the attempt's: an earlier one that lost its lease may still be writing. Without its file
    it cannot publish any more.
    """
    target = Path(order.target_path)
    if not target.is_absolute():
        raise PermanentPipelineError(f"the target {order.target_path!r} is not an absolute path")
    if target.exists() and not order.overwrite:
        raise _exists(target)
    _check_image(order, repository, tools)
    for attempt in range(1, request.attempt):
        _part(target, request, attempt).unlink(missing_ok=True)
    part = _part(target, request, request.attempt)
    writer = RawFileWriter.create(part, order.capacity_bytes, overwrite=True)
    try:
        try:
            stats = _write(request, order, repository, writer, True, tools)
        finally:
            writer.close()
        _publish(part, target, order.overwrite)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return _restored(request, None, stats)


def _part(target: Path, request: TaskRequest, attempt: int) -> Path:
    return target.with_name(f".{target.name}.{request.task_id}-a{attempt}.part")


def _write(
    request: TaskRequest,
    order: RestoreDiskOrder,
    repository: Repository,
    writer: DiskWriter,
    skip_zeros: bool,
    tools: Tools,
) -> DiskStats:
    """Figures as those of a backup: read from the repository, stored on the target."""
    meter: Callable[[MoverProgress], None] = ProgressMeter(request, "writing", tools.progress)
    done = restore.restore_disk(
        repository=repository,
        map_root=order.map_root,
        capacity_bytes=order.capacity_bytes,
        writer=writer,
        skip_zeros=skip_zeros,
        cancel=tools.cancel,
        progress=meter,
        clock=tools.clock,
    )
    return DiskStats(
        capacity_bytes=done.capacity_bytes,
        read_bytes=done.read_bytes,
        changed_bytes=done.capacity_bytes,
        stored_bytes=done.written_bytes,
        blocks=BlockCounts(
            zero=done.zero_bytes // repository.block_size_bytes,
            new=done.blocks,
            deduplicated=0,
            unchanged=0,
        ),
        duration_s=done.duration_s,
        stages=done.stages,
    )


def _publish(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
    else:
        try:
            # A link refuses what came into being meanwhile, a rename would replace it.
            os.link(part, target)
        except FileExistsError:
            raise _exists(target) from None
        part.unlink()
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _exists(target: Path) -> PermanentPipelineError:
    return PermanentPipelineError(f"{target} exists already; name another file or allow overwriting")


def _check_image(order: RestoreDiskOrder, repository: Repository, tools: Tools) -> None:
    """Where the point knows the image's hash, the repository must still give that image."""
    if not order.expected_sha256:
        return
    found = verify.image_sha256(
        repository=repository,
        map_root=order.map_root,
        capacity_bytes=order.capacity_bytes,
        cancel=tools.cancel,
    )
    if found != order.expected_sha256:
        raise IntegrityError(
            f"the disk in the repository has SHA-256 {found}, the restore point says "
            f"{order.expected_sha256}; check the repository and restore another point"
        )


def _restored(request: TaskRequest, mode: TransportMode | None, stats: DiskStats) -> ResultReport:
    return ResultReport(
        task_id=request.task_id,
        attempt=request.attempt,
        outcome=TaskOutcome.SUCCESS,
        reason="",
        mode=mode,
        stats=stats,
    )
