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

from pipeline.crypto.aead import Aead
from pipeline.crypto.kdf import KdfCost, cost_of_this_machine
from pipeline.crypto.keyring import Keyring
from pipeline.crypto.unlock import Unlock, by_password
from pipeline.errors import (
    IntegrityError,
    KeyRefusedError,
    ObjectNotFoundError,
    RestorePointNotFoundError,
    WrongRepositoryError,
)
from pipeline.model import RepositoryId, RestorePoint
from pipeline.repository import layout
from pipeline.repository.catalogue import CatalogueLoader, is_forgotten, read_point
from pipeline.repository.check import Checker, CheckProgress, CheckReport
from pipeline.repository.commit import Committer
from pipeline.repository.configuration import (
    Configuration,
    make_configuration,
    read_configuration,
    verify_configuration,
)
from pipeline.repository.creation import store_new_repository
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
    kept_until_s,
    refuse_kept,
)
from pipeline.repository.index import IndexLoader
from pipeline.repository.key_store import KeyInfo, KeyStore, open_by, refuse_older_epochs
from pipeline.repository.points import (
    UNKNOWN_HASH,
    format_forgotten,
    parse_point,
)
from pipeline.repository.prune import Pruner, PruneReport
from pipeline.repository.reader import BlobReader
from pipeline.repository.rebuild import IndexRebuilder, RebuildReport
from pipeline.storage.base import Space, Storage

Clock = Callable[[], float]


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
        keyring = store_new_repository(
            storage,
            password,
            created_at_s=int(clock()),
            block_size_bytes=block_size_bytes,
            kdf_cost=kdf_cost,
            aead=aead,
            features=features,
        )
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
        found = [read_point(self.storage, self.keyring, point_id) for point_id in catalogue.points]
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
        point = (
            None
            if is_forgotten(self.storage, self.keyring, point_id)
            else read_point(self.storage, self.keyring, point_id)
        )
        if point is None:
            raise RestorePointNotFoundError(f"no {name} in the repository in {self.storage.location}")
        return point

    def commit_point(self, point: RestorePoint) -> bool:
        """Store a restore point, durably. False when it was there already, the same.

        Verifies before that everything its maps reach is in the repository. Work records of its disks
        are deleted after. Raises RestorePointRefusedError when something is missing, or the id is taken
        by a different point, or was forgotten; IntegrityError when a map is damaged.
        """
        with self._lock:
            committer = Committer(
                storage=self.storage,
                keyring=self.keyring,
                algorithm=self.aead,
                block_size_bytes=self.block_size_bytes,
                loader=self._loader,
                catalogue=self._catalogue,
                cache_directory=self._cache_directory,
                immutability=self.immutability,
                clock=self._clock,
            )
            return committer.commit(point)

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
                if not is_forgotten(self.storage, self.keyring, point_id):
                    now = datetime.fromtimestamp(self._clock(), UTC)
                    record = format_forgotten(self.keyring, self.aead, point_id, payload_hash, now)
                    # In the place of one that cannot be read, should there be such.
                    self.storage.replace(layout.forgotten_name(point_id), record)
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

    def _key_problems(self) -> tuple[str, ...]:
        """Of key objects and epochs; an old version is none."""
        damaged = (info.problem for info in self.list_keys() if info.kind is None)
        return (*epoch_problems(self.storage, self.keyring), *damaged)
