"""What every disk reader and writer must do. Subclass, give the fixtures, run pytest.

The suites hold the MUSTs of `transports.base`; a mode exists when it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from transports.base import Ability, DiskReader, DiskWriter, ReadRequest
from transports.errors import TransientTransportError

POISON = 0xAA


def _buffer(length: int) -> bytearray:
    """Filled with something that is not the disk, so that a part left out shows."""
    return bytearray([POISON]) * length


def _requests(offsets: list[int], step: int, size_bytes: int) -> Iterator[ReadRequest]:
    for offset in offsets:
        yield ReadRequest(offset, memoryview(_buffer(min(step, size_bytes - offset))))


class DiskReaderContract:
    """Fixtures to give: `image`, the disk's content (at least 1 MiB); `reader`, open on it."""

    @pytest.fixture
    def image(self) -> bytes:
        raise pytest.UsageError("give the fixture `image`: what the disk holds")

    @pytest.fixture
    def reader(self) -> Iterator[DiskReader]:
        raise pytest.UsageError("give the fixture `reader`: a DiskReader of `image`")

    def test_size_is_the_image_size(self, reader: DiskReader, image: bytes) -> None:
        assert reader.size_bytes == len(image)

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 512), (512, 1024), (65024, 1024), (0, 65536), (131584, 262144)]
    )
    def test_reads_what_is_there(
        self, reader: DiskReader, image: bytes, offset: int, length: int
    ) -> None:
        buffer = _buffer(length)
        reader.read_into(offset, memoryview(buffer))
        assert bytes(buffer) == image[offset : offset + length]

    def test_reads_the_last_sector(self, reader: DiskReader, image: bytes) -> None:
        buffer = _buffer(512)
        reader.read_into(len(image) - 512, memoryview(buffer))
        assert bytes(buffer) == image[-512:]

    def test_reads_more_than_one_request(self, reader: DiskReader, image: bytes) -> None:
        buffer = _buffer(len(image))
        reader.read_into(0, memoryview(buffer))
        assert bytes(buffer) == image

    def test_fills_the_buffer_and_nothing_beside_it(self, reader: DiskReader, image: bytes) -> None:
        around = _buffer(4096)
        reader.read_into(1024, memoryview(around)[512:1536])
        assert bytes(around[512:1536]) == image[1024:2048]
        assert set(around[:512]) == set(around[1536:]) == {POISON}

    @pytest.mark.parametrize("before_end", [0, 512])
    def test_read_past_the_end_is_refused(
        self, reader: DiskReader, image: bytes, before_end: int
    ) -> None:
        with pytest.raises(ValueError, match="past the end"):
            reader.read_into(len(image) - before_end, memoryview(_buffer(1024)))

    def test_does_not_keep_the_buffer(self, reader: DiskReader, image: bytes) -> None:
        first, second = _buffer(1024), _buffer(1024)
        reader.read_into(0, memoryview(first))
        kept = bytes(first)
        first[:] = _buffer(1024)
        reader.read_into(2048, memoryview(second))
        assert set(first) == {POISON}
        assert (kept, bytes(second)) == (image[:1024], image[2048:3072])

    def test_read_many_answers_each_request_once(self, reader: DiskReader, image: bytes) -> None:
        step = min(65536, reader.capabilities.max_request_bytes)
        wanted = list(range(0, len(image), step))
        answered: list[int] = []
        for answer in reader.read_many(_requests(wanted, step, len(image))):
            end = answer.offset + len(answer.buffer)
            assert bytes(answer.buffer) == image[answer.offset : end]
            answered.append(answer.offset)
        assert sorted(answered) == wanted

    def test_read_many_yields_the_request_that_it_drew(self, reader: DiskReader, image: bytes) -> None:
        requests = [ReadRequest(offset, memoryview(_buffer(512))) for offset in (0, 1024, 4096)]
        answers = list(reader.read_many(requests))
        assert {id(answer) for answer in answers} == {id(request) for request in requests}
        assert all(
            bytes(answer.buffer) == image[answer.offset : answer.offset + 512] for answer in answers
        )

    def test_read_many_of_nothing_yields_nothing(self, reader: DiskReader) -> None:
        assert list(reader.read_many([])) == []

    def test_read_many_draws_no_further_than_its_room(self, reader: DiskReader, image: bytes) -> None:
        """The mover lends so many buffers and no more: a reader that draws ahead would hang it."""
        room = reader.capabilities.requests_in_flight
        out = 0

        def lend() -> Iterator[ReadRequest]:
            nonlocal out
            for offset in range(0, 512 * 3 * room, 512):
                out += 1
                assert out <= room, "the reader holds more requests than it said"
                yield ReadRequest(offset % len(image), memoryview(_buffer(512)))

        served = 0
        for answer in reader.read_many(lend()):
            assert bytes(answer.buffer) == image[answer.offset : answer.offset + 512]
            out -= 1
            served += 1
        assert served == 3 * room

    def test_read_many_past_the_end_is_refused(self, reader: DiskReader, image: bytes) -> None:
        with pytest.raises(ValueError, match="past the end"):
            list(reader.read_many([ReadRequest(len(image), memoryview(_buffer(512)))]))

    def test_read_many_left_early_can_be_closed(self, reader: DiskReader) -> None:
        requests = [ReadRequest(n * 512, memoryview(_buffer(512))) for n in range(8)]
        answers = reader.read_many(requests)
        next(answers)
        close = getattr(answers, "close", None)
        if close is not None:
            close()
        reader.close()

    def test_allocated_extents_ascend_and_do_not_touch(self, reader: DiskReader) -> None:
        end = -1
        for extent in reader.allocated_extents(0, reader.size_bytes):
            assert extent.length > 0
            assert extent.offset > end
            end = extent.end
        assert end <= reader.size_bytes

    def test_what_is_not_allocated_is_zero(self, reader: DiskReader, image: bytes) -> None:
        at = 0
        for extent in reader.allocated_extents(0, reader.size_bytes):
            assert not any(image[at : extent.offset])
            at = extent.end
        assert not any(image[at:])

    def test_allocated_extents_stay_in_the_range(self, reader: DiskReader, image: bytes) -> None:
        offset, length = 66048, len(image) // 1024 * 512
        at = offset
        for extent in reader.allocated_extents(offset, length):
            assert extent.offset >= at
            assert extent.end <= offset + length
            assert not any(image[at : extent.offset])
            at = extent.end
        assert not any(image[at : offset + length])

    def test_a_mode_that_cannot_tell_lists_everything(self, reader: DiskReader) -> None:
        if reader.capabilities.allocated_extents is Ability.NONE:
            extents = list(reader.allocated_extents(0, reader.size_bytes))
            assert [(extent.offset, extent.length) for extent in extents] == [(0, reader.size_bytes)]

    def test_close_may_be_called_twice(self, reader: DiskReader) -> None:
        reader.close()
        reader.close()

    def test_a_closed_reader_reads_nothing(self, reader: DiskReader) -> None:
        reader.close()
        buffer = _buffer(512)
        with pytest.raises(TransientTransportError):
            reader.read_into(0, memoryview(buffer))
        assert set(buffer) == {POISON}


class DiskWriterContract:
    """Fixtures to give: `size_bytes` of a new, empty disk (at least 1 MiB); `writer`, open on it;
    `content`, a function that reads back what the disk holds after the writer was closed.
    """

    @pytest.fixture
    def size_bytes(self) -> int:
        return 2 << 20

    @pytest.fixture
    def writer(self) -> Iterator[DiskWriter]:
        raise pytest.UsageError("give the fixture `writer`: a DiskWriter of an empty disk")

    @pytest.fixture
    def content(self) -> Callable[[], bytes]:
        raise pytest.UsageError("give the fixture `content`: what the disk holds now")

    def test_size_is_the_disk_size(self, writer: DiskWriter, size_bytes: int) -> None:
        assert writer.size_bytes == size_bytes

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 512), (512, 1024), (65024, 1024), (131584, 262144), (0, 1 << 20)]
    )
    def test_writes_there_and_nowhere_else(
        self,
        writer: DiskWriter,
        content: Callable[[], bytes],
        size_bytes: int,
        offset: int,
        length: int,
    ) -> None:
        data = bytes((offset + n) % 251 + 1 for n in range(512)) * (length // 512)
        writer.write_from(offset, memoryview(data))
        writer.flush()
        writer.close()
        assert content() == bytes(offset) + data + bytes(size_bytes - offset - length)

    def test_writes_more_than_one_request(
        self, writer: DiskWriter, content: Callable[[], bytes], size_bytes: int
    ) -> None:
        data = bytes(range(256)) * (size_bytes // 256)
        writer.write_from(0, memoryview(data))
        writer.flush()
        writer.close()
        assert content() == data

    def test_a_later_write_wins(self, writer: DiskWriter, content: Callable[[], bytes]) -> None:
        writer.write_from(1024, memoryview(b"a" * 1024))
        writer.write_from(1536, memoryview(b"b" * 1024))
        writer.write_from(1024, memoryview(b"c" * 512))
        writer.flush()
        writer.close()
        assert content()[1024:3072] == b"c" * 512 + b"b" * 1024 + bytes(512)

    def test_does_not_keep_the_buffer(self, writer: DiskWriter, content: Callable[[], bytes]) -> None:
        data = bytearray(b"x" * 1024)
        writer.write_from(0, memoryview(data))
        data[:] = b"y" * 1024
        writer.flush()
        writer.close()
        assert content()[:1024] == b"x" * 1024

    @pytest.mark.parametrize("before_end", [0, 512])
    def test_write_past_the_end_is_refused(
        self, writer: DiskWriter, size_bytes: int, before_end: int
    ) -> None:
        with pytest.raises(ValueError, match="past the end"):
            writer.write_from(size_bytes - before_end, memoryview(bytes(1024)))

    def test_new_ranges_read_as_the_writer_says(
        self, writer: DiskWriter, content: Callable[[], bytes]
    ) -> None:
        promised = writer.capabilities.reads_as_zero_when_new
        writer.write_from(0, memoryview(b"x" * 512))
        writer.flush()
        writer.close()
        assert not promised or not any(content()[512:])

    def test_close_may_be_called_twice(self, writer: DiskWriter) -> None:
        writer.close()
        writer.close()

    def test_a_closed_writer_writes_nothing(self, writer: DiskWriter) -> None:
        writer.close()
        with pytest.raises(TransientTransportError):
            writer.write_from(0, memoryview(bytes(512)))
