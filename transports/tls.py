"""TLS to peers that are known by the thumbprint of their certificate, not by a certificate authority.

vSphere's certificates are self-signed or come from vCenter's own authority, and neither is in the
machine's trust store. So a person confirms a thumbprint once and every later connection is held to it.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from typing import Final, Self

from transports.errors import PeerIdentityError, TransientTransportError

SHA1_HEX_DIGITS: Final = 40
SHA256_HEX_DIGITS: Final = 64


def thumbprint_sha256(certificate_der: bytes) -> str:
    """Upper-case hexadecimal pairs with colons, as vSphere prints thumbprints."""
    return _pairs(hashlib.sha256(certificate_der).hexdigest())


def thumbprint_sha1(certificate_der: bytes) -> str:
    """The form that vSphere's tickets use; SHA-1 names a certificate here, it signs nothing."""
    return _pairs(hashlib.sha1(certificate_der, usedforsecurity=False).hexdigest())


def matches(certificate_der: bytes, thumbprint: str) -> bool:
    """True when `thumbprint` (SHA-1 or SHA-256, with or without colons, any case) is this certificate's."""
    wanted = _digits(thumbprint)
    if not wanted.isascii():
        return False
    if len(wanted) == SHA256_HEX_DIGITS:
        seen = _digits(thumbprint_sha256(certificate_der))
    elif len(wanted) == SHA1_HEX_DIGITS:
        seen = _digits(thumbprint_sha1(certificate_der))
    else:
        return False
    return hmac.compare_digest(wanted, seen)


def unpinned_context(*, legacy: bool = False) -> ssl.SSLContext:
    """A client's context that accepts any certificate: the caller compares it after the handshake.

    `legacy` admits the SHA-1 signatures and short keys of ESXi before 7.0, TLS 1.2 only.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if legacy:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("DEFAULT:@SECLEVEL=1")
    return context


def pinned_context(thumbprint: str, *, peer: str) -> ssl.SSLContext:
    """A client's context whose every handshake ends in PeerIdentityError unless the certificate fits.

    The check sits in the socket class, so that it holds for every connection that any library opens
    with this context, before that library has sent a byte. `peer` names the server in the message.
    """

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            certificate = self.getpeercert(binary_form=True) or b""
            if not matches(certificate, thumbprint):
                self.close()
                raise PeerIdentityError(
                    f"{peer} shows a certificate with SHA-256 thumbprint"
                    f" {thumbprint_sha256(certificate)}, but {thumbprint or 'none'} was confirmed;"
                    " nothing was sent. If the certificate was replaced on purpose, confirm the new one"
                )

    context = unpinned_context()
    context.sslsocket_class = PinnedSocket
    return context


class PeerCertificate:
    """The certificate that a server shows."""

    __slots__ = ("der",)

    def __init__(self, der: bytes) -> None:
        self.der = der

    @classmethod
    def fetch(cls, host: str, port: int, *, timeout_s: float = 10.0) -> Self:
        """Shake hands, take the certificate, send nothing. TransientTransportError when nobody answers."""
        try:
            with (
                socket.create_connection((host, port), timeout=timeout_s) as plain,
                unpinned_context().wrap_socket(plain, server_hostname=host) as secure,
            ):
                der = secure.getpeercert(binary_form=True)
        except OSError as error:
            raise TransientTransportError(
                f"no TLS server answered at {host}:{port} ({error}); check address, port and firewall"
            ) from error
        return cls(der or b"")

    @property
    def sha256(self) -> str:
        return thumbprint_sha256(self.der)

    @property
    def sha1(self) -> str:
        return thumbprint_sha1(self.der)

    @property
    def pem(self) -> str:
        return ssl.DER_cert_to_PEM_cert(self.der)


def _pairs(digits: str) -> str:
    upper = digits.upper()
    return ":".join(upper[i : i + 2] for i in range(0, len(upper), 2))


def _digits(thumbprint: str) -> str:
    return thumbprint.replace(":", "").replace(" ", "").lower()
