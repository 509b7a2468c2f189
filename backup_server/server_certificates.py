"""The server's own certificate authority, and the certificate that its door and its broker show.

`<data dir>/tls/`: `ca.key`, `ca.pem`, `door.key`, `door.pem` (certificate and authority). The authority is made
once and stays for as long as proxies know it by its SHA-256; the certificate is made anew before it ends and
whenever the names by which the server is reached have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backup_server.errors import SettingsError

CA_LIFE: Final = timedelta(days=20 * 365)
LIFE: Final = timedelta(days=398)
RENEW_BEFORE: Final = timedelta(days=60)
_EARLIER: Final = timedelta(days=1)
"""For proxies whose clocks are behind."""
MAX_NAMES: Final = 8
"""Addresses of a machine that stand in a join token; more would make it longer, not better."""
_NEW_KEY: Final = "ca.key.new"
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorCertificate:
    """Files in PEM form, mode 0600."""

    ca_file: Path
    certificate_file: Path
    """With the authority behind it."""
    key_file: Path
    renewed: bool
    """Made by this very call."""


def names_of(host: str, given: str) -> tuple[str, ...]:
    """Names and addresses by which proxies reach a door that listens on `host`, best first.

    `given`: those that the administrator named, separated by commas. Where none was named and the door
    listens on every address, the machine's own.
    """
    named = tuple(name for name in (part.strip() for part in given.split(",")) if name)
    if named:
        return named
    if host not in _WILDCARDS:
        return (host,)
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6) and _reachable(address.address)
    ]
    found.sort(key=lambda address: ":" in address)
    return (*found[: MAX_NAMES - 1], socket.gethostname()) if found else ("127.0.0.1",)


def ensure(
    tls_dir: Path, names: tuple[str, ...], now: datetime, *, life: timedelta = LIFE
) -> DoorCertificate:
    """The certificate for `names`, made or renewed when it has to be. SettingsError when files are damaged.

    `life`: of one that is made; longer for those that nobody looks at again.
    """
    ca_key, ca = _authority(tls_dir, now)
    wanted = _alternative_names(names)
    certificate_file, key_file = tls_dir / "door.pem", tls_dir / "door.key"
    made = not _good(certificate_file, key_file, ca, wanted, now)
    if made:
        _make_leaf(tls_dir, ca_key, ca, wanted, now, life)
    return DoorCertificate(
        ca_file=tls_dir / "ca.pem",
        certificate_file=certificate_file,
        key_file=key_file,
        renewed=made,
    )


def ca_pem(tls_dir: Path, now: datetime) -> str:
    """The authority's certificate, made when there is none."""
    return _pem(_authority(tls_dir, now)[1]).decode("ascii")


def ca_sha256(tls_dir: Path, now: datetime) -> str:
    """SHA-256 of the authority's certificate (DER), hexadecimal: what join tokens name."""
    _, ca = _authority(tls_dir, now)
    return hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest()


def ends_at(certificate_file: Path) -> datetime:
    return x509.load_pem_x509_certificate(certificate_file.read_bytes()).not_valid_after_utc


def _reachable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_multicast)


def make_new_authority(tls_dir: Path, now: datetime) -> list[str]:
    """A new one on purpose, beside which the old files stay under other names; answers these. Whoever knows the
    server by the old one does not trust it any more.
    """
    kept = []
    for name in ("ca.key", "ca.pem", "door.key", "door.pem"):
        with contextlib.suppress(FileNotFoundError):
            kept.append(str((tls_dir / name).rename(tls_dir / f"{name}.{now:%Y%m%dT%H%M%S}")))
    _make_authority(tls_dir, now)
    return kept


def _authority(tls_dir: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_file, file = tls_dir / "ca.key", tls_dir / "ca.pem"
    if not file.exists() and key_file.exists() and (found := _behind_the_door(tls_dir)) is not None:
        # Lost alone, it is in the chain that the door shows. Whether it is the key's is looked at below.
        _write(file, _pem(found))
    _finish_authority(tls_dir)
    if not key_file.exists() and (file.exists() or _behind_the_door(tls_dir) is not None):
        raise SettingsError(
            f"{key_file}, the key of the certificate authority by which remote proxies know this server, is gone; put "
            "it back from a copy. Where there is none, make a new authority with `vmhaul proxy new-authority`: every "
            "remote proxy must join again then"
        )
    if key_file.exists() and not file.exists():
        raise SettingsError(
            f"{file}, the certificate of the authority by which remote proxies know this server, is gone, and "
            f"{key_file} is left; put it back from a copy: every remote proxy has one, server-ca.pem in its directory. "
            "Where no proxy has it, make a new authority with `vmhaul proxy new-authority`: every remote proxy must "
            "join again then"
        )
    if not key_file.exists():
        # Nor is a certificate of it anywhere: nobody knows it yet.
        _make_authority(tls_dir, now)
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        ca = x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError as error:
        raise SettingsError(
            f"the certificate authority in {tls_dir} is damaged ({error}); put ca.key and ca.pem back from a "
            "copy, or make a new one with `vmhaul proxy new-authority` and let every remote proxy join again"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise SettingsError(
            f"ca.key and ca.pem in {tls_dir} do not belong together; put the right pair back from a copy, or "
            "make a new one with `vmhaul proxy new-authority` and let every remote proxy join again"
        )
    return key, ca


def _behind_the_door(tls_dir: Path) -> x509.Certificate | None:
    """The authority as it stands in the file that the door shows."""
    try:
        chain = x509.load_pem_x509_certificates((tls_dir / "door.pem").read_bytes())
    except (OSError, ValueError):
        return None
    return chain[-1] if len(chain) > 1 else None


def _make_authority(tls_dir: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"vmhaul server {secrets.token_hex(4)}")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    ca = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The key has its name last: where it has it and the certificate is not there, that one was lost.
    _write(tls_dir / _NEW_KEY, _private(key))
    _write(tls_dir / "ca.pem", _pem(ca))
    (tls_dir / _NEW_KEY).replace(tls_dir / "ca.key")


def _finish_authority(tls_dir: Path) -> None:
    """The last step of `_make_authority`, where the start ended before it."""
    new, key_file = tls_dir / _NEW_KEY, tls_dir / "ca.key"
    if not new.exists() or key_file.exists():
        return
    with contextlib.suppress(OSError, ValueError):
        key = serialization.load_pem_private_key(new.read_bytes(), None)
        ca = x509.load_pem_x509_certificate((tls_dir / "ca.pem").read_bytes())
        if key.public_key() == ca.public_key():
            new.replace(key_file)


def _make_leaf(
    tls_dir: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: x509.SubjectAlternativeName,
    now: datetime,
    life: timedelta,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vmhaul proxies' door")])
    leaf = (
        _builder(subject, ca.subject, key.public_key(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    # The key first: of the two, readers look at the certificate to see whether the pair is whole.
    _write(tls_dir / "door.key", _private(key))
    _write(tls_dir / "door.pem", _pem(leaf) + _pem(ca))


def _good(
    file: Path,
    key_file: Path,
    ca: x509.Certificate,
    names: x509.SubjectAlternativeName,
    now: datetime,
) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        has = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and key.public_key() == leaf.public_key()
        and leaf.issuer == ca.subject
        and set(has) == set(names)
        and leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc - RENEW_BEFORE
    )


def _alternative_names(names: tuple[str, ...]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys((*names, socket.gethostname(), "localhost", "127.0.0.1")):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name.partition("%")[0])))
        except ValueError:
            found.append(x509.DNSName(name.encode("idna").decode("ascii")))
    return x509.SubjectAlternativeName(found)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    """Replace as a whole; for its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
