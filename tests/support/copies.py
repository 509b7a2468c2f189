"""A repository and its copy, for tests of copying and repair."""

from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import dataclass, field

from pipeline.copy import copy_disk, plan_copy
from pipeline.model import RestorePoint, copied_point
from pipeline.mover import MoverOptions
from pipeline.planning import BackupPlan
from pipeline.repository import layout
from pipeline.repository.entries import BlobEntry
from pipeline.repository.format import BlobKind
from pipeline.repository.index import read_index_object
from pipeline.testing.builders import ManualClock, Workbench, disk_point, restore_point
from pipeline.testing.storage import MemoryStorage
from transports.base import SECTOR_BYTES, Extent


@dataclass
class Pair:
    """Restore points in a source, each with the image that it must restore to, and their copies."""

    source: Workbench
    target: Workbench
    points: list[tuple[RestorePoint, bytes]] = field(default_factory=list)
    copies: list[RestorePoint] = field(default_factory=list)

    @property
    def storage(self) -> MemoryStorage:
        storage = self.source.storage
        assert isinstance(storage, MemoryStorage)
        return storage

    def back_up(self, image: bytes | bytearray) -> RestorePoint:
        """A restore point of the source, a day after the one before."""
        clock = self.source.clock
        assert isinstance(clock, ManualClock)
        clock.now_s += 86_400
        done = self.source.backup(bytes(image), plan=self._plan(image))
        point = restore_point(disk_point(done.map_root, len(image)))
        shifted = point.created_at.fromtimestamp(clock.now_s, tz=point.created_at.tzinfo)
        point = restore_point(disk_point(done.map_root, len(image)), created_at=shifted)
        self.source.commit(point)
        self.points.append((point, bytes(image)))
        return point

    def _plan(self, image: bytes | bytearray) -> BackupPlan:
        """An increment on the last point, so that changed blocks may be stored as patches."""
        if not self.points or len(self.points[-1][1]) != len(image):
            return self.source.plan(len(image))
        point, before = self.points[-1]
        changed = [
            Extent(offset=at, length=min(SECTOR_BYTES, len(image) - at))
            for at in range(0, len(image), SECTOR_BYTES)
            if image[at : at + SECTOR_BYTES] != before[at : at + SECTOR_BYTES]
        ]
        return self.source.plan(len(image), previous=point.disks[0].map_root, changed=changed)

    def copy(self, *, full: bool = False) -> RestorePoint:
        """Copy the next point that was not copied, as an increment on the one before."""
        number = len(self.copies)
        point, image = self.points[number]
        base = self.points[number - 1][0] if number and not full else None
        disk = point.disks[0]
        plan = plan_copy(
            source=self.source.repository,
            target_block_size_bytes=self.target.repository.block_size_bytes,
            map_root=disk.map_root,
            capacity_bytes=disk.capacity_bytes,
            base_map_root=base.disks[0].map_root if base else "",
            base_capacity_bytes=base.disks[0].capacity_bytes if base else 0,
            copied_map_root=self.copies[-1].disks[0].map_root if base else "",
        )
        done = copy_disk(
            source=self.source.repository,
            target=self.target.repository,
            plan=plan,
            map_root=disk.map_root,
            compression="fast",
            work_id=f"copy-{point.id}",
            cancel=threading.Event(),
            progress=lambda _progress: None,
            clock=self.target.clock,
            options=MoverOptions(workers=2),
        )
        copy = copied_point(
            point,
            source_repository_id=self.source.repository.id,
            target_repository_id=self.target.repository.id,
            map_roots={disk.disk_key: done.map_root},
            job_name="offsite",
            previous=self.copies[-1].id if base else None,
        )
        self.target.commit(copy)
        self.copies.append(copy)
        assert len(image) == disk.capacity_bytes
        return copy

    def is_whole(self, bench: Workbench | None = None) -> bool:
        """Every point of the source restores to its image."""
        used = bench or self.source
        return all(
            used.restored(point.disks[0].map_root, len(image)) == image for point, image in self.points
        )

    # ---- damage --------------------------------------------------------------------------------------

    def places(self, kind: BlobKind) -> list[tuple[str, BlobEntry]]:
        """Name of the pack and entry of each blob of that kind."""
        return [
            (layout.pack_name(segment.pack_id), entry)
            for name in list(self.storage.objects)
            if name.startswith(layout.INDEX)
            for segment in read_index_object(self.storage, self.source.repository.keyring, name)
            for entry in segment.entries
            if entry.kind == kind
        ]

    def flip(self, name: str, offset: int) -> None:
        data = bytearray(self.storage.objects[name])
        data[offset] ^= 0x10
        self.storage.objects[name] = bytes(data)

    def damage_blob(self, kind: BlobKind, rng: random.Random) -> BlobEntry:
        name, entry = rng.choice(self.places(kind))
        self.flip(name, entry.offset + rng.randrange(entry.length))
        return entry

    def packs(self) -> list[str]:
        return sorted(name for name in self.storage.objects if name.startswith(layout.PACKS))


def make_pair(*, theirs: int = 4096, pack_target_bytes: int = 16 * 4096) -> Pair:
    """Two empty repositories with other keys; `theirs` is the target's block size."""
    clock = ManualClock()
    source = Workbench(MemoryStorage(clock), clock, pack_target_bytes=pack_target_bytes)
    target = Workbench(MemoryStorage(clock), clock, block_size_bytes=theirs)
    with contextlib.suppress(AttributeError):  # where it follows from the repository's features
        source.repository.makes_patches = True
    return Pair(source, target)


def noise(seed: int, blocks: int) -> bytearray:
    """Blocks that differ, some zeros between, and an odd end."""
    rng = random.Random(seed)
    content = b"".join(
        bytes(4096) if rng.randrange(6) == 0 else rng.randbytes(2048) + bytes(2048)
        for _ in range(blocks)
    )
    return bytearray(content + b"end" * 171)
