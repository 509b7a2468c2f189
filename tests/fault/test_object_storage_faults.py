"""Object storage that is busy, loses answers, is slow or away: through the driver, its retries and a backup."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from pipeline.errors import (
    CancelledError,
    ObjectExistsError,
    PermanentPipelineError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage import Storage, open_storage
from pipeline.storage.location import parse_object_location
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.s3_parts import PART_BYTES
from pipeline.testing.builders import BLOCK_SIZE_BYTES, Workbench, disk_point, restore_point
from tests.support.object_servers import SECRET_KEY, ObjectServer
from tests.support.ports import free_port
from tests.support.s3_front import BUSY, CUT, LOSE, PASS, Front, front_before

CAPACITY_BYTES = 60 * BLOCK_SIZE_BYTES


@pytest.fixture(scope="module")
def bucket(moto_server: ObjectServer) -> str:
    return moto_server.new_bucket()


@pytest.fixture
def front(moto_server: ObjectServer) -> Iterator[Front]:
    with front_before(moto_server.endpoint) as running:
        yield running


@pytest.fixture
def location(front: Front, bucket: str) -> str:
    return f"s3://{bucket}/{uuid4().hex}?endpoint={front.endpoint}"


@pytest.fixture
def driver(location: str, moto_server: ObjectServer) -> Iterator[ObjectStorage]:
    """The driver by itself: it repeats nothing."""
    storage = ObjectStorage(parse_object_location(location), secrets=moto_server.secrets, create=True)
    yield storage
    storage.close()


@pytest.fixture
def storage(location: str, moto_server: ObjectServer) -> Iterator[Storage]:
    storage = open_storage(location, secrets=moto_server.secrets, create=True)
    yield storage
    storage.close()


def answer_then_pass(front: Front, verdict: str, times: int, method: str = "PUT") -> None:
    """The next `times` requests of a method get the verdict."""
    left = [times]
    lock = threading.Lock()

    def script(asked: str, _path: str) -> str:
        with lock:
            if asked == method and left[0] > 0:
                left[0] -= 1
                return verdict
        return PASS

    front.script = script


# ---- the driver --------------------------------------------------------------------------------------


def test_the_driver_repeats_nothing(front: Front, driver: ObjectStorage) -> None:
    answer_then_pass(front, BUSY, 1)
    with pytest.raises(StorageUnavailableError, match=r"SlowDown.*run again"):
        driver.put("points/one", b"data")
    assert front.seen[BUSY] == 1
    driver.put("points/one", b"data")


def test_a_put_whose_answer_was_lost_has_happened(front: Front, driver: ObjectStorage) -> None:
    answer_then_pass(front, LOSE, 1)
    driver.put("points/one", b"data")
    assert front.seen[LOSE] == 1
    assert driver.read("points/one") == b"data"
    with pytest.raises(ObjectExistsError):
        driver.put("points/one", b"data")


def test_a_put_that_never_arrived_is_said_to_have_failed(front: Front, driver: ObjectStorage) -> None:
    answer_then_pass(front, CUT, 1)
    with pytest.raises(StorageUnavailableError):
        driver.put("points/one", b"data")
    assert list(driver.list("")) == []


def test_the_end_of_an_upload_whose_answer_was_lost(front: Front, driver: ObjectStorage) -> None:
    data = os.urandom(PART_BYTES + 1000)
    writer = driver.create("packs/large")
    writer.write([data])
    answer_then_pass(front, LOSE, 1, method="POST")
    writer.commit()
    assert front.seen[LOSE] == 1
    assert driver.read("packs/large") == data


def test_large_objects_go_in_parts_and_leave_nothing_behind(
    driver: ObjectStorage, moto_server: ObjectServer, bucket: str
) -> None:
    data = os.urandom(3 * PART_BYTES + 5)
    kept = driver.create("packs/kept")
    for at in range(0, len(data), 1_000_000):
        kept.write([data[at : at + 1_000_000]])
    dropped = driver.create("packs/dropped")
    dropped.write([data])
    assert list(driver.list("")) == []
    kept.commit()
    dropped.abort()
    assert [entry.name for entry in driver.list("")] == ["packs/kept"]
    assert driver.read("packs/kept") == data
    taken = driver.create("packs/kept")
    taken.write([data])
    with pytest.raises(ObjectExistsError):
        taken.commit()
    taken.abort()
    client = moto_server.client()
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    client.close()


def test_clean_drops_uploads_of_writers_that_died(driver: ObjectStorage) -> None:
    writer = driver.create("packs/never")
    writer.write([bytes(2 * PART_BYTES)])
    uploads = driver._part_uploads()
    writer._parts[0].result()  # type: ignore[attr-defined]
    assert driver.clean(0.0) == 0, "begun later: somebody may still be writing"
    assert driver.clean(time.time() + 3600) >= PART_BYTES
    assert driver.clean(time.time() + 3600) == 0
    assert list(uploads._stale(time.time() + 3600)) == []


def test_messages_name_no_secret(location: str, moto_server: ObjectServer, front: Front) -> None:
    front.script = lambda _method, _path: BUSY
    with pytest.raises(StorageUnavailableError) as caught:
        ObjectStorage(parse_object_location(location), secrets=moto_server.secrets)
    assert SECRET_KEY not in repr(caught.value)
    assert caught.value.__cause__ is None, "a chained error would be printed with its request"


def test_a_place_that_is_not_there(moto_server: ObjectServer) -> None:
    with pytest.raises(StorageMissingError, match="create the bucket"):
        open_storage(moto_server.location("nobody-made-it"), secrets=moto_server.secrets)
    nobody = f"s3://bucket/x?endpoint=http://127.0.0.1:{free_port()}"
    with pytest.raises(StorageUnavailableError, match="network"):
        open_storage(nobody, secrets=moto_server.secrets)


def test_a_prefix_that_somebody_else_uses_is_refused(moto_server: ObjectServer) -> None:
    name = moto_server.new_bucket()
    client = moto_server.client()
    client.put_object(Bucket=name, Key="photos/cat.jpg", Body=b"cat")
    client.close()
    with pytest.raises(PermanentPipelineError, match="not empty"):
        open_storage(moto_server.location(name), secrets=moto_server.secrets, create=True)
    open_storage(
        moto_server.location(name, "photos/vmhaul"), secrets=moto_server.secrets, create=True
    ).close()


def test_a_store_that_ignores_conditions_is_refused(
    front: Front, location: str, moto_server: ObjectServer
) -> None:
    front.drop_headers = frozenset({"if-none-match"})
    with pytest.raises(PermanentPipelineError, match="If-None-Match"):
        open_storage(location, secrets=moto_server.secrets, create=True)


def test_half_of_a_key_pair_is_refused(location: str) -> None:
    with pytest.raises(StoragePermissionError, match="belong together"):
        open_storage(location, secrets={"access_key_id": "only"})
    with pytest.raises(PermanentPipelineError, match="no use for account_key"):
        open_storage(location, secrets={"account_key": "of another kind"})


# ---- with retries -----------------------------------------------------------------------------------


def test_a_backup_survives_a_storage_that_fails_at_random(front: Front, storage: Storage) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    rng = random.Random(seed)
    lock = threading.Lock()
    data = rng.randbytes(CAPACITY_BYTES)
    bench = Workbench(storage, time.time)

    def script(_method: str, _path: str) -> str:
        with lock:
            return rng.choices([PASS, BUSY, LOSE, CUT], [12, 1, 1, 1])[0]

    front.script = script
    root = bench.backup(data).map_root
    point = bench.commit(restore_point(disk_point(root, CAPACITY_BYTES)))
    front.script = lambda _method, _path: PASS
    assert min(front.seen.get(verdict, 0) for verdict in (PASS, BUSY)) > 0
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == data
    assert bench.problems() == ()


def test_a_storage_that_goes_away_and_comes_back(front: Front, storage: Storage) -> None:
    bench = Workbench(storage, time.time)
    data = random.Random(7).randbytes(CAPACITY_BYTES)
    seen = threading.Event()

    def script(method: str, path: str) -> str:
        if method == "PUT" and "/packs/" in path:
            seen.set()
        return PASS

    front.script = script
    with ThreadPoolExecutor(1) as thread:
        backup = thread.submit(bench.backup, data)
        assert seen.wait(60)
        front.go_away()
        time.sleep(0.5)
        front.come_back()
        root = backup.result(120).map_root
    point = bench.commit(restore_point(disk_point(root, CAPACITY_BYTES)))
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == data
    assert bench.problems() == ()


def test_cancel_ends_the_waiting_for_a_storage_that_is_away(
    front: Front, location: str, moto_server: ObjectServer
) -> None:
    cancel = threading.Event()
    storage = open_storage(location, secrets=moto_server.secrets, create=True, cancel=cancel)
    failed = threading.Event()

    def script(_method: str, _path: str) -> str:
        failed.set()
        return BUSY

    front.script = script
    with ThreadPoolExecutor(1) as thread:
        put = thread.submit(storage.put, "points/one", b"data")
        assert failed.wait(60)
        cancel.set()
        with pytest.raises(CancelledError):
            put.result(60)
    storage.close()
