"""Which tests run one after the other in one of pytest's processes, when several share the tests."""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling

GROUPS: Final = {
    # Each process that ran some of these would start a cluster of its own, which takes twenty seconds.
    "ceph": (
        "tests/contract/test_object_storage.py::TestCephGatewayWithLock::",
        "tests/integration/storage/test_object_lock.py::",
    ),
    # Each wants the usual ports.
    "demo": ("tests/e2e/test_demo.py::",),
}
"""Name: how the ids of its tests begin."""


def group_of(test: str) -> str:
    """Of a test by its id; of most its id alone."""
    return next((name for name, begins in GROUPS.items() if test.startswith(begins)), test)


class GroupScheduling(LoadScopeScheduling):
    """Instead of xdist's own groups, which pytest 9.2 takes apart without a word: they are written into ids of tests
    that cannot be changed any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
