"""Tickets for NFC connections.

The service is a managed object that vCenter and ESXi have but the public WSDL leaves out, so its
methods are declared here and its moref is asked from the server, never guessed.
"""

from __future__ import annotations

import re
import threading
from types import SimpleNamespace
from typing import Any, Final

from pyVmomi import VmomiSupport

from transports.errors import PermanentTransportError
from transports.vsphere.model import NfcTicket, Secret
from transports.vsphere.places import moref
from transports.vsphere.properties import read
from transports.vsphere.session import Connection

_TYPE: Final = "vim.NfcService"
_VERSION: Final = "vim.version.version1"
_OPTIONAL: Final = VmomiSupport.F_OPTIONAL
_VM: Final = ("vm", "vim.VirtualMachine", _VERSION, 0, None)
_DISK: Final = ("diskDeviceKey", "int", _VERSION, 0, None)
_HOST: Final = ("hostForAccess", "vim.HostSystem", _VERSION, _OPTIONAL, None)
_TICKET: Final = (0, "vim.HostServiceTicket", "vim.HostServiceTicket")
_METHODS: Final = (
    ("getVmFiles", "NfcGetVmFiles", _VERSION, (_VM,), _TICKET, None, None),
    ("randomAccessOpen", "NfcRandomAccessOpenDisk", _VERSION, (_VM, _DISK, _HOST), _TICKET, None, None),
    (
        "randomAccessOpenReadonly",
        "NfcRandomAccessOpenReadonly",
        _VERSION,
        (_VM, _DISK, _HOST),
        _TICKET,
        None,
        None,
    ),
    (
        "getServerNfcLibVersion",
        "NfcGetServerNfcLibVersion",
        _VERSION,
        (_HOST,),
        (0, "int", "int"),
        None,
        None,
    ),
)
_MOREF: Final = re.compile(r"<nfcService\b[^>]*\btype=\"NfcService\"[^>]*>([^<]+)</nfcService>")
_HTTP_OK: Final = 200

_declare_lock = threading.Lock()


def nfc_service_moref(connection: Connection) -> str:
    """Moref of the server's NFC service, from the content that it keeps for its own parts."""
    stub = connection.stub
    # What follows bypasses the stub's renewal of a session that the server forgot: have it renewed here.
    connection.root().CurrentTime()
    info = SimpleNamespace(wsdlName="RetrieveInternalContent", version=stub.version, params=())
    body = stub.SerializeRequest(connection.root(), info, ())
    headers = {
        "Cookie": stub.cookie,
        "SOAPAction": stub.versionId,
        "Content-Type": "text/xml; charset=utf-8",
    }
    http = stub.GetConnection()
    try:
        http.request("POST", stub.path, body, headers)
        answer = http.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except BaseException:
        http.close()
        raise
    stub.ReturnConnection(http)
    match = _MOREF.search(text)
    if answer.status != _HTTP_OK or match is None:
        raise PermanentTransportError(
            f"{connection.session.endpoint.host} offers no NFC service (answer {answer.status}):"
            " the network modes cannot be used with this server"
        )
    return match[1].strip()


def ticket(
    connection: Connection, service_moref: str, vm_moref: str, disk_key: int, *, write: bool
) -> NfcTicket:
    """A ticket for one connection, made for the host on which the VM runs now."""
    vm = connection.vm(vm_moref)
    host = read(connection, vm, "runtime.host").get("runtime.host")
    service = _service(connection, service_moref)
    open_disk = service.RandomAccessOpen if write else service.RandomAccessOpenReadonly
    answer = open_disk(vm, disk_key, host)
    return NfcTicket(
        host=str(answer.host or connection.session.endpoint.host),
        port=int(answer.port or 902),
        service=str(answer.service),
        session_id=Secret(str(answer.sessionId)),
        thumbprint_sha1=str(answer.sslThumbprint or ""),
        certificate_pem=str(getattr(answer, "sslCertificate", None) or ""),
        host_moref=moref(host) if host is not None else "",
    )


def library_version(connection: Connection, service_moref: str, host_moref: str) -> int:
    """Version of the host's NFC library: 11 for ESXi 8, 7 for 7.0, 0 and 2 before; for the record."""
    host = connection.object(VmomiSupport.GetVmodlType("vim.HostSystem"), host_moref)
    return int(_service(connection, service_moref).GetServerNfcLibVersion(host))


def _service(connection: Connection, service_moref: str) -> Any:
    _declare()
    return VmomiSupport.GetVmodlType(_TYPE)(service_moref, connection.stub)


def _declare() -> None:
    """Make the type known to pyVmomi, once in a process."""
    with _declare_lock:
        try:
            VmomiSupport.GetVmodlType(_TYPE)
        except KeyError:
            VmomiSupport.CreateManagedType(
                _TYPE, "NfcService", "vmodl.ManagedObject", _VERSION, None, _METHODS
            )
