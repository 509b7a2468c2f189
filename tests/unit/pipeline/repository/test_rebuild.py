"""The index made anew from packs alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.errors import NewerEpochError
from pipeline.model import RestorePoint
from pipeline.repair import repair
from pipeline.repository.format import PACK_HEADER
from pipeline.repository.index import parse_segments
from pipeline.repository.maps import blocks
from pipeline.repository.repository import Repository
from pipeline.storage.scale_out import Extent as ScaleOutExtent
from pipeline.storage.scale_out import ScaleOutStorage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import Crash, CrashingStorage, MemoryStorage
from transports.base import Extent

BLOCKS = 40
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES


class Scene:
    """Two points; blocks of the second are patches of those of the first."""

    def __init__(self) -> None:
        rng = random.Random(3)
        self.storage = MemoryStorage()
        self.bench = Workbench(self.storage, ManualClock())
        self.bench.repository.makes_patches = True
        image = bytearray(rng.randbytes(CAPACITY_BYTES))
        self.points: list[tuple[RestorePoint, bytes]] = []
        previous = None
        for _ in range(2):
            plan = None
            if previous is not None:
                for block in range(0, BLOCKS, 3):
                    image[block * BLOCK_SIZE_BYTES + 100] ^= 1
                changed = [Extent(offset=0, length=CAPACITY_BYTES)]
                root = previous.disks[0].map_root
                plan = self.bench.plan(CAPACITY_BYTES, previous=root, changed=changed)
            backup = self.bench.backup(MemoryDisk(bytes(image)), plan=plan)
            previous = self.bench.commit(
                restore_point(disk_point(backup.map_root, CAPACITY_BYTES), previous=previous)
            )
            self.points.append((previous, bytes(image)))

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.storage.objects if name.startswith(prefix))

    def assert_whole(self) -> None:
        bench = self.bench.on(self.storage)
        assert bench.problems() == ()
        for point, image in self.points:
            assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == image


@pytest.fixture
def scene() -> Scene:
    return Scene()


def patches(scene: Scene) -> int:
    index = scene.bench.on(scene.storage).repository.index_loader().refresh()
    places = [index.find(blob_id) for blob_id in block_ids(scene)]
    return sum(place is not None and place.is_patch for place in places)


def block_ids(scene: Scene) -> list[bytes]:
    load = scene.bench.repository.reader().load_node
    root = bytes.fromhex(scene.points[1][0].disks[0].map_root)
    return [blob_id for _, blob_id in blocks(load, root, BLOCKS)]


def test_without_any_index_object(scene: Scene) -> None:
    wanted = patches(scene)
    assert wanted > 0
    for name in scene.names("index/"):
        del scene.storage.objects[name]
    report = scene.bench.on(scene.storage).repository.rebuild_index()
    assert report.packs == len(scene.names("packs/"))
    assert report.scanned_packs == 0
    assert report.unreadable == ()
    assert patches(scene) == wanted
    scene.assert_whole()


def test_a_pack_without_a_footer_is_known_by_the_headers_of_its_blobs(scene: Scene) -> None:
    for name in scene.names("index/"):
        del scene.storage.objects[name]
    for name in scene.names("packs/"):
        data = scene.storage.objects[name]
        scene.storage.objects[name] = data[:-10] + bytes(10)
    report = scene.bench.on(scene.storage).repository.rebuild_index()
    assert report.scanned_packs == report.packs == len(scene.names("packs/"))
    bench = scene.bench.on(scene.storage)
    found = bench.repository.check(read_data=True)
    assert found.damage == ()
    assert found.damaged_blobs == ()
    assert len(found.damaged_packs) == report.packs, "the footers are still damaged"
    for point, image in scene.points:
        assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == image


def test_what_an_index_object_says_of_a_pack_without_a_footer_is_kept(scene: Scene) -> None:
    name = scene.names("packs/")[0]
    data = scene.storage.objects[name]
    scene.storage.objects[name] = (
        data[: PACK_HEADER.size] + bytes(200) + data[PACK_HEADER.size + 200 : -9] + bytes(9)
    )
    report = scene.bench.on(scene.storage).repository.rebuild_index()
    assert report.unreadable == ()
    assert report.packs == len(scene.names("packs/"))


def test_a_pack_that_is_noise_is_named(scene: Scene) -> None:
    for name in scene.names("index/"):
        scene.storage.objects[name] = b"noise"
    name = scene.names("packs/")[0]
    scene.storage.objects[name] = bytes(5000)
    report = scene.bench.on(scene.storage).repository.rebuild_index()
    assert len(report.unreadable) == 1
    assert name in report.unreadable[0]
    assert report.packs == len(scene.names("packs/")) - 1


def test_packs_of_an_extent_in_maintenance_stay_in_the_index() -> None:
    scene = Scene()
    away = MemoryStorage()
    for name in scene.names("packs/")[::2]:
        away.objects[name] = scene.storage.objects.pop(name)
        away.modified_at_s[name] = 0.0
    here = ScaleOutExtent(name="here", storage=scene.storage)
    scene.bench.on(ScaleOutStorage([here], offline=["away"])).repository.rebuild_index()
    back = ScaleOutStorage([here, ScaleOutExtent(name="away", storage=away, is_active=False)])
    bench = scene.bench.on(back)
    assert bench.problems() == ()
    for point, image in scene.points:
        assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == image


def test_a_pack_that_is_gone_does_not_stay_in_the_index(scene: Scene) -> None:
    gone = scene.names("packs/")[0]
    del scene.storage.objects[gone]
    report = scene.bench.on(scene.storage).repository.rebuild_index()
    assert report.packs == len(scene.names("packs/"))
    index = scene.bench.on(scene.storage).repository.index_loader().refresh()
    assert index.pack_size_of(bytes.fromhex(gone.rpartition("/")[2])) is None


@pytest.mark.parametrize(
    "run",
    [
        lambda repository: repository.rebuild_index(),
        repair,
    ],
    ids=["rebuild", "repair"],
)
def test_with_the_keys_of_an_earlier_epoch_nothing_is_taken_for_damaged(
    scene: Scene, run: Callable[[Repository], object]
) -> None:
    stale = scene.bench.on(scene.storage).repository
    scene.bench.repository.rotate_data_key()
    scene.bench.backup(random.Random(4).randbytes(CAPACITY_BYTES))
    before = dict(scene.storage.objects)
    with pytest.raises(NewerEpochError, match="open it again"):
        run(stale)
    assert scene.storage.objects == before


def test_a_planted_epoch_does_not_keep_from_rebuilding(scene: Scene) -> None:
    scene.storage.put("epochs/2", b"planted")
    report = scene.bench.repository.rebuild_index()
    assert report.packs == len(scene.names("packs/"))


def test_dying_at_any_write_loses_nothing() -> None:
    for crash_at in range(1, 50):
        scene = Scene()
        dying = scene.bench.on(CrashingStorage(scene.storage, crash_at))
        try:
            dying.repository.rebuild_index()
        except Crash:
            scene.assert_whole()
            scene.bench.on(scene.storage).repository.rebuild_index()
            scene.assert_whole()
            continue
        assert crash_at > 2
        scene.assert_whole()
        return
    pytest.fail("it never ended")


def test_segments_of_the_new_index_are_those_of_the_footers(scene: Scene) -> None:
    before = scene.bench.on(scene.storage).repository.index_loader().refresh().pack_sizes()
    scene.bench.on(scene.storage).repository.rebuild_index()
    after = scene.bench.on(scene.storage).repository.index_loader().refresh().pack_sizes()
    assert before == after
    assert parse_segments(b"", "nothing") == []
