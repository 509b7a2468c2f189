from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.up import machine
from backup_server.up.lock import UpLock
from backup_server.up.options import UpError, parse_listen, read_json, resolve, write_private


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_listen() -> None:
    assert parse_listen("127.0.0.1:8470") == ("127.0.0.1", 8470)
    assert parse_listen("[::1]:80") == ("::1", 80)
    for wrong in ("", "8470", "127.0.0.1", "host:port", "a:99999"):
        with pytest.raises(UpError, match="ADDRESS:PORT"):
            parse_listen(wrong)


def test_a_taken_port_is_refused(tmp_path: Path, taken: int) -> None:
    with pytest.raises(UpError, match="--listen"):
        resolve({"data_dir": str(tmp_path), "listen": f"127.0.0.1:{taken}"})
    with pytest.raises(UpError, match="--flower-port"):
        resolve({"data_dir": str(tmp_path), "listen": "127.0.0.1:0", "flower_port": taken})


def test_port_zero_is_a_free_one(tmp_path: Path) -> None:
    options = resolve({"data_dir": str(tmp_path), "listen": "127.0.0.1:0", "flower": False})
    assert options.port > 0
    assert options.settings()["flower_port"] == 0


def test_passwords_go_into_the_settings_and_print_nowhere(tmp_path: Path) -> None:
    url = "postgresql+psycopg://vmhaul:secret@db/vmhaul"
    options = resolve({"data_dir": str(tmp_path), "listen": "127.0.0.1:0", "database": url, "slots": 3})
    assert options.settings()["database"] == url
    assert options.settings()["default_proxy_slots"] == 3
    assert "secret" not in repr(options)


def test_private_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "up.json"
    write_private(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["up.json"]
    assert read_json(tmp_path / "missing.json") is None
    path.write_text("{")
    assert read_json(path) is None


def test_the_second_supervisor_is_told_of_the_first(tmp_path: Path) -> None:
    import os

    write_private(tmp_path / "server.json", {"url": "http://127.0.0.1:9"})
    with (
        UpLock(tmp_path),
        pytest.raises(UpError, match=rf"process {os.getpid()} at http://127\.0\.0\.1:9"),
        UpLock(tmp_path),
    ):
        raise AssertionError("two locks at once")
    with UpLock(tmp_path):
        assert read_json(tmp_path / "up.lock") == {"pid": os.getpid()}


def test_machine_checks(tmp_path: Path) -> None:
    checks = {check.name: check for check in machine.machine_checks(tmp_path)}
    assert checks["Python"].level == "ok"
    assert checks["vmhaul up"].level == "error"
    assert "vmhaul up --data" in checks["vmhaul up"].advice
    assert all(check.advice for check in checks.values() if check.level != "ok")


def test_machine_checks_that_find_something(tmp_path: Path) -> None:
    assert machine.python_check((3, 10)).level == "error"
    assert machine.system_check("Windows").level == "error"
    assert machine.memory_check(1 << 28).level == "warning"
    assert machine.open_files_check(256).level == "warning"
    assert machine.data_dir_check(tmp_path / "none").level == "warning"
    tmp_path.chmod(0o755)
    assert "chmod 700" in machine.data_dir_check(tmp_path).advice
    tmp_path.chmod(0o700)
    assert machine.data_dir_check(tmp_path).level == "ok"
