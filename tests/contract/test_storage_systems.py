"""Both drivers of storage systems against their shipped suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.arrays import HOST, RunningArray, driver, running_array
from transports.storage_systems.base import StorageSystem
from transports.testing.storage_systems import Read, StorageSystemContract, Write


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
