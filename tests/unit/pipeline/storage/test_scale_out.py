"""Several extents as one storage: where things go, what an extent that is away means, moving one's packs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectRetainedError,
    PermanentPipelineError,
    StorageFullError,
    StorageMissingError,
    StorageUnavailableError,
)
from pipeline.storage import open_storage
from pipeline.storage.base import Buffer, Retention, Storage
from pipeline.storage.extents import (
    ExtentConfig,
    ExtentState,
    activate,
    add_extent,
    evacuate,
    format_location,
    packs_nowhere_else,
    parse_location,
    retire,
)
from pipeline.storage.scale_out import (
    MARKER,
    Extent,
    ExtentOfflineError,
    ScaleOutStorage,
)
from pipeline.testing.storage import Crash, CrashingStorage, FullStorage, MemoryStorage

MIB = 1 << 20


class Rig:
    """Extents in memory, and the storage over them as a new process would see it."""

    def __init__(self, *sizes: int) -> None:
        self.memory = [MemoryStorage(capacity_bytes=size) for size in sizes]

    def storage(
        self,
        *,
        sealed: tuple[int, ...] = (),
        away: tuple[int, ...] = (),
        wrap: Callable[[int, Storage], Storage] = lambda _number, storage: storage,
    ) -> ScaleOutStorage:
        return ScaleOutStorage(
            [
                Extent(name=f"e{n}", storage=wrap(n, storage), is_active=n not in sealed)
                for n, storage in enumerate(self.memory)
                if n not in away
            ],
            offline=[f"e{n}" for n in away],
        )

    def places(self, name: str) -> list[int]:
        return [n for n, storage in enumerate(self.memory) if name in storage.objects]


def pack(storage: Storage, name: str, size: int = MIB) -> None:
    writer = storage.create(f"packs/{name}")
    writer.write([bytes(size)])
    writer.commit()


# ---- placement -----------------------------------------------------------------------------------


def test_packs_go_where_the_most_space_is() -> None:
    rig = Rig(10 * MIB, 14 * MIB)
    storage = rig.storage()
    for number in range(12):
        pack(storage, f"{number:02}")
    counts = [len(memory.objects) for memory in rig.memory]
    assert counts == [4, 8]


def test_space_is_not_asked_for_with_each_pack() -> None:
    asked = []

    class Asked(MemoryStorage):
        def space(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
            asked.append(1)
            return super().space()

    storage = ScaleOutStorage([Extent(name=str(n), storage=Asked()) for n in range(2)], clock=lambda: 0)
    for number in range(50):
        pack(storage, f"{number:02}", 10)
    assert len(asked) == 2


def test_small_objects_are_in_every_active_extent() -> None:
    rig = Rig(MIB, MIB, MIB)
    storage = rig.storage(sealed=(1,), away=(2,))
    storage.put("points/one", b"x")
    storage.replace("work/one", b"y")
    assert rig.places("points/one") == [0]
    storage = rig.storage(sealed=(), away=(2,))
    storage.put("index/one", b"x")
    assert rig.places("index/one") == [0, 1]
    assert [entry.name for entry in storage.list("index/")] == ["index/one"]


def test_a_sealed_extent_is_read_and_pruned_and_takes_nothing() -> None:
    rig = Rig(100 * MIB, MIB)
    pack(rig.storage(), "old")
    storage = rig.storage(sealed=(0,))
    pack(storage, "new", 10)
    assert (rig.places("packs/old"), rig.places("packs/new")) == ([0], [1])
    assert storage.size_bytes("packs/old") == MIB
    with pytest.raises(ObjectExistsError):
        storage.create("packs/old")
    storage.delete("packs/old")
    assert rig.places("packs/old") == []


def test_what_was_replaced_is_read_from_an_active_extent() -> None:
    rig = Rig(MIB, MIB)
    rig.storage().replace("work/one", b"old")
    storage = rig.storage(sealed=(0,))
    storage.replace("work/one", b"new")
    assert storage.read("work/one") == b"new"


def test_an_extent_that_runs_full_hands_on_to_the_next_attempt() -> None:
    rig = Rig(100 * MIB, 99 * MIB)

    def small_disk(number: int, inner: Storage) -> Storage:
        return FullStorage(inner, MIB // 2) if number == 0 else inner

    storage = rig.storage(wrap=small_disk)
    with pytest.raises(StorageUnavailableError, match="'e0' is full"):
        pack(storage, "one")
    pack(storage, "one")
    assert rig.places("packs/one") == [1]


def test_when_all_extents_are_full_that_is_said() -> None:
    rig = Rig(2 * MIB, 2 * MIB)
    storage = rig.storage(wrap=lambda _number, inner: FullStorage(inner, 10))
    with pytest.raises(StorageFullError):
        pack(storage, "one")
    with pytest.raises(StorageFullError, match="accepts new data"):
        rig.storage(sealed=(0, 1)).put("points/one", b"x")


# ---- extents that are away -----------------------------------------------------------------------


def test_what_is_in_maintenance_is_named() -> None:
    rig = Rig(100 * MIB, MIB)
    storage = rig.storage()
    pack(storage, "one")
    storage.put("points/one", b"x")
    away = rig.storage(away=(0,))
    assert away.read("points/one") == b"x"
    with pytest.raises(ExtentOfflineError, match=r"'e0'.*maintenance"):
        away.read_range("packs/one", 0, 10)
    with pytest.raises(ObjectNotFoundError):
        away.read("points/two")


def test_all_extents_away_is_no_storage() -> None:
    with pytest.raises(StorageMissingError, match="e0"):
        Rig(MIB).storage(away=(0,))


@pytest.mark.parametrize("crash_at", range(1, 4))
@pytest.mark.parametrize("write", ["put", "replace", "delete"])
def test_a_crash_between_mirrors_leaves_all_or_nothing(crash_at: int, write: str) -> None:
    rig = Rig(MIB, MIB, MIB)
    before = b"before" if write != "put" else None
    if before is not None:
        rig.storage().put("work/one", before)
    counter = CrashingStorage(MemoryStorage(), crash_at)

    def counted(_number: int, inner: Storage) -> Storage:
        class Counted(CrashingStorage):
            def mutate(self) -> None:
                counter.mutate()

        return Counted(inner)

    storage = rig.storage(wrap=counted)
    with pytest.raises(Crash):
        storage.delete("work/one") if write == "delete" else getattr(storage, write)(
            "work/one", b"after"
        )
    after = rig.storage()
    seen = after.read("work/one") if list(after.list("work/")) else None
    assert seen in {before, b"after"}
    after.clean(0.0)
    contents = {memory.objects.get("work/one") for memory in rig.memory}
    assert contents == {seen}


def test_an_extent_that_comes_back_is_made_level(tmp_path: Path) -> None:
    location = two_directories(tmp_path)
    storage = open_storage(location, create=True)
    for name in ("index/old", "points/old", "work/one"):
        storage.put(name, b"old")
    away = format_location(
        [
            ExtentConfig(name="a", location=str(tmp_path / "a"), state=ExtentState.MAINTENANCE),
            ExtentConfig(name="b", location=str(tmp_path / "b")),
        ]
    )
    meanwhile = open_storage(away)
    meanwhile.delete("points/old")
    meanwhile.put("points/new", b"new")
    meanwhile.replace("work/one", b"new")
    assert parse_location(activate(away, "a", open_storage)) == parse_location(location)
    back = open_storage(location)
    assert [entry.name for entry in back.list("points/")] == ["points/new"]
    assert open_storage(str(tmp_path / "a")).read("work/one") == b"new"
    assert back.read("index/old") == b"old"


# ---- locations and marks -------------------------------------------------------------------------


def two_directories(tmp_path: Path) -> str:
    return format_location(
        [ExtentConfig(name=name, location=str(tmp_path / name)) for name in ("a", "b")]
    )


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "[]",
        "{}",
        '["/a"]',
        '[{"name": "a"}]',
        '[{"name": "", "location": "/a"}]',
        '[{"name": "a", "location": "/a"}, {"name": "a", "location": "/b"}]',
        '[{"name": "a", "location": "/a"}, {"name": "b", "location": "/a"}]',
        '[{"name": "a", "location": "scale-out:[]"}]',
        '[{"name": "a", "location": "/a", "state": "odd"}]',
    ],
)
def test_locations_that_cannot_be(rows: str) -> None:
    with pytest.raises(PermanentPipelineError, match="scale-out"):
        open_storage("scale-out:" + rows)


def test_an_empty_mount_point_is_not_taken_for_its_extent(tmp_path: Path) -> None:
    location = two_directories(tmp_path)
    open_storage(location, create=True).close()
    (tmp_path / "b").rename(tmp_path / "unmounted")
    with pytest.raises(StorageMissingError, match="'b' is not there"):
        open_storage(location)
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageMissingError, match="mounted"):
        open_storage(location)


def test_extents_that_changed_places_are_told_apart(tmp_path: Path) -> None:
    location = two_directories(tmp_path)
    open_storage(location, create=True).close()
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (tmp_path / old).rename(tmp_path / new)
    with pytest.raises(StorageMissingError, match="is extent 'b' and not 'a'"):
        open_storage(location)


def create(place: str) -> Storage:
    return open_storage(place, create=True)


def test_a_repository_becomes_scale_out(tmp_path: Path) -> None:
    plain = create(str(tmp_path / "a"))
    plain.put("vmhaul-repository.json", b"{}")
    plain.put("keys/one", b"key")
    pack(plain, "one", 10)
    new = ExtentConfig(name="b", location=str(tmp_path / "b"))
    location = add_extent(str(tmp_path / "a"), new, open_storage, create, first_name="a")
    # Again, as after a crash.
    assert add_extent(str(tmp_path / "a"), new, open_storage, create, first_name="a") == location
    storage = open_storage(location)
    assert storage.read("packs/one") == bytes(10)
    assert create(str(tmp_path / "b")).read("keys/one") == b"key"
    assert MARKER not in [entry.name for entry in storage.list("")]


def test_a_place_that_holds_something_else_does_not_become_an_extent(tmp_path: Path) -> None:
    create(str(tmp_path / "a")).put("vmhaul-repository.json", b"a")
    create(str(tmp_path / "other")).put("vmhaul-repository.json", b"other")
    new = ExtentConfig(name="b", location=str(tmp_path / "other"))
    with pytest.raises(PermanentPipelineError, match="holds a repository"):
        add_extent(str(tmp_path / "a"), new, open_storage, create, first_name="a")
    foreign = two_directories(tmp_path / "far")
    (tmp_path / "far").mkdir()
    open_storage(foreign, create=True).close()
    new = ExtentConfig(name="b", location=str(tmp_path / "far" / "b"))
    with pytest.raises(PermanentPipelineError, match="another repository"):
        add_extent(str(tmp_path / "a"), new, open_storage, create, first_name="a")


# ---- evacuation ----------------------------------------------------------------------------------


def filled() -> Rig:
    rig = Rig(100 * MIB, MIB)
    storage = rig.storage()
    for number in range(5):
        pack(storage, f"{number}", 1000 + number)
    storage.put("points/one", b"x")
    assert len(rig.memory[0].objects) == 6
    return rig


def test_an_extent_is_evacuated_and_retired() -> None:
    rig = filled()
    storage = rig.storage(sealed=(0,))
    assert packs_nowhere_else(storage, "e0") == 5
    done = evacuate(storage, "e0")
    assert (done.moved_packs, done.moved_bytes, done.kept_packs) == (5, 5010, 0)
    assert packs_nowhere_else(storage, "e0") == 0
    assert [storage.size_bytes(f"packs/{n}") for n in range(5)] == [1000, 1001, 1002, 1003, 1004]
    retire(storage, "e0")
    assert rig.memory[0].objects == {}
    assert rig.places("points/one") == [1]


def test_an_active_extent_is_not_evacuated() -> None:
    with pytest.raises(PermanentPipelineError, match="seal it"):
        evacuate(filled().storage(), "e0")
    with pytest.raises(PermanentPipelineError, match="no extent 'e7'"):
        evacuate(filled().storage(), "e7")


@pytest.mark.parametrize("crash_at", range(1, 12))
def test_an_evacuation_that_dies_is_begun_again(crash_at: int) -> None:
    rig = filled()
    counter = CrashingStorage(MemoryStorage(), crash_at)

    def counted(_number: int, inner: Storage) -> Storage:
        class Counted(CrashingStorage):
            def mutate(self) -> None:
                counter.mutate()

        return Counted(inner)

    try:
        evacuate(rig.storage(sealed=(0,), wrap=counted), "e0")
    except Crash:
        dead = True
    else:
        dead = False
    assert dead == (crash_at <= 10)
    storage = rig.storage(sealed=(0,))
    assert [entry.size_bytes for entry in storage.list("packs/")] == [1000, 1001, 1002, 1003, 1004]
    evacuate(storage, "e0")
    assert packs_nowhere_else(storage, "e0") == 0
    assert len(list(storage.list("packs/"))) == 5


class Keeping(MemoryStorage):
    """With a retention that nobody shortens."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, float] = {}

    @property
    def retention(self) -> Retention:
        return self

    def keep(self, name: str, until_s: float) -> None:
        self.kept[name] = max(until_s, self.kept_until_s(name))

    def kept_until_s(self, name: str) -> float:
        self.read(name)
        return self.kept.get(name, 0.0)

    def delete(self, name: str) -> None:
        if self.kept.get(name):
            raise ObjectRetainedError(f"{name} is kept")
        super().delete(name)

    def replace(self, name: str, data: Buffer) -> None:
        super().replace(name, data)


def test_what_is_kept_is_kept_in_its_new_place_too() -> None:
    rig = Rig(MIB)
    rig.memory = [Keeping(), Keeping()]
    storage = rig.storage()
    assert storage.retention is not None
    pack(storage, "one", 10)
    storage.put("points/one", b"x")
    storage.retention.keep("packs/one", 50.0)
    storage.retention.keep("points/one", 60.0)
    assert storage.retention.kept_until_s("points/one") == 60.0
    with pytest.raises(ObjectRetainedError):
        storage.delete("packs/one")
    [home] = rig.places("packs/one")
    done = evacuate(rig.storage(sealed=(home,)), f"e{home}")
    assert (done.moved_packs, done.kept_packs) == (1, 1)
    assert storage.retention.kept_until_s("packs/one") == 50.0
    assert packs_nowhere_else(storage, f"e{home}") == 0
    rig.memory[0] = MemoryStorage()
    assert rig.storage().retention is None
