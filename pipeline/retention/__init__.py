"""Retention: which restore points stay. A **rule** is what the operator set; a **plan** is what follows
from it for the points of one VM at one time, to be shown or carried out.
"""

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
    "KeepDays",
    "KeepLast",
    "RetentionCandidate",
    "RetentionDecision",
    "RetentionPlan",
    "RetentionRule",
    "plan_retention",
]
