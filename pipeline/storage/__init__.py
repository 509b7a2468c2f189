"""Where a repository's objects are. Words: an **object** is a name and bytes, written once; a **driver**
keeps objects in one kind of place. The contract is `Storage` in `base`; drivers are listed here.
"""

from pathlib import Path

from pipeline.errors import StorageMissingError
from pipeline.storage.base import Buffer, ObjectWriter, Space, Storage, StoredObject
from pipeline.storage.local import LocalStorage

__all__ = ["Buffer", "ObjectWriter", "Space", "Storage", "StoredObject", "open_storage"]


def open_storage(location: str, *, create: bool = False) -> Storage:
    """The driver for a location. A location is the absolute path of a directory; `create` makes its
    last part. Raises StorageMissingError, StoragePermissionError.
    """
    if not Path(location).is_absolute():
        raise StorageMissingError(
            f"repository location {location!r} is not an absolute path; give the full path of a directory"
        )
    return LocalStorage(location, create=create)
