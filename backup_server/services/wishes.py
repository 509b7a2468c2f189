"""What a task asks of placement: the disk as proxies see it, with what its job allows. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from proxy_worker.contracts.messages import TaskKind
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, DiskFacts, Reach, judge_disk, reach_of

DEFAULT_MODES: Final = tuple(mode for mode in TransportMode if mode is not TransportMode.NBD)
"""What a job that names no modes may use. NBD carries disk content in the clear, so a job has to ask for
it by name."""

FILE_MODE: Final = TransportMode.NBDSSL
"""Stands in the order of a task that opens no disk of vSphere; nothing reads it."""

WITHOUT_VSPHERE: Final = frozenset({TaskKind.RESTORE_DISK_TO_FILE.value, TaskKind.COPY_DISK.value})
"""Kinds of tasks that open no disk of vSphere: any proxy will do, in no mode."""

_NOTHING_KNOWN: Final = "an earlier release made the task: nothing is known of its disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What tasks have in common that the same proxies can take in the same modes."""

    reach: Reach | None = None
    """None: no disk of vSphere is opened, or nothing is known of it."""
    proxies: tuple[str, ...] = ()
    """Allowed proxy ids, sorted; empty: any."""
    modes: tuple[TransportMode, ...] = ()
    """Modes that the job allows and the disk admits, best first; empty: no disk of vSphere is opened, or
    `impossible` says why."""
    left: tuple[tuple[str, str, str], ...] = ()
    """Proxy id, mode and reason of what failed in earlier attempts; sorted."""
    forbidden: tuple[tuple[str, str, str], ...] = ()
    """Proxy id, mode and reason of what traffic rules do not let cross a network in the clear; sorted."""
    failover: bool = True
    """Network modes may take over where another could read the disk."""
    near: tuple[str, ...] = ()
    """Ids of the proxies that are set to be near the task's repository; sorted."""
    directory: bool = False
    """A repository of the task is a directory, or it makes an image file. Only told where some proxy opens none."""
    impossible: str = ""
    """Why no mode at all will do; empty: some will."""

    @property
    def key(self) -> str:
        """Short, stable name of this value; the texts of what failed do not count."""
        plain = replace(self, left=tuple((proxy, mode, "") for proxy, mode, _ in self.left))
        return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRefused:
    """A mode that no proxy is asked for."""

    mode: TransportMode
    reason: str


def wish_of(
    kind: str,
    disk: DiskFacts | None,
    allowed_proxies: Iterable[str],
    allowed_modes: Iterable[str],
    *,
    left: Iterable[tuple[str, str, str]] = (),
    failover: bool = True,
    proxy_vms: frozenset[tuple[str, str]] = frozenset(),
    proxy_hosts: frozenset[tuple[str, str]] | None = None,
    networks: Collection[str] = (),
    near: Iterable[str] = (),
    forbidden: Iterable[tuple[str, str, str]] = (),
    directory: bool = False,
) -> Wish:
    """The wish of one task. Modes of a newer release that this one does not know are left out. `proxy_vms`,
    `proxy_hosts` and `networks`: as `reach_of`.
    """
    proxies, close = tuple(sorted(allowed_proxies)), tuple(sorted(near))
    if kind in WITHOUT_VSPHERE:
        return Wish(
            proxies=proxies, near=close, forbidden=tuple(sorted(forbidden)), directory=directory
        )
    refused = {one.mode: one.reason for one in refused_modes(kind, disk, allowed_modes)}
    modes = tuple(mode for mode in TransportMode if mode not in refused)
    known = {mode.value for mode in modes}
    return Wish(
        reach=None
        if disk is None
        else reach_of(disk, proxy_vms=proxy_vms, proxy_hosts=proxy_hosts, networks=networks),
        proxies=proxies,
        modes=modes,
        left=tuple(sorted(pair for pair in left if pair[1] in known)),
        forbidden=tuple(sorted(pair for pair in forbidden if pair[1] in known)),
        failover=failover,
        near=close,
        directory=directory,
        impossible="" if modes else _grouped(refused),
    )


def _grouped(refused: Mapping[TransportMode, str]) -> str:
    """Reasons with the modes for which they hold."""
    by_reason: dict[str, list[str]] = {}
    for mode, reason in refused.items():
        by_reason.setdefault(reason, []).append(mode.value)
    return "; ".join(f"{', '.join(modes)}: {reason}" for reason, modes in by_reason.items())


def refused_modes(
    kind: str, disk: DiskFacts | None, allowed_modes: Iterable[str]
) -> Sequence[ModeRefused]:
    """Modes in which the disk is not opened by any proxy, best first, with the reasons."""
    if kind in WITHOUT_VSPHERE:
        return ()
    asked = set(allowed_modes)
    by = "job" if kind == TaskKind.BACKUP_DISK.value else "restore"
    said = ((mode, _refusal(mode, disk, asked, by)) for mode in TransportMode)
    return [ModeRefused(mode=mode, reason=reason) for mode, reason in said if reason]


def _refusal(mode: TransportMode, disk: DiskFacts | None, asked: Collection[str], by: str) -> str:
    """`by`: what names modes: "job" or "restore"."""
    if asked and mode.value not in asked:
        return f"the {by} does not allow it"
    if not asked and mode not in DEFAULT_MODES:
        return f"it sends data in clear: used only where the {by} names it"
    if disk is None:
        return "" if mode in NETWORK_MODES else _NOTHING_KNOWN
    return judge_disk(mode, disk).text
