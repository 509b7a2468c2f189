"""The rules asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transports.base import TransportMode
from transports.rules.disks import DISK_RULES
from transports.rules.facts import DiskFacts, ProxyMachine, Reach, reach_of
from transports.rules.proxies import PROXY_RULES

_DISK = {mode: tuple(rule for rule in DISK_RULES if mode in rule.modes) for mode in TransportMode}
_PROXY = {mode: tuple(rule for rule in PROXY_RULES if mode in rule.modes) for mode in TransportMode}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    rule: str
    """Id of the rule that speaks."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    mode: TransportMode
    reasons: tuple[Reason, ...] = ()
    """Why it is not usable; empty: it is."""
    remarks: tuple[Reason, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.reasons

    @property
    def text(self) -> str:
        """The reasons, for people; empty when it is usable."""
        return "; ".join(reason.text for reason in self.reasons)


def judge(mode: TransportMode, disk: DiskFacts, proxy: ProxyMachine) -> Verdict:
    """Whether the proxy reaches the disk in the mode, by every rule there is."""
    alone = judge_disk(mode, disk)
    itself = frozenset((vm.vcenter_id, vm.moref) for vm in proxy.vms)
    paired = judge_proxy(mode, reach_of(disk, proxy_vms=itself), proxy)
    return Verdict(
        mode=mode,
        reasons=alone.reasons + paired.reasons,
        remarks=alone.remarks + paired.remarks,
    )


def judge_disk(mode: TransportMode, disk: DiskFacts) -> Verdict:
    """By the rules about the disk alone."""
    said = [
        (Reason(rule=rule.id, text=text), rule.remark)
        for rule in _DISK[mode]
        if rule.use.covers(write=disk.write) and (text := rule.check(disk))
    ]
    return _verdict(mode, iter(said))


def judge_proxy(mode: TransportMode, reach: Reach, proxy: ProxyMachine) -> Verdict:
    """By the rules about a disk and a proxy."""
    said = [
        (Reason(rule=rule.id, text=text), rule.remark)
        for rule in _PROXY[mode]
        if rule.use.covers(write=reach.write) and (text := rule.check(reach, proxy, mode))
    ]
    return _verdict(mode, iter(said))


def what_matters(mode: TransportMode, reach: Reach) -> Reach | None:
    """What of it the rules about a disk and a proxy look at in that mode; None: nothing. Reaches that are alike in
    this are judged alike.
    """
    if not _PROXY[mode]:
        return None
    if mode is TransportMode.HOTADD:
        return replace(
            reach,
            networks=(),
            data_hosts=(),
            on_nvme=False,
            snapshot_proxies=None,
            snapshot_read_by=None,
        )
    return replace(
        reach,
        networks=(),
        data_hosts=(),
        host_moref="",
        vm_moref="",
        datacenter="",
        larger_than_bytes=0,
        encrypted=False,
    )


def _verdict(mode: TransportMode, said: Iterator[tuple[Reason, bool]]) -> Verdict:
    every = list(said)
    return Verdict(
        mode=mode,
        reasons=tuple(reason for reason, remark in every if not remark),
        remarks=tuple(reason for reason, remark in every if remark),
    )
