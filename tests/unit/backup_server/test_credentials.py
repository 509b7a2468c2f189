from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backup_server.credentials import (
    CredentialStore,
    load_or_create_key,
    new_join_token,
    token_hash,
)
from backup_server.errors import IntegrityError, SettingsError
from transports.vsphere.model import Secret


def test_key_is_made_once_and_for_the_owner(tmp_path: Path) -> None:
    file = tmp_path / "server.key"
    key = load_or_create_key(file)
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_or_create_key(file) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "server.key"
    load_or_create_key(file)
    file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_or_create_key(file)


def test_key_of_another_length_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "server.key"
    file.touch(mode=0o600)
    file.write_bytes(b"short")
    with pytest.raises(SettingsError, match="5 bytes"):
        load_or_create_key(file)


def test_sealed_secrets_open_with_the_same_key_only() -> None:
    store = CredentialStore(b"k" * 32)
    sealed = store.seal(Secret("pässword"))
    assert "pässword".encode() not in sealed
    assert store.open(sealed) == Secret("pässword")
    assert store.seal(Secret("pässword")) != sealed
    with pytest.raises(IntegrityError) as caught:
        CredentialStore(b"x" * 32).open(sealed)
    assert "pässword" not in str(caught.value)
    with pytest.raises(IntegrityError):
        store.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_join_tokens() -> None:
    one, two = new_join_token(), new_join_token()
    assert one != two
    assert len(token_hash(one)) == 64
    assert one.reveal() not in token_hash(one)
    assert repr(one) == str(one) == "***"
