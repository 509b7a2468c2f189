"""Change tracking on trial: a few blocks that it calls unchanged are read all the same and compared with
the map that the increment builds on. One that differs ends the trust.

docs/explanation/failover-and-trust.md tells what follows from it.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.continuing import Continuation
from pipeline.model import ReadMode
from pipeline.planning import BackupPlan, BlockRanges
from pipeline.repository import Repository
from pipeline.repository.blobs import block_id
from pipeline.repository.format import ZERO_ID
from pipeline.repository.maps import MapLookup
from transports.base import DiskReader

CANDIDATES: Final = 2
"""Drawn for each block of the sample, so that those with data can be preferred: an empty disk's zeros tell
little."""
SHARE_WITH_DATA: Final = 0.75
"""Of the sample, at most; the rest is as it comes: a change that was missed may be the first of its block."""
_TRIES: Final = 50
_NAMED_OFFSETS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a sample showed."""

    sampled: int
    """Blocks that were read and compared."""
    differing: tuple[int, ...]
    """Offsets in bytes of those that had changed, ascending."""

    def for_people(self) -> str:
        """Where tracking was wrong; empty when it was nowhere."""
        if not self.differing:
            return ""
        named = ", ".join(str(offset) for offset in self.differing[:_NAMED_OFFSETS])
        more = len(self.differing) - _NAMED_OFFSETS
        tail = f" and {more} more" if more > 0 else ""
        return (
            f"{len(self.differing)} of {self.sampled} blocks that change tracking called unchanged had "
            f"changed, at byte {named}{tail}"
        )


NO_TRIAL: Final = Trial(sampled=0, differing=())


def draw_blocks(*, seed: str, block_count: int, changed: BlockRanges, wanted: int) -> list[int]:
    """Up to `wanted` blocks that are not in `changed`, ascending; the same for the same arguments. Pure.

    Where hardly anything is unchanged it may be fewer.
    """
    unchanged = block_count - changed.block_count
    if unchanged <= wanted:
        everything = BlockRanges([(0, block_count)])
        return [b for first, end in everything.difference(changed) for b in range(first, end)]
    runs = list(changed)
    begins = [first for first, _ in runs]
    rng = random.Random(seed)  # noqa: S311 - nobody gains by guessing it
    drawn: set[int] = set()
    for _ in range(wanted * _TRIES):
        if len(drawn) == wanted:
            break
        block = rng.randrange(block_count)
        at = bisect.bisect_right(begins, block) - 1
        if at < 0 or block >= runs[at][1]:
            drawn.add(block)
    return sorted(drawn)


def choose(candidates: dict[int, bytes], wanted: int, *, seed: str) -> dict[int, bytes]:
    """Of the candidates (block -> id in the map) those to read, mostly with data. Pure."""
    rng = random.Random(f"{seed} choice")  # noqa: S311 - as above
    order = sorted(candidates)
    rng.shuffle(order)
    with_data = [block for block in order if candidates[block] != ZERO_ID]
    chosen = with_data[: int(wanted * SHARE_WITH_DATA)]
    rest = [block for block in order if block not in set(chosen)]
    chosen += rest[: wanted - len(chosen)]
    return {block: candidates[block] for block in sorted(chosen)}


def try_tracking(
    *, repository: Repository, reader: DiskReader, plan: BackupPlan, wanted: int, seed: str
) -> Trial:
    """Read a sample of what an increment leaves out. Cost: `wanted` blocks of the disk, and some nodes of
    the map.

    `seed`: the task's id, so that another attempt at the same disk asks for the same blocks. Raises
    IntegrityError when the map is damaged, and what the reader raises.
    """
    if plan.read_mode is not ReadMode.INCREMENT or wanted <= 0:
        return NO_TRIAL
    touched = BlockRanges([*plan.read, *plan.zero])
    drawn = draw_blocks(
        seed=seed, block_count=plan.block_count, changed=touched, wanted=wanted * CANDIDATES
    )
    lookup = MapLookup(repository.reader().load_node, bytes.fromhex(plan.base_root), plan.block_count)
    return _compare(repository, reader, plan, lookup, drawn, wanted=wanted, seed=seed)


def try_kept(
    *, repository: Repository, reader: DiskReader, continued: Continuation, wanted: int, seed: str
) -> Trial:
    """The same for blocks that earlier work had read and that are to be taken over unread."""
    if wanted <= 0:
        return NO_TRIAL
    plan = continued.plan
    others = BlockRanges([(0, plan.block_count)]).difference(continued.kept)
    drawn = draw_blocks(
        seed=seed, block_count=plan.block_count, changed=others, wanted=wanted * CANDIDATES
    )
    stored = repository.reader()

    def load_node(blob_id: bytes) -> bytes:
        content = continued.nodes.get(blob_id)
        return stored.load_node(blob_id) if content is None else content

    lookup = MapLookup(load_node, bytes.fromhex(plan.base_root), plan.block_count)
    return _compare(repository, reader, plan, lookup, drawn, wanted=wanted, seed=seed)


def _compare(
    repository: Repository,
    reader: DiskReader,
    plan: BackupPlan,
    lookup: MapLookup,
    drawn: Sequence[int],
    *,
    wanted: int,
    seed: str,
) -> Trial:
    sample = choose({block: lookup.find(block) for block in drawn}, wanted, seed=seed)
    size = plan.block_size_bytes
    buffer = bytearray(size)
    differing = []
    for block, expected in sample.items():
        length = min(size, plan.capacity_bytes - block * size)
        view = memoryview(buffer)[:length]
        _read(reader, block * size, view)
        content = bytes(view)
        found = block_id(repository.keyring, content) if _has_data(content) else ZERO_ID
        if found != expected:
            differing.append(block * size)
    return Trial(sampled=len(sample), differing=tuple(differing))


def _has_data(content: bytes) -> bool:
    return content != bytes(len(content))


def _read(reader: DiskReader, offset: int, view: memoryview) -> None:
    step = reader.capabilities.max_request_bytes
    for at in range(0, len(view), step):
        reader.read_into(offset + at, view[at : at + step])
