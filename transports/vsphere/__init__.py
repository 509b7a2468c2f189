"""The only package that speaks to vCenter and ESXi (pyVmomi).

Words: a **moref** is vSphere's handle for an object, valid while it stays registered; an **inventory**
is what was there at one moment; a **change id** names a moment in changed block tracking; a **mark** is
our name in the extra configuration of a VM that is being restored.

The package promises values (`model`), never pyVmomi objects, and errors of `transports.errors`, never
pyVmomi faults. Every method may be repeated; those that change something on vSphere say so first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transports.tls import PeerCertificate
from transports.vsphere.api import Vsphere
from transports.vsphere.model import CloneTicket, Endpoint, Login

__all__ = ["Probe", "connect", "probe"]


class Probe(NamedTuple):
    """The certificate of a server nobody has confirmed yet."""

    thumbprint_sha256: str
    thumbprint_sha1: str
    certificate_pem: str


def probe(host: str, port: int = 443) -> Probe:
    """What the server shows, for a person to confirm; nothing is sent.

    TransientTransportError when nobody answers there.
    """
    certificate = PeerCertificate.fetch(host, port)
    return Probe(certificate.sha256, certificate.sha1, certificate.pem)


def connect(
    endpoint: Endpoint,
    auth: Login | CloneTicket,
    *,
    clock: Callable[[], float],
    keep_alive_s: float = 600.0,
    timeout_s: float = 120.0,
) -> Vsphere:
    """Log in and answer the client; the caller closes it.

    `clock` gives Unix time. `keep_alive_s`: a background thread touches the session that often, so
    that it does not idle out behind a long disk (0: never). `timeout_s` bounds one answer of the server.

    PeerIdentityError when the certificate is not the confirmed one, PermanentTransportError for a
    refused login, TransientTransportError when the server cannot be reached now.
    """
    # pyVmomi costs a second of start-up: those who only need the model or the table of
    # changed_blocks do not pay for it.
    from transports.vsphere.client import VsphereClient
    from transports.vsphere.session import Session

    return VsphereClient(
        Session(endpoint, auth, timeout_s=timeout_s), clock=clock, keep_alive_s=keep_alive_s
    )
