"""Both drivers of storage systems against their shipped suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.arrays import HOST, RunningArray, driver, running_array
from tests.support.storage_host import StorageHost, storage_host
from transports.storage_systems import snapshot_directories
from transports.storage_systems.base import StorageSystem
from transports.testing.storage_systems import Read, StorageSystemContract, Write


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageHost]:
    with storage_host(tmp_path_factory.mktemp("storage")) as machine:
        yield machine


class TestFlashArray(StorageSystemContract):
    @pytest.fixture
    def array(self, tmp_path: Path) -> Iterator[RunningArray]:
        with running_array(tmp_path) as array:
            yield array

    @pytest.fixture
    def system(self, array: RunningArray) -> Iterator[StorageSystem]:
        system = driver(array)
        yield system
        system.close()

    @pytest.fixture
    def host(self) -> str:
        return HOST

    @pytest.fixture
    def write(self, array: RunningArray) -> Write:
        return array.write

    @pytest.fixture
    def read(self, array: RunningArray) -> Read:
        return array.read


@pytest.mark.lab
class TestSnapshotDirectories(StorageSystemContract):
    """With a real sshd and real btrfs."""

    @pytest.fixture
    def system(self, machine: StorageHost) -> Iterator[StorageSystem]:
        system = snapshot_directories.DRIVER.connect(machine.access())
        yield system
        machine.clear()
        system.close()

    @pytest.fixture
    def host(self) -> str:
        return ""

    @pytest.fixture
    def write(self, machine: StorageHost) -> Write:
        return machine.write

    @pytest.fixture
    def read(self, machine: StorageHost) -> Read:
        return machine.read
