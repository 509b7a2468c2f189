from __future__ import annotations

import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from backup_server import server_certificates
from backup_server.errors import SettingsError
from backup_server.server_certificates import (
    LIFE,
    RENEW_BEFORE,
    ca_pem,
    ca_sha256,
    ensure,
    make_new_authority,
    names_of,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_made_once_for_its_owner_only(tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    made = ensure(tls, ("192.0.2.1", "backup.example"), NOW)
    assert made.renewed
    assert {stat.S_IMODE(file.stat().st_mode) for file in tls.iterdir()} == {0o600}
    assert stat.S_IMODE(tls.stat().st_mode) == 0o700
    again = ensure(tls, ("192.0.2.1", "backup.example"), NOW + timedelta(days=100))
    assert not again.renewed
    assert again.certificate_file == made.certificate_file
    names = x509.load_pem_x509_certificate(made.certificate_file.read_bytes()).extensions
    shown = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "backup.example" in shown.get_values_for_type(x509.DNSName)
    assert "192.0.2.1" in [str(ip) for ip in shown.get_values_for_type(x509.IPAddress)]


def test_renewed_in_time_and_for_other_names_under_the_same_authority(tmp_path: Path) -> None:
    first = ensure(tmp_path, ("192.0.2.1",), NOW).certificate_file.read_bytes()
    authority = ca_sha256(tmp_path, NOW)
    in_time = NOW + LIFE - RENEW_BEFORE
    assert not ensure(tmp_path, ("192.0.2.1",), in_time).renewed
    assert ensure(tmp_path, ("192.0.2.1",), in_time + timedelta(seconds=1)).renewed
    assert ensure(tmp_path, ("192.0.2.2",), in_time + timedelta(seconds=1)).renewed
    assert (tmp_path / "door.pem").read_bytes() != first
    assert ca_sha256(tmp_path, NOW) == authority
    der = ssl.PEM_cert_to_DER_cert(ca_pem(tmp_path, NOW))
    assert hashlib.sha256(der).hexdigest() == authority


def test_a_lost_or_foreign_key_of_the_door_is_made_anew(tmp_path: Path) -> None:
    ensure(tmp_path / "a", ("x",), NOW)
    ensure(tmp_path / "b", ("x",), NOW)
    (tmp_path / "a" / "door.key").write_bytes((tmp_path / "b" / "door.key").read_bytes())
    assert ensure(tmp_path / "a", ("x",), NOW).renewed
    (tmp_path / "a" / "door.key").unlink()
    assert ensure(tmp_path / "a", ("x",), NOW).renewed
    (tmp_path / "a" / "door.pem").write_bytes((tmp_path / "b" / "door.pem").read_bytes())
    assert ensure(tmp_path / "a", ("x",), NOW).renewed
    assert not ensure(tmp_path / "a", ("x",), NOW).renewed


def test_a_damaged_authority_is_not_replaced_unseen(tmp_path: Path) -> None:
    ensure(tmp_path / "a", ("x",), NOW)
    ensure(tmp_path / "b", ("x",), NOW)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(SettingsError, match="do not belong together"):
        ensure(tmp_path / "a", ("x",), NOW)
    (tmp_path / "a" / "ca.key").write_bytes(b"rubbish")
    with pytest.raises(SettingsError, match="damaged"):
        ensure(tmp_path / "a", ("x",), NOW)


@pytest.mark.parametrize("lost", [("ca.key",), ("ca.key", "ca.pem")])
def test_an_authority_whose_key_is_lost_is_not_replaced_unseen(
    tmp_path: Path, lost: tuple[str, ...]
) -> None:
    ensure(tmp_path, ("x",), NOW)
    known = (tmp_path / "ca.pem").read_bytes()
    for name in lost:
        (tmp_path / name).unlink()
    for _ in range(2):
        for ask in (lambda: ensure(tmp_path, ("x",), NOW), lambda: ca_sha256(tmp_path, NOW)):
            with pytest.raises(SettingsError, match=r"ca\.key, the key .*`vmhaul proxy new-authority`"):
                ask()
    assert not (tmp_path / "ca.key").exists()
    # On purpose; what is left of the old one stays.
    kept = make_new_authority(tmp_path, NOW)
    assert len(kept) == 4 - len(lost)
    assert ensure(tmp_path, ("x",), NOW).renewed
    assert (tmp_path / "ca.pem").read_bytes() != known
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_lost_certificate_of_the_authority_is_found_behind_the_doors(tmp_path: Path) -> None:
    ensure(tmp_path, ("x",), NOW)
    known = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "ca.pem").unlink()
    assert not ensure(tmp_path, ("x",), NOW).renewed
    assert (tmp_path / "ca.pem").read_bytes() == known


@pytest.mark.parametrize("lost", [("ca.pem", "door.pem"), ("ca.pem", "door.pem", "door.key")])
def test_an_authority_whose_certificate_is_lost_is_not_replaced_unseen(
    tmp_path: Path, lost: tuple[str, ...]
) -> None:
    ensure(tmp_path, ("x",), NOW)
    known = (tmp_path / "ca.pem").read_bytes()
    for name in lost:
        (tmp_path / name).unlink()
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for ask in (lambda: ensure(tmp_path, ("x",), NOW), lambda: ca_sha256(tmp_path, NOW)):
        with pytest.raises(
            SettingsError, match=r"ca\.pem, .*server-ca\.pem .*`vmhaul proxy new-authority`"
        ):
            ask()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == left
    # From a copy, all is as it was: proxies know the server.
    (tmp_path / "ca.pem").write_bytes(known)
    assert ensure(tmp_path, ("x",), NOW).renewed
    assert (tmp_path / "ca.pem").read_bytes() == known
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "door.pem").unlink()
    assert make_new_authority(tmp_path, NOW)
    assert ensure(tmp_path, ("x",), NOW).renewed


@pytest.mark.parametrize("dies_before", [1, 2, 3, 4])
def test_a_first_start_that_ends_anywhere_is_followed_by_one_that_goes_on(
    tmp_path: Path, dies_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    replace = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        renamed.append(Path(target).name)
        if len(renamed) == dies_before:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace_or_die)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path, ("x",), NOW)
    assert renamed == ["ca.key.new", "ca.pem", "ca.key", "door.key"][:dies_before]
    assert ensure(tmp_path, ("x",), NOW).renewed
    assert not (tmp_path / "ca.key.new").exists()
    known = (tmp_path / "ca.pem").read_bytes()
    assert not ensure(tmp_path, ("x",), NOW).renewed
    assert (tmp_path / "ca.pem").read_bytes() == known


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names_of("192.0.2.1", "") == ("192.0.2.1",)
    assert names_of("0.0.0.0", " backup.example, 192.0.2.9 ,") == ("backup.example", "192.0.2.9")
    own = names_of("0.0.0.0", "")
    assert own
    assert not any(name.startswith(("fe80", "169.254")) for name in own)
    monkeypatch.setattr(server_certificates.psutil, "net_if_addrs", dict)
    assert names_of("::", "") == ("127.0.0.1",)
