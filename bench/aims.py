"""What was measured beside what is aimed at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.tools import FULL, INCREMENT, RESTORE, UNCHANGED, Row

BORG = "borg zstd,1"
BORG_FIXED = "borg fixed 1 MiB"
PEERS = ("restic", BORG, BORG_FIXED, "qemu-img zstd")
REPOSITORIES = ("restic", BORG, BORG_FIXED)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Aim:
    name: str
    value: float
    aim: float
    holds: bool


def best_rows(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Of several rounds the one that was durable first; CPU, memory and bytes are its own."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = best.get((row.tool, row.step))
        if known is None or row.durable_s < known.durable_s:
            best[row.tool, row.step] = row
    return best


def least_cpu_s(rows: Iterable[Row], tool: str, step: str) -> float:
    return min(row.cpu_s for row in rows if (row.tool, row.step) == (tool, step))


def aims_of(rows: list[Row]) -> list[Aim]:
    """Aims whose peers are installed."""
    best = best_rows(rows)
    full, restore = best["vmhaul", FULL], best["vmhaul", RESTORE]
    found: list[Aim] = []

    def at_least(name: str, value: float, aim: float) -> None:
        found.append(Aim(name, round(value, 3), aim, value >= aim))

    def at_most(name: str, value: float, aim: float) -> None:
        found.append(Aim(name, round(value, 3), aim, value <= aim))

    for step, row in ((FULL, full), (RESTORE, restore)):
        cpu_s = least_cpu_s(rows, "vmhaul", step)
        bare, stored = best["roofline", step], best["roofline, stored", step]
        at_least(f"{step}: wall speed, of the roofline", bare.wall_s / row.durable_s, 0.85)
        at_least(
            f"{step}: wall speed, of the roofline that stores", stored.durable_s / row.durable_s, 0.85
        )
        bare_cpu_s = least_cpu_s(rows, "roofline", step)
        at_least(f"{step}: speed for each CPU second, of the roofline", bare_cpu_s / cpu_s, 0.85)
    if ("zstd -T0 -1", FULL) in best:
        zstd_cpu_s = least_cpu_s(rows, "zstd -T0 -1", FULL)
        at_most("full: CPU, of zstd -T0 -1", least_cpu_s(rows, "vmhaul", FULL) / zstd_cpu_s, 1.0)
    for peer, aim in (("restic", 4.0), (BORG, 4.0), (BORG_FIXED, 2.0)):
        if (peer, FULL) in best:
            at_least(f"full: speed, of {peer}", best[peer, FULL].durable_s / full.durable_s, aim)
    smallest = [best[peer, FULL].added_bytes for peer in REPOSITORIES if (peer, FULL) in best]
    if smallest:
        at_most("full: stored bytes, of the best repository", full.added_bytes / min(smallest), 1.05)
    fastest = [best[peer, RESTORE].durable_s for peer in PEERS if (peer, RESTORE) in best]
    if fastest:
        at_least("restore: speed, of the best peer", min(fastest) / restore.durable_s, 1.5)
    unchanged = best["vmhaul", UNCHANGED]
    at_most("unchanged: guest data read, bytes", unchanged.read_bytes, 0)
    at_most("unchanged: written, bytes", unchanged.added_bytes, 64 << 10)
    at_most("unchanged: wall, s", unchanged.wall_s, 2.0)
    peaks = [best["vmhaul", step].peak_bytes for step in (FULL, UNCHANGED, INCREMENT, RESTORE)]
    at_most("memory: peak of all steps, MiB", max(peaks) / MIB, 256)
    return found
