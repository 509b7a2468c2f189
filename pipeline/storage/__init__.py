"""Where a repository's objects are. Words: an **object** is a name and bytes, written once; a **driver**
keeps objects in one kind of place. The contract is `Storage` in `base`; drivers are listed here.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import StorageMissingError
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, Storage, StoredObject
from pipeline.storage.local import LocalStorage

__all__ = ["Buffer", "ObjectWriter", "Retention", "Space", "Storage", "StoredObject", "open_storage"]

_NO_SECRETS: Final[Mapping[str, str]] = MappingProxyType({})


def open_storage(
    location: str, *, secrets: Mapping[str, str] = _NO_SECRETS, create: bool = False
) -> Storage:
    """The driver for a location. A location is the absolute path of a directory; `create` makes its
    last part. `secrets`: what opens the storage, where it asks for something.

    Raises StorageMissingError, StoragePermissionError.
    """
    del secrets  # a directory asks for none
    if not Path(location).is_absolute():
        raise StorageMissingError(
            f"repository location {location!r} is not an absolute path; give the full path of a directory"
        )
    return LocalStorage(location, create=create)
