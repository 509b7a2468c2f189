"""Repositories that released versions wrote open, check and restore, for ever."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from pipeline.repository import Repository
from pipeline.repository.points import point_fields
from pipeline.storage import open_storage
from pipeline.testing.builders import ManualClock, Workbench

GOLDEN = sorted((Path(__file__).parent / "golden").glob("repository-v*.tar.gz"))


def test_there_is_one_for_each_version() -> None:
    assert [path.name for path in GOLDEN] == ["repository-v1.tar.gz"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_it_opens_checks_restores_and_goes_on(golden: Path, tmp_path: Path) -> None:
    expected = json.loads(golden.with_name(golden.name.replace(".tar.gz", ".json")).read_text())
    place = tmp_path / "repository"
    with tarfile.open(golden) as tar:
        tar.extractall(place, filter="data")
    clock = ManualClock(2_000_000_000.0)
    storage = open_storage(str(place))
    repository = Repository.open_with_password(storage, expected["password"], clock=clock)
    bench = Workbench(storage, clock, repository=repository)

    assert repository.id == expected["id"]
    assert bench.problems() == ()
    assert [point_fields(point) for point in repository.points()] == expected["points"]
    compare(bench, expected)

    kinds = {entry.name.partition("/")[0] for entry in storage.list("")}
    assert {"forgotten", "doomed", "work"} <= kinds, "every kind of object is in it"
    repository.prune(keep_work_ids=(), min_age_s=60)
    clock.now_s += 100
    repository.prune(keep_work_ids=(), min_age_s=60)
    assert bench.problems() == ()
    compare(bench, expected)
    point = repository.points()[-1]
    disk = point.disks[0]
    plan = bench.plan(disk.capacity_bytes, previous=disk.map_root, changed=[])
    image = bench.restored(disk.map_root, disk.capacity_bytes)
    assert bench.backup(image, plan=plan).map_root == disk.map_root


def compare(bench: Workbench, expected: dict[str, dict[str, str]]) -> None:
    compared = 0
    for point in bench.repository.points():
        for disk in point.disks:
            image = bench.restored(disk.map_root, disk.capacity_bytes)
            assert (
                hashlib.sha256(image).hexdigest() == expected["sha256"][f"{point.id}/{disk.disk_key}"]
            )
            compared += 1
    assert compared == len(expected["sha256"]) == 4
