from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from transports import tls
from transports.errors import PeerIdentityError


@pytest.fixture
def der(tmp_path: Path) -> bytes:
    return make_certificate(tmp_path / "a.pem").der


def test_thumbprints_as_vsphere_prints_them(der: bytes) -> None:
    sha1, sha256 = tls.thumbprint_sha1(der), tls.thumbprint_sha256(der)
    assert sha1.replace(":", "").lower() == hashlib.sha1(der).hexdigest()
    assert sha256.replace(":", "").lower() == hashlib.sha256(der).hexdigest()
    assert (sha1.count(":"), sha256.count(":")) == (19, 31)
    assert sha1 == sha1.upper()


def test_a_thumbprint_may_be_written_in_any_way(der: bytes) -> None:
    for thumbprint in (tls.thumbprint_sha1(der), tls.thumbprint_sha256(der)):
        for written in (
            thumbprint,
            thumbprint.lower(),
            thumbprint.replace(":", ""),
            thumbprint.replace(":", " "),
        ):
            assert tls.matches(der, written)
            assert not tls.matches(der + b"x", written)


@pytest.mark.parametrize("thumbprint", ["", "00", "not a thumbprint", "AB:" * 19])
def test_what_is_no_thumbprint_matches_nothing(der: bytes, thumbprint: str) -> None:
    assert not tls.matches(der, thumbprint)


def _handshake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
    """A handshake over a socket pair; raises the client's error."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def serve() -> None:
        try:
            server_context.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_context.wrap_socket(ours).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_pinned_context_talks_to_that_certificate_only(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    right, wrong = make_certificate(tmp_path / "a.pem"), make_certificate(tmp_path / "b.pem")
    context = tls.pinned_context(tls.thumbprint_sha256(right.der), peer="vc.example:443")
    for certificate, fits in ((right, True), (wrong, False)):
        server = certificate.server_context()
        server.maximum_version = version
        if fits:
            _handshake(context, server)
        else:
            with pytest.raises(PeerIdentityError, match=r"vc\.example:443.*nothing was sent"):
                _handshake(context, server)


def test_no_thumbprint_is_no_permission(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "a.pem")
    with pytest.raises(PeerIdentityError, match="none was confirmed"):
        _handshake(tls.pinned_context("", peer="vc"), certificate.server_context())
