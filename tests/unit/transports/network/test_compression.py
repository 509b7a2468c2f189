from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nfc_host import fastlz_literals, skipz
from transports.network import fastlz
from transports.network import skipz as skipz_decoder
from transports.network.fastlz import CorruptBlockError

# Data as disks have them: runs of one byte, repeats, and noise.
disk_like = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(1, 600)),
        st.builds(
            lambda part, count: part * count, st.binary(min_size=2, max_size=9), st.integers(2, 60)
        ),
    ),
    min_size=1,
    max_size=12,
).map(b"".join)


def unpack(block: bytes, length: int) -> bytes:
    target = bytearray(b"\xaa" * length)
    fastlz.decompress(block, memoryview(target))
    return bytes(target)


def unskip(block: bytes, length: int) -> bytes:
    target = bytearray(b"\xaa" * length)
    skipz_decoder.decompress(block, memoryview(target))
    return bytes(target)


def fastlz_level_2(data: bytes) -> bytes:
    """An encoder that takes each long run and each far repeat, to reach the rarer instructions."""
    out = bytearray()
    at = 0
    while at < len(data):
        length, distance = _longest(data, at)
        if at and length >= 3:
            code, rest = length - 2, b""
            if code >= 7:
                extra, code = code - 7, 7
                rest = b"\xff" * (extra // 255) + bytes([extra % 255])
            back = distance - 1
            if back < 8191:
                out += bytes([code << 5 | back >> 8]) + rest + bytes([back & 255])
            else:
                out += bytes([code << 5 | 31]) + rest + b"\xff" + (back - 8191).to_bytes(2, "big")
            at += length
        else:
            out += bytes([0, data[at]])
            at += 1
    out[0] |= 1 << 5
    return bytes(out)


def _longest(data: bytes, at: int) -> tuple[int, int]:
    for distance in (1, 2, 3, 5, 8, 300, 8191, 8192, 9000):
        if distance <= at:
            length = 0
            while at + length < len(data) and data[at + length] == data[at + length - distance]:
                length += 1
            if length >= 3:
                return length, distance
    return 0, 0


def test_fastlz_level_1_example() -> None:
    block = bytes.fromhex("01 41 41 e0 fd 01 e0 ea 01 04 41 41 41 41 41")
    assert unpack(block, 512) == b"A" * 512


def test_fastlz_level_2_example() -> None:
    # 65536 x "A": two literals, one match of 9 + 256 x 255 + 240 bytes, five literals.
    block = bytes.fromhex("21 41 41 e0") + b"\xff" * 256 + bytes.fromhex("f0 01 04 41 41 41 41 41")
    assert len(block) == 268
    assert unpack(block, 65536) == b"A" * 65536


@given(disk_like)
def test_fastlz_level_1_round(data: bytes) -> None:
    assert unpack(fastlz_literals(data), len(data)) == data


@given(disk_like)
def test_fastlz_level_2_round(data: bytes) -> None:
    assert unpack(fastlz_level_2(data), len(data)) == data


def test_fastlz_far_distance() -> None:
    noise = bytes((n * 7919 >> 3) % 256 for n in range(9000))
    data = noise + noise[:500]
    assert len(fastlz_level_2(data)) < 2 * 9000 + 500
    assert unpack(fastlz_level_2(data), len(data)) == data


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x01A",  # a literal run that ends early
        b"\x00A\x20\x05",  # a match before the beginning
        b"\x00A\xe0",  # a match without its length
        b"\x60A",  # level 4
    ],
)
def test_fastlz_refuses_what_does_not_fit(block: bytes) -> None:
    with pytest.raises(CorruptBlockError):
        unpack(block, 512)


@pytest.mark.parametrize("length", [511, 513])
def test_fastlz_refuses_another_length(length: int) -> None:
    with pytest.raises(CorruptBlockError):
        unpack(fastlz_literals(b"A" * 512), length)


@given(st.binary(max_size=300), st.integers(1, 400))
def test_fastlz_never_leaves_its_buffer(block: bytes, length: int) -> None:
    around = bytearray(b"\x55" * (length + 2))
    with contextlib.suppress(CorruptBlockError):
        fastlz.decompress(block, memoryview(around)[1:-1])
    assert around[0] == around[-1] == 0x55


def test_skipz_examples() -> None:
    assert unskip(bytes.fromhex("00020000 00000000"), 512) == bytes(512)
    block = bytes.fromhex("00020000 00000000 89000000 03000000 414243")
    assert unskip(block, 512) == bytes(137) + b"ABC" + bytes(372)


@given(disk_like)
def test_skipz_round(data: bytes) -> None:
    assert unskip(skipz(data), len(data)) == data


@pytest.mark.parametrize(
    "block",
    [
        "0002",  # no head
        "00040000 00000000",  # another length
        "00020000 00000000 0000",  # a run that ends early
        "00020000 00000000 00000000 04000000 414243",  # data that end early
        "00020000 00000000 fe010000 03000000 414243",  # past the end
        "00020000 00000000 04000000 00000000",  # an empty run
        "00020000 00000000 04000000 01000000 41 03000000 01000000 41",  # not ascending
    ],
)
def test_skipz_refuses_what_does_not_fit(block: str) -> None:
    with pytest.raises(CorruptBlockError):
        unskip(bytes.fromhex(block), 512)
