"""Repositories that released versions wrote open, check and restore, for ever."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.crypto.unlock import KeyKind, by_password, unlock_from_text
from pipeline.errors import WrongPasswordError
from pipeline.repository import Repository
from pipeline.repository.format import KNOWN_FEATURES, Encoding
from pipeline.repository.index import read_index_object
from pipeline.repository.points import point_fields
from pipeline.storage import open_storage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from transports.base import Extent

GOLDEN = sorted((Path(__file__).parent / "golden").glob("repository-v*.tar.gz"))


def test_there_is_one_for_each_version() -> None:
    assert [path.name for path in GOLDEN] == ["repository-v1-0.2.0.tar.gz", "repository-v1.tar.gz"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_it_opens_checks_restores_and_goes_on(golden: Path, tmp_path: Path) -> None:
    place = tmp_path / "repository"
    expected = unpacked(golden, place)
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


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_it_is_upgraded_and_goes_on_with_a_new_data_key(golden: Path, tmp_path: Path) -> None:
    place = tmp_path / "repository"
    expected = unpacked(golden, place)
    clock = ManualClock(2_000_000_000.0)
    storage = open_storage(str(place))
    repository = Repository.open_with_password(storage, expected["password"], clock=clock)
    before = repository.key_epoch
    repository.upgrade_features()
    repository.modernise_key(by_password(expected["password"]), kdf_cost=CHEAP_KDF)
    assert repository.rotate_data_key() == before + 1
    again = Repository.open_with_password(storage, expected["password"], clock=clock)
    assert set(again.features) == KNOWN_FEATURES
    bench = Workbench(storage, clock, repository=again)
    bench.repository.makes_patches = True
    disk = again.points()[-1].disks[0]
    image = bench.restored(disk.map_root, disk.capacity_bytes)
    changed = Extent(offset=4 * BLOCK_SIZE_BYTES + 100, length=200)
    image[changed.offset : changed.end] = random.Random(9).randbytes(changed.length)
    plan = bench.plan(disk.capacity_bytes, previous=disk.map_root, changed=[changed])
    root = bench.backup(image, plan=plan).map_root
    point = bench.commit(restore_point(disk_point(root, disk.capacity_bytes)))
    for _ in range(2):
        again.prune(keep_work_ids=(), min_age_s=60)
        clock.now_s += 100
    assert bench.problems() == ()
    assert bench.restored(root, disk.capacity_bytes) == image
    again.forget([point.id])
    compare(bench, expected)


def test_every_key_of_this_release_opens_its_repository(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    expected = unpacked(GOLDEN[0], place)
    storage = open_storage(str(place))
    kinds = set()
    for text in (expected["password"], *expected["other_keys"]):
        unlock = unlock_from_text(text)
        kinds.add(unlock.kind)
        repository = Repository.open_by(storage, unlock, clock=ManualClock())
        assert repository.key_epoch == expected["key_epoch"] == 3
    assert kinds == set(KeyKind)
    with pytest.raises(WrongPasswordError):
        Repository.open_with_password(storage, "revoked", clock=ManualClock())
    labels = {info.label for info in repository.list_keys()}
    assert labels == {"", "before epoch 2", "USB stick", "in the safe"}
    assert not any(info.problem for info in repository.list_keys())
    encodings = {
        blob.encoding
        for entry in storage.list("index/")
        for segment in read_index_object(storage, repository.keyring, entry.name)
        for blob in segment.entries
    }
    assert encodings == set(Encoding)


def unpacked(golden: Path, place: Path) -> dict[str, Any]:
    """Unpack a golden repository; what must come out of it."""
    with tarfile.open(golden) as tar:
        tar.extractall(place, filter="data")
    text = golden.with_name(golden.name.replace(".tar.gz", ".json")).read_text()
    expected: dict[str, Any] = json.loads(text)
    return expected


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
