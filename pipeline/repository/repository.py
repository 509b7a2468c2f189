"""A backup repository: the one object that everything else of the package is reached through."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from pipeline.crypto.aead import Aead, fastest_algorithm
from pipeline.crypto.kdf import KdfCost, cost_of_this_machine
from pipeline.crypto.keyring import Keyring, new_master_key
from pipeline.crypto.unlock import Unlock, by_password
from pipeline.errors import (
    IntegrityError,
    KeyRefusedError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryExistsError,
    RestorePointNotFoundError,
    RestorePointRefusedError,
    WrongRepositoryError,
)
from pipeline.model import DiskPoint, RepositoryId, RestorePoint
from pipeline.repository import layout
from pipeline.repository.catalogue import Catalogue, CatalogueLoader
from pipeline.repository.check import Checker, CheckProgress, CheckReport
from pipeline.repository.configuration import (
    Configuration,
    checked_block_size,
    make_configuration,
    read_configuration,
    verify_configuration,
)
from pipeline.repository.doomed import bring_back, is_whole
from pipeline.repository.epochs import epoch_problems
from pipeline.repository.format import (
    DEFAULT_BLOCK_SIZE_BYTES,
    FEATURE_EPOCHS,
    FEATURE_PATCHES,
    KNOWN_FEATURES,
    PACK_TARGET_BYTES,
)
from pipeline.repository.immutability import (
    Immutability,
    Needs,
    keep_needed,
    kept_until_s,
    refuse_kept,
    retention_of,
)
from pipeline.repository.index import IndexLoader, PackSegment
from pipeline.repository.key_store import KeyInfo, KeyStore, open_by, refuse_older_epochs
from pipeline.repository.keys import wrap_keyring, wrap_master_key
from pipeline.repository.maps import block_count_of
from pipeline.repository.points import (
    UNKNOWN_HASH,
    checked_map_root,
    format_forgotten,
    format_point,
    parse_point,
    point_fields,
)
from pipeline.repository.prune import Pruner, PruneReport
from pipeline.repository.reach import missing_blobs
from pipeline.repository.reader import BlobReader
from pipeline.repository.rebuild import IndexRebuilder, RebuildReport
from pipeline.repository.work import WorkState, delete_work, read_work, work_ids
from pipeline.storage.base import Space, Storage

Clock = Callable[[], float]
MISSING_NAMED: Final = 3


class Repository:
    """An open repository. Methods MAY be called from several threads; commit_point, forget and prune
    run one after the other here, and MUST NOT run in two processes at once.
    """

    def __init__(
        self, *, storage: Storage, keyring: Keyring, configuration: Configuration, clock: Clock
    ) -> None:
        """Use create() or one of the open functions."""
        self.storage: Final = storage
        self.keyring = keyring
        """Replaced by rotate_data_key() alone."""
        self.opened_key_id = ""
        """The key object that it was opened with; empty when it was opened with key material."""
        self._configuration = configuration
        self._clock = clock
        self._lock = threading.RLock()
        self._cache_directory: Path | None = None
        self._loader = IndexLoader(storage, keyring)
        self._catalogue = CatalogueLoader(storage, keyring)
        self.pack_target_bytes = PACK_TARGET_BYTES
        """When a pack is closed. Smaller only where many small packs are wanted, as in tests."""
        self.makes_patches = FEATURE_PATCHES in configuration.features
        """Whether a changed block may be stored as a patch of the one before it."""
        self.immutability: Immutability | None = None
        """What a new restore point needs is kept for so long. Its storage should be a KeptStorage then."""

    # ---- creating and opening ------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        password: str,
        *,
        clock: Clock,
        block_size_bytes: int = DEFAULT_BLOCK_SIZE_BYTES,
        kdf_cost: KdfCost | None = None,
        aead: Aead | None = None,
        features: Collection[str] = KNOWN_FEATURES,
        cache_dir: Path | None = None,
    ) -> Repository:
        """Make a repository in a storage that has none. `aead` None: the fastest of this machine. Without
        `features` it is one that vmhaul 0.1.0 reads. `cache_dir`: see use_cache().

        Raises RepositoryExistsError, ValueError for a block size that the format does not have or an
        empty password, and storage errors.
        """
        checked_block_size(block_size_bytes)
        if not password:
            raise ValueError("a repository needs a password that is not empty")
        repository_id = uuid4().bytes
        keyring = Keyring(new_master_key(), repository_id)
        cost = kdf_cost or cost_of_this_machine()
        key_id = layout.new_object_id()
        if FEATURE_EPOCHS in features:
            wrapped = wrap_keyring(
                keyring, by_password(password), key_id, label="", created_at_s=int(clock()), cost=cost
            )
        else:
            wrapped = wrap_master_key(keyring.master_key, password, repository_id, cost)
        configuration = make_configuration(
            keyring, block_size_bytes, aead or fastest_algorithm(), int(clock()), features
        )
        _refuse_existing(storage)
        key_name = layout.key_name(key_id)
        storage.put(key_name, wrapped)
        try:
            # The last write: from here on there is a repository.
            storage.put(layout.CONFIGURATION, configuration)
        except ObjectExistsError as error:
            storage.delete(key_name)
            raise _exists(storage) from error
        return cls.open_with_key(
            storage, keyring.material(), expected_id=None, clock=clock, cache_dir=cache_dir
        )

    @classmethod
    def open_with_password(
        cls, storage: Storage, password: str, *, clock: Clock, cache_dir: Path | None = None
    ) -> Repository:
        """Raises RepositoryNotFoundError, WrongPasswordError, UnsupportedFormatError, IntegrityError."""
        return cls.open_by(storage, by_password(password), clock=clock, cache_dir=cache_dir)

    @classmethod
    def open_by(
        cls, storage: Storage, unlock: Unlock, *, clock: Clock, cache_dir: Path | None = None
    ) -> Repository:
        """Open with a password, key file or recovery key. Raises like open_with_password()."""
        configuration = read_configuration(storage)
        opened = open_by(storage, configuration.id_bytes, unlock)
        repository = cls.open_with_key(
            storage, opened.keyring.material(), expected_id=None, clock=clock, cache_dir=cache_dir
        )
        repository.opened_key_id = opened.key_id.hex()
        return repository

    @classmethod
    def open_with_key(
        cls,
        storage: Storage,
        key_material: str,
        *,
        expected_id: str | None,
        clock: Clock,
        cache_dir: Path | None = None,
    ) -> Repository:
        """Open with what `key_material` of an open repository gave. `expected_id` None: whichever repository it is.

        Raises WrongRepositoryError when another one is found at this place.
        """
        configuration = read_configuration(storage)
        if expected_id is not None and configuration.repository_id != expected_id:
            raise WrongRepositoryError(
                f"{storage.location} holds repository {configuration.repository_id}, not {expected_id}; "
                "is another file system mounted there?"
            )
        keyring = Keyring.from_material(key_material, configuration.id_bytes)
        verify_configuration(storage, configuration, keyring)
        refuse_older_epochs(storage, keyring)
        repository = cls(storage=storage, keyring=keyring, configuration=configuration, clock=clock)
        if cache_dir is not None:
            repository.use_cache(cache_dir)
        return repository

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def id(self) -> RepositoryId:
        return self._configuration.repository_id

    @property
    def block_size_bytes(self) -> int:
        return self._configuration.block_size_bytes

    @property
    def aead(self) -> Aead:
        """Algorithm of new data."""
        return self._configuration.aead

    @property
    def features(self) -> tuple[str, ...]:
        return self._configuration.features

    @property
    def key_epoch(self) -> int:
        """Of new data."""
        return self.keyring.epoch

    @property
    def key_material(self) -> str:
        """A secret: opens everything. What open_with_key() takes."""
        return self.keyring.material()

    def space(self) -> Space:
        return self.storage.space()

    def use_cache(self, cache_dir: Path) -> None:
        """Keep the index in files of this machine, in a directory of the repository's id below
        `cache_dir`, from now on; without, all of it is in memory. Several processes may share it.
        """
        with self._lock:
            self._cache_directory = cache_dir / self.id
            self._loader = self.index_loader()

    def index_loader(self) -> IndexLoader:
        """A new view of the index, not read yet; each writer has its own."""
        return IndexLoader(self.storage, self.keyring, self._cache_directory)

    def reader(self) -> BlobReader:
        """Reads blobs by the index as it is now; later once more, where prune moved what it is to read."""
        with self._lock:
            loader = self._loader
            return BlobReader(self.storage, self.keyring, loader.refresh(), loader.refresh)

    # ---- keys --------------------------------------------------------------------------------------
    # Each takes one second for each password that is tried or made, and writes a few small objects.

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """Every key object, oldest first."""
        return self._key_store().list_keys()

    def add_key(self, unlock: Unlock, label: str = "", *, kdf_cost: KdfCost | None = None) -> str:
        """One more way to open the repository; the id of its key object. Raises KeyRefusedError for a
        repository without key epochs, ValueError for an empty password or a label that cannot be.
        """
        with self._lock:
            return self._changing_keys(kdf_cost).add(unlock, label, int(self._clock())).hex()

    def change_key(self, old: Unlock, new: Unlock, *, kdf_cost: KdfCost | None = None) -> str:
        """`new` opens what `old` opened, and `old` nothing any more; the id of the new key object.
        Raises WrongPasswordError, KeyRefusedError, ValueError.
        """
        with self._lock:
            return self._changing_keys(kdf_cost).change(old, new, int(self._clock())).hex()

    def modernise_key(self, unlock: Unlock, *, kdf_cost: KdfCost | None = None) -> None:
        """Bring key objects of version 1 that `unlock` opens to version 2. Does nothing when there is
        none, or in a repository without key epochs.
        """
        if FEATURE_EPOCHS in self.features:
            with self._lock:
                there = self.opened_key_id
                key_id = self._key_store(kdf_cost).modernise(unlock, int(self._clock()))
                if key_id is not None and there not in {info.id for info in self.list_keys()}:
                    self.opened_key_id = key_id.hex()

    def revoke_key(self, key_id: str) -> None:
        """Delete a key object. What it opened stays known to who opened it; rotate_data_key() keeps new
        data from them. Raises KeyRefusedError for the last one that opens, and when there is none such.
        """
        with self._lock:
            self._key_store().revoke(key_id)

    def rotate_data_key(self, *, without: Collection[str] = ()) -> int:
        """Encrypt new data with a new key; the number of the new key epoch. Old data stays as it is.

        `without`: ids of keys that shall not open new data; for those that the storage does not let go. Raises
        KeyRefusedError naming the other key objects that could not be given the new key.
        """
        with self._lock:
            number, secret = self._changing_keys(None).rotate(int(self._clock()), without)
            self.keyring = self.keyring.with_epoch(number, secret)
            self._loader = self.index_loader()
            self._catalogue = CatalogueLoader(self.storage, self.keyring)
            return number

    def upgrade_features(self) -> tuple[str, ...]:
        """Give the repository every feature of this release; those that are new to it. Older vmhauls
        refuse it from then on.
        """
        with self._lock:
            configuration = read_configuration(self.storage)
            verify_configuration(self.storage, configuration, self.keyring)
            added = tuple(sorted(KNOWN_FEATURES - set(configuration.features)))
            if added:
                features = KNOWN_FEATURES | set(configuration.features)
                self.storage.replace(
                    layout.CONFIGURATION,
                    make_configuration(
                        self.keyring,
                        configuration.block_size_bytes,
                        configuration.aead,
                        configuration.created_at_s,
                        features,
                    ),
                )
            self._configuration = read_configuration(self.storage)
            return added

    def _changing_keys(self, cost: KdfCost | None) -> KeyStore:
        if FEATURE_EPOCHS not in self.features:
            raise KeyRefusedError(
                f"the repository in {self.storage.location} was made by vmhaul 0.1.0, whose keys cannot be "
                "changed; run `vmhaul repository upgrade` first"
            )
        return self._key_store(cost)

    def _key_store(self, cost: KdfCost | None = None) -> KeyStore:
        return KeyStore(self.storage, self.keyring, cost or cost_of_this_machine())

    # ---- restore points ----------------------------------------------------------------------------

    def points(self) -> tuple[RestorePoint, ...]:
        """Every restore point that can be read, oldest first. Damaged ones: damaged_points()."""
        with self._lock:
            catalogue = self._catalogue.load()
        found = [self._whole_point(point_id) for point_id in catalogue.points]
        return tuple(sorted(filter(None, found), key=lambda point: (point.created_at, point.id)))

    def damaged_points(self) -> tuple[str, ...]:
        """What is wrong with restore points that cannot be read, one sentence each."""
        with self._lock:
            return tuple(self._catalogue.load(again=True).damaged.values())

    def point(self, point_id: str) -> RestorePoint:
        """Raises RestorePointNotFoundError, IntegrityError."""
        try:
            name = layout.point_name(point_id)
        except ValueError as error:
            raise RestorePointNotFoundError(str(error)) from error
        point = None if self._is_forgotten(point_id) else self._whole_point(point_id)
        if point is None:
            raise RestorePointNotFoundError(f"no {name} in the repository in {self.storage.location}")
        return point

    def commit_point(self, point: RestorePoint) -> bool:
        """Store a restore point, durably. False when it was there already, the same.

        Verifies before that everything its maps reach is in the repository. Work records of its disks
        are deleted after. Raises RestorePointRefusedError when something is missing, or the id is taken
        by a different point, or was forgotten; IntegrityError when a map is damaged.
        """
        _check_fields(point)
        with self._lock:
            if self._is_forgotten(point.id):
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
                self.keyring,
                self.aead,
                point,
                catalogue.newest_of(point.vm.instance_uuid),
                datetime.fromtimestamp(self._clock(), UTC),
            )
            name = layout.point_name(point.id)
            parse_point(self.keyring, name, data)  # what was just encoded can be decoded
            try:
                self.storage.put(name, data)
            except ObjectExistsError:
                return not self._is_committed(point)
            self._keep_point(point, until_s)
            self._delete_works(point)
            return True

    def immutable_until_s(self, point_id: str) -> float:
        """Until when the storage keeps the point and all that it needs; 0.0 when it does not."""
        return kept_until_s(self.storage, point_id)

    def forget(self, point_ids: Iterable[str]) -> int:
        """Forget restore points; how many there were. Space comes back with prune().

        A damaged point can be forgotten too. One that is not there is no error. Raises
        ObjectRetainedError, with nothing forgotten, when one of them is still immutable.
        """
        count = 0
        point_ids = list(point_ids)
        with self._lock:
            refuse_kept(self.storage, point_ids, self._clock())
            for point_id in point_ids:
                name = layout.point_name(point_id)
                try:
                    data = self.storage.read(name)
                except ObjectNotFoundError:
                    continue
                try:
                    payload_hash = parse_point(self.keyring, name, data).payload_hash
                except IntegrityError:
                    payload_hash = UNKNOWN_HASH
                if not self._is_forgotten(point_id):
                    now = datetime.fromtimestamp(self._clock(), UTC)
                    record = format_forgotten(self.keyring, self.aead, point_id, payload_hash, now)
                    self.storage.put(layout.forgotten_name(point_id), record)
                    count += 1
                self.storage.delete(name)
        return count

    def prune(
        self,
        *,
        keep_work_ids: Collection[str],
        min_age_s: float,
        wait: Callable[[float], object] | None = None,
    ) -> PruneReport:
        """Free what no restore point and no kept work needs.

        `keep_work_ids`: works that will go on. `min_age_s` must be longer than a writer may take from
        its start to its first work record, plus what the clocks of proxies, server and storage differ
        by and listings are late; an hour is plenty. 0 only while nobody writes. `wait` pauses where
        listings are late. Raises IntegrityError, with nothing deleted,
        when damage hides what is needed.
        """
        with self._lock:
            pruner = Pruner(
                storage=self.storage,
                keyring=self.keyring,
                algorithm=self.aead,
                catalogue=self._catalogue.load(again=True),
                block_size_bytes=self.block_size_bytes,
                keep_work_ids=keep_work_ids,
                min_age_s=min_age_s,
                clock=self._clock,
                pack_target_bytes=self.pack_target_bytes,
                wait=wait or threading.Event().wait,
                loader=self.index_loader(),
            )
            try:
                return pruner.run()
            finally:
                self._loader = self.index_loader()
                self._catalogue = CatalogueLoader(self.storage, self.keyring)

    def rebuild_index(self) -> RebuildReport:
        """Make the index anew from the packs, where index objects are damaged or missing. Raises storage
        errors; what could not be read is in the report.
        """
        with self._lock:
            try:
                return IndexRebuilder(self.storage, self.keyring, self.aead).run()
            finally:
                self._loader = self.index_loader()

    def check(
        self,
        *,
        read_data: bool = False,
        sample_share: float = 1.0,
        sample_start: float | None = None,
        cancel: threading.Event | None = None,
        progress: Callable[[CheckProgress], None] | None = None,
        workers: int = 0,
    ) -> CheckReport:
        """Look for damage: structure always; with `read_data` also every byte of packs, or of a random
        `sample_share` of them (with `sample_start`, 0 to 1: of those from there on in the order of their
        ids, so that checks one after the other come to all), with `workers` threads (0: one for each core). `progress` is called on the
        caller's thread. Raises CancelledError and storage errors; damage is in the report.
        """
        if not 0 < sample_share <= 1:
            raise ValueError(
                f"a sample of {sample_share} of the packs; give a share above 0 and up to 1"
            )
        catalogue = CatalogueLoader(self.storage, self.keyring).load()
        with contextlib.ExitStack() as stack:
            report = Checker(
                storage=self.storage,
                keyring=self.keyring,
                catalogue=catalogue,
                block_size_bytes=self.block_size_bytes,
                read_data=read_data,
                sample_share=sample_share,
                sample_start=sample_start,
                cancel=cancel,
                make_loader=lambda skipped: self._loader_without(skipped, stack),
                progress=progress,
                workers=workers,
            ).run()
        problems = self._key_problems()
        return replace(report, problems=(*problems, *report.problems)) if problems else report

    def _loader_without(self, skipped: Collection[str], stack: contextlib.ExitStack) -> IndexLoader:
        """A view of the index without damaged objects. What this machine remembers of them does not count:
        another one could not restore with it.
        """
        if not skipped or self._cache_directory is None:
            loader = self.index_loader()
        else:
            self._cache_directory.parent.mkdir(parents=True, exist_ok=True)
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="check-", dir=self._cache_directory.parent)
            )
            loader = IndexLoader(self.storage, self.keyring, Path(directory))
        loader.skip(skipped)
        return loader

    # ---- inside ------------------------------------------------------------------------------------

    def _keep(self, point: RestorePoint, catalogue: Catalogue) -> None:
        """The point and what it needs, when that is not so yet."""
        if self.immutability is None:
            return
        least_s = self.immutability.until_s(point.created_at.timestamp())
        if self.immutable_until_s(point.id) < least_s:
            self._loader.refresh()
            self._keep_point(point, self._keep_needed(point, catalogue))

    def _keep_needed(self, point: RestorePoint, catalogue: Catalogue) -> float:
        if self.immutability is None:
            return 0.0
        newest = catalogue.newest_of(point.vm.instance_uuid)
        needs = Needs(
            storage=self.storage,
            index=self._loader.index,
            load_node=BlobReader(self.storage, self.keyring, self._loader.index).load_node,
            block_size_bytes=self.block_size_bytes,
        )
        before = newest.point if newest is not None and newest.point.id != point.id else None
        return keep_needed(needs, self.immutability, point, before, self._clock())

    def _keep_point(self, point: RestorePoint, until_s: float) -> None:
        if until_s:
            retention_of(self.storage).keep(layout.point_name(point.id), until_s)

    def _key_problems(self) -> tuple[str, ...]:
        """Of key objects and epochs; an old version is none."""
        damaged = (info.problem for info in self.list_keys() if info.kind is None)
        return (*epoch_problems(self.storage, self.keyring), *damaged)

    def _whole_point(self, point_id: str) -> RestorePoint | None:
        name = layout.point_name(point_id)
        try:
            return parse_point(self.keyring, name, self.storage.read(name)).point
        except ObjectNotFoundError:
            return None

    def _is_forgotten(self, point_id: str) -> bool:
        try:
            self.storage.size_bytes(layout.forgotten_name(point_id))
        except ObjectNotFoundError:
            return False
        return True

    def _is_committed(self, point: RestorePoint) -> bool:
        there = self._whole_point(point.id)
        if there is None:
            return False
        if point_fields(there) != point_fields(point):
            raise RestorePointRefusedError(
                f"restore point {point.id} exists in {self.storage.location} and is another one "
                f"(VM {there.vm.name} of {there.created_at.isoformat()}); choose a new id"
            )
        return True

    def _newest_of(self, point: RestorePoint) -> Catalogue:
        """A catalogue with the newest point of this VM."""
        return self._catalogue.load_newest_of(point.vm.instance_uuid, self._cache_directory)

    def _verify_reachable(self, point: RestorePoint, catalogue: Catalogue) -> None:
        self._loader.refresh()
        missing = self._missing(point, catalogue)
        # A node that comes back may name others that are missing, so this goes level by level.
        while missing and bring_back(
            self.storage, self.keyring, self.aead, self._loader, missing, self._clock()
        ):
            missing = self._missing(point, catalogue)
        if missing:
            named = ", ".join(blob_id.hex() for blob_id in sorted(missing)[:MISSING_NAMED])
            raise RestorePointRefusedError(
                f"restore point {point.id} of VM {point.vm.name} is not complete: {len(missing)} blobs are "
                f"missing from {self.storage.location} ({named}); back the VM up again"
            )

    def _missing(self, point: RestorePoint, catalogue: Catalogue) -> set[bytes]:
        """Ids that the point needs and the repository lacks."""
        known = catalogue.newest_of(point.vm.instance_uuid)
        known_disks = known.point.disks if known else ()
        load_node = BlobReader(self.storage, self.keyring, self._loader.index).load_node
        missing: set[bytes] = set()
        packs: set[bytes] = set()
        for disk in point.disks:
            missing.update(
                missing_blobs(
                    disk,
                    self.block_size_bytes,
                    self._loader.index,
                    load_node,
                    self._roots(known_disks, disk),
                    packs,
                )
            )
        for pack_id in packs:
            size = self._loader.index.pack_size_of(pack_id) or 0
            if not is_whole(self.storage, PackSegment(pack_id, size, ())):
                raise RestorePointRefusedError(
                    f"restore point {point.id} of VM {point.vm.name} is not complete: "
                    f"{layout.pack_name(pack_id)} is missing or truncated; run a check"
                )
        return missing

    def _roots(self, known_disks: Iterable[DiskPoint], disk: DiskPoint) -> list[tuple[bytes, int]]:
        return [
            (
                bytes.fromhex(known.map_root),
                block_count_of(known.capacity_bytes, self.block_size_bytes),
            )
            for known in known_disks
            if known.disk_key == disk.disk_key
        ]

    def _delete_works(self, point: RestorePoint) -> None:
        """Works that ended in a disk of this point are over; other ones are not touched."""
        ended = {(disk.map_root, disk.capacity_bytes) for disk in point.disks}
        for work_id in work_ids(self.storage):
            try:
                record = read_work(self.storage, self.keyring, work_id)
            except IntegrityError:
                continue  # prune deletes it once nobody keeps it
            if (
                record is not None
                and record.state is WorkState.DONE
                and (record.map_root, record.capacity_bytes) in ended
            ):
                delete_work(self.storage, work_id)


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


def _refuse_existing(storage: Storage) -> None:
    try:
        storage.size_bytes(layout.CONFIGURATION)
    except ObjectNotFoundError:
        return
    raise _exists(storage)


def _exists(storage: Storage) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"{storage.location} holds a repository already; open it (import) or choose another directory"
    )
