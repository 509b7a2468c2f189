"""What was measured beside what is aimed at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.tools import (
    DATABASE_DISK,
    FULL,
    HUGE_DISK,
    INCREMENT,
    OS_DISK,
    PLAIN,
    RESTORE,
    RESTORE_FULL,
    UNCHANGED,
    Row,
)

BORG = "borg zstd,1"
BORG_FIXED = "borg fixed 1 MiB"
PEERS = ("restic", BORG, BORG_FIXED, "qemu-img zstd")
REPOSITORIES = ("restic", BORG, BORG_FIXED)
MIB = 1 << 20

Key = tuple[str, str, str]
"""Disk, tool, step."""


@dataclass(frozen=True, slots=True)
class Aim:
    name: str
    value: float
    aim: float
    holds: bool


def at_least(name: str, value: float, aim: float) -> Aim:
    return Aim(name, round(value, 3), aim, value >= aim)


def at_most(name: str, value: float, aim: float) -> Aim:
    return Aim(name, round(value, 3), aim, value <= aim)


def key_of(row: Row) -> Key:
    return row.disk, row.tool, row.step


def best_rows(rows: Iterable[Row]) -> dict[Key, Row]:
    """Of several rounds the one that was durable first; CPU, memory and bytes are its own."""
    best: dict[Key, Row] = {}
    for row in rows:
        known = best.get(key_of(row))
        if known is None or row.durable_s < known.durable_s:
            best[key_of(row)] = row
    return best


class Measurements:
    """The rows of a run, by what aims ask for."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        self._best = best_rows(rows)

    def has(self, disk: str, tool: str, step: str) -> bool:
        return (disk, tool, step) in self._best

    def best(self, tool: str, step: str, disk: str = OS_DISK) -> Row:
        return self._best[disk, tool, step]

    def least_cpu_s(self, tool: str, step: str) -> float:
        return min(row.cpu_s for row in self._rows if key_of(row) == (OS_DISK, tool, step))

    def peak_bytes(self, tools: Iterable[str] | None = None) -> int:
        """Of vmhaul in all its settings, or of some tools."""
        return max(
            row.peak_bytes
            for row in self._rows
            if (row.tool.startswith("vmhaul") if tools is None else row.tool in tools)
        )


def aims_of(rows: list[Row]) -> list[Aim]:
    """Aims whose peers are installed."""
    measured = Measurements(rows)
    return [
        *_of_full(measured),
        *_of_restore(measured),
        *_of_increment(measured),
        *_of_unchanged(measured),
        at_most("memory: peak of all steps and settings, MiB", measured.peak_bytes() / MIB, 256),
    ]


def _of_roofline(measured: Measurements, step: str) -> list[Aim]:
    row = measured.best("vmhaul", step)
    stored = measured.best("roofline, stored", step)
    bare, cpu_s = measured.best("roofline", step), measured.least_cpu_s("roofline", step)
    found = [
        at_least(
            f"{step}: wall speed, of the roofline that stores", stored.durable_s / row.durable_s, 0.85
        ),
        at_least(
            f"{step}: speed for each CPU second, of the roofline",
            cpu_s / measured.least_cpu_s("vmhaul", step),
            0.85,
        ),
    ]
    if step == FULL:
        found.insert(
            0, at_least(f"{step}: wall speed, of the roofline", bare.wall_s / row.durable_s, 0.85)
        )
    return found


def _of_full(measured: Measurements) -> list[Aim]:
    full = measured.best("vmhaul", FULL)
    found = _of_roofline(measured, FULL)
    if measured.has(OS_DISK, "zstd -T0 -1", FULL):
        share = measured.least_cpu_s("vmhaul", FULL) / measured.least_cpu_s("zstd -T0 -1", FULL)
        found.append(at_most("full: CPU, of zstd -T0 -1", share, 1.0))
    for peer, aim in (("restic", 4.0), (BORG, 4.0), (BORG_FIXED, 2.0)):
        if measured.has(OS_DISK, peer, FULL):
            speed = measured.best(peer, FULL).durable_s / full.durable_s
            found.append(at_least(f"full: speed, of {peer}", speed, aim))
    peers = [peer for peer in REPOSITORIES if measured.has(OS_DISK, peer, FULL)]
    if peers:
        smallest = min(measured.best(peer, FULL).added_bytes for peer in peers)
        found.append(
            at_most("full: stored bytes, of the best repository", full.added_bytes / smallest, 1.05)
        )
    return found


def _of_restore(measured: Measurements) -> list[Aim]:
    found = _of_roofline(measured, RESTORE_FULL)
    restore = measured.best("vmhaul", RESTORE)
    peers = [peer for peer in PEERS if measured.has(OS_DISK, peer, RESTORE)]
    if peers:
        fastest = min(measured.best(peer, RESTORE).durable_s for peer in peers)
        found.append(at_least("restore: speed, of the best peer", fastest / restore.durable_s, 1.5))
    plain = measured.best(PLAIN, RESTORE)
    found.append(
        at_least(
            "restore: speed with patches, of that with whole blocks",
            plain.durable_s / restore.durable_s,
            0.85,
        )
    )
    return found


def _of_increment(measured: Measurements) -> list[Aim]:
    found = []
    for disk in (OS_DISK, DATABASE_DISK):
        if measured.has(disk, PLAIN, INCREMENT):
            share = (
                measured.best("vmhaul", INCREMENT, disk).added_bytes
                / measured.best(PLAIN, INCREMENT, disk).added_bytes
            )
            name = f"increment: stored bytes on the {disk} day, of whole 1 MiB blocks"
            found.append(at_most(name, share, 0.75))
    return found


def _of_unchanged(measured: Measurements) -> list[Aim]:
    found = []
    for disk in (OS_DISK, HUGE_DISK):
        if measured.has(disk, "vmhaul", UNCHANGED):
            row = measured.best("vmhaul", UNCHANGED, disk)
            found += [
                at_most(f"unchanged, {disk} disk: guest data read, bytes", row.read_bytes, 0),
                at_most(f"unchanged, {disk} disk: written, bytes", row.added_bytes, 64 << 10),
                at_most(f"unchanged, {disk} disk: wall, s", row.wall_s, 2.0),
            ]
    return found
