"""Where a repository's objects are. Words: an **object** is a name and bytes, written once; a **driver**
keeps objects in one kind of place. The contract is `Storage` in `base`; drivers are listed here.
"""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import StorageMissingError
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, Storage, StoredObject
from pipeline.storage.extents import is_scale_out, open_scale_out
from pipeline.storage.location import is_object_location, parse_object_location
from pipeline.storage.retry import RetryingStorage, wait_for

__all__ = [
    "NO_DIRECTORIES",
    "Buffer",
    "ObjectWriter",
    "Retention",
    "Space",
    "Storage",
    "StoredObject",
    "open_storage",
]

_NO_SECRETS: Final[Mapping[str, str]] = MappingProxyType({})


def open_storage(
    location: str,
    *,
    secrets: Mapping[str, str] = _NO_SECRETS,
    create: bool = False,
    cancel: threading.Event | None = None,
) -> Storage:
    """The driver for a location, and around it what a storage behind a network needs. A location is the
    absolute path of a directory (`?keeper=socket` where vmhaul-keeper makes it immutable), whose last part `create` makes, or the URL of a bucket (see `location`), or
    `scale-out:` and a list of those (see `extents`).
    `secrets`: what opens the storage, where it asks for something. `cancel` ends waiting for a storage
    that does not answer.

    Raises StorageMissingError, StoragePermissionError, StorageUnavailableError, and
    PermanentPipelineError for a location that cannot be used.
    """
    if is_scale_out(location):
        return open_scale_out(
            location,
            lambda place: open_storage(place, secrets=secrets, create=create, cancel=cancel),
            create=create,
        )
    if is_object_location(location):
        # Loaded when it is needed: its libraries are large, and most repositories are directories.
        from pipeline.storage.object_store import ObjectStorage, RetryingObjectStorage

        bucket = ObjectStorage(parse_object_location(location), secrets=secrets, create=create)
        return RetryingObjectStorage(bucket, wait=wait_for(cancel, location))
    return _open_directory(location, create=create, cancel=cancel)


if sys.platform == "win32":
    NO_DIRECTORIES: str = (
        "it runs Windows, where vmhaul keeps in object storage alone and makes no image files"
    )

    def _open_directory(location: str, *, create: bool, cancel: threading.Event | None) -> Storage:
        del create, cancel
        raise StorageMissingError(
            f"repository location {location!r} is a directory, and this machine runs Windows, where vmhaul keeps in "
            "object storage alone; let proxies on Linux use this repository"
        )

else:
    from pipeline.storage.immutable import split_location
    from pipeline.storage.local import LocalStorage
    from pipeline.storage.mounts import is_network_mount

    NO_DIRECTORIES: str = ""
    """Why no directory can be a repository on this machine; empty: one can."""

    def _open_directory(location: str, *, create: bool, cancel: threading.Event | None) -> Storage:
        directory, keeper = split_location(location)
        if not Path(directory).is_absolute():
            raise StorageMissingError(
                f"repository location {location!r} is not an absolute path; give the full path of a directory"
            )
        storage = LocalStorage(directory, create=create, keeper=keeper)
        if is_network_mount(directory):
            return RetryingStorage(storage, wait=wait_for(cancel, storage.location))
        return storage
