"""The restore points of a repository, as its objects tell them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, NewerEpochError, ObjectNotFoundError
from pipeline.model import RestorePoint
from pipeline.repository import layout
from pipeline.repository.catalogue_cache import CatalogueCache
from pipeline.repository.points import (
    UNKNOWN_HASH,
    ForgottenPoint,
    StoredPoint,
    parse_forgotten,
    parse_point,
)
from pipeline.storage.base import Storage

MAX_LISTINGS: Final = 20


@dataclass(slots=True, kw_only=True)
class Catalogue:
    """What `points/` and `forgotten/` hold at one moment."""

    points: dict[str, StoredPoint] = field(default_factory=dict)
    """Those that count, by id; without VM configuration and NVRAM, which are long."""
    forgotten: dict[str, ForgottenPoint] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    """Ids of points that are forgotten, but whose object is still there."""
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong, by object name."""

    def newest_of(self, instance_uuid: str) -> StoredPoint | None:
        """The last committed point of a VM."""
        of_vm = [p for p in self.points.values() if p.point.vm.instance_uuid == instance_uuid]
        return max(of_vm, key=lambda stored: stored.sequence, default=None)


class CatalogueLoader:
    """Reads the catalogue; what was read once is not read again."""

    def __init__(self, storage: Storage, keyring: Keyring) -> None:
        self._storage = storage
        self._keyring = keyring
        self._points: dict[str, StoredPoint] = {}
        self._forgotten: dict[str, ForgottenPoint] = {}

    def load(self, *, again: bool = False) -> Catalogue:
        """The catalogue as it is now. `again` trusts nothing that was read before."""
        if again:
            self._points = {}
            self._forgotten = {}
        catalogue = Catalogue()
        for _ in range(MAX_LISTINGS):
            catalogue = Catalogue()
            # points/ is listed first: a point that is forgotten in between then has its record listed.
            names = [entry.name for entry in self._storage.list(layout.POINTS)]
            self._load_forgotten(catalogue)
            is_whole = self._load_points(catalogue, names)
            self._points = {name: stored for name, stored in self._points.items() if name in set(names)}
            if is_whole:
                break
            # A point was forgotten after its record could have been listed: look again, or whoever
            # follows it would seem to follow nothing.
        return catalogue

    def load_newest_of(self, instance_uuid: str, cache_directory: Path | None) -> Catalogue:
        """A catalogue that is sure to have the newest point of this VM, and maybe no others. With a cache of
        this machine only points are read that it does not know, and the newest one itself.
        """
        if cache_directory is None:
            return self.load()
        cache = CatalogueCache(cache_directory, self._keyring)
        listed = [entry.name.removeprefix(layout.POINTS) for entry in self._storage.list(layout.POINTS)]
        forgotten = {
            entry.name.removeprefix(layout.FORGOTTEN) for entry in self._storage.list(layout.FORGOTTEN)
        }
        known = {point_id: cache.points[point_id] for point_id in listed if point_id in cache.points}
        catalogue = Catalogue()
        for point_id in listed:
            if point_id not in known and point_id not in forgotten:
                stored = self._read_point(point_id, catalogue)
                if stored is not None:
                    tag = cache.tag_of(stored.point.vm.instance_uuid)
                    known[point_id] = (tag, stored.sequence)
        if known != cache.points:
            cache.points = known
            cache.save()
        wanted = cache.tag_of(instance_uuid)
        of_vm = [
            (sequence, point_id)
            for point_id, (tag, sequence) in known.items()
            if tag == wanted and point_id not in forgotten
        ]
        for sequence, point_id in sorted(of_vm, reverse=True):
            stored = self._read_point(point_id, catalogue)
            if stored is None:
                continue
            if (stored.point.vm.instance_uuid, stored.sequence) != (instance_uuid, sequence):
                return self.load()  # the cache is not of these points
            catalogue.points[stored.point.id] = stored
            break
        return catalogue

    def _read_point(self, point_id: str, catalogue: Catalogue) -> StoredPoint | None:
        """None for one that is gone or damaged."""
        name = f"{layout.POINTS}{point_id}"
        try:
            return parse_point(self._keyring, name, self._storage.read(name))
        except ObjectNotFoundError:
            return None
        except NewerEpochError:
            raise
        except IntegrityError as error:
            catalogue.damaged[name] = str(error)
            return None

    def _load_forgotten(self, catalogue: Catalogue) -> None:
        for entry in self._storage.list(layout.FORGOTTEN):
            try:
                if entry.name not in self._forgotten:
                    data = self._storage.read(entry.name)
                    self._forgotten[entry.name] = parse_forgotten(self._keyring, entry.name, data)
                record = self._forgotten[entry.name]
                catalogue.forgotten[record.point_id] = record
            except ObjectNotFoundError:
                continue
            except IntegrityError as error:
                catalogue.damaged[entry.name] = str(error)

    def _load_points(self, catalogue: Catalogue, names: Iterable[str]) -> bool:
        """False when one that was listed is gone."""
        is_whole = True
        for name in names:
            point_id = name.removeprefix(layout.POINTS)
            if point_id in catalogue.forgotten:
                catalogue.left_over.append(point_id)
                continue
            try:
                if name not in self._points:
                    stored = parse_point(self._keyring, name, self._storage.read(name))
                    self._points[name] = replace(
                        stored, point=replace(stored.point, vm_config=b"", nvram=b"")
                    )
                catalogue.points[point_id] = self._points[name]
            except ObjectNotFoundError:
                is_whole = False
            except IntegrityError as error:
                catalogue.damaged[name] = str(error)
        return is_whole


def chain_problems(catalogue: Catalogue) -> list[str]:
    """Restore points whose predecessor was deleted or replaced without being forgotten."""
    problems = []
    for stored in catalogue.points.values():
        predecessor = stored.predecessor
        if predecessor is None:
            continue
        known = catalogue.points.get(predecessor)
        forgotten = catalogue.forgotten.get(predecessor)
        label = describe(stored)
        if known is not None:
            if known.payload_hash != stored.predecessor_hash:
                problems.append(f"{label}: the restore point before it, {predecessor}, was replaced")
        elif forgotten is None:
            problems.append(
                f"{label}: the restore point before it, {predecessor}, is missing and was not forgotten"
            )
        elif forgotten.payload_hash not in {stored.predecessor_hash, UNKNOWN_HASH}:
            problems.append(f"{label}: the restore point before it, {predecessor}, had been replaced")
    return problems


def describe(stored: StoredPoint) -> str:
    point = stored.point
    return f"VM {point.vm.name}, restore point {point.id} of {point.created_at:%Y-%m-%d %H:%M:%S} UTC"


def read_point(storage: Storage, keyring: Keyring, point_id: str) -> RestorePoint | None:
    """The whole point; None when it is not there. Raises IntegrityError."""
    name = layout.point_name(point_id)
    try:
        return parse_point(keyring, name, storage.read(name)).point
    except ObjectNotFoundError:
        return None


def is_forgotten(storage: Storage, keyring: Keyring, point_id: str) -> bool:
    """Whether a point that may still be there does not count any more. A record that cannot be read says
    nothing: anybody who writes the storage could put it there.
    """
    name = layout.forgotten_name(point_id)
    try:
        return parse_forgotten(keyring, name, storage.read(name)).point_id == point_id
    except (ObjectNotFoundError, IntegrityError):
        return False
