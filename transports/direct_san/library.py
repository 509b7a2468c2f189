"""The one place that knows dissect.vmfs, which reads VMFS and is licensed under the AGPL: an optional extra.

Its errors are many: metadata that changes under the reader, or is damaged, may break it anywhere. All of them mean
the same here.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from transports.direct_san.errors import DamagedMetadataError, NotForSanError

_PACKAGE: Final = "dissect.vmfs"
# Whatever a parser of foreign bytes may raise where they make no sense; dissect.vmfs raises NotImplementedError
# itself for structures that it does not know. None of it may end a mover.
_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def missing() -> str:
    """What this machine lacks, for people; empty: nothing."""
    try:
        found = importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        found = False
    if found:
        return ""
    return (
        "the Python package dissect.vmfs is not installed; install vmhaul with the extra `san` "
        "(look at its licence, AGPL-3.0, before)"
    )


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn whatever the library says of `what` into DamagedMetadataError."""
    from dissect.vmfs.exception import Error

    try:
        yield
    except (DamagedMetadataError, NotForSanError):
        raise
    except (*_ERRORS, Error) as error:
        text = str(error) or type(error).__name__
        raise DamagedMetadataError(f"{what} is not understood: {text}") from error


def open_logical_volume(views: list[Any]) -> Any:
    """The dissect.vmfs.lvm.Volume that partitions make up. DamagedMetadataError when they make up none."""
    from dissect.vmfs.lvm import LVM

    with understood("the volume manager's header"):
        volumes = LVM(views).volumes
        if len(volumes) != 1:
            raise DamagedMetadataError(f"the LUNs hold {len(volumes)} volumes instead of one")
        return volumes[0]


def open_file_system(stream: Any) -> Any:
    """The dissect.vmfs.vmfs.VMFS on a volume."""
    from dissect.vmfs.vmfs import VMFS

    with understood("the file system's header"):
        return VMFS(stream)
