"""What the data mover may ask of a transport mode.

A transport mode opens one disk of a VM for this proxy. The data mover never learns which mode it has.
Offsets and lengths are bytes everywhere in this package; those handed to a reader or a writer are
multiples of SECTOR_BYTES, except where a disk ends on an odd byte count (none that vSphere makes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

SECTOR_BYTES: Final = 512
LATER: Final = {"later": True}
"""Metadata of a field that came after the first release: messages leave it out where it says nothing, so that
proxies which do not know it yet do the work that they always did.
"""


class TransportMode(StrEnum):
    """Ways to reach a disk, best first: the order of the enum is the order of preference."""

    STORAGE_SNAPSHOT = "storage-snapshot"
    DIRECT_SAN = "direct-san"
    DIRECT_NFS = "direct-nfs"
    HOTADD = "hotadd"
    NBDSSL = "nbdssl"
    NBD = "nbd"


class Ability(StrEnum):
    """How well a mode can do an optional thing; asked once, after opening."""

    NONE = "none"  # the answer would say nothing
    EMULATED = "emulated"  # answered, but no cheaper than reading
    NATIVE = "native"  # answered by the storage itself


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Extent:
    """A run of bytes of one disk, [offset, offset + length)."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class LunExtent:
    """One part of a VMFS datastore: a partition of a LUN."""

    lun: str
    """Canonical name as vSphere has it: "naa.600508b1001c3f6a8b0d", "eui.…", "t10.…"."""
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreRef:
    """The storage below a datastore, as vSphere describes it: what a direct mode looks for.

    Source: VmfsDatastoreInfo and NasDatastoreInfo of the vSphere Web Services API.
    """

    name: str
    kind: str
    """"VMFS", "NFS", "NFS41", "vsan", "VVOL" or what the server says."""
    vmfs_uuid: str = ""
    vmfs_version: str = ""
    """"5.82", "6.82"."""
    extents: tuple[LunExtent, ...] = ()
    """Of a VMFS datastore, in its order."""
    nfs_hosts: tuple[str, ...] = ()
    """Names or addresses of the NFS server; several for NFS 4.1 with more than one path."""
    nfs_path: str = ""
    """The export: "/vol/vmware1"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRef:
    """One disk to open, as vSphere names it."""

    vm_moref: str
    vm_name: str
    disk_key: int
    """VirtualDisk.key; identifies the disk in this VM."""
    path: str
    """Datastore path of the descriptor to open, "[ds] dir/disk.vmdk": the snapshot's file, not the
    leaf that a running VM writes to."""
    capacity_bytes: int
    datastore: str
    snapshot_moref: str | None = None
    """The VM snapshot that freezes the path; None for a powered-off VM and for restores."""
    is_delta: bool = False
    """The path names a delta with a parent (an earlier snapshot, a linked clone). Reads go through the
    whole chain; what a mode says of allocation is then about the delta alone and must not be used, unless its
    capabilities say `whole_chain`."""
    storage: DatastoreRef | None = field(default=None, metadata=LATER)
    """Where `datastore` lies; None: not told, so no direct mode can find the disk."""


@dataclass(slots=True)
class ReadRequest:
    """One read: the whole of `buffer` from `offset`. The mover owns the buffer; the reader may write
    to it from when it drew the request until it yields it back.
    """

    offset: int
    buffer: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderCapabilities:
    mode: TransportMode
    allocated_extents: Ability
    requests_in_flight: int
    """How many requests read_many() keeps going; the mover offers at least that many buffers."""
    max_request_bytes: int
    """Largest buffer of one request."""
    whole_chain: bool = False
    """What the mode says of allocation is about all that the disk shows, also where the path names a delta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterCapabilities:
    mode: TransportMode
    max_request_bytes: int
    reads_as_zero_when_new: bool
    """True when ranges never written read as zeros, so that zeros need not be written to a new disk."""
    threads: int = 1
    """How many threads may call write_from() at the same time, for ranges that do not overlap."""
    answered_is_kept: bool = True
    """What write_from() returned from stays on the disk although the writer is lost before a flush(). False:
    only a flush() makes sure of that, so that another mode cannot simply go on."""


class DiskReader(Protocol):
    """One open disk of a VM snapshot, read only.

    Used by one thread at a time. After any exception but TransientTransportError the reader MUST
    only be closed.
    """

    @property
    def size_bytes(self) -> int:
        """Capacity of the disk. Does not change while the reader is open."""

    @property
    def capabilities(self) -> ReaderCapabilities: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` from `offset`.

        MUST raise rather than fill a part; a range past the end is a ValueError that says "past the
        end". MUST NOT keep `buffer` after it returns. MAY be called again for the same range after a
        TransientTransportError.
        """

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        """Serve requests with several in flight; yields each exactly once when its buffer is full.

        Order of answers is free. Draws the next request only when it has room for it, on the
        calling thread (drawing may block until the mover has a free buffer); when `requests` is
        exhausted, finishes those in flight. On failure raises; which of the requests in flight were
        filled is then unknown, those already yielded are good. Closing the iterator early MUST
        leave the reader fit to be closed.
        """

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Extents that may hold data in the range, ascending, merged, never overlapping.

        What is not listed reads as zeros. A mode that cannot tell MUST yield the whole range.
        """

    def close(self) -> None:
        """Release the disk. MAY be called twice, from any state; MUST NOT raise for a lost peer."""


class DiskWriter(Protocol):
    """One open disk of a VM that is not running, for restore. Used by one thread at a time, except for what
    its capabilities say of write_from().
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def capabilities(self) -> WriterCapabilities: ...

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Write the whole of `buffer` at `offset`. MUST raise rather than write a part silently.
        MUST NOT keep `buffer` after it returns. MAY be called again for the same range.
        """

    def flush(self) -> None:
        """Return when everything written before is as durable as the mode can make it."""

    def close(self) -> None:
        """Release the disk, without a flush. MAY be called twice; MUST NOT raise for a lost peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """Where this proxy finds a disk that the backup server made reachable for it."""

    disk: DiskRef
    """What to open. For the clone of a storage snapshot its `storage` is that of the clone."""
    mode: TransportMode
    """In which mode to open it: HotAdd, or the direct mode by which a storage snapshot is read."""
    disk_uuid: str = ""
    """HotAdd: backing uuid of the attached disk, "6000C29…", as its page 0x83 shows it."""
    controller_bus: int = -1
    """HotAdd: bus number of the proxy's SCSI controller, -1 when there is none."""
    unit: int = -1


class Presenter(Protocol):
    """What needs a change in vSphere or on a storage system before a disk can be opened is done by the
    backup server, which writes it down first; a transport mode asks for it here.
    """

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        """Make the task's disk reachable in `mode`; again for one that is: the same answer.

        TransportUnavailableError when another mode may do, TransientTransportError for another try.
        """

    def withdraw(self, mode: TransportMode) -> None:
        """Undo it; nothing when it was never done. The disk MUST be closed. Does not raise: what cannot be
        undone now is undone by the server later.
        """


def read_one_by_one(reader: DiskReader, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
    """The slow default of read_many(), for modes that have nothing better."""
    for request in requests:
        reader.read_into(request.offset, request.buffer)
        yield request
