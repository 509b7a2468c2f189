"""`vmhaul up` with a broker and a database that run elsewhere."""

from __future__ import annotations

import datetime as dt
import ipaddress
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes as digests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from vmhaul_lab.site import LabSite

from tests.support.ports import free_port

from .platform import Platform, platform, wait_until
from .setup import assert_restores, connect, create_job, hashes

pytestmark = [pytest.mark.lab, pytest.mark.postgres]

PASSWORD = "between-proxies-and-server"


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, digests.SHA256())
    )
    cert_file, key_file = directory / "broker.crt", directory / "broker.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[str]:
    """The system's redis-server behind TLS and a password; its URL."""
    directory = tmp_path / "redis"
    directory.mkdir()
    cert, key = certificate(directory)
    port = free_port()
    (directory / "redis.conf").write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file {cert}\ntls-key-file {key}\n"
        f'tls-ca-cert-file {cert}\ntls-auth-clients no\nrequirepass {PASSWORD}\ndir {directory}\nsave ""\n'
    )
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={cert}"
    with (directory / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            ["redis-server", str(directory / "redis.conf")], stdout=log, stderr=log
        )

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    try:
        wait_until("redis-server answers over TLS", answers, 20)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def test_backup_over_an_outside_tls_broker_and_postgresql(
    tmp_path: Path, site: LabSite, tls_broker: str, postgres_database: str
) -> None:
    with platform(tmp_path / "data", database=postgres_database, broker=tls_broker) as product:
        connect(product, site, tmp_path / "repo")
        create_job(product, "nightly", "--vm", "vm01")
        expected = hashes(site, "vm01")
        product.backup("nightly")

        assert_restores(product, "vm01@latest", "vm01", expected, tmp_path)
        assert PASSWORD not in command_lines(product)
        assert not (product.data / "vmhaul.db").exists()
        assert not (product.data / "broker" / "broker.conf").exists()


def command_lines(product: Platform) -> str:
    assert product.process is not None
    tree = psutil.Process(product.process.pid)
    return "\n".join(" ".join(p.cmdline()) for p in [tree, *tree.children(recursive=True)])
