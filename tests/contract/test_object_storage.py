"""Object storage drivers against the shipped suite, each with a server process."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from pipeline.storage import Storage, open_storage
from pipeline.testing.contract import StorageContract
from tests.support.object_servers import (
    ObjectServer,
    azure_container,
    start_azurite,
)
from tests.support.s3_front import front_before


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = start_azurite(tmp_path_factory.mktemp("azurite"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def moto_bucket(moto_server: ObjectServer) -> str:
    return moto_server.new_bucket()


@pytest.fixture(scope="module")
def versions_bucket(moto_server: ObjectServer) -> str:
    return moto_server.new_bucket(versions=True)


@pytest.fixture(scope="module")
def ceph_bucket(ceph: ObjectServer) -> str:
    return ceph.new_bucket(lock=True)


def opened(server: ObjectServer, bucket: str, **options: str) -> Iterator[Storage]:
    location = server.location(bucket, f"some/{uuid4().hex}", **options)
    storage = open_storage(location, secrets=server.secrets, create=True)
    yield storage
    storage.close()


class TestS3(StorageContract):
    @pytest.fixture
    def storage(self, moto_server: ObjectServer, moto_bucket: str) -> Iterator[Storage]:
        yield from opened(moto_server, moto_bucket)


class TestS3WithVersions(StorageContract):
    """A bucket that keeps old versions, where a plain delete would only hide objects."""

    @pytest.fixture
    def storage(self, moto_server: ObjectServer, versions_bucket: str) -> Iterator[Storage]:
        yield from opened(moto_server, versions_bucket)


class TestAzure(StorageContract):
    @pytest.fixture
    def storage(self, azurite: ObjectServer) -> Iterator[Storage]:
        storage = open_storage(azure_container(azurite), secrets=azurite.secrets, create=True)
        yield storage
        storage.close()


class TestGoogle(StorageContract):
    """Google's XML protocol, by a front that turns its condition into S3's: no emulator has that protocol
    with listings.
    """

    @pytest.fixture
    def storage(self, moto_server: ObjectServer, moto_bucket: str) -> Iterator[Storage]:
        with front_before(moto_server.endpoint) as front:
            location = f"gs://{moto_bucket}/g/{uuid4().hex}?endpoint={front.endpoint}&anonymous=true"
            storage = open_storage(location, create=True)
            yield storage
            storage.close()


class TestCephGatewayWithLock(StorageContract):
    """Its release 16 ignores conditions where objects have versions."""

    @pytest.fixture
    def storage(self, ceph: ObjectServer, ceph_bucket: str) -> Iterator[Storage]:
        yield from opened(ceph, ceph_bucket, conditional_put="versions")
