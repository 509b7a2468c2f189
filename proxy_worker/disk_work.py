"""One order carried out: where a transport mode and the data mover meet.

Errors of `transports` and `pipeline` pass through; `outcomes` says what they mean.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from pipeline import copy, mover, restore, verify
from pipeline.errors import CancelledError, IntegrityError, PermanentPipelineError
from pipeline.model import BlockCounts, DiskStats
from pipeline.planning import BackupPlan
from pipeline.progress import MoverProgress
from pipeline.repository import Repository
from pipeline.repository.immutability import keeping
from pipeline.storage import open_storage
from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CopyDiskOrder,
    Failover,
    ProgressReport,
    RepositoryRef,
    RestoreDiskOrder,
    ResultReport,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
)
from proxy_worker.disk_reading import go_on_where_possible, plan_disk, trust_or_read_all
from proxy_worker.progress import ProgressMeter, phase_report
from proxy_worker.throttle import Side, Throttle, ThrottledReader, ThrottledStorage, throttled_writer
from proxy_worker.vsphere_session import Connect, RenewableSession, RenewAccess
from transports import registry, system
from transports.base import DiskReader, DiskRef, DiskWriter, Presenter, TransportMode
from transports.errors import TransientTransportError
from transports.failover import FailoverReader, FailoverWriter, Way
from transports.fence import Fence, FencedWriter
from transports.registry import Access, ModeOptions, NothingPresented
from transports.vsphere.api import Vsphere
from transports.wrappers import ReconnectingReader, ReconnectingWriter

RECONNECTS: Final = 6
"""Failures in a row before the task is handed back: half a minute with the pauses in between."""
RECONNECTS_BEFORE_ANOTHER_MODE: Final = 3
"""The same where another mode can go on at once: three seconds."""
OPENINGS_OF_PRESENTED: Final = 3
OPENING_PAUSE_S: Final = 2.0
PRESENTED: Final = frozenset({TransportMode.HOTADD, TransportMode.STORAGE_SNAPSHOT})
"""Modes whose disks the backup server makes reachable."""
REASON_CHARACTERS: Final = 1000
T = TypeVar("T")

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
    throttle: Throttle = field(default_factory=Throttle)
    """How fast data may move; may change while the work is done."""

    fence: Fence | None = None
    """Stops writing to a VM's disk when the lease may have ended; None: nobody said how long it lasts."""

    left: list[Failover] = field(default_factory=list)
    """Modes that failed so far, in their order; filled while the work is done."""

    def access(self, vsphere: Vsphere, networks: tuple[str, ...] = ()) -> Access:
        """`networks`: where a network mode looks for the host first."""
        options = self.options
        if networks:
            network = replace(options.network, preferred_networks=networks)
            options = replace(options, network=network)
        return Access(vsphere=vsphere, presenter=self.presenter, options=options)

    def meter(
        self,
        request: TaskRequest,
        phase: str,
        mode: Callable[[], TransportMode | None] = lambda: None,
    ) -> Callable[[MoverProgress], None]:
        """What passes the data mover's progress on."""
        return ProgressMeter(request, phase, self.progress, mode, self.throttle)

    def pause(self, pause_s: float) -> None:
        if self.cancel.wait(pause_s):
            raise CancelledError("cancelled while the connection to the disk was lost")

    def leave(self, mode: TransportMode, reason: str) -> None:
        self.left.append(Failover(mode=mode, reason=reason[:REASON_CHARACTERS]))


def carry_out(request: TaskRequest, secrets: TaskSecrets, tools: Tools) -> ResultReport:
    """Do what the order says; the result of a success or a warning."""
    tools.progress(phase_report(request, "opening"))
    backwards = request.restore is not None
    repository = _open(
        request.repository,
        secrets.repository_key,
        secrets.storage_secrets,
        tools,
        Side.SOURCE if backwards else Side.TARGET,
    )
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


def _open(ref: RepositoryRef, key: str, storage_secrets: str, tools: Tools, side: Side) -> Repository:
    opened = open_storage(
        ref.location, secrets=storage_secrets_of(storage_secrets), cancel=tools.cancel
    )
    storage = ThrottledStorage(opened, tools.throttle, side)
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
        reader = _reader(request, order.disk, session, tools)
        try:
            tools.progress(phase_report(request, "querying-changes"))
            held = ThrottledReader(reader, tools.throttle)
            plan = plan_disk(order, held, session, repository.block_size_bytes)
            plan, trial = trust_or_read_all(request, order, plan, held, repository)
            plan, trial, continued = go_on_where_possible(
                request, order, plan, trial, session, held, repository
            )
            done = mover.backup_disk(
                repository=repository,
                reader=held,
                plan=plan,
                compression=order.compression.value,
                work_id=request.task_id,
                cancel=tools.cancel,
                progress=tools.meter(request, "reading", lambda: reader.mode),
                clock=tools.clock,
                continued=continued,
            )
        finally:
            reader.close()
    finally:
        session.close()
    return replace(
        _stored(request, plan, done, reader.mode),
        failovers=tuple(tools.left),
        sampled_blocks=trial.sampled,
        tracking_mismatch=trial.for_people(),
    )


def _reader(
    request: TaskRequest, disk: DiskRef, session: RenewableSession, tools: Tools
) -> FailoverReader:
    def way(mode: TransportMode, attempts: int) -> Way[DiskReader]:
        def open_once() -> DiskReader:
            return session.use(
                lambda v: tools.open_reader(tools.access(v, request.preferred_networks), disk, mode)
            )

        def open_way() -> DiskReader:
            return _patiently(
                mode, lambda: ReconnectingReader(open_once, attempts, tools.pause), tools.pause
            )

        return Way(mode, open_way)

    return FailoverReader([way(*each) for each in _modes(request)], tools.leave)


def _writer(
    request: TaskRequest, disk: DiskRef, session: RenewableSession, tools: Tools
) -> FailoverWriter:
    def way(mode: TransportMode, attempts: int) -> Way[DiskWriter]:
        def open_once() -> DiskWriter:
            writer = session.use(
                lambda v: tools.open_writer(tools.access(v, request.preferred_networks), disk, mode)
            )
            # Innermost: what a new connection repeats is asked about again.
            return writer if tools.fence is None else FencedWriter(writer, tools.fence)

        def open_way() -> DiskWriter:
            return _patiently(
                mode, lambda: ReconnectingWriter(open_once, attempts, tools.pause), tools.pause
            )

        return Way(mode, open_way)

    return FailoverWriter([way(*each) for each in _modes(request)], tools.leave)


def _patiently(mode: TransportMode, open_way: Callable[[], T], pause: Callable[[float], None]) -> T:
    """Open in a mode that the server has to prepare: vSphere and storage systems are busy now and then, and
    a moment's patience costs less than a whole disk in a lesser mode.
    """
    for attempt in range(1, OPENINGS_OF_PRESENTED):
        if mode not in PRESENTED:
            break
        try:
            return open_way()
        except TransientTransportError:
            pause(OPENING_PAUSE_S * attempt)
    return open_way()


def _modes(request: TaskRequest) -> list[tuple[TransportMode, int]]:
    """The permitted modes, each with the failures in a row that it may have."""
    modes = list(dict.fromkeys((request.mode, *request.fallback_modes)))
    if request.mode is TransportMode.STORAGE_SNAPSHOT:
        # The VM snapshot is gone: every other mode would read the disk of another moment.
        modes = modes[:1]
    return [
        (mode, RECONNECTS if mode is modes[-1] else RECONNECTS_BEFORE_ANOTHER_MODE) for mode in modes
    ]


# ---- copy -----------------------------------------------------------------------------------------


def _copy(
    request: TaskRequest,
    order: CopyDiskOrder,
    target: Repository,
    secrets: TaskSecrets,
    tools: Tools,
) -> ResultReport:
    source = _open(
        order.source,
        secrets.source_repository_key,
        secrets.source_storage_secrets,
        tools,
        Side.SOURCE,
    )
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
        progress=tools.meter(request, "reading"),
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
        writer = _writer(request, target, session, tools)
        try:
            # Another attempt may have written to it: only a disk that nobody touched may skip zeros,
            # but zeros are what an earlier attempt of ours left alone as well.
            skip = writer.capabilities.reads_as_zero_when_new
            stats = _write(request, order, repository, writer, skip, tools, lambda: writer.mode)
        finally:
            writer.close()
    finally:
        session.close()
    return replace(_restored(request, writer.mode, stats), failovers=tuple(tools.left))


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
    writer = _image_file(part, order.capacity_bytes)
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


if sys.platform == "win32":

    def _image_file(path: Path, capacity_bytes: int) -> DiskWriter:
        raise PermanentPipelineError(
            f"{path} ({capacity_bytes} bytes) is not made: this proxy runs Windows, where vmhaul makes no image "
            "files; let a proxy on Linux restore it"
        )

else:
    from pipeline.rawfile import RawFileWriter

    def _image_file(path: Path, capacity_bytes: int) -> DiskWriter:
        """A new one, in the place of one that is there."""
        return RawFileWriter.create(path, capacity_bytes, overwrite=True)


def _part(target: Path, request: TaskRequest, attempt: int) -> Path:
    return target.with_name(f".{target.name}.{request.task_id}-a{attempt}.part")


def _write(
    request: TaskRequest,
    order: RestoreDiskOrder,
    repository: Repository,
    writer: DiskWriter,
    skip_zeros: bool,
    tools: Tools,
    mode: Callable[[], TransportMode | None] = lambda: None,
) -> DiskStats:
    """Figures as those of a backup: read from the repository, stored on the target."""
    done = restore.restore_disk(
        repository=repository,
        map_root=order.map_root,
        capacity_bytes=order.capacity_bytes,
        writer=throttled_writer(writer, tools.throttle),
        skip_zeros=skip_zeros,
        cancel=tools.cancel,
        progress=tools.meter(request, "writing", mode),
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
    system.sync_directory(target.parent)


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
