"""Retention: which restore points stay. A **rule** is what the operator set: a base (the last n, or n
days) and the points that stand for weeks, months and years on top of it. A **plan** is what follows from
it for the points of one VM at one time, to be shown or carried out.

What is promised: the newest good point of a VM, what a session uses and what the storage keeps immutable
are in no plan's list of what goes.
"""

from pipeline.retention.gfs import GfsRule
from pipeline.retention.policy import (
    KeepDays,
    KeepLast,
    RetentionCandidate,
    RetentionDecision,
    RetentionPlan,
    RetentionRule,
    plan_retention,
)

__all__ = [
    "GfsRule",
    "KeepDays",
    "KeepLast",
    "RetentionCandidate",
    "RetentionDecision",
    "RetentionPlan",
    "RetentionRule",
    "plan_retention",
]
