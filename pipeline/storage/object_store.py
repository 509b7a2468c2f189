"""Object storage: S3 and what speaks its protocol, Azure Blob, Google Cloud Storage.

Objects are put once with a condition that the store itself keeps (`If-None-Match: *`); a store that
ignores the condition is refused when a repository is made. The driver repeats no request; the wrapper at
the end of this module does. Where the answer to a put is lost, the object is read back to learn whether the store
has it.

Memory: an object of up to `PART_BYTES` is one request from memory. Larger ones go to S3 in parts while
they are still being written, of which `PARTS_IN_FLIGHT` are under way at once for the whole storage; so packs
cost (PARTS_IN_FLIGHT + 1 for each open writer) x 8 MiB. Azure and Google take a larger object in one request
from memory as well; there a writer waits once `BUFFER_BYTES` are held and another object is on its way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

import obstore

from pipeline.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    PermanentPipelineError,
    PipelineError,
    StorageMissingError,
    StorageUnavailableError,
)
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, StoredObject, checked_name
from pipeline.storage.location import ObjectLocation, StorageKind
from pipeline.storage.object_build import make_s3_client, make_store
from pipeline.storage.object_errors import Scrubber, translate_obstore
from pipeline.storage.retry import RetryingStorage, Wait
from pipeline.storage.s3_parts import (
    PART_BYTES,
    PARTS_IN_FLIGHT,
    PartUploads,
    PartWriter,
    Puts,
    once,
)
from pipeline.storage.s3_versions import BucketVersions

BUFFER_BYTES: Final = 96 << 20
"""One pack that is being sent (64 MiB), and the beginning of the next."""
UNLIMITED_BYTES: Final = 1 << 60
"""What a storage without a quota is said to have: 1 EiB. No store tells what is left."""
LIST_CHUNK: Final = 1000
_NO_SECRETS: Final[Mapping[str, str]] = MappingProxyType({})
_OURS: Final = frozenset(
    {
        "keys",
        "epochs",
        "packs",
        "index",
        "points",
        "work",
        "forgotten",
        "doomed",
        "vmhaul-repository.json",
    }
)


class ObjectStorage:
    """Storage in a bucket or container; see the module's text."""

    def __init__(
        self,
        location: ObjectLocation,
        *,
        secrets: Mapping[str, str] = _NO_SECRETS,
        create: bool = False,
    ) -> None:
        """Open the place; `create` verifies that a repository may be made there. The bucket itself is
        never made: who owns it decides on versions, lock, region and lifecycle.

        Raises StorageMissingError, StoragePermissionError, StorageUnavailableError, PermanentPipelineError.
        """
        self._place = location
        self._secrets = dict(secrets)
        self._scrub = Scrubber(secrets.values())
        self._store = make_store(location, secrets)
        self._lock = threading.RLock()
        self._room = threading.Condition()
        self._held_bytes = 0
        self._on_their_way = 0
        self.repeat = once
        """How a part of a large object is sent; a wrapper that retries puts its own here."""
        self.puts: Puts = self
        """Who stores what a writer holds; likewise."""
        self._uploads: PartUploads | None = None
        self._versions: BucketVersions | None = None
        self._client: Any = None
        self._require_place(create=create)
        if create:
            self._require_conditional_puts()

    # ---- facts -------------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        return self._place.text

    @property
    def retention(self) -> Retention | None:
        versions = self.versions
        return versions if versions is not None and versions.is_locked else None

    @property
    def versions(self) -> BucketVersions | None:
        """Versions and object lock of an S3 bucket; None elsewhere."""
        if self._place.kind is not StorageKind.S3:
            return None
        with self._lock:
            if self._versions is None:
                self._versions = BucketVersions(self._s3_client(), self._place, self._scrub)
            return self._versions

    def space(self) -> Space:
        """A quota of the location less what lies there, which takes a listing; without one, free space
        is `UNLIMITED_BYTES`.
        """
        quota = self._place.quota_bytes
        if not quota:
            return Space(free_bytes=UNLIMITED_BYTES, total_bytes=UNLIMITED_BYTES, used_bytes=0)
        used = sum(entry.size_bytes for entry in self.list(""))
        return Space(free_bytes=max(0, quota - used), total_bytes=quota, used_bytes=min(used, quota))

    # ---- writing -----------------------------------------------------------------------------------

    def create(self, name: str) -> ObjectWriter:
        checked_name(name)
        if self._place.kind is StorageKind.S3:
            return PartWriter(self.puts, name, self._part_uploads, self.repeat)
        return _BufferedWriter(self, name)

    def put(self, name: str, data: Buffer) -> None:
        checked_name(name)
        try:
            if self._place.by_versions:
                self._put_by_versions(name, data)
            else:
                self._put(name, data, "create")
        except StorageUnavailableError:
            if not self._is_there(name, data):
                raise

    def replace(self, name: str, data: Buffer) -> None:
        self._put(checked_name(name), data, "overwrite")

    def delete(self, name: str) -> None:
        checked_name(name)
        versions = self.versions
        if versions is not None and versions.is_versioned:
            versions.delete_all(name)  # deleting by name alone would hide the object and free nothing
            return
        try:
            obstore.delete(self._store, name)
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            translated = self._translate(error, f"deleting {name}")
            if not isinstance(translated, ObjectNotFoundError):
                raise translated from None

    def clean(self, older_than_s: float) -> int:
        if self._place.kind is not StorageKind.S3:
            return 0  # nothing half-written is kept there beyond a week, and none of it is charged
        return self._part_uploads().abort_stale(older_than_s)

    # ---- reading -----------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        checked_name(name)
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            raise self._translate(error, f"reading {name}") from None

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        checked_name(name)
        if length == 0:
            self.size_bytes(name)
            return b""
        try:
            data = bytes(obstore.get_range(self._store, name, start=offset, length=length))
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            translated = self._translate(error, f"reading {name}")
            if not isinstance(translated, ObjectNotFoundError):
                self._require_length(name, offset + length)
            raise translated from None
        if len(data) != length:
            self._require_length(name, offset + length)
            raise StorageUnavailableError(
                f"reading {name} in {self.location}: {len(data)} bytes came instead of {length}; run again"
            )
        return data

    def size_bytes(self, name: str) -> int:
        try:
            return int(obstore.head(self._store, checked_name(name))["size"])
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            raise self._translate(error, f"looking at {name}") from None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        if prefix and (not prefix.endswith("/") or not checked_name(prefix[:-1])):
            raise ValueError(f"{prefix!r} is not a prefix that ends in a slash")
        return self._listed(prefix)

    def _listed(self, prefix: str) -> Iterator[StoredObject]:
        last = ""
        for entry in self._chunks(prefix):
            name = entry["path"]
            if name <= last:
                raise PermanentPipelineError(
                    f"{self.location} lists {name} after {last}: a storage that does not list in the order of "
                    "names cannot hold a repository; use a general purpose bucket"
                )
            last = name
            yield StoredObject(
                name=name,
                size_bytes=int(entry["size"]),
                modified_at_s=entry["last_modified"].timestamp(),
            )

    def _chunks(self, prefix: str) -> Iterator[Any]:
        try:
            chunks = iter(obstore.list(self._store, prefix or None, chunk_size=LIST_CHUNK))
            while (chunk := next(chunks, None)) is not None:
                yield from chunk
        except (GeneratorExit, PipelineError):
            raise
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            raise self._translate_listing(error, prefix) from None

    def close(self) -> None:
        with self._lock:
            uploads, self._uploads = self._uploads, None
            client, self._client, self._versions = self._client, None, None
        if uploads is not None:
            uploads.close()
        if client is not None:
            client.close()

    # ---- for the buffered writer -------------------------------------------------------------------

    def hold(self, count: int) -> None:
        """Wait while too much is held and some of it is on its way out."""
        with self._room:
            self._room.wait_for(
                lambda: self._held_bytes + count <= BUFFER_BYTES or not self._on_their_way
            )
            self._held_bytes += count

    def let_go(self, count: int) -> None:
        with self._room:
            self._held_bytes -= count
            self._room.notify_all()

    def put_held(self, name: str, data: Buffer) -> None:
        """put() of what a buffered writer holds."""
        with self._room:
            self._on_their_way += 1
        try:
            self.puts.put(name, data)
        finally:
            with self._room:
                self._on_their_way -= 1
                self._room.notify_all()

    # ---- inside ------------------------------------------------------------------------------------

    def _put_by_versions(self, name: str, data: Buffer) -> None:
        """For a store that ignores conditions where objects have versions: two puts make two versions, and the
        first one counts.
        """
        taken = ObjectExistsError(f"{name} exists already in {self.location}")
        try:
            self.size_bytes(name)
        except ObjectNotFoundError:
            pass
        else:
            raise taken
        version_id = self._put(name, data, "overwrite")
        if self.versions is not None and not self.versions.is_first(name, version_id):
            self.versions.delete_version_id(name, version_id)
            raise taken

    def _put(self, name: str, data: Buffer, mode: Any) -> str:
        """Id of the version that was made; empty where there are none."""
        try:
            return obstore.put(self._store, name, data, mode=mode, use_multipart=False)["version"] or ""
        except Exception as error:  # noqa: BLE001 - translated, whatever it is
            raise self._translate(error, f"writing {name}") from None

    def _is_there(self, name: str, data: Buffer) -> bool:
        """Whether a put whose answer was lost has happened."""
        try:
            return self.read(name) == bytes(data)
        except PipelineError:
            return False

    def _require_length(self, name: str, end: int) -> None:
        """IntegrityError when the object ends before."""
        size = self.size_bytes(name)
        if size < end:
            raise IntegrityError(
                f"{name} in {self.location} ends at {size}, before {end}; it is truncated: run a check of "
                "the repository"
            )

    def _require_place(self, *, create: bool) -> None:
        foreign = ""
        for number, entry in enumerate(self._chunks("")):
            top = str(entry["path"]).partition("/")[0]
            if top not in _OURS:
                foreign = foreign or str(entry["path"])
            if not create or number >= LIST_CHUNK:
                break
        if create and foreign:
            raise PermanentPipelineError(
                f"{self.location} is not empty: it holds {self._scrub(foreign)!r}; choose an empty prefix"
            )

    def _require_conditional_puts(self) -> None:
        """A store that replaces what must not be replaced loses keys and restore points."""
        name = f"work/conditional-put-{uuid4().hex}"
        if self._place.by_versions and not (self.versions and self.versions.is_versioned):
            raise PermanentPipelineError(
                f"{self.location} says conditional_put=versions, and its bucket keeps no versions; turn them on"
            )
        self.put(name, b"first")
        try:
            if self._place.by_versions:
                self.put(name, b"second")
            else:
                self._put(name, b"second", "create")
        except ObjectExistsError:
            return
        finally:
            self._delete_probe(name)
        advice = (
            "its bucket has versions: add conditional_put=versions to the location"
            if self.versions is not None and self.versions.is_versioned
            else "use a store, or a release of it, that has conditional writes"
        )
        raise PermanentPipelineError(
            f"the store of {self.location} ignores the condition `If-None-Match: *`: it would replace objects "
            f"that must stay, so it cannot hold a repository as it is; {advice}"
        )

    def _delete_probe(self, name: str) -> None:
        try:
            self.delete(name)
        except PipelineError:
            return  # keys that may not delete, or a default retention: prune takes it as an old work record

    def _part_uploads(self) -> PartUploads:
        with self._lock:
            if self._uploads is None:
                self._uploads = PartUploads(self._s3_client(), self._place, self._scrub)
            return self._uploads

    def _s3_client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = make_s3_client(self._place, self._secrets)
            return self._client

    def _translate(self, error: Exception, doing: str) -> PipelineError:
        return translate_obstore(error, doing, self.location, self._scrub)

    def _translate_listing(self, error: Exception, prefix: str) -> PipelineError:
        translated = self._translate(error, f"listing {prefix or 'everything'}")
        if isinstance(translated, ObjectNotFoundError):
            # Only the bucket itself can be missing here.
            return StorageMissingError(
                f"{self.location}: there is no such bucket or container; create it or correct the location"
            )
        return translated


class _BufferedWriter:
    """An object in memory until it is committed."""

    def __init__(self, storage: ObjectStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._data = bytearray()

    def write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            self._storage.hold(len(part))
            self._data += part

    def commit(self) -> None:
        self._storage.put_held(self._name, self._data)
        self.abort()

    def abort(self) -> None:
        data, self._data = self._data, bytearray()
        self._storage.let_go(len(data))


class RetryingObjectStorage(RetryingStorage):
    """Repeats what may pass. Unlike for other storage, no whole object is kept for that: a part is sent
    again by itself.
    """

    def __init__(self, inner: ObjectStorage, *, wait: Wait | None = None) -> None:
        super().__init__(inner, wait=wait)
        self._bucket = inner
        inner.repeat = self.repeated
        inner.puts = self

    @property
    def versions(self) -> BucketVersions | None:
        return self._bucket.versions

    def create(self, name: str) -> ObjectWriter:
        return self._bucket.create(name)


__all__ = [
    "BUFFER_BYTES",
    "PARTS_IN_FLIGHT",
    "PART_BYTES",
    "UNLIMITED_BYTES",
    "ObjectStorage",
    "RetryingObjectStorage",
]
