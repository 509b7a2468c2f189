"""Committing a restore point: what it needs is there before it is stored. Section 11 of the format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectExistsError, RestorePointRefusedError
from pipeline.model import DiskPoint, RestorePoint
from pipeline.repository import layout
from pipeline.repository.catalogue import Catalogue, CatalogueLoader, is_forgotten, read_point
from pipeline.repository.doomed import bring_back, is_whole
from pipeline.repository.immutability import (
    Immutability,
    Needs,
    keep_needed,
    kept_until_s,
    retention_of,
)
from pipeline.repository.index import IndexLoader, PackSegment
from pipeline.repository.maps import block_count_of
from pipeline.repository.points import checked_map_root, format_point, parse_point, point_fields
from pipeline.repository.reach import missing_blobs
from pipeline.repository.reader import BlobReader
from pipeline.repository.work import WorkState, delete_work, read_work, work_ids
from pipeline.storage.base import Storage

MISSING_NAMED: Final = 3


class Committer:
    """Commits points. Nobody may commit, forget or prune meanwhile; writers may write."""

    def __init__(
        self,
        *,
        storage: Storage,
        keyring: Keyring,
        algorithm: Aead,
        block_size_bytes: int,
        loader: IndexLoader,
        catalogue: CatalogueLoader,
        cache_directory: Path | None,
        immutability: Immutability | None,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._block_size_bytes = block_size_bytes
        self._loader = loader
        self._catalogue = catalogue
        self._cache_directory = cache_directory
        self._immutability = immutability
        self._clock = clock

    def commit(self, point: RestorePoint) -> bool:
        """See Repository.commit_point()."""
        _check_fields(point)
        if is_forgotten(self._storage, self._keyring, point.id):
            raise RestorePointRefusedError(
                f"restore point {point.id} of VM {point.vm.name} was forgotten; take a new backup"
            )
        if self._is_committed(point):
            self._keep(point, self._newest_of(point))  # who committed it may have died before
            self._delete_works(point)
            return False
        catalogue = self._newest_of(point)
        self._verify_reachable(point, catalogue)
        until_s = self._keep_needed(point, catalogue)
        data = format_point(
            self._keyring,
            self._algorithm,
            point,
            catalogue.newest_of(point.vm.instance_uuid),
            datetime.fromtimestamp(self._clock(), UTC),
        )
        name = layout.point_name(point.id)
        parse_point(self._keyring, name, data)  # what was just encoded can be decoded
        try:
            self._storage.put(name, data)
        except ObjectExistsError:
            return not self._is_committed(point)
        self._keep_point(point, until_s)
        self._delete_works(point)
        return True

    # ---- what it needs -------------------------------------------------------------------------

    def _newest_of(self, point: RestorePoint) -> Catalogue:
        """A catalogue with the newest point of this VM."""
        return self._catalogue.load_newest_of(point.vm.instance_uuid, self._cache_directory)

    def _verify_reachable(self, point: RestorePoint, catalogue: Catalogue) -> None:
        self._loader.refresh()
        missing = self._missing(point, catalogue)
        # A node that comes back may name others that are missing, so this goes level by level.
        while missing and bring_back(
            self._storage, self._keyring, self._algorithm, self._loader, missing, self._clock()
        ):
            missing = self._missing(point, catalogue)
        if missing:
            named = ", ".join(blob_id.hex() for blob_id in sorted(missing)[:MISSING_NAMED])
            raise RestorePointRefusedError(
                f"restore point {point.id} of VM {point.vm.name} is not complete: {len(missing)} blobs are "
                f"missing from {self._storage.location} ({named}); back the VM up again"
            )

    def _missing(self, point: RestorePoint, catalogue: Catalogue) -> set[bytes]:
        """Ids that the point needs and the repository lacks."""
        known = catalogue.newest_of(point.vm.instance_uuid)
        if known is not None:
            # Where that one has lost its own map, it says nothing about this one.
            with contextlib.suppress(IntegrityError):
                return self._missing_beside(point, known.point.disks)
        return self._missing_beside(point, ())

    def _missing_beside(self, point: RestorePoint, known_disks: Iterable[DiskPoint]) -> set[bytes]:
        """What is at the same place in `known_disks` is there."""
        load_node = BlobReader(self._storage, self._keyring, self._loader.index).load_node
        missing: set[bytes] = set()
        packs: set[bytes] = set()
        for disk in point.disks:
            missing.update(
                missing_blobs(
                    disk,
                    self._block_size_bytes,
                    self._loader.index,
                    load_node,
                    self._roots(known_disks, disk),
                    packs,
                )
            )
        for pack_id in packs:
            size = self._loader.index.pack_size_of(pack_id) or 0
            if not is_whole(self._storage, PackSegment(pack_id, size, ())):
                raise RestorePointRefusedError(
                    f"restore point {point.id} of VM {point.vm.name} is not complete: "
                    f"{layout.pack_name(pack_id)} is missing or truncated; run a check"
                )
        return missing

    def _roots(self, known_disks: Iterable[DiskPoint], disk: DiskPoint) -> list[tuple[bytes, int]]:
        return [
            (
                bytes.fromhex(known.map_root),
                block_count_of(known.capacity_bytes, self._block_size_bytes),
            )
            for known in known_disks
            if known.disk_key == disk.disk_key
        ]

    # ---- what is kept ----------------------------------------------------------------------------

    def _keep(self, point: RestorePoint, catalogue: Catalogue) -> None:
        """The point and what it needs, when that is not so yet."""
        if self._immutability is None:
            return
        least_s = self._immutability.until_s(point.created_at.timestamp())
        if kept_until_s(self._storage, point.id) < least_s:
            self._loader.refresh()
            self._keep_point(point, self._keep_needed(point, catalogue))

    def _keep_needed(self, point: RestorePoint, catalogue: Catalogue) -> float:
        if self._immutability is None:
            return 0.0
        newest = catalogue.newest_of(point.vm.instance_uuid)
        needs = Needs(
            storage=self._storage,
            index=self._loader.index,
            load_node=BlobReader(self._storage, self._keyring, self._loader.index).load_node,
            block_size_bytes=self._block_size_bytes,
        )
        if newest is not None and newest.point.id != point.id:
            with contextlib.suppress(IntegrityError):  # as in _missing()
                return keep_needed(needs, self._immutability, point, newest.point, self._clock())
        return keep_needed(needs, self._immutability, point, None, self._clock())

    def _keep_point(self, point: RestorePoint, until_s: float) -> None:
        if until_s:
            retention_of(self._storage).keep(layout.point_name(point.id), until_s)

    # ---- before and after -------------------------------------------------------------------------

    def _is_committed(self, point: RestorePoint) -> bool:
        there = read_point(self._storage, self._keyring, point.id)
        if there is None:
            return False
        if point_fields(there) != point_fields(point):
            raise RestorePointRefusedError(
                f"restore point {point.id} exists in {self._storage.location} and is another one "
                f"(VM {there.vm.name} of {there.created_at.isoformat()}); choose a new id"
            )
        return True

    def _delete_works(self, point: RestorePoint) -> None:
        """Works that ended in a disk of this point are over; other ones are not touched."""
        ended = {(disk.map_root, disk.capacity_bytes) for disk in point.disks}
        for work_id in work_ids(self._storage):
            try:
                record = read_work(self._storage, self._keyring, work_id)
            except IntegrityError:
                continue  # prune deletes it once nobody keeps it
            if (
                record is not None
                and record.state is WorkState.DONE
                and (record.map_root, record.capacity_bytes) in ended
            ):
                delete_work(self._storage, work_id)


def _check_fields(point: RestorePoint) -> None:
    """What would be stored must be readable later. Raises RestorePointRefusedError."""
    try:
        layout.checked_point_id(point.id)
        for disk in point.disks:
            checked_map_root(disk.map_root)
        if point.created_at.tzinfo is None:
            raise ValueError("created_at has no time zone")
        if point.previous is not None:
            layout.checked_point_id(point.previous)
    except ValueError as error:
        raise RestorePointRefusedError(
            f"restore point {point.id} of VM {point.vm.name} cannot be stored: {error}"
        ) from error
