"""Damage of every kind to every kind of object: noticed, named, and never served as data."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pipeline.errors import (
    IntegrityError,
    PipelineError,
    RepositoryNotFoundError,
    RestorePointRefusedError,
    UnsupportedFormatError,
    WrongPasswordError,
    WrongRepositoryError,
)
from pipeline.model import RestorePoint
from pipeline.repository import Repository
from pipeline.repository.doomed import read_doomed
from pipeline.repository.format import Encoding
from pipeline.repository.index import PackSegment, read_index_object
from pipeline.repository.layout import pack_name
from pipeline.repository.maps import block_count_of, blocks, walk
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
    vm_identity,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from pipeline.verify import verify_point
from transports.base import Extent

RESTORED_EVERY = 8
"""Of the flipped bits, after each so-manieth everything is restored as well."""
CAPACITY_BYTES = 40 * BLOCK_SIZE_BYTES + 512


def noise(seed: int) -> bytearray:
    rng = random.Random(seed)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    image[8 * BLOCK_SIZE_BYTES : 12 * BLOCK_SIZE_BYTES] = bytes(4 * BLOCK_SIZE_BYTES)
    image[20 * BLOCK_SIZE_BYTES : 30 * BLOCK_SIZE_BYTES] = b"text " * (2 * BLOCK_SIZE_BYTES)
    return image


@dataclass
class Scene:
    """Two points of one VM; a third was forgotten; a work goes on; packs are doomed."""

    storage: MemoryStorage
    bench: Workbench
    images: dict[str, bytearray]
    points: dict[str, RestorePoint]

    def damaged(self, name: str, data: bytes | None) -> Workbench:
        """A copy of the storage with one object changed or gone, opened by a new process."""
        storage = MemoryStorage(self.bench.clock)
        storage.objects = dict(self.storage.objects)
        storage.modified_at_s = dict(self.storage.modified_at_s)
        if data is None:
            del storage.objects[name], storage.modified_at_s[name]
        else:
            storage.objects[name] = data
        return self.bench.on(storage)


@pytest.fixture(scope="module")
def scene() -> Scene:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    images: dict[str, bytearray] = {}
    points: dict[str, RestorePoint] = {}
    previous, root = None, ""
    bench.repository.makes_patches = True
    for number in (1, 2, 3):
        image, plan = noise(number), None
        if number == 3:  # an increment, partly of patches, with a data key of its own
            bench.repository.rotate_data_key()
            image, changed = with_small_changes(noise(2))
            plan = bench.plan(CAPACITY_BYTES, previous=root, changed=changed)
        root = bench.backup(image, plan=plan).map_root
        point = restore_point(
            disk_point(root, CAPACITY_BYTES),
            previous=previous,
            point_id=f"00000000-0000-4000-8000-00000000000{number}",
        )
        images[point.id] = image
        points[point.id] = previous = bench.commit(point)
    first = next(iter(points))
    bench.repository.forget([first])
    del images[first], points[first]
    clock.now_s += 100
    bench.backup(noise(4), work_id="goes-on")
    bench.repository.prune(keep_work_ids=["goes-on"], min_age_s=50)
    kinds = {name.partition("/")[0] for name in storage.objects}
    assert kinds == {
        "vmhaul-repository.json",
        "keys",
        "epochs",
        "packs",
        "index",
        "points",
        "work",
        "forgotten",
        "doomed",
    }
    patches = [entry for segment in segments_of(storage, bench) for entry in segment.entries]
    assert any(entry.encoding == Encoding.PATCH for entry in patches)
    return Scene(storage, bench, images, points)


def segments_of(storage: MemoryStorage, bench: Workbench) -> Iterator[PackSegment]:
    for name in list(storage.objects):
        if name.startswith("index/"):
            yield from read_index_object(storage, bench.repository.keyring, name)


def with_small_changes(image: bytearray) -> tuple[bytearray, list[Extent]]:
    """Some bytes in some blocks, and where."""
    changed = [
        Extent(offset=block * BLOCK_SIZE_BYTES + 512, length=512) for block in (1, 2, 5, 14, 15, 16)
    ]
    for extent in changed:
        image[extent.offset : extent.offset + 8] = b"changed!"
    return image, changed


def never_wrong(bench: Workbench, scene: Scene) -> int:
    """Restore everything: right bytes or an error. Returns how many could be restored."""
    right = 0
    for point in scene.points.values():
        try:
            image = bench.restored(bench.repository.point(point.id).disks[0].map_root, CAPACITY_BYTES)
        except PipelineError:
            continue
        assert image == scene.images[point.id], "wrong bytes were served"
        right += 1
    return right


def flips(data: bytes, seed: int) -> Iterator[bytes]:
    """The object with one bit flipped: at every byte of its beginning and end, and at random inside."""
    rng = random.Random(seed)
    edges = [*range(min(len(data), 130)), *range(max(0, len(data) - 60), len(data))]
    inside = [rng.randrange(len(data)) for _ in range(60)]
    for position in sorted({*edges, *inside}):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def objects_of(scene: Scene, kind: str) -> list[str]:
    return sorted(name for name in scene.storage.objects if name.startswith(kind))


@pytest.mark.parametrize("kind", ["packs/", "index/", "points/", "forgotten/"])
def test_every_bit_flip_is_found_by_check(scene: Scene, kind: str) -> None:
    doomed = {pack_name(segment.pack_id) for segment in doomed_segments(scene)}
    names = [name for name in objects_of(scene, kind) if name not in doomed]
    for name in names if kind != "packs/" else names[:3]:
        for number, data in enumerate(flips(scene.storage.objects[name], seed=len(name))):
            bench = scene.damaged(name, data)
            problems = bench.problems()
            assert problems, f"{name}: a flipped bit was not found"
            if number % RESTORED_EVERY == 0:
                never_wrong(bench, scene)


def test_every_change_of_a_key_epoch_is_refused(scene: Scene) -> None:
    """By who opens with the password, and in check by who was given the key material before."""
    (name,) = objects_of(scene, "epochs/")
    data = scene.storage.objects[name]
    whole = [data[: len(data) // 2], data[:-1], data + b"\0", b"", None, epoch_of_another(scene)]
    for number, changed in enumerate([*flips(data, seed=2), *whole]):
        storage = MemoryStorage(scene.bench.clock)
        storage.objects = {n: d for n, d in scene.storage.objects.items() if n != name}
        if changed is not None:
            storage.objects[name] = changed
        storage.modified_at_s = dict.fromkeys(storage.objects, 0.0)
        problems: tuple[str, ...] = ()
        with contextlib.suppress(IntegrityError, UnsupportedFormatError):
            problems = scene.bench.on(storage).problems(read_data=False)
            assert problems, f"change {number} was not found by check"
        try:
            bench = Workbench(
                storage,
                scene.bench.clock,
                repository=Repository.open_with_password(storage, PASSWORD, clock=scene.bench.clock),
            )
        except (IntegrityError, UnsupportedFormatError):
            continue
        assert changed is None, f"change {number} was taken"
        # Who never saw the epoch cannot tell that it is gone, but for what was written in it.
        assert bench.problems(read_data=False)


def epoch_of_another(scene: Scene) -> bytes:
    other = Workbench(MemoryStorage(scene.bench.clock), scene.bench.clock)
    other.repository.rotate_data_key()
    return other.storage.read("epochs/2")


def doomed_segments(scene: Scene) -> Iterator[PackSegment]:
    for record in read_doomed(scene.storage, scene.bench.repository.keyring):
        yield from record.segments


def test_every_bit_flip_of_the_configuration_is_refused(scene: Scene) -> None:
    name = "vmhaul-repository.json"
    data = scene.storage.objects[name]
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises((IntegrityError, WrongRepositoryError, UnsupportedFormatError)):
                scene.damaged(name, bytes(changed))


def test_every_bit_flip_of_a_key_is_refused(scene: Scene) -> None:
    (name,) = objects_of(scene, "keys/")
    storage = MemoryStorage()
    storage.objects = dict(scene.storage.objects)
    storage.modified_at_s = dict(scene.storage.modified_at_s)
    data = storage.objects[name]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        storage.objects[name] = bytes(changed)
        with pytest.raises(IntegrityError, match="damaged"):
            Repository.open_with_password(storage, PASSWORD, clock=scene.bench.clock)


def test_every_bit_flip_of_a_work_record_only_costs_reading_again(scene: Scene) -> None:
    (name,) = objects_of(scene, "work/")
    image = noise(4)
    for data in list(flips(scene.storage.objects[name], seed=1))[::12]:
        disk = MemoryDisk(image)
        bench = scene.damaged(name, data)
        backup = bench.backup(disk, work_id="goes-on")
        assert sum(extent.length for extent in disk.reads) == CAPACITY_BYTES
        assert bench.restored(backup.map_root, CAPACITY_BYTES) == image


def test_every_bit_flip_of_a_doomed_record_stops_prune(scene: Scene) -> None:
    name = objects_of(scene, "doomed/")[0]
    for data in list(flips(scene.storage.objects[name], seed=1))[::8]:
        bench = scene.damaged(name, data)
        before = set(bench.storage.objects)  # type: ignore[attr-defined]
        with pytest.raises((IntegrityError, UnsupportedFormatError)):
            bench.repository.prune(keep_work_ids=["goes-on"], min_age_s=0)
        after = set(bench.storage.objects)  # type: ignore[attr-defined]
        assert {n for n in before - after if n.startswith("packs/")} == set()
        assert never_wrong(bench, scene) == len(scene.points)


@pytest.mark.parametrize("kind", ["packs/", "index/", "points/"])
def test_truncated_and_missing_objects_are_found(scene: Scene, kind: str) -> None:
    live = {pack_name(pack_id) for pack_id in live_packs(scene)}
    for name in objects_of(scene, kind):
        if kind == "packs/" and name not in live:
            continue
        data = scene.storage.objects[name]
        for changed in (None, b"", data[: len(data) // 2], data[:-1], data + b"\0"):
            if changed is None and kind == "points/" and name.endswith("3"):
                continue  # the newest point: only the server's catalogue can miss it
            if changed is None and kind == "index/" and not names_what_points_need(scene, name):
                continue  # of a work that goes on: nobody can miss it but the work itself
            bench = scene.damaged(name, changed)
            assert bench.problems(read_data=False), f"{name} as {changed and len(changed)} bytes"
            never_wrong(bench, scene)


def names_what_points_need(scene: Scene, name: str) -> bool:
    repository = scene.bench.repository
    reader = repository.reader()
    needed = {
        entry.blob_id
        for point in scene.points.values()
        for entry in walk(reader.load_node, bytes.fromhex(point.disks[0].map_root), 41)
    }
    segments = read_index_object(scene.storage, repository.keyring, name)
    return any(entry.blob_id in needed for segment in segments for entry in segment.entries)


def live_packs(scene: Scene) -> set[bytes]:
    loader = scene.bench.repository.index_loader()
    return set(loader.refresh().pack_sizes())


def test_objects_under_each_others_names_are_found(scene: Scene) -> None:
    for kind in ("points/", "index/", "packs/"):
        names = objects_of(scene, kind)
        if kind == "packs/":
            names = sorted(map(pack_name, live_packs(scene)))
        if len(names) < 2:
            continue
        one, other = names[-1], names[-2]
        bench = scene.damaged(one, scene.storage.objects[other])
        assert bench.problems(), f"{other} in the place of {one}"
        never_wrong(bench, scene)


def test_damage_is_named_by_vm_disk_point_and_extent() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock, pack_target_bytes=4 * BLOCK_SIZE_BYTES)
    image = noise(1)
    root = bench.backup(image).map_root
    point = bench.commit(restore_point(disk_point(root, CAPACITY_BYTES)))
    reader = bench.repository.reader()
    count = block_count_of(CAPACITY_BYTES, BLOCK_SIZE_BYTES)
    ids = dict(blocks(reader.load_node, bytes.fromhex(root), count))
    place = reader.locate(ids[3])
    name = pack_name(place.pack_id)
    data = bytearray(storage.objects[name])
    data[place.offset + 200] ^= 1
    storage.objects[name] = bytes(data)

    problems = bench.on(storage).problems()
    start = 3 * BLOCK_SIZE_BYTES
    lost = [text for text in problems if "guest extent" in text]
    assert len(lost) == 1
    assert f"VM vm01, restore point {point.id} of 2025-11-20" in lost[0]
    assert f"Hard disk 1: guest extent {start}-{start + BLOCK_SIZE_BYTES} cannot be restored" in lost[0]
    (verified,) = verify_point(
        repository=bench.on(storage).repository,
        point=point,
        cancel=threading.Event(),
        progress=lambda _: None,
        clock=clock,
    )
    assert ids[3].hex() in verified.problem


def test_a_sample_reads_a_share(scene: Scene) -> None:
    whole = scene.bench.repository.check(read_data=True)
    part = scene.bench.repository.check(read_data=True, sample_share=0.01)
    assert whole.problems == part.problems == ()
    assert 0 < part.read_bytes < whole.read_bytes
    assert scene.bench.repository.check().read_bytes == 0
    with pytest.raises(ValueError, match="sample"):
        scene.bench.repository.check(sample_share=0)


# ---- restore points -----------------------------------------------------------------------------


def test_a_deleted_or_replaced_point_is_found_by_its_successor() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    root = bench.backup(noise(1)).map_root
    points = [bench.commit(restore_point(disk_point(root, CAPACITY_BYTES))) for _ in range(3)]
    saved = dict(storage.objects)
    middle = f"points/{points[1].id}"

    del storage.objects[middle], storage.modified_at_s[middle]
    assert any("missing and was not forgotten" in text for text in bench.on(storage).problems())

    # Somebody with the key writes another point under the same id.
    other = Workbench(
        MemoryStorage(clock), clock, repository=None
    )  # another repository: its objects do not open here
    other_root = other.backup(noise(1)).map_root
    other.commit(restore_point(disk_point(other_root, CAPACITY_BYTES), point_id=points[1].id))
    storage.objects[middle] = other.storage.read(middle)
    storage.modified_at_s[middle] = 0
    assert bench.on(storage).problems()

    forged = bench.on(storage)
    del storage.objects[middle]
    forged.commit(restore_point(disk_point(root, CAPACITY_BYTES), point_id=points[1].id))
    assert any("was replaced" in text for text in bench.on(storage).problems())
    storage.objects.update(saved)
    assert bench.on(storage).problems() == ()


def test_prune_refuses_while_a_point_is_damaged_and_forget_helps() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    images = [noise(1), noise(2)]
    points = [
        bench.commit(restore_point(disk_point(bench.backup(image).map_root, CAPACITY_BYTES)))
        for image in images
    ]
    name = f"points/{points[0].id}"
    storage.objects[name] = storage.objects[name][:-1]
    bench = bench.on(storage)
    clock.now_s += 100
    with pytest.raises(IntegrityError, match="not pruning"):
        bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert [point.id for point in readable(bench)] == [points[1].id]
    assert len(bench.repository.damaged_points()) == 1
    assert bench.repository.forget([points[0].id]) == 1
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert bench.problems() == ()
    assert bench.restored(points[1].disks[0].map_root, CAPACITY_BYTES) == images[1]


def readable(bench: Workbench) -> tuple[RestorePoint, ...]:
    return bench.repository.points()


def test_an_incomplete_point_is_refused(scene: Scene) -> None:
    bench = scene.bench.on(scene.storage)
    unknown = restore_point(disk_point("ab" * 32, CAPACITY_BYTES), vm=vm_identity(9))
    with pytest.raises(RestorePointRefusedError, match="not complete"):
        bench.repository.commit_point(unknown)
    needed = 0
    for pack in live_packs(scene):
        damaged = scene.damaged(pack_name(pack), None)
        restored = never_wrong(damaged, scene)
        refused = 0
        for point in scene.points.values():
            try:
                damaged.repository.commit_point(restore_point(*point.disks, vm=vm_identity(9)))
            except (RestorePointRefusedError, IntegrityError):
                refused += 1
        # The pack may be one that only the work that goes on needs.
        assert refused == len(scene.points) - restored, "a point whose pack is gone was committed"
        needed += refused
    assert needed


def test_a_forgotten_id_does_not_come_back(scene: Scene) -> None:
    bench = scene.bench.on(scene.storage)
    forgotten = objects_of(scene, "forgotten/")[0].removeprefix("forgotten/")
    point = next(iter(scene.points.values()))
    with pytest.raises(RestorePointRefusedError, match="forgotten"):
        bench.repository.commit_point(restore_point(*point.disks, point_id=forgotten))


def test_an_id_belongs_to_one_point(scene: Scene) -> None:
    point = next(iter(scene.points.values()))
    with pytest.raises(RestorePointRefusedError, match="another one"):
        scene.bench.repository.commit_point(
            restore_point(*point.disks, vm=vm_identity(5), point_id=point.id)
        )


# ---- opening ------------------------------------------------------------------------------------


def test_wrong_password_and_wrong_repository(scene: Scene) -> None:
    clock = scene.bench.clock
    with pytest.raises(WrongPasswordError, match="wrong password"):
        Repository.open_with_password(scene.storage, "open sesam", clock=clock)
    key = scene.bench.repository.key_material
    with pytest.raises(WrongRepositoryError, match="holds repository"):
        Repository.open_with_key(scene.storage, key, expected_id="other", clock=clock)
    with pytest.raises(WrongRepositoryError, match="does not belong"):
        Repository.open_with_key(scene.storage, "ab" * 32, expected_id=None, clock=clock)
    with pytest.raises(RepositoryNotFoundError, match="mounted"):
        Repository.open_with_password(MemoryStorage(), PASSWORD, clock=clock)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version":1', '"version":2'), "format version 2"),
        (lambda text: text.replace('"features":["', '"features":["deltas","'), "uses deltas"),
    ],
)
def test_a_newer_repository_is_refused_with_what_to_do(
    scene: Scene, change: Callable[[str], str], message: str
) -> None:
    name = "vmhaul-repository.json"
    text = change(scene.storage.objects[name].decode())
    with pytest.raises(UnsupportedFormatError, match=rf"{message}.*newer vmhaul"):
        scene.damaged(name, text.encode())


def test_a_changed_plan_does_not_go_on_from_another_base(scene: Scene) -> None:
    """The same work id with another base or size begins anew."""
    bench = scene.bench.on(scene.storage)
    point = next(iter(scene.points.values()))
    image = bytearray(scene.images[point.id])
    bench.backup(noise(8), work_id="same")
    image[:512] = bytes(512)
    plan = bench.plan(
        CAPACITY_BYTES,
        previous=point.disks[0].map_root,
        changed=[Extent(offset=0, length=512)],
    )
    backup = bench.backup(image, plan=plan, work_id="same")
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image
