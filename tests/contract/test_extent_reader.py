"""Disks on files and devices, held to the suites that every mode passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transports import direct_file
from transports.base import DiskReader, DiskWriter, TransportMode
from transports.extent_reader import DirectFile, ExtentMap, ExtentReader, ExtentWriter, Run
from transports.testing.contract import DiskReaderContract, DiskWriterContract

MODE = TransportMode.HOTADD
KIB = 1 << 10


@pytest.fixture
def pattern() -> bytes:
    return b"".join((n % 251).to_bytes(1) * 512 for n in range(3 << 11))


class TestOneFile(DiskReaderContract):
    @pytest.fixture
    def image(self, pattern: bytes) -> bytes:
        return pattern

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        path = tmp_path / "disk"
        path.write_bytes(image)
        reader = ExtentReader([DirectFile(str(path))], ExtentMap.whole(len(image)), mode=MODE)
        yield reader
        reader.close()


class TestThroughThePageCache(TestOneFile):
    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        path = tmp_path / "disk"
        path.write_bytes(image)
        file = DirectFile(str(path), direct=False)
        assert not file.is_direct
        reader = ExtentReader([file], ExtentMap.whole(len(image)), mode=MODE, requests_in_flight=1)
        yield reader
        reader.close()


class TestAFileOfOddLength(TestOneFile):
    @pytest.fixture
    def image(self, pattern: bytes) -> bytes:
        return pattern[: (2 << 20) + 512]


class TestAFileWithHoles(TestOneFile):
    @pytest.fixture
    def image(self, pattern: bytes) -> bytes:
        return pattern[:65536] + bytes(1 << 20) + pattern[:131072]

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        path = tmp_path / "disk"
        # Where the map says hole the file holds something else, which nobody may see.
        path.write_bytes(image.replace(bytes(1 << 20), b"\xee" * (1 << 20)))
        hole_end = 65536 + (1 << 20)
        extents = ExtentMap.of_data(len(image), [(0, 65536), (hole_end, len(image))])
        reader = ExtentReader([DirectFile(str(path))], extents, mode=MODE)
        yield reader
        reader.close()


class TestPiecesOnTwoFiles(DiskReaderContract):
    """In no order, at offsets that are aligned to sectors and no further, with holes."""

    @pytest.fixture
    def image(self, pattern: bytes) -> bytes:
        return pattern[: 700 * 512] + bytes(1301 * 512) + pattern[: 1500 * 512]

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        first, second = tmp_path / "first", tmp_path / "second"
        lay = {first: bytearray(3 << 20), second: bytearray(3 << 20)}
        runs, at = [], 0
        pieces = [
            (300, second, 5),
            (400, first, 2001),
            (1301, None, 0),
            (1, first, 0),
            (1499, second, 777),
        ]
        for sectors, path, place in pieces:
            length = sectors * 512
            if path is not None:
                lay[path][place * 512 : place * 512 + length] = image[at : at + length]
            runs.append(
                Run(
                    offset=at,
                    length=length,
                    device_offset=None if path is None else place * 512,
                    device=int(path == second),
                )
            )
            at += length
        for path, content in lay.items():
            path.write_bytes(content)
        files = [DirectFile(str(first)), DirectFile(str(second))]
        reader = ExtentReader(files, ExtentMap(runs), mode=MODE)
        yield reader
        reader.close()


class TestWriter(DiskWriterContract):
    @pytest.fixture
    def path(self, tmp_path: Path, size_bytes: int) -> Path:
        path = tmp_path / "disk"
        path.write_bytes(bytes(size_bytes))
        return path

    @pytest.fixture
    def writer(self, path: Path, size_bytes: int) -> Iterator[DiskWriter]:
        file = DirectFile(str(path), write=True)
        writer = ExtentWriter([file], ExtentMap.whole(size_bytes), mode=MODE)
        yield writer
        writer.close()

    @pytest.fixture
    def content(self, path: Path) -> Callable[[], bytes]:
        return path.read_bytes


class TestWriterThroughThePageCache(TestWriter):
    @pytest.fixture
    def writer(self, path: Path, size_bytes: int) -> Iterator[DiskWriter]:
        file = DirectFile(str(path), write=True, direct=False)
        writer = ExtentWriter([file], ExtentMap.whole(size_bytes), mode=MODE)
        yield writer
        writer.close()


class TestWriterOfSwappedHalves(TestWriter):
    @pytest.fixture
    def writer(self, path: Path, size_bytes: int) -> Iterator[DiskWriter]:
        half = size_bytes // 2
        extents = ExtentMap(
            [
                Run(offset=0, length=half, device_offset=half),
                Run(offset=half, length=half, device_offset=0),
            ]
        )
        writer = ExtentWriter([DirectFile(str(path), write=True)], extents, mode=MODE)
        yield writer
        writer.close()

    @pytest.fixture
    def content(self, path: Path, size_bytes: int) -> Callable[[], bytes]:
        half = size_bytes // 2
        return lambda: path.read_bytes()[half:] + path.read_bytes()[:half]


@pytest.mark.parametrize("refused", ["memory", "sectors", "everything"])
class TestAPickyFileSystem(TestPiecesOnTwoFiles):
    """One that refuses direct input of what is not aligned as it wants."""

    @pytest.fixture(autouse=True)
    def picky(self, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            aligned = direct_file.is_aligned(buffers[0])
            if _is_direct(fd) and (
                refused == "everything"
                or not aligned
                or (refused == "sectors" and (offset % 4096 or len(buffers[0]) % 4096))
            ):
                raise OSError(22, "Invalid argument")
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)


def _is_direct(fd: int) -> bool:
    return bool(int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8) & os.O_DIRECT)
