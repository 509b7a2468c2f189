"""The doorman on port 902: who we are, who the host is, and the hand-over to NFC."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from transports.base import TransportMode
from transports.errors import (
    PeerIdentityError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.network.carrier import Carrier
from transports.network.options import NetworkOptions
from transports.network.wire import TAG
from transports.tls import matches, thumbprint_sha256, unpinned_context
from transports.vsphere.model import NfcTicket

MAX_LINE_BYTES: Final = 4096
_READY: Final = "220 "
_DONE: Final = "200 "
_SECURE_NFC: Final = "NFCSSL supported"
_SHA256: Final = "SHA256 supported"


def enter(
    ticket: NfcTicket, mode: TransportMode, options: NetworkOptions, addresses: Sequence[str] = ()
) -> tuple[Carrier, bool]:
    """Redeem the ticket; the carrier for NFC, and whether the host named its SHA-256 thumbprint.

    `addresses` of the host are tried before the ticket's own; who answers there is checked alike.

    The host is who the ticket names, or PeerIdentityError: the first TLS session's certificate fits the
    ticket's thumbprint, the host's own SHA-256 line fits that certificate, and for nbdssl the second
    TLS session shows the same one.
    """
    peer = f"{ticket.host}:{ticket.port}"
    plain = _dial(ticket, options, addresses)
    carrier = Carrier(plain, peer)
    try:
        greeting = _line(carrier, peer)
        if not greeting.startswith(_READY):
            raise TransportUnavailableError(f"{peer} is no ESXi host: it greets with {greeting[:80]!r}")
        if mode is TransportMode.NBDSSL and _SECURE_NFC not in greeting:
            raise TransportUnavailableError(
                f"{peer} does not offer encrypted NFC; use mode nbd where the network may carry the data in clear"
            )
        carrier = Carrier(_secure(plain, peer, options), peer)
        certificate = _certificate(carrier)
        _check_ticket(ticket, certificate, peer)
        _command(carrier, f"SESSION {ticket.session_id.reveal()}")  # has no answer
        _command(carrier, "BANNER ")  # the host wants the blank
        _expect(carrier, peer, _READY, "BANNER")
        names_itself = _SHA256 in greeting
        if names_itself:
            _command(carrier, f"THUMBPRINT_SHA2 {TAG.decode()}")
            answer = _expect(carrier, peer, _DONE, "THUMBPRINT_SHA2")
            if not matches(certificate, answer[len(_DONE) :].strip()):
                raise PeerIdentityError(
                    f"{peer} names another certificate than the one it shows ({thumbprint_sha256(certificate)});"
                    " somebody may stand between this proxy and the host"
                )
        service = ticket.service + ("ssl" if mode is TransportMode.NBDSSL else "")
        _command(carrier, f"PROXY {service}")
        answer = _line(carrier, peer)
        if not answer.startswith(_DONE):
            raise TransientTransportError(
                f"{peer} did not accept the ticket ({answer[:80]}): it may be spent or too old; get a new one"
            )
        # From here the first TLS session is simply left behind, without a closing record.
        bare = socket.socket(fileno=carrier.socket.detach())
        bare.settimeout(options.io_timeout_s)
        carrier = Carrier(bare, peer)
        if mode is TransportMode.NBDSSL:
            carrier = Carrier(_secure(bare, peer, options), peer)
            if _certificate(carrier) != certificate:
                raise PeerIdentityError(
                    f"{peer} shows another certificate for the data than at the door;"
                    " somebody may stand between this proxy and the host"
                )
    except BaseException:
        carrier.drop()
        raise
    return carrier, names_itself


def _dial(ticket: NfcTicket, options: NetworkOptions, addresses: Sequence[str]) -> socket.socket:
    for address in addresses:
        # No answer there costs nothing but the wait: the ticket has not been shown yet.
        with suppress(OSError):
            return _connected(address, ticket.port, options)
    try:
        return _connected(ticket.host, ticket.port, options)
    except OSError as error:
        raise TransportUnavailableError(
            f"cannot reach ESXi host {ticket.host}, port {ticket.port} ({error}):"
            " check that this proxy resolves its name and that the firewall lets it through"
        ) from error


def _connected(host: str, port: int, options: NetworkOptions) -> socket.socket:
    connected = socket.create_connection((host, port), timeout=options.connect_timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.settimeout(options.io_timeout_s)
    return connected


def _secure(plain: socket.socket, peer: str, options: NetworkOptions) -> ssl.SSLSocket:
    try:
        return unpinned_context(legacy=options.legacy_tls).wrap_socket(plain)
    except OSError as error:
        with suppress(OSError):
            plain.close()
        advice = "" if options.legacy_tls else "; hosts before ESXi 7.0 need the option legacy_tls"
        raise TransientTransportError(
            f"the TLS handshake with {peer} failed ({error}){advice}"
        ) from error


def _certificate(carrier: Carrier) -> bytes:
    assert isinstance(carrier.socket, ssl.SSLSocket)
    return carrier.socket.getpeercert(binary_form=True) or b""


def _check_ticket(ticket: NfcTicket, certificate: bytes, peer: str) -> None:
    if ticket.certificate_pem:
        fits = ssl.PEM_cert_to_DER_cert(ticket.certificate_pem.strip()) == certificate
    else:
        fits = matches(certificate, ticket.thumbprint_sha1)
    if not fits:
        raise PeerIdentityError(
            f"{peer} shows a certificate ({thumbprint_sha256(certificate)}) other than the one that vCenter"
            " named for this host; nothing was sent. If the host's certificate was replaced, reconnect the"
            " host in vCenter"
        )


def _command(carrier: Carrier, text: str) -> None:
    carrier.send(text.encode() + b"\r\n")


def _expect(carrier: Carrier, peer: str, prefix: str, command: str) -> str:
    answer = _line(carrier, peer)
    if not answer.startswith(prefix):
        raise TransientTransportError(
            f"{peer} answered {command} with {answer[:80]!r}; get a new ticket"
        )
    return answer


def _line(carrier: Carrier, peer: str) -> str:
    """One line, byte by byte: what follows it may belong to another TLS session."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) >= MAX_LINE_BYTES:
            raise TransientTransportError(f"{peer} sends a line without end; it is no ESXi host")
        line += carrier.receive(1)
    return line.decode("utf-8", "replace").rstrip("\r\n")
