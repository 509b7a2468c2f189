"""Which transport modes reach a disk, and why not the others. Pure: values in, verdicts out.

Words: **facts** are what vSphere and a proxy's machine say; a **rule** is one requirement or limitation of
one or more modes, as one small function in one table; an **obstacle** is why a rule refuses; a **remark**
is worth knowing and refuses nothing; a **reach** is what a disk has in common with others that exactly the
same proxies can read in exactly the same modes.

Rules about the disk alone are asked once, when its task is queued; those about a pair of disk and proxy by
the server's placement for each candidate. What a job or an administrator allows, and what is busy, is no
rule: `backup_server.services.placement` knows that.
"""

from __future__ import annotations

from transports.rules.disks import DISK_RULES
from transports.rules.facts import (
    CONNECTED_MODES,
    NETWORK_MODES,
    Connected,
    DiskFacts,
    ProxyMachine,
    ProxyVm,
    Reach,
    StorageSnapshotFacts,
    reach_of,
    same_uuid,
)
from transports.rules.judging import Reason, Verdict, judge, judge_disk, judge_proxy, what_matters
from transports.rules.proxies import PROXY_RULES
from transports.rules.rule import DiskRule, ProxyRule, Rule, Use

RULES: tuple[Rule, ...] = (*DISK_RULES, *PROXY_RULES)
"""All of them, as docs/reference/transport-rules.md lists them."""

__all__ = [
    "CONNECTED_MODES",
    "DISK_RULES",
    "NETWORK_MODES",
    "PROXY_RULES",
    "RULES",
    "Connected",
    "DiskFacts",
    "DiskRule",
    "ProxyMachine",
    "ProxyRule",
    "ProxyVm",
    "Reach",
    "Reason",
    "Rule",
    "StorageSnapshotFacts",
    "Use",
    "Verdict",
    "judge",
    "judge_disk",
    "judge_proxy",
    "reach_of",
    "same_uuid",
    "what_matters",
]
