"""A file system with the immutable attribute, and a keeper on it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.keeper.rig import Rig


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 file system of its own: it has the attribute, and going away it takes what is immutable along."""
    base = tmp_path_factory.mktemp("keeper")
    image, place = base / "image", base / "mount"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    # A test that failed may hold it open.
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def directory(mounted: Path, request: pytest.FixtureRequest) -> Path:
    place = Path(tempfile.mkdtemp(dir=mounted, prefix="repository-"))
    place.chmod(0o755)
    return place


@pytest.fixture
def rig(directory: Path, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(directory, tmp_path / "state")
    yield rig
    rig.storage.close()
