from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest

from proxy_worker import trust
from proxy_worker.config import Enrolment, broker_login
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.errors import SetupError
from proxy_worker.trust import check_server_url, fetch_ca, is_loopback, pinned_context
from tests.support.certificates import make_certificate


@pytest.mark.parametrize(
    "url",
    ["https://backup.example:8471", "http://127.0.0.1:8470", "http://[::1]:1", "http://localhost"],
)
def test_addresses_that_are_spoken_to(url: str) -> None:
    check_server_url(url)


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:8470", "http://backup.example", "http://127.evil.example"]
)
def test_plain_http_never_leaves_the_machine(url: str) -> None:
    with pytest.raises(SetupError, match="proxies-listen"):
        check_server_url(url)


@pytest.mark.parametrize("url", ["", "backup.example:8471", "ftp://x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(SetupError, match="no address"):
        check_server_url(url)


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.8.8.8", "::1", "localhost")] == [True, True, True]
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "", "localhost.example")] == [
        False
    ] * 4


def test_a_broken_file_is_said() -> None:
    with pytest.raises(SetupError, match="join the server again"):
        pinned_context("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_an_authority_behind_the_true_one_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A text that ends in padding is where a decoder of base64 stops: what comes behind is not in the hash.
    true = make_certificate(tmp_path / "true.pem", "server")
    while len(true.der) % 3 == 0:
        true = make_certificate(tmp_path / "true.pem", "server")
    strange = make_certificate(tmp_path / "strange.pem", "strange")
    both = ssl.DER_cert_to_PEM_cert(true.der) + ssl.DER_cert_to_PEM_cert(strange.der)
    monkeypatch.setattr(trust, "_limited_text", lambda *_: both)
    kept = fetch_ca("https://192.0.2.1:8471", hashlib.sha256(true.der).hexdigest())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=kept)
    assert context.cert_store_stats()["x509"] == 1
    assert ssl.PEM_cert_to_DER_cert(kept) == true.der


def _logged_in(tmp_path: Path, url: str) -> str:
    (tmp_path / "broker-ca.pem").write_text("x")
    enrolment = Enrolment(
        proxy_id=ProxyId("p"), name="px1", server_url="https://s", server_key="00", broker_url=url
    )
    return broker_login(tmp_path, enrolment).broker_url


def test_a_broker_that_the_machine_knows_by_itself_is_looked_at(tmp_path: Path) -> None:
    enrolment = Enrolment(
        proxy_id=ProxyId("p"),
        name="px1",
        server_url="https://s",
        server_key="00",
        broker_url="rediss://u:p@h:1/0",
    )
    assert broker_login(tmp_path, enrolment).broker_url == "rediss://u:p@h:1/0?ssl_cert_reqs=required"


def test_names_of_a_broker_of_somebody_elses_authority_are_compared(tmp_path: Path) -> None:
    """That authority signs certificates for others as well: any of them could stand in between."""
    url = _logged_in(tmp_path, "rediss://u:p@redis.example:6379/0?ssl_ca_certs=%2Fetc%2Fca.pem")
    assert "ssl_check_hostname" not in url
    assert "ssl_cert_reqs=required" in url
    assert "broker-ca.pem" in url
    # The server's own authority signs for nobody else, and the server says so.
    assert "ssl_check_hostname=false" in _logged_in(
        tmp_path, "rediss://u:p@h:1/0?ssl_check_hostname=false"
    )
