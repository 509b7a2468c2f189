from __future__ import annotations

import pytest

from proxy_worker.errors import SetupError
from proxy_worker.trust import check_server_url, is_loopback, pinned_context


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
