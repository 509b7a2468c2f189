"""Object lock on a real gateway: what is kept, against whom, and how a bucket comes back."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import (
    ObjectExistsError,
    ObjectRetainedError,
    PermanentPipelineError,
    PipelineError,
)
from pipeline.model import RestorePoint
from pipeline.repository import Repository, layout
from pipeline.repository.immutability import (
    DAY_S,
    GENERATION_S,
    Immutability,
    KeptStorage,
)
from pipeline.storage import open_storage
from pipeline.storage.object_store import RetryingObjectStorage
from pipeline.storage.s3_recovery import recover_versions
from pipeline.testing.builders import BLOCK_SIZE_BYTES, PASSWORD, Workbench, disk_point, restore_point
from proxy_worker.agent import Agent
from tests.support.object_servers import ObjectServer

DAYS = 30
CAPACITY_BYTES = 40 * BLOCK_SIZE_BYTES
PLACE = "one/site"
NAME = "packs/ab/" + "ab" * 16


@pytest.fixture
def storage(ceph: ObjectServer) -> Iterator[RetryingObjectStorage]:
    location = ceph.location(ceph.new_bucket(lock=True), PLACE, conditional_put="versions")
    opened = open_storage(location, secrets=ceph.secrets, create=True)
    assert isinstance(opened, RetryingObjectStorage)
    yield opened
    opened.close()


@pytest.fixture
def bench(storage: RetryingObjectStorage) -> Workbench:
    immutability = Immutability(days=DAYS)
    made = Workbench(KeptStorage(storage, immutability, time.time), time.time)
    made.repository.immutability = immutability
    return made


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(CAPACITY_BYTES)


def backed_up(bench: Workbench, data: bytes, previous: RestorePoint | None = None) -> RestorePoint:
    from datetime import UTC, datetime

    root = bench.backup(data).map_root
    return bench.commit(restore_point(disk_point(root, CAPACITY_BYTES), created_at=datetime.now(UTC)))


# ---- the driver --------------------------------------------------------------------------------------


def test_a_kept_object_cannot_be_deleted_nor_its_time_shortened(storage: RetryingObjectStorage) -> None:
    storage.put(NAME, b"pack")
    retention = storage.retention
    assert retention is not None
    assert retention.kept_until_s(NAME) == 0.0
    until_s = time.time() + DAYS * DAY_S
    retention.keep(NAME, until_s)
    assert until_s <= retention.kept_until_s(NAME) <= until_s + 2
    retention.keep(NAME, until_s - DAY_S)
    assert retention.kept_until_s(NAME) >= until_s, "a later time that it has stays"
    with pytest.raises(ObjectRetainedError, match="immutable until"):
        storage.delete(NAME)
    assert storage.read(NAME) == b"pack", "neither gone nor hidden behind a marker"
    assert [entry.name for entry in storage.list("")] == [NAME]
    with pytest.raises(ObjectExistsError):
        storage.put(NAME, b"other")


def test_the_gateway_refuses_to_shorten_what_the_driver_set(
    ceph: ObjectServer, storage: RetryingObjectStorage
) -> None:
    """Not our own check: the store's, against whoever has these keys."""
    from datetime import UTC, datetime, timedelta

    from botocore.exceptions import ClientError

    storage.put(NAME, b"pack")
    assert storage.retention is not None
    storage.retention.keep(NAME, time.time() + DAYS * DAY_S)
    bucket = storage.location.partition("://")[2].partition("/")[0]
    client = ceph.client()
    soon = datetime.now(UTC) + timedelta(seconds=5)
    for retention in (
        {"Mode": "COMPLIANCE", "RetainUntilDate": soon},
        {"Mode": "GOVERNANCE", "RetainUntilDate": soon},
    ):
        with pytest.raises(ClientError):
            client.put_object_retention(
                Bucket=bucket,
                Key=f"{PLACE}/{NAME}",
                Retention=retention,
                BypassGovernanceRetention=True,
            )
    [version] = client.list_object_versions(Bucket=bucket, Prefix=f"{PLACE}/{NAME}")["Versions"]
    with pytest.raises(ClientError):
        client.delete_object(
            Bucket=bucket,
            Key=f"{PLACE}/{NAME}",
            VersionId=version["VersionId"],
            BypassGovernanceRetention=True,
        )
    client.close()


def test_a_bucket_without_lock_is_refused(ceph: ObjectServer) -> None:
    plain = open_storage(ceph.location(ceph.new_bucket()), secrets=ceph.secrets, create=True)
    assert plain.retention is None
    kept = KeptStorage(plain, Immutability(days=1), time.time)
    with pytest.raises(PermanentPipelineError, match="object lock"):
        kept.put(NAME, b"pack")
    with pytest.raises(PermanentPipelineError, match="no versions"):
        recover_versions(plain.versions, time.time(), plain.location)  # type: ignore[attr-defined]
    plain.close()


def test_what_is_not_kept_is_deleted_with_all_its_versions(
    ceph: ObjectServer, storage: RetryingObjectStorage
) -> None:
    record = layout.work_name("one")
    for number in range(3):
        storage.replace(record, b"record %d" % number)
    storage.delete(record)
    bucket = storage.location.partition("://")[2].partition("/")[0]
    client = ceph.client()
    answer = client.list_object_versions(Bucket=bucket, Prefix=f"{PLACE}/{record}")
    client.close()
    assert not answer.get("Versions")
    assert not answer.get("DeleteMarkers")


# ---- a repository ------------------------------------------------------------------------------------


def test_what_a_point_needs_is_kept_for_as_long_as_the_point_says(bench: Workbench) -> None:
    first = backed_up(bench, noise(1))
    repository = bench.repository
    until_s = repository.immutable_until_s(first.id)
    assert until_s >= first.created_at.timestamp() + DAYS * DAY_S
    retention = bench.storage.retention
    assert retention is not None
    needed = [
        entry.name for prefix in (layout.PACKS, layout.KEYS) for entry in bench.storage.list(prefix)
    ]
    assert needed
    for name in [*needed, layout.CONFIGURATION]:
        assert retention.kept_until_s(name) >= until_s - 2, name
    with pytest.raises(ObjectRetainedError, match=f"{first.id}.*immutable until"):
        repository.forget([first.id])
    assert [point.id for point in repository.points()] == [first.id]
    assert until_s <= time.time() + DAYS * DAY_S + GENERATION_S + 5


def test_the_next_point_relies_on_what_the_one_before_it_is_kept_for(bench: Workbench) -> None:
    first = backed_up(bench, noise(1))
    data = bytearray(noise(1))
    data[:BLOCK_SIZE_BYTES] = random.Random(2).randbytes(BLOCK_SIZE_BYTES)
    asked: list[str] = []
    kept = bench.storage.retention
    assert kept is not None
    versions = bench.storage.inner.versions  # type: ignore[attr-defined]
    plain_keep = versions.keep

    def counted(name: str, until_s: float) -> None:
        asked.append(name)
        plain_keep(name, until_s)

    versions.keep = counted
    second = backed_up(bench, bytes(data))
    old_packs = {entry.name for entry in bench.storage.list(layout.PACKS)}
    assert len({name for name in asked if name.startswith(layout.PACKS)}) < len(old_packs), (
        "packs that nothing changed in are not touched"
    )
    assert bench.repository.immutable_until_s(second.id) == pytest.approx(
        bench.repository.immutable_until_s(first.id), abs=3
    )


def test_prune_beside_kept_packs_deletes_nothing_that_a_point_needs(bench: Workbench) -> None:
    data = noise(1)
    point = backed_up(bench, data)
    bench.backup(noise(2))  # never committed: nobody needs it, and its packs are kept all the same
    packs = {entry.name for entry in bench.storage.list(layout.PACKS)}
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    report = bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert report.removed_packs == 0
    assert report.retained_packs > 0
    assert packs <= {entry.name for entry in bench.storage.list(layout.PACKS)}
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == data
    assert bench.problems() == ()


def test_after_an_attack_with_the_proxys_keys_everything_comes_back(
    ceph: ObjectServer, bench: Workbench, storage: RetryingObjectStorage
) -> None:
    """Everything deleted, everything replaced, points forgotten in the repository's own words."""
    data = noise(1)
    first = backed_up(bench, data)
    second = backed_up(bench, noise(2))
    time.sleep(1.1)  # the store's times have whole seconds in places
    as_of_s = time.time()
    time.sleep(1.1)

    attack(ceph, storage)
    with pytest.raises(PipelineError):
        Repository.open_with_password(storage, PASSWORD, clock=time.time)

    done = recover_versions(storage.versions, as_of_s, storage.location)
    assert done.uncovered > 0
    assert done.lost == ()
    opened = Repository.open_with_password(storage, PASSWORD, clock=time.time)
    opened.rebuild_index()
    again = bench.on(storage)
    assert {point.id for point in again.repository.points()} == {first.id, second.id}
    assert again.restored(first.disks[0].map_root, CAPACITY_BYTES) == data
    assert again.restored(second.disks[0].map_root, CAPACITY_BYTES) == noise(2)
    assert again.problems() == ()
    for point in (first, second):
        assert again.repository.immutable_until_s(point.id) > as_of_s + (DAYS - 1) * DAY_S
    assert recover_versions(storage.versions, as_of_s, storage.location).uncovered == 0, (
        "what is as it was stays so"
    )


def test_a_bucket_comes_back_from_behind_a_change_of_the_data_key(
    ceph: ObjectServer, bench: Workbench, storage: RetryingObjectStorage
) -> None:
    """What an administrator does first after an attack must not stand in the way of recovering from it."""
    point = backed_up(bench, noise(1))
    time.sleep(1.1)
    as_of_s = time.time()
    time.sleep(1.1)
    assert bench.repository.rotate_data_key() == 2
    bench.backup(noise(2))
    attack(ceph, storage)
    access = {
        "location": storage.location,
        "password": PASSWORD,
        "storage_secrets": dict(ceph.secrets),
    }
    done = Agent(time.time).answer({"id": 1, "call": "recover", "args": {**access, "as_of_s": as_of_s}})
    assert done["ok"]["key_epoch"] == 1
    opened = Agent(time.time)
    assert opened.answer({"id": 1, "call": "open", "args": access})["ok"]["key_epoch"] == 1
    listed = opened.answer({"id": 2, "call": "points", "args": {}})["ok"]["points"]
    assert [one["id"] for one in listed] == [point.id]
    wanted = {"read_data": True, "sample_share": 1.0}
    checked = opened.answer({"id": 3, "call": "check", "args": wanted})["ok"]
    assert (checked["points"], checked["problems"], checked["damage"]) == (1, [], [])


def attack(ceph: ObjectServer, storage: RetryingObjectStorage) -> None:
    """All that these keys allow: versions deleted where they can be, the rest hidden or covered, junk that is
    locked itself on top, and a record that the first point was forgotten.
    """
    from datetime import UTC, datetime, timedelta

    from botocore.exceptions import ClientError

    bucket = storage.location.partition("://")[2].partition("/")[0]
    client: Any = ceph.client()
    keys = [f"{PLACE}/{entry.name}" for entry in storage.list("")]
    for number, key in enumerate(keys):
        for version in client.list_object_versions(Bucket=bucket, Prefix=key).get("Versions", ()):
            with contextlib.suppress(ClientError):  # refused for what is kept
                client.delete_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])
        match number % 3:
            case 0:
                client.delete_object(Bucket=bucket, Key=key)
            case 1:
                client.put_object(Bucket=bucket, Key=key, Body=b"junk")
            case _:
                client.put_object(Bucket=bucket, Key=key, Body=b"locked junk")
                client.put_object_retention(
                    Bucket=bucket,
                    Key=key,
                    Retention={
                        "Mode": "COMPLIANCE",
                        "RetainUntilDate": datetime.now(UTC) + timedelta(days=365),
                    },
                )
    points = [key for key in keys if "/points/" in key]
    for key in points:
        forged = key.replace("/points/", "/forgotten/")
        client.put_object(Bucket=bucket, Key=forged, Body=b"a record that says forgotten")
    client.close()
