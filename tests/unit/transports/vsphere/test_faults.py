from __future__ import annotations

import http.client
import ssl
from typing import Any

import httpx
import pytest
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
from transports.vsphere.faults import FAULTS, translate, translated

f: Any = vim.fault
v: Any = vmodl.fault


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (v.ManagedObjectNotFound(msg="gone"), ObjectGoneError),
        (f.InvalidLogin(msg="no"), PermanentTransportError),
        (f.NotAuthenticated(msg="who"), SessionExpiredError),
        (f.NoPermission(msg="no", privilegeId="X.Y"), PermanentTransportError),
        (f.RestrictedVersion(msg="free"), PermanentTransportError),
        (f.ApplicationQuiesceFault(msg="vss"), QuiesceFailedError),
        (f.FilesystemQuiesceFault(msg="sync"), QuiesceFailedError),
        (f.TaskInProgress(msg="busy"), TransientTransportError),
        (f.FileLocked(msg="locked", file="[ds] a.vmdk"), TransientTransportError),
        (f.FileFault(msg="file", file="[ds] a.vmdk"), TransientTransportError),
        (f.NoDiskSpace(msg="full", file="[ds] a.vmdk"), OutOfSpaceError),
        (f.TooManySnapshotLevels(msg="32"), PermanentTransportError),
        (f.SnapshotIncompatibleDeviceInVm(msg="rdm"), PermanentTransportError),
        (f.InvalidPowerState(msg="suspended"), TransientTransportError),
        (f.InvalidState(msg="migrating"), TransientTransportError),
        (f.DuplicateName(msg="twice", name="db01"), PermanentTransportError),
        (v.RequestCanceled(msg="stopped"), TransientTransportError),
        (v.SystemError(msg="inside"), TransientTransportError),
        (v.NotSupported(msg="no"), PermanentTransportError),
        (v.InvalidArgument(msg="bad", invalidProperty="spec"), PermanentTransportError),
        (f.VmConfigFault(msg="something new"), PermanentTransportError),
        (ConnectionResetError("reset"), TransientTransportError),
        (TimeoutError("slow"), TransientTransportError),
        (ssl.SSLError("bad record"), TransientTransportError),
        (http.client.RemoteDisconnected("gone"), TransientTransportError),
        (httpx.ConnectError("refused"), TransientTransportError),
    ],
)
def test_faults_become_errors_by_what_can_be_done(fault: Exception, error: type[Exception]) -> None:
    with pytest.raises(TransportError) as caught, translated("do it to VM vm-3"):
        raise fault
    assert type(caught.value) is error
    assert str(caught.value).startswith("cannot do it to VM vm-3: ")
    assert caught.value.__cause__ is fault


def test_parents_do_not_hide_their_children() -> None:
    """The first row that fits wins, so a row behind its parent would never be reached."""
    kinds = [kind for kind, _, _ in FAULTS]
    hidden = [
        (child.__name__, parent.__name__)
        for at, child in enumerate(kinds)
        for parent in kinds[:at]
        if issubclass(child, parent)
    ]
    assert hidden == []


def test_quiescing_is_recognised_by_its_message_key_alone() -> None:
    fault = f.GenericVmConfigFault(
        msg="An error occurred while saving the snapshot",
        faultMessage=[vmodl.LocalizableMessage(key="msg.checkpoint.QuiesceError", message="x")],
    )
    assert isinstance(translate(fault, "make a snapshot"), QuiesceFailedError)


def test_messages_name_what_the_fault_names() -> None:
    text = str(translate(f.NoPermission(msg="Permission was denied.", privilegeId="VM.X"), "read"))
    assert "Permission was denied [NoPermission, VM.X]" in text
    assert "privilege" in text


def test_our_own_errors_pass_unchanged() -> None:
    error = PeerIdentityError("another certificate")
    with pytest.raises(PeerIdentityError) as caught, translated("log in"):
        raise error
    assert caught.value is error
    assert translate(error, "log in") is error
