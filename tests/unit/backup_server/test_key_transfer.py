"""Keys of a server in a sealed file: out of one data directory, into another."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backup_server import server_certificates
from backup_server.cli.app import build
from backup_server.credentials import load_or_create_key
from backup_server.errors import InvalidError, NotFoundError, SettingsError
from backup_server.key_transfer import Imported, export_keys, import_keys

PASSWORD = "twelve characters and more"
NOW = datetime(2026, 3, 2, tzinfo=UTC)
CHEAP = {"ops": 1, "memory_kib": 8}
ALL = ("server.key", "server-signing.key", "tls/ca.key", "tls/ca.pem")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    directory = tmp_path / "first"
    directory.mkdir()
    for name in ALL[:2]:
        load_or_create_key(directory / name)
    server_certificates.ca_pem(directory / "tls", NOW)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_keys_come_over_whole_and_for_their_owner_only(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    text = export_keys(first, PASSWORD, **CHEAP)
    assert import_keys(second, text, PASSWORD) == Imported(written=ALL, same=())
    assert contents(second) == contents(first)
    assert {stat.S_IMODE((second / name).stat().st_mode) for name in ALL} == {0o600}
    assert import_keys(second, text, PASSWORD) == Imported(written=(), same=ALL)
    assert server_certificates.ca_sha256(second / "tls", NOW) == server_certificates.ca_sha256(
        first / "tls", NOW
    )


def test_nothing_of_the_keys_can_be_read_without_the_password(first: Path, tmp_path: Path) -> None:
    text = export_keys(first, PASSWORD, **CHEAP)
    for content in contents(first).values():
        assert base64.b64encode(content).decode() not in text
    with pytest.raises(InvalidError, match="not the one with which"):
        import_keys(tmp_path / "second", text, PASSWORD + "!")
    assert not (tmp_path / "second").exists()


def test_a_server_without_a_door_has_no_authority_to_give(first: Path, tmp_path: Path) -> None:
    for name in ALL[2:]:
        (first / name).unlink()
    done = import_keys(tmp_path / "second", export_keys(first, PASSWORD, **CHEAP), PASSWORD)
    assert done.written == ALL[:2]


@pytest.mark.parametrize("name", ALL)
def test_another_key_is_never_overwritten_and_nothing_else_is_written(
    first: Path, tmp_path: Path, name: str
) -> None:
    second = tmp_path / "second"
    (second / name).parent.mkdir(parents=True)
    (second / name).write_bytes(b"k" * 32)
    with pytest.raises(SettingsError, match="another key") as refused:
        import_keys(second, export_keys(first, PASSWORD, **CHEAP), PASSWORD)
    assert str(second / name) in refused.value.message
    assert contents(second) == {name: b"k" * 32}


def test_what_was_cut_off_in_the_middle_is_finished_by_importing_again(
    first: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / ALL[0]).write_bytes((first / ALL[0]).read_bytes())
    done = import_keys(second, export_keys(first, PASSWORD, **CHEAP), PASSWORD)
    assert done == Imported(written=ALL[1:], same=ALL[:1])


def test_a_directory_in_which_no_server_was_started_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"has no server\.key"):
        export_keys(tmp_path, PASSWORD)
    assert contents(tmp_path) == {}


def test_a_short_password_and_keys_that_are_damaged_are_refused(first: Path) -> None:
    with pytest.raises(InvalidError, match="12 characters"):
        export_keys(first, "short")
    (first / "tls" / "ca.pem").write_bytes(b"not a certificate")
    with pytest.raises(SettingsError, match="do not belong together"):
        export_keys(first, PASSWORD, **CHEAP)
    (first / "server.key").write_bytes(b"x")
    with pytest.raises(SettingsError, match="1 bytes long"):
        export_keys(first, PASSWORD, **CHEAP)


def changed(text: str, **values: Any) -> str:
    return json.dumps({**json.loads(text), **values})


def test_what_is_no_such_file_is_refused_with_the_reason(first: Path, tmp_path: Path) -> None:
    text = export_keys(first, PASSWORD, **CHEAP)
    kdf = json.loads(text)["kdf"]
    for damaged, reason in (
        ("", "no file of"),
        ("[]", "no file of"),
        (text[:-40], "no file of"),
        (changed(text, format="other"), "no file of"),
        (changed(text, sealed="not base64!"), "no file of"),
        (changed(text, kdf={**kdf, "salt": ""}), "no file of"),
        (changed(text, version=2), "version 2"),
        (changed(text, kdf={**kdf, "ops": 10**6}), "it is damaged"),
        (changed(text, kdf={**kdf, "memory_kib": 1 << 30}), "it is damaged"),
        (changed(text, kdf={**kdf, "ops": 2}), "not the one with which"),
        (changed(text, sealed=base64.b64encode(bytes(100)).decode()), "not the one with which"),
    ):
        with pytest.raises(InvalidError, match=reason):
            import_keys(tmp_path / "second", damaged, PASSWORD)
    assert not (tmp_path / "second").exists()


def run(*words: str, password: str = PASSWORD) -> Any:
    return CliRunner().invoke(build(), list(words), input=password + "\n")


def test_the_commands(first: Path, tmp_path: Path) -> None:
    file, second = tmp_path / "keys", tmp_path / "second"
    out = run("keys", "export", str(file), "--password-stdin", "--data", str(first), "--json")
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout) == {"file": str(file), "authority": True}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = run("keys", "export", str(file), "--password-stdin", "--data", str(first))
    assert again.exit_code == 1
    assert "exists: name another file" in again.stderr
    wrong = run("keys", "import", str(file), "--password-stdin", "--data", str(second), password="no")
    assert wrong.exit_code == 1
    assert "password is not the one" in wrong.stderr
    done = run("keys", "import", str(file), "--password-stdin", "--data", str(second), "--json")
    assert json.loads(done.stdout) == {"written": list(ALL), "same": []}
    assert contents(second) == contents(first)
    gone = run("keys", "import", str(file) + "2", "--password-stdin", "--data", str(second))
    assert gone.exit_code == 1
    assert "cannot be read" in gone.stderr
