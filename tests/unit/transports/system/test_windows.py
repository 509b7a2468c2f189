"""A worker's modules as they are on Windows, in processes that look like it (`tests.support.windows_world`).

What this proves: nothing of a worker's network modes needs what Windows has not, and the calls are made as they are described.
What it does not: that Windows answers as described.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROLOGUE = """
from tests.support.windows_world import become_windows, directory, import_entries, played
become_windows()
"""
IMPORTS = """
import sys
names = import_entries()
assert "transports.system.windows" in names and "transports.network.reader" in names
for name in ("transports.system.linux", "transports.directio", "pipeline.storage.local", "pipeline.rawfile",
             "proxy_worker.keeper", "proxy_worker.supervise", "transports.hotadd", "transports.direct_san"):
    assert name not in names, name
from transports import registry
from transports.base import DiskRef, TransportMode
from transports.errors import TransportUnavailableError
from transports.registry import ModeOptions
from transports.vddk_options import NetworkClient, VddkOptions
missing = registry.offered_modes(ModeOptions())
assert {mode for mode, why in missing.items() if not why} == {TransportMode.NBDSSL, TransportMode.NBD}
assert set(missing) == set(TransportMode), missing
assert registry.probes() == {}
for mode, why in missing.items():
    assert not why or ("runs Windows" in why and "needs Linux" in why), why
for driver in registry.transport_modes().values():
    if driver.missing(ModeOptions()):
        for opening in (driver.open_reader, driver.open_writer):
            try:
                opening(None, DiskRef(vm_moref="vm-1", vm_name="b", disk_key=2000, path="[a] b.vmdk", capacity_bytes=1, datastore="a"))
            except TransportUnavailableError as error:
                assert "[a] b.vmdk: this proxy runs Windows" in str(error)
            else:
                raise AssertionError(driver.mode)
with_vddk = ModeOptions(vddk=VddkOptions(client=NetworkClient.VDDK, libdir="l", user="u", password_file="p"))
assert all("nbdkit, which needs Linux" in registry.offered_modes(with_vddk)[mode] for mode in ("nbd", "nbdssl"))
from pipeline.errors import PermanentPipelineError, StorageMissingError
from pipeline.storage import NO_DIRECTORIES, open_storage
assert "runs Windows" in NO_DIRECTORIES  # what its heartbeats tell placement
try:
    open_storage(str(directory()))
except StorageMissingError as error:
    assert "runs Windows" in str(error)
else:
    raise AssertionError("a directory became a repository")
from pipeline.errors import StorageUnavailableError
keys = {"access_key_id": "a", "secret_access_key": "b"}
try:
    open_storage("s3://bucket/prefix?endpoint=https://127.0.0.1:9", secrets=keys)
except StorageUnavailableError as error:
    assert "listing everything" in str(error)  # nobody is there; everything up to the call is
else:
    raise AssertionError("a bucket was found where none is")
"""
CALLS = """
import os, threading, time
from transports import system
path = directory() / "large"
with path.open("wb") as file:
    file.seek((1 << 32) + 4096)
    file.write(b"behind four gigabytes")
fd = os.open(path, os.O_RDONLY | system.OPEN_FLAGS)
assert system.pread(fd, 6, (1 << 32) + 4096) == b"behind"
assert system.pread(fd, 100, (1 << 32) + 4096) == b"behind four gigabytes"
assert system.pread(fd, 1, (1 << 32) + 9000) == b""
assert system.pread(fd, 3, 0) == bytes(3)
assert system.pread(fd, 0, 0) == b""
os.close(fd)
try:
    system.pread(fd, 1, 0)
except OSError as error:
    assert error.errno == 6
else:
    raise AssertionError("read from what is closed")

lock = directory() / "lock"
one, two = (os.open(lock, os.O_RDWR | os.O_CREAT | system.OPEN_FLAGS, 0o600) for _ in range(2))
assert system.lock_file(one) and not system.lock_file(two)
system.unlock_file(one)
assert system.lock_file(two)
for fd in (one, two):
    system.unlock_file(fd)
    os.close(fd)

old, new = directory() / "old", directory() / "new"
old.write_bytes(b"old")
new.write_bytes(b"new")
reader = old.open("rb")
def close_when_it_was_in_the_way():
    while not played.refused:
        time.sleep(0.01)
    reader.close()
threading.Thread(target=close_when_it_was_in_the_way, daemon=True).start()
system.replace_file(new, old)
assert system.read_file(old) == b"new" and played.refused, "it was not tried while it was open"
system.sync_directory(directory())

private = directory() / "a" / "private"
system.make_private_directory(private)
system.make_private_directory(private)
text = "D:P(A;OICI;FA;;;OW)(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
assert played.secured == [(str(private), 0x80000004, text)] * 2 and played.freed == 2
played.fail["SetFileSecurityW"] = 5
try:
    system.make_private_directory(private)
except OSError as error:
    assert error.errno == 5 and played.freed == 3
else:
    raise AssertionError("a directory that is open to all was taken for a private one")

from tests.support.windows_world import _BOOT, _clock
assert abs(system.uptime_s() - _clock(_BOOT)) < 60
assert system.memory_bytes() == 8 << 30 and system.usable_cpus() >= 1
from pipeline.crypto.kdf import cost_of_this_machine
assert cost_of_this_machine().memory_kib == 128 * 1024

from proxy_worker.identity import load_or_create_identity
from proxy_worker.outbox import ResultOutbox
first = load_or_create_identity(private)
assert load_or_create_identity(private).signing_public == first.signing_public
ResultOutbox(private / "outbox.db")
"""
BACKUP = """
import gc, random, time
from pipeline.repository import Repository, index_loader
from pipeline.testing.builders import Workbench
from pipeline.testing.storage import MemoryStorage
import_entries()
index_loader.RECENT_OBJECTS = index_loader.RECENT_PLACES = 1  # so that little is enough for runs
storage = MemoryStorage()
made = Workbench(storage, time.time)
key, cache = made.repository.key_material, directory() / "cache"
def process():
    repository = Repository.open_with_key(storage, key, expected_id=made.repository.id, clock=time.time, cache_dir=cache)
    bench = Workbench(storage, time.time, repository=repository)
    bench.repository.index_loader().refresh()
    return bench
rng = random.Random(5)
images, benches = [], []
for _ in range(12):
    # Each as by a mover of its own, while all before it still have the runs open that they read.
    bench = process()
    image = rng.randbytes(300 * 4096) + bytes(9 * 4096) + images[-1][0][:4096 * 20] if images else rng.randbytes(80 * 4096)
    images.append((image, bench.backup(image).map_root))
    benches.append(bench)
last = process()
for image, root in images:
    assert last.restored(root, len(image)) == image
assert not last.problems()
assert list(cache.rglob("run-*")), "the cache was not used"
assert played.refused, "no run was open when it was to be deleted"
benches.clear()
gc.collect()
last = process()
last.repository.index_loader().refresh()
image = rng.randbytes(100 * 4096)
assert last.restored(last.backup(image).map_root, len(image)) == image
process()
assert len(list(cache.rglob("run-*"))) <= 4 + 1, "runs that could not be deleted stayed for good"
"""
RUNNER = """
import sys, threading, time
import structlog
from tests.unit.proxy_worker.test_runner import PROLOGUE, Stage
from proxy_worker.contracts.messages import TaskOutcome
from proxy_worker.runner import _Child, Runner
from proxy_worker.mover_lines import line
from proxy_worker.slots import StopReason

stage = Stage()
report = stage.run("progress(3); result()")
assert report.outcome is TaskOutcome.SUCCESS and [one.done_bytes for one in stage.progress] == [3]

stage = Stage()
stage.stop_when_begun(StopReason.CANCEL)
report = stage.run(
    "progress()\\n"
    "told = json.loads(sys.stdin.readline())\\n"
    "result('cancelled' if told == {'stop': True} else 'failed', 'was told')", kill_grace_s=60)
assert (report.outcome, report.reason) == (TaskOutcome.CANCELLED, "cancelled"), report

stage = Stage()
stage.stop_when_begun(StopReason.CANCEL)
began = time.monotonic()
report = stage.run("progress(); time.sleep(600)", kill_grace_s=0.2)
assert report.outcome is TaskOutcome.CANCELLED and time.monotonic() - began < 300

report = Stage().run("time.sleep(0); sys.exit(7)")
assert report.outcome is TaskOutcome.RETRY and "with code 7" in report.reason
assert not played.jobs and not played.processes, "handles were left open"

# A child that does not read: telling it never waits, and ending it ends who waits to tell.
child = _Child((sys.executable, "-c", "import time; time.sleep(600)"), stage.handle.request, structlog.get_logger())
(job,) = played.jobs
assert played.limits[job] == 0x2000 and played.jobs[job] == {child.pid}
for _ in range(40):
    child.tell(line(padding="x" * 20000))
child.end()
assert not played.jobs and not played.processes

for call in ("CreateJobObjectW", "SetInformationJobObject", "OpenProcess", "AssignProcessToJobObject"):
    played.fail = {call: 5}
    report = Stage().run("time.sleep(600)")
    assert report.outcome is TaskOutcome.RETRY and "could not be started" in report.reason, (call, report)
    assert not played.jobs and not played.processes, call
"""


@pytest.mark.parametrize(
    "code", [IMPORTS, CALLS, BACKUP, RUNNER], ids=["imports", "calls", "backup", "runner"]
)
def test_as_on_windows(tmp_path: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[4],
    )
    assert done.returncode == 0, done.stderr[-4000:]
