"""A commit by a new process finds the newest point of its VM without reading all points."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.repository import Repository
from pipeline.testing.builders import ManualClock, Workbench, restore_point, vm_identity
from pipeline.testing.storage import MemoryStorage

VMS = 5


class Counting(MemoryStorage):
    point_reads = 0

    def read(self, name: str) -> bytes:
        self.point_reads += name.startswith("points/")
        return super().read(name)


@pytest.fixture
def bench() -> Workbench:
    return Workbench(Counting(), ManualClock())


def reopened(bench: Workbench, cache: Path | None) -> Repository:
    return Repository.open_with_key(
        bench.storage,
        bench.repository.key_material,
        expected_id=None,
        clock=bench.clock,
        cache_dir=cache,
    )


def fill(bench: Workbench, cache: Path | None, rounds: int) -> None:
    for _ in range(rounds):
        for number in range(VMS):
            reopened(bench, cache).commit_point(restore_point(vm=vm_identity(number)))


def chains(bench: Workbench) -> list[list[int]]:
    catalogue = bench.on(bench.storage).repository._catalogue.load()
    found: dict[str, list[int]] = {}
    for stored in catalogue.points.values():
        found.setdefault(stored.point.vm.instance_uuid, []).append(stored.sequence)
    return [sorted(sequences) for _, sequences in sorted(found.items())]


def test_few_points_are_read(bench: Workbench, tmp_path: Path) -> None:
    fill(bench, tmp_path, 6)
    storage = bench.storage
    assert isinstance(storage, Counting)
    before = storage.point_reads
    reopened(bench, tmp_path).commit_point(restore_point(vm=vm_identity(2)))
    # Whether it is there, the one that the process before committed, and the newest of the VM.
    assert storage.point_reads - before <= 3
    assert chains(bench) == [list(range(1, 8)) if n == 2 else list(range(1, 7)) for n in range(VMS)]
    assert bench.problems() == ()


def test_damage_to_the_file_and_forgotten_points(bench: Workbench, tmp_path: Path) -> None:
    fill(bench, tmp_path, 2)
    file = tmp_path / bench.repository.id / "points"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    fill(bench, tmp_path, 1)
    newest = next(
        p for p in bench.repository.points() if p.vm == vm_identity(1) and sequence_of(bench, p.id) == 3
    )
    bench.repository.forget([newest.id])
    fill(bench, tmp_path, 1)
    assert chains(bench)[1] == [1, 2, 3]
    assert chains(bench)[0] == [1, 2, 3, 4]
    assert bench.problems() == ()


def sequence_of(bench: Workbench, point_id: str) -> int:
    return bench.on(bench.storage).repository._catalogue.load().points[point_id].sequence


def test_it_tells_no_names(bench: Workbench, tmp_path: Path) -> None:
    fill(bench, tmp_path, 1)
    data = (tmp_path / bench.repository.id / "points").read_bytes()
    for number in range(VMS):
        vm = vm_identity(number)
        assert vm.name.encode() not in data
        assert bytes.fromhex(vm.instance_uuid.replace("-", "")) not in data
