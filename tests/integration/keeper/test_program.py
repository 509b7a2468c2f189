"""vmhaul-keeper as a process, and a whole repository that it keeps."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import (
    ObjectNotFoundError,
    ObjectRetainedError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.repository.immutability import Immutability, keeping
from pipeline.storage import open_storage
from pipeline.storage.immutable import KeeperRetention
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from proxy_worker.keeper import Journal

NOBODY = 65534
LATER = 4_000_000_000

# ---- the real program ----------------------------------------------------------------------------


class Program:
    """`vmhaul-keeper serve` as a process."""

    def __init__(self, directory: Path, state: Path, run: Path) -> None:
        self.socket = run / "socket"
        self.command = [
            *(sys.executable, "-m", "proxy_worker.keeper_server", "serve"),
            *("--state", str(state), "--socket", str(self.socket), "--group", "nogroup"),
            *("--repository", str(directory)),
        ]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert "listens" in self.process.stdout.readline()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def program(directory: Path, tmp_path: Path) -> Iterator[Program]:
    # Below /tmp itself: other users may not enter the directories of the tests.
    with tempfile.TemporaryDirectory() as run:
        Path(run).chmod(0o755)
        program = Program(directory, tmp_path / "state", Path(run))
        program.start()
        yield program
        program.kill()


def test_a_repository_keeps_its_objects_through_the_program(program: Program, directory: Path) -> None:
    storage = open_storage(f"{directory}?keeper={program.socket}")
    assert storage.location == str(directory)
    assert storage.retention is not None
    storage.put("packs/ab/one", b"content")
    assert storage.retention.kept_until_s("packs/ab/one") == 0.0
    storage.retention.keep("packs/ab/one", LATER - 2_000_000_000)
    assert storage.retention.kept_until_s("packs/ab/one") == LATER - 2_000_000_000
    with pytest.raises(ObjectRetainedError):
        storage.delete("packs/ab/one")
    with pytest.raises(ObjectNotFoundError):
        storage.retention.keep("packs/ab/none", 2_000_000_000)
    with pytest.raises(StoragePermissionError, match="longest"):
        storage.retention.keep("packs/ab/one", 40_000_000_000)
    # A time that is over: deleting asks the keeper to release, and then deletes.
    storage.put("packs/ab/two", b"content")
    storage.retention.keep("packs/ab/two", 1.0)
    storage.delete("packs/ab/two")
    storage.close()


def test_a_program_that_is_killed_goes_on_with_its_journal(program: Program, directory: Path) -> None:
    storage = open_storage(f"{directory}?keeper={program.socket}")
    assert storage.retention is not None
    storage.put("packs/one", b"content")
    storage.retention.keep("packs/one", 2_000_000_000)
    program.kill()
    with pytest.raises(StorageUnavailableError, match="is it running"):
        storage.retention.keep("packs/one", 2_000_000_000)
    # As if it had died before the attribute was set.
    subprocess.run(["chattr", "-i", str(directory / "packs" / "one")], check=True)
    program.start()
    with pytest.raises(ObjectRetainedError):
        storage.delete("packs/one")
    assert storage.retention.kept_until_s("packs/one") == 2_000_000_000
    storage.close()


HOSTILE: list[bytes] = [
    b"",
    b"\n",
    b"[]\n",
    b"null\n",
    b"{\n",
    b"\xff\xfe\n",
    b'{"call": "unlock", "root": "R", "name": "packs/one"}\n',
    b'{"call": "forget", "root": "R", "name": "packs/one"}\n',
    b'{"call": "release", "root": "R", "name": "packs/one", "now": 9999999999}\n',
    b'{"call": "release", "until": 9999999999}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": 0}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": -1e308}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": NaN}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": Infinity}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": "soon"}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one", "until": true}\n',
    b'{"call": "keep", "root": "R", "name": "packs/one"}\n',
    b'{"call": "keep", "root": ["R"], "name": {"a": 1}, "until": 1}\n',
    b'{"call": "keep", "root": "/etc", "name": "passwd", "until": 1}\n',
    b"[" * 3000 + b"\n",
    b"x" * 100_000,
]


@contextmanager
def connected(program: Program) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(60)
        client.connect(str(program.socket))
        yield client


def test_whatever_a_client_sends_nothing_is_unlocked(program: Program, directory: Path) -> None:
    storage = open_storage(f"{directory}?keeper={program.socket}")
    assert storage.retention is not None
    storage.put("packs/one", b"content")
    storage.retention.keep("packs/one", 2_000_000_000)
    for line in HOSTILE:
        with connected(program) as client:
            try:
                client.sendall(line.replace(b'"R"', json.dumps(str(directory)).encode()))
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # it hung up: an answer too
    assert storage.retention.kept_until_s("packs/one") == 2_000_000_000
    with pytest.raises(ObjectRetainedError):
        storage.delete("packs/one")
    storage.close()


def test_clients_that_say_nothing_do_not_stand_in_the_way(program: Program, directory: Path) -> None:
    storage = open_storage(f"{directory}?keeper={program.socket}")
    assert storage.retention is not None
    storage.put("packs/one", b"content")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    try:
        for client in silent:
            client.connect(str(program.socket))
        storage.retention.keep("packs/one", 2_000_000_000)
    finally:
        for client in silent:
            client.close()
    storage.close()


ASK = """
import json, socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(json.dumps({"call": "release"}).encode() + b"\\n")
sys.exit(0 if client.recv(1000) else 3)
"""


@pytest.mark.parametrize(("group", "code"), [(NOBODY, 0), (12345, 3)])
def test_only_members_of_the_group_are_heard(program: Program, group: int, code: int) -> None:
    program.socket.chmod(0o666)  # the mode alone must not be what keeps others out
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ASK, str(program.socket)],
        user=12345,
        group=group,
        extra_groups=[],
        check=False,
    )
    assert done.returncode in {code, 1 if code else 0}
    assert (done.returncode == 0) == (code == 0)


def test_the_journal_and_socket_are_closed_to_others(program: Program, tmp_path: Path) -> None:
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert program.socket.stat().st_mode & 0o777 == 0o660


def test_other_users_cannot_run_it_and_root_confirms_the_clock(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "proxy_worker.keeper_server", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    state = str(tmp_path / "state")
    assert "trusted" in run("status", "--state", state).stdout
    Journal(tmp_path / "state").note(doubt="the clock was set forward by 9 s")
    assert "set forward" in run("status", "--state", state).stdout
    assert run("confirm-clock", "--state", state).returncode == 0
    assert Journal(tmp_path / "state").fact("confirmed") == "yes"


def test_a_keeper_that_is_not_there(directory: Path) -> None:
    retention = KeeperRetention(str(directory / "none"), str(directory))
    calls: list[Callable[[], Any]] = [
        lambda: retention.keep("packs/one", 1.0),
        lambda: retention.kept_until_s("packs/one"),
        retention.release_due,
    ]
    for call in calls:
        with pytest.raises(StorageUnavailableError, match="does not answer"):
            call()
    retention.close()


def test_the_program_needs_nothing_but_the_standard_library() -> None:
    """Nothing of site-packages is imported, nor of vmhaul but the two files that an auditor reads."""
    code = (
        "import sys; import proxy_worker.keeper_server; "
        "print([m for m in sys.modules if m.split('.')[0] in ('pipeline', 'transports', 'backup_server')]); "
        "print(sorted(m for m in sys.modules if m.startswith('proxy_worker')))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded, own = done.stdout.splitlines()
    assert loaded == "[]"
    assert own == "['proxy_worker', 'proxy_worker.keeper', 'proxy_worker.keeper_server']"


# ---- a whole repository --------------------------------------------------------------------------


def test_a_repository_whose_points_nobody_deletes(program: Program, directory: Path) -> None:
    clock = ManualClock(float(int(time.time())))
    days = 2
    storage = keeping(open_storage(f"{directory}?keeper={program.socket}"), days, clock)
    bench = Workbench(storage, clock)
    bench.repository.immutability = Immutability(days=days)
    image = random.Random(5).randbytes(40 * BLOCK_SIZE_BYTES)
    root = bench.backup(image).map_root
    created_at = datetime.fromtimestamp(clock(), UTC)
    point = bench.commit(restore_point(disk_point(root, len(image)), created_at=created_at))
    names = [entry.name for entry in storage.list("") if entry.name.startswith(("packs/", "points/"))]
    assert len(names) > 2
    for name in names:
        with pytest.raises(ObjectRetainedError):
            storage.delete(name)
    with pytest.raises(ObjectRetainedError):
        bench.repository.forget([point.id])
    clock.now_s += 3600
    bench.repository.prune(keep_work_ids=(), min_age_s=60)
    assert bench.problems() == ()
    assert bench.restored(root, len(image)) == image
    storage.close()
