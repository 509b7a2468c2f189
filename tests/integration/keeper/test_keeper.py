"""vmhaul-keeper on a real file system: what it makes immutable, what nobody can make it do, what a crash and
a clock that jumps leave. Runs as root, as the keeper does.
"""

from __future__ import annotations

import json
import os
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
from pipeline.storage.immutable import KeeperRetention, is_immutable
from pipeline.storage.local import LocalStorage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from proxy_worker.keeper import DAY_S, Clock, Journal, Keeper, Missing, Refused, set_immutable

NOBODY = 65534
LATER = 4_000_000_000
START = 1_700_000_000.0


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 file system of its own: it has the attribute, and going away it takes what is immutable along."""
    base = tmp_path_factory.mktemp("keeper")
    image, place = base / "image", base / "mount"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    # A test that failed may hold it open.
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def directory(mounted: Path, request: pytest.FixtureRequest) -> Path:
    place = Path(tempfile.mkdtemp(dir=mounted, prefix="repository-"))
    place.chmod(0o755)
    return place


class Times:
    """The wall clock, and what really passes."""

    def __init__(self) -> None:
        self.wall_s = START
        self.passed_s = 1000.0
        self.boot = "first boot"

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.passed_s += seconds

    def clock(self, journal: Journal) -> Clock:
        return Clock(journal, 7 * DAY_S, lambda: self.wall_s, lambda: self.passed_s, self.boot)


class Rig:
    """A keeper in this process, which may die and be started again."""

    def __init__(self, directory: Path, state: Path) -> None:
        self.directory = directory
        self.state = state
        self.times = Times()
        self.storage = LocalStorage(directory)
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.state)
        self.clock = self.times.clock(self.journal)
        self.keeper = Keeper([str(self.directory)], self.journal, self.clock, max_days=3660)
        self.keeper.recover()

    def put(self, name: str) -> str:
        self.storage.put(name, b"content")
        return name

    def keep(self, name: str, until: float) -> float:
        return self.keeper.keep(str(self.directory), name, until)

    def is_immutable(self, name: str) -> bool:
        with (self.directory / name).open("rb") as file:
            return is_immutable(file.fileno())


@pytest.fixture
def rig(directory: Path, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(directory, tmp_path / "state")
    yield rig
    rig.storage.close()


# ---- keeping and releasing -----------------------------------------------------------------------


def test_what_is_kept_cannot_be_deleted_until_its_time_is_over(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    assert rig.keep(name, START + 100) == START + 100
    for change in (
        lambda: rig.storage.delete(name),
        lambda: rig.storage.replace(name, b"other"),
    ):
        with pytest.raises(ObjectRetainedError, match="immutable"):
            change()
    with pytest.raises(PermissionError):
        (rig.directory / name).open("r+b")
    rig.times.pass_(99)
    assert rig.keeper.release() == 0
    assert rig.storage.read(name) == b"content"
    rig.times.pass_(1)
    assert rig.keeper.release() == 1
    rig.storage.delete(name)
    assert list(rig.storage.list("")) == []


def test_a_time_is_never_shortened(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    rig.keep(name, START + 100)
    assert rig.keep(name, START + 50) == START + 100
    assert rig.keep(name, START + 200) == START + 200
    assert rig.keep(name, 0) == START + 200
    rig.times.pass_(150)
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_nothing_is_kept_for_longer_than_allowed(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    for until in (START + 3661 * DAY_S, float("inf")):
        with pytest.raises(Refused, match="longest"):
            rig.keep(name, until)
    assert not rig.is_immutable(name)


# ---- what may be kept ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../outside",
        "packs/../../outside",
        "packs/./one",
        "packs//one",
        "packs/one/",
        "tmp/one",
        "work/one",
        "doomed/one",
        "Packs/one",
        "packs/one\n",
        "packs/\x00",
        "a/b/c/d/e",
        ".",
        "packs",
    ],
)
def test_names_that_are_refused(rig: Rig, name: str) -> None:
    rig.put("packs/one")
    (rig.directory / "outside").write_bytes(b"")
    with pytest.raises((Refused, Missing)):
        rig.keep(name, START + 10)
    assert rig.journal.kept() == []


def test_other_directories_are_refused(rig: Rig, tmp_path: Path) -> None:
    rig.put("packs/one")
    for root in (str(tmp_path), f"{rig.directory}/", f"{rig.directory}/packs", "/", ""):
        with pytest.raises(Refused, match="no repository"):
            rig.keeper.keep(root, "packs/one", START + 10)


def test_links_lead_nowhere(rig: Rig, mounted: Path) -> None:
    rig.put("packs/one")
    outside = mounted / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "file").write_bytes(b"")
    (rig.directory / "packs" / "soft").symlink_to(outside / "file")
    (rig.directory / "links").symlink_to(outside)
    os.link(outside / "file", rig.directory / "packs" / "hard")
    os.mkfifo(rig.directory / "packs" / "pipe")
    (rig.directory / "packs" / "directory").mkdir()
    for name in ("packs/soft", "links/file", "packs/hard", "packs/pipe", "packs/directory"):
        with pytest.raises(Refused):
            rig.keep(name, START + 10)
    with (outside / "file").open("rb") as file:
        assert not is_immutable(file.fileno())
    assert rig.journal.kept() == []


def test_a_root_that_became_a_link_is_refused(rig: Rig) -> None:
    rig.put("packs/one")
    rig.directory.rename(rig.directory.with_name("moved"))
    rig.directory.symlink_to(rig.directory.with_name("moved"))
    with pytest.raises(Refused):
        rig.keep("packs/one", START + 10)


def test_another_file_system_below_is_not_entered(rig: Rig) -> None:
    place = rig.directory / "packs"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        (place / "one").write_bytes(b"")
        with pytest.raises(Refused, match="plain file"):
            rig.keep("packs/one", START + 10)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_file_system_without_the_attribute_is_said(tmp_path: Path) -> None:
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        rig = Rig(place, tmp_path / "state")
        rig.put("packs/one")
        with pytest.raises(Refused, match="no immutable attribute"):
            rig.keep("packs/one", START + 10)
        assert rig.journal.kept() == []
        rig.storage.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_is_not_there_is_missing(rig: Rig) -> None:
    with pytest.raises(Missing):
        rig.keep("packs/none", START + 10)


# ---- the clock -----------------------------------------------------------------------------------


def test_a_clock_set_forward_releases_nothing_until_root_confirms(rig: Rig) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 30 * DAY_S)
    rig.times.wall_s += 60 * DAY_S
    for _ in range(2):
        with pytest.raises(Refused, match="set forward by 5184000 s"):
            rig.keeper.release()
        rig.start()  # starting again does not help
    rig.times.wall_s -= 60 * DAY_S
    with pytest.raises(Refused, match="confirm-clock"):
        rig.keeper.release()
    rig.journal.note(confirmed="yes")
    rig.start()
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_many_small_steps_forward_add_up(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + DAY_S)
    for _ in range(3):
        rig.times.wall_s += 1700
        if rig.times.wall_s - START <= 3600:
            assert rig.keeper.release() == 0
    with pytest.raises(Refused, match="set forward"):
        rig.keeper.release()


def test_within_the_hour_monotonic_time_counts(rig: Rig) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 3000)
    rig.times.wall_s += 3500
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_a_clock_set_back_keeps_longer(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.wall_s -= 1000
    rig.times.pass_(500)
    assert rig.keeper.release() == 0
    rig.times.pass_(700)
    assert rig.keeper.release() == 1


def test_time_goes_on_while_the_keeper_is_stopped(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.pass_(30 * DAY_S)  # of the same boot: the monotonic clock vouches for it
    rig.start()
    assert rig.keeper.release() == 1


@pytest.mark.parametrize(("days", "is_trusted"), [(6, True), (8, False)])
def test_a_machine_that_was_off_for_long_needs_a_word(rig: Rig, days: int, is_trusted: bool) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.wall_s += days * DAY_S
    rig.times.passed_s = 5.0
    rig.times.boot = "second boot"
    rig.start()
    if is_trusted:
        assert rig.keeper.release() == 1
        return
    with pytest.raises(Refused, match=r"8\.0 days"):
        rig.keeper.release()
    rig.journal.note(confirmed="yes")
    rig.start()
    assert rig.keeper.release() == 1


# ---- crashes -------------------------------------------------------------------------------------


class Died(BaseException):
    pass


@pytest.mark.parametrize("extended", [False, True])
def test_death_between_journal_and_attribute(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    name = rig.put("packs/one")
    if extended:
        rig.keep(name, START + 50)

    def die(_fd: int, *, on: bool) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("proxy_worker.keeper.set_immutable", die)
        with pytest.raises(Died):
            rig.keep(name, START + 100)
    assert rig.is_immutable(name) is extended
    rig.start()
    assert rig.is_immutable(name)
    rig.times.pass_(99)
    assert rig.keeper.release() == 0


def test_death_between_release_and_journal(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 100)
    rig.times.pass_(100)

    def release_and_die(fd: int, *, on: bool) -> None:
        set_immutable(fd, on=on)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("proxy_worker.keeper.set_immutable", release_and_die)
        with pytest.raises(Died):
            rig.keeper.release()
    rig.start()
    assert rig.keeper.release() == 1
    rig.storage.delete(name)


def test_what_root_removed_does_not_stop_the_rest(rig: Rig) -> None:
    for name in ("packs/one", "packs/two"):
        rig.keep(rig.put(name), START + 10)
    rig.put("vmhaul-repository.json")
    subprocess.run(["chattr", "-i", str(rig.directory / "packs/one")], check=True)
    rig.storage.delete("packs/one")
    rig.times.pass_(10)
    assert rig.keeper.release() == 2
    assert not rig.is_immutable("packs/two")


def test_nothing_is_forgotten_while_the_file_system_is_away(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 10)
    rig.times.pass_(10)
    away = rig.directory.with_name(f"{rig.directory.name}-away")
    rig.directory.rename(away)
    assert rig.keeper.release() == 0
    rig.directory.mkdir()  # the empty mount point
    assert rig.keeper.release() == 0
    rig.directory.rmdir()
    away.rename(rig.directory)
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/one")


def test_a_directory_renamed_away_keeps_its_objects(rig: Rig) -> None:
    """What the attribute does not prevent: the owner of a directory may rename it. Nothing is lost by it."""
    rig.keep(rig.put("packs/one"), START + 100)
    (rig.directory / "packs").rename(rig.directory / "hidden")
    with pytest.raises(PermissionError):
        (rig.directory / "hidden" / "one").unlink()


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
