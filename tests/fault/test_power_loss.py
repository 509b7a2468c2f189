"""The power goes after any call of the directory driver. Whatever the file system lost of what was not
synced by then: the repository is sound, and what was acknowledged is there.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.errors import PipelineError, RepositoryNotFoundError, TransientPipelineError
from pipeline.model import RestorePoint
from pipeline.mover import MoverOptions
from pipeline.repository import Repository, index_loader
from pipeline.storage import local
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import MemoryStorage
from tests.support.power import Recorder
from transports.base import Extent

BLOCKS = 24
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES - 512
GO_ON_EVERY = 12
"""Of the states that were found sound, in each so-manieth a backup and a collection are done too."""


@dataclass
class History:
    """What was done while the calls were written down."""

    recorder: Recorder
    key: str = ""
    clock: ManualClock = field(default_factory=ManualClock)
    points: dict[str, tuple[RestorePoint, bytes]] = field(default_factory=dict)

    def expected_after(self, calls: int) -> tuple[set[str], set[str]]:
        """Ids of points that must be there, and of those that must not be."""
        told = self.recorder.told(calls)
        committed = {what.partition(" ")[2] for what in told if what.startswith("committed")}
        forgetting = {what.partition(" ")[2] for what in told if what.startswith("forgetting")}
        forgotten = {what.partition(" ")[2] for what in told if what.startswith("forgotten")}
        return committed - forgetting, forgotten


def image_of(seed: int) -> bytearray:
    rng = random.Random(seed)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    image[3 * BLOCK_SIZE_BYTES : 6 * BLOCK_SIZE_BYTES] = bytes(3 * BLOCK_SIZE_BYTES)
    return image


def recorded(place: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> History:
    """A repository's life: made, a full, an increment with checkpoints, a point forgotten, collected."""
    history = History(recorder)
    with monkeypatch.context() as patch:
        patch.setattr(local, "os", recorder)
        storage = local.LocalStorage(place / "repository", create=True)
        repository = Repository.create(
            storage,
            PASSWORD,
            clock=history.clock,
            block_size_bytes=BLOCK_SIZE_BYTES,
            kdf_cost=CHEAP_KDF,
        )
        history.key = repository.key_material
        recorder.acknowledge("created")
        bench = Workbench(storage, history.clock, repository=repository)
        options = MoverOptions(workers=2, checkpoint_every_s=0.0)

        def commit(root: str, image: bytearray, previous: RestorePoint | None) -> RestorePoint:
            point = restore_point(disk_point(root, CAPACITY_BYTES), previous=previous)
            history.points[point.id] = (point, bytes(image))
            repository.commit_point(point)
            recorder.acknowledge(f"committed {point.id}")
            return point

        image = image_of(1)
        first = commit(bench.backup(image, options=options).map_root, image, None)
        changed = [Extent(offset=5 * BLOCK_SIZE_BYTES, length=18 * BLOCK_SIZE_BYTES)]
        image[changed[0].offset : changed[0].end] = image_of(2)[changed[0].offset : changed[0].end]
        plan = bench.plan(CAPACITY_BYTES, previous=first.disks[0].map_root, changed=changed)
        commit(bench.backup(image, plan=plan, options=options).map_root, image, first)
        recorder.acknowledge(f"forgetting {first.id}")
        repository.forget([first.id])
        recorder.acknowledge(f"forgotten {first.id}")
        for _ in range(2):
            history.clock.now_s += 100
            repository.prune(keep_work_ids=(), min_age_s=50)
        commit(bench.backup(image_of(3), options=options).map_root, image_of(3), None)
        storage.close()
    return history


def states(history: History, seed: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Every state that a loss may leave, once, with the number of calls that were made before it."""
    rng = random.Random(seed)
    seen: set[tuple[bytes, int]] = set()
    for calls in range(history.recorder.calls + 1):
        for objects in history.recorder.left_after(calls, rng):
            digest = hashlib.sha256()
            for name in sorted(objects):
                digest.update(name.encode() + b"\0" + hashlib.sha256(objects[name]).digest())
            key = (digest.digest(), len(history.recorder.told(calls)))
            if key not in seen:
                seen.add(key)
                yield calls, objects


def opened(history: History, objects: dict[str, bytes]) -> Workbench:
    storage = MemoryStorage(history.clock)
    storage.objects = dict(objects)
    storage.modified_at_s = dict.fromkeys(objects, history.clock.now_s)
    repository = Repository.open_with_key(storage, history.key, expected_id=None, clock=history.clock)
    return Workbench(storage, history.clock, repository=repository)


def wrong_with(history: History, calls: int, objects: dict[str, bytes]) -> list[str]:
    """Everything that must not be; empty when the state is sound."""
    try:
        bench = opened(history, objects)
    except RepositoryNotFoundError:
        return ["the repository is gone"] if "created" in history.recorder.told(calls) else []
    except PipelineError as error:
        return [str(error)]
    wrong = [*bench.problems(), *bench.repository.damaged_points()]
    there = {point.id: point for point in bench.repository.points()}
    expected, forgotten = history.expected_after(calls)
    wrong += [f"point {point_id} is gone" for point_id in expected - there.keys()]
    wrong += [f"point {point_id} came back" for point_id in forgotten & there.keys()]
    for point_id, point in there.items():
        if bench.restored(point.disks[0].map_root, CAPACITY_BYTES) != history.points[point_id][1]:
            wrong.append(f"point {point_id} restores wrong")
    return wrong


def can_go_on(history: History, objects: dict[str, bytes]) -> None:
    bench = opened(history, objects)
    image = image_of(9)
    point = bench.commit(restore_point(disk_point(bench.backup(image).map_root, CAPACITY_BYTES)))
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert bench.problems() == ()
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == image


def test_every_loss_leaves_a_sound_repository_with_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    history = recorded(tmp_path, recorder, monkeypatch)
    count = 0
    for calls, objects in states(history, seed=1):
        assert wrong_with(history, calls, objects) == [], f"the power went after call {calls}"
        count += 1
        if count % GO_ON_EVERY == 0 and "created" in recorder.told(calls):
            can_go_on(history, objects)
    print(f"{recorder.calls} calls, {count} states")
    assert count > len(history.points) * 10
    assert all(
        point_id in history.expected_after(recorder.calls)[0] for point_id in [*history.points][1:]
    )


@pytest.mark.parametrize("forgotten", ["file", "directory"])
def test_a_driver_that_does_not_sync_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """What is tested above can fail: without one kind of sync there are losses that harm."""
    history = recorded(tmp_path, Recorder(forget_syncs_of=forgotten), monkeypatch)
    assert any(wrong_with(history, calls, objects) for calls, objects in states(history, seed=1))


def test_a_lost_or_mixed_up_index_cache_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the cache's files any may be gone, short, empty of content, or of an earlier time."""
    for limit in ("BULK_BYTES", "RUN_RECORDS", "RECENT_PLACES", "RECENT_OBJECTS"):
        monkeypatch.setattr(index_loader, limit, 10)  # else so small an index stays in memory
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    images = [image_of(number) for number in (1, 2, 3)]
    cache = tmp_path / "cache"
    times: list[dict[str, bytes]] = []
    points = []
    for image in images:
        cached = with_cache(bench, cache)
        points.append(
            cached.commit(restore_point(disk_point(cached.backup(image).map_root, len(image))))
        )
        clock.now_s += 100
        cached.repository.prune(keep_work_ids=(), min_age_s=50)
        times.append({path.name: path.read_bytes() for path in (cache / bench.repository.id).iterdir()})
    names = sorted({name for files in times for name in files})
    assert len(names) > 3
    rng = random.Random(4)
    for number in range(60):
        place = tmp_path / f"cache-{number}" / bench.repository.id
        place.mkdir(parents=True)
        for name in names:
            data = rng.choice([files.get(name) for files in times] + [times[-1].get(name)] * 3)
            match rng.randrange(8):
                case 0:
                    data = None
                case 1 if data is not None:
                    data = data[: rng.randrange(len(data) + 1)]
                case 2 if data is not None:
                    data = bytes(len(data))
            if data is not None:
                (place / name).write_bytes(data)
        for point, image in zip(points, images, strict=True):
            assert restored_with(bench, place.parent, point) == image


def with_cache(bench: Workbench, cache: Path) -> Workbench:
    repository = Repository.open_with_key(
        bench.storage,
        bench.repository.key_material,
        expected_id=None,
        clock=bench.clock,
        cache_dir=cache,
    )
    return Workbench(bench.storage, bench.clock, repository=repository)


def restored_with(bench: Workbench, cache: Path, point: RestorePoint) -> bytearray:
    """A damaged cache is discarded by whoever met it, who is to try again once."""
    for attempt in (1, 2):
        try:
            return with_cache(bench, cache).restored(point.disks[0].map_root, CAPACITY_BYTES)
        except TransientPipelineError:
            assert attempt == 1, "the cache was damaged still"
    raise AssertionError("unreachable: the second attempt raises or returns")


def test_a_directory_that_another_made_is_durable_before_what_is_put_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who made it may not have synced it yet, or have died before."""
    recorder = Recorder()
    monkeypatch.setattr(local, "os", recorder)
    storage = local.LocalStorage(tmp_path / "repository", create=True)
    other = local.LocalStorage(tmp_path / "repository")
    honest = recorder.fsync
    paused, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        is_new = recorder.entries[-1].name == "packs/aa"
        if is_new and threading.current_thread() is slow_one:
            paused.set()
            assert go_on.wait(60)
        honest(fd)

    monkeypatch.setattr(recorder, "fsync", slow)
    slow_one = threading.Thread(target=lambda: storage.put("packs/aa/one", b"1"))
    slow_one.start()
    try:
        assert paused.wait(60)
        for name in ("packs/aa/two", "packs/bb/three"):
            other.put(name, name.encode())
            for files in recorder.left_after(recorder.calls, random.Random(1)):
                assert files.get(name) == name.encode()
    finally:
        go_on.set()
        slow_one.join()
    storage.close()
    other.close()


def test_the_place_itself_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().as_posix())

    monkeypatch.setattr("os.fsync", fsync)
    local.LocalStorage(tmp_path / "repository", create=True).close()
    assert synced == [str(tmp_path.resolve())]
