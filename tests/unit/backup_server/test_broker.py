from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backup_server import broker
from backup_server.errors import SettingsError


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories have paths that are too long for a socket
    made = Path(tempfile.mkdtemp(prefix="vmhaul b"))
    yield made
    shutil.rmtree(made)


def test_it_listens_on_its_socket_and_nowhere_else(directory: Path) -> None:
    how = broker.prepare(directory / "broker", directory / "run")
    assert not how.answers()
    process = subprocess.Popen(how.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        waiting = threading.Event()
        for _ in range(200):
            if how.answers():
                break
            waiting.wait(0.05)
        with redis.Redis.from_url(how.redis_url, decode_responses=True) as client:
            assert client.ping()
            settings = client.config_get("*")
        assert settings["port"] == "0"
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["maxmemory-policy"] == "noeviction"
        assert stat.S_IMODE(how.socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "run").stat().st_mode) == 0o700
        assert _listening_tcp(process.pid) == 0
    finally:
        process.terminate()
        process.wait()


def _listening_tcp(pid: int) -> int:
    """TCP sockets of that process that listen."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = str(entry.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            listening += columns[3] == "0A" and columns[9] in inodes
    return listening


def test_an_old_socket_is_no_obstacle(directory: Path) -> None:
    first = broker.prepare(directory / "broker", directory / "run")
    first.socket_path.touch()
    again = broker.prepare(directory / "broker", directory / "run")
    assert again == first
    assert not first.socket_path.exists()


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="shorter path"):
        broker.prepare(tmp_path / "broker", tmp_path / ("x" * 120))
    with pytest.raises(SettingsError, match="control characters"):
        broker._quoted(Path("/a\nb"))


def test_without_any_program_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_bundled_program", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if "redis" in name else None)
    assert broker.find_program() == Path("/bin/redis-server")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SettingsError, match="apt install redis-server"):
        broker.find_program()
