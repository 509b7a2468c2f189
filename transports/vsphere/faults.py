"""pyVmomi's faults and the sockets' errors, as errors of `transports.errors`.

One table: the first row whose fault class fits decides what the caller can do, and says it.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from xml.parsers.expat import ExpatError

import httpx
from pyVmomi import vim, vmodl

from transports.errors import (
    ObjectGoneError,
    OutOfSpaceError,
    PeerIdentityError,
    PermanentTransportError,
    QuiesceFailedError,
    SessionExpiredError,
    TransientTransportError,
    TransportError,
)

_f: Any = vim.fault
_v: Any = vmodl.fault

# (fault class, error class, what to do). Subclasses stand before their parents.
FAULTS: Final[tuple[tuple[Any, type[TransportError], str], ...]] = (
    (_v.ManagedObjectNotFound, ObjectGoneError, "it was removed or registered anew"),
    (
        _f.InvalidLogin,
        PermanentTransportError,
        "check user name and password, and that the account is not locked",
    ),
    (_f.NotAuthenticated, SessionExpiredError, "log in again"),
    (_f.NoPermission, PermanentTransportError, "give the account this privilege"),
    (
        _f.RestrictedVersion,
        PermanentTransportError,
        "the licence of this host refuses changes over the API",
    ),
    (_f.ApplicationQuiesceFault, QuiesceFailedError, "look at the VSS writers or scripts in the guest"),
    (
        _f.FilesystemQuiesceFault,
        QuiesceFailedError,
        "look at the load and the VMware Tools of the guest",
    ),
    (
        _f.TaskInProgress,
        TransientTransportError,
        "another task runs on it; try again when that has ended",
    ),
    (_f.SnapshotLocked, TransientTransportError, "the snapshot is busy; try again later"),
    (
        _f.FileLocked,
        TransientTransportError,
        "a file is in use elsewhere; look for a proxy that still has the disk",
    ),
    (_f.ConcurrentAccess, TransientTransportError, "it changed meanwhile; try again"),
    (_f.InvalidPowerState, TransientTransportError, "its power state does not allow this now"),
    (_f.SnapshotDisabled, PermanentTransportError, "snapshots are switched off for this VM"),
    (
        _f.SnapshotIncompatibleDeviceInVm,
        PermanentTransportError,
        "one of its devices does not allow snapshots",
    ),
    (_f.MultipleSnapshotsNotSupported, PermanentTransportError, "this VM allows one snapshot only"),
    (_f.MemorySnapshotOnIndependentDisk, PermanentTransportError, "it has independent disks"),
    (
        _f.TooManySnapshotLevels,
        PermanentTransportError,
        "the chain of snapshots is full: remove some first",
    ),
    (_f.SnapshotNoChange, PermanentTransportError, "there is nothing to snapshot"),
    (_f.NoDiskSpace, OutOfSpaceError, "free space on the datastore"),
    (_f.InsufficientStorageSpace, OutOfSpaceError, "free space on the datastore"),
    (_f.AlreadyExists, PermanentTransportError, "choose another name or place"),
    (_f.DuplicateName, PermanentTransportError, "choose another name or place"),
    (_f.FileAlreadyExists, PermanentTransportError, "choose another name or place"),
    (_f.FileNotFound, PermanentTransportError, "the file is not on its datastore"),
    (_f.HostConnectFault, TransientTransportError, "look at the host's connection to vCenter"),
    (_f.Timedout, TransientTransportError, "try again later"),
    (_f.FileFault, TransientTransportError, "the file may be locked; try again later"),
    (
        _f.InsufficientResourcesFault,
        TransientTransportError,
        "the host is short of resources; try again later",
    ),
    (_f.InvalidState, TransientTransportError, "its state does not allow this now"),
    (_v.HostNotConnected, TransientTransportError, "the host is not connected to vCenter"),
    (_v.HostNotReachable, TransientTransportError, "vCenter cannot reach the host"),
    (_v.HostCommunication, TransientTransportError, "vCenter cannot talk to the host"),
    (_v.RequestCanceled, TransientTransportError, "the task was cancelled"),
    (_v.SystemError, TransientTransportError, "vSphere failed inside; try again, then look at its log"),
    (_v.NotSupported, PermanentTransportError, "this server or VM cannot do it"),
    (_v.MethodNotFound, PermanentTransportError, "this version of the server cannot do it"),
    (_v.InvalidRequest, PermanentTransportError, "this version of the server does not understand it"),
    (_v.InvalidArgument, PermanentTransportError, "the server refused an argument"),
)

# GenericVmConfigFault and SnapshotFault carry the reason in message keys only.
_QUIESCE_KEYS: Final = ("quiesc", "msg.snapshot.vigor.take.error", "msg.checkpoint.quiesce")


def fault_keys(fault: Any) -> list[str]:
    """Keys of the fault's localizable messages: "vim.hostd.vmsvc.cbt.noTrack"."""
    return [str(message.key) for message in (getattr(fault, "faultMessage", None) or [])]


def fault_text(fault: Any) -> str:
    """The server's words, with what the fault itself names (file, argument, privilege)."""
    text = str(getattr(fault, "msg", None) or "").strip().rstrip(".")
    details = [
        str(value)
        for name in ("privilegeId", "invalidProperty", "file", "existingState", "method", "name")
        if (value := getattr(fault, name, None)) and str(value) not in text
    ]
    name = type(fault).__name__.rsplit(".", 1)[-1]
    return " ".join(filter(None, [text, f"[{', '.join([name, *details])}]"]))


def translate(fault: BaseException, doing: str) -> TransportError:
    """The error to raise for `fault`, met while `doing` ("remove snapshot snapshot-7 of VM vm-3")."""
    if isinstance(fault, TransportError):
        return fault
    if isinstance(fault, vmodl.MethodFault):
        keys = " ".join(fault_keys(fault)).lower()
        for row, error, advice in FAULTS:
            if isinstance(fault, row):
                return error(f"cannot {doing}: {fault_text(fault)}; {advice}")
        if any(key in keys for key in _QUIESCE_KEYS):
            return QuiesceFailedError(
                f"cannot {doing}: {fault_text(fault)}; the guest was not quiesced"
            )
        return PermanentTransportError(f"cannot {doing}: {fault_text(fault)}")
    if isinstance(fault, TimeoutError):
        return TransientTransportError(f"cannot {doing}: no answer in time; try again later")
    return TransientTransportError(
        f"cannot {doing}: the connection failed ({str(fault) or type(fault).__name__})"
    )


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """The border: nothing of pyVmomi, httpx or a socket leaves the block."""
    try:
        yield
    except PeerIdentityError:
        raise
    except (
        vmodl.MethodFault,
        OSError,
        http.client.HTTPException,
        ExpatError,
        httpx.HTTPError,
    ) as fault:
        raise translate(fault, doing) from fault
