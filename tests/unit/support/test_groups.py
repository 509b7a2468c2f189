"""Tests that must not run side by side are together, and all others go wherever there is room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.groups import GROUPS, group_of

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize("begin", [begin for begins in GROUPS.values() for begin in begins])
def test_a_group_names_tests_that_are_there(begin: str) -> None:
    file, _, name = begin.removesuffix("::").partition("::")
    assert not name or f"class {name}(" in (CHECKOUT / file).read_text()
    assert (CHECKOUT / file).is_file()


def test_only_those_are_together() -> None:
    lock, ceph = "tests/integration/storage/test_object_lock.py::", "TestCephGatewayWithLock::test_put"
    storage = "tests/contract/test_object_storage.py::"
    assert {group_of(f"{lock}test_one"), group_of(f"{storage}{ceph}")} == {"ceph"}
    assert group_of(f"{storage}TestS3::test_put") == f"{storage}TestS3::test_put"


def test_whoever_asks_for_the_cluster_is_in_its_group() -> None:
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        if re.search(r"\bceph(_cluster)?: [A-Z]", path.read_text()):
            file = str(path.relative_to(CHECKOUT))
            assert any(begin.startswith(f"{file}::") for begin in GROUPS["ceph"]), file


def test_pytest_asks_for_them(pytestconfig: pytest.Config) -> None:
    hooks = pytestconfig.pluginmanager.hook.pytest_xdist_make_scheduler.get_hookimpls()
    assert any(one.plugin_name.endswith("tests/conftest.py") for one in hooks)
