"""How a proxy knows its server: by the authority whose SHA-256 stands in the join token.

That authority signs nothing but the certificates of this one server (its door and its broker), so whoever
shows a certificate of it is the server, whatever name or address led there: names are not compared.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from typing import Final
from urllib.parse import urlsplit

import httpx

from proxy_worker.errors import EnrolmentError, ServerUnavailableError, SetupError

CA_PATH: Final = "/ca.pem"
SERVER_CA_FILE: Final = "server-ca.pem"
"""In the proxy's directory, written when it enrolled."""
BROKER_CA_FILE: Final = "broker-ca.pem"
_TIMEOUT_S: Final = 20.0
_MAX_PEM_BYTES: Final = 64 * 1024


def is_loopback(host: str) -> bool:
    """Whether traffic to this host stays on the machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_server_url(url: str) -> None:
    """SetupError for an address to which no proxy may speak: plain HTTP that leaves the machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    if parts.scheme == "http":
        raise SetupError(
            f"{url} is plain HTTP to another machine, where everybody on the way could read and change what "
            "is said; start the server with `vmhaul up --proxies-listen` and use its join token"
        )
    raise SetupError(f"{url!r} is no address of a server: it must begin with https://")


def pinned_context(ca_pem: str) -> ssl.SSLContext:
    """Trusts certificates of this one authority, and TLS 1.2 or newer. SetupError for a broken file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the module says why
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise SetupError(
            f"the server's certificate authority cannot be read ({error}); join the server again"
        ) from error
    return context


def fetch_ca(server_url: str, ca_sha256: str) -> str:
    """The authority's certificate (PEM) as the server shows it, when it is the one that the token names.

    EnrolmentError when it is another: somebody stands between, or the token is of another server.
    ServerUnavailableError when nobody answers.
    """
    # Nothing is believed of this connection; what comes through it is compared with the token.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = server_url.rstrip("/") + CA_PATH
    try:
        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False, verify=context) as client:
            pem = _limited_text(client, url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnavailableError(
            f"the server at {server_url} does not answer ({error}); check the address, a firewall on the way, "
            "and that the server runs with --proxies-listen"
        ) from error
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        found = hashlib.sha256(der).hexdigest()
    except ValueError:
        der, found = b"", "none"
    if found != ca_sha256:
        raise EnrolmentError(
            f"who answers at {server_url} is not the server of this join token: its certificate authority is "
            f"{found}, the token says {ca_sha256}. Nothing was sent. Somebody may stand between, or the "
            "server has a new authority: ask for a new token"
        )
    # Of the very bytes that were compared: behind the true authority the text may hold another one.
    return ssl.DER_cert_to_PEM_cert(der)


def _limited_text(client: httpx.Client, url: str) -> str:
    found = bytearray()
    with client.stream("GET", url) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) > _MAX_PEM_BYTES:
                raise httpx.RequestError("it sends more than a certificate has")
    return found.decode("ascii", errors="replace").strip() + "\n"
