"""The fake vCenter is bound to the same declaration as the real client."""

from __future__ import annotations

import inspect

import pytest

from tests.fakes.vsphere import FakeVsphere
from transports.vsphere.api import Vsphere
from transports.vsphere.client import VsphereClient

CALLS = [
    name for name, _ in inspect.getmembers(Vsphere, inspect.isfunction) if not name.startswith("_")
]


@pytest.mark.parametrize("implementation", [FakeVsphere, VsphereClient])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_those_of_the_declaration(implementation: type[object], name: str) -> None:
    wanted = inspect.signature(getattr(Vsphere, name)).parameters
    found = inspect.signature(getattr(implementation, name)).parameters
    assert [(p.name, p.kind) for p in found.values()] == [(p.name, p.kind) for p in wanted.values()]
