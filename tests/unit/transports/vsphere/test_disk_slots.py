"""Slots for attached disks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.errors import TransportUnavailableError
from transports.vsphere.disk_slots import (
    MAX_CONTROLLERS,
    OWN_UNIT,
    PARAVIRTUAL,
    disks_of_controller,
    free_slots,
    free_units,
    plan_slots,
)
from transports.vsphere.model import AttachableVm, ScsiController


def controller(bus: int, *taken: int, kind: str = PARAVIRTUAL, max_disks: int = 15) -> ScsiController:
    return ScsiController(
        key=1000 + bus, bus=bus, kind=kind, taken=frozenset(taken), max_disks=max_disks
    )


def vm(*controllers: ScsiController, new: int = 15) -> AttachableVm:
    return AttachableVm(
        moref="vm-1",
        name="proxy1",
        instance_uuid="",
        bios_uuid="",
        hardware_version=19,
        controllers=controllers,
        disks=(),
        new_controller_disks=new,
    )


@pytest.mark.parametrize(
    ("kind", "version", "told", "expected"),
    [
        (PARAVIRTUAL, 13, None, 15),
        (PARAVIRTUAL, 14, None, 63),
        (PARAVIRTUAL, 19, 64, 63),
        (PARAVIRTUAL, 19, 15, 15),
        ("VirtualLsiLogicController", 19, None, 15),
        ("VirtualLsiLogicController", 19, 15, 15),
    ],
)
def test_how_many_disks_a_controller_takes(
    kind: str, version: int, told: int | None, expected: int
) -> None:
    assert disks_of_controller(kind, version, told) == expected


def test_units_of_a_controller() -> None:
    assert free_units(controller(0, 0, 1)) == [2, 3, 4, 5, 6, *range(8, 16)]
    wide = free_units(controller(0, max_disks=63))
    assert wide == [n for n in range(64) if n != OWN_UNIT]


def test_the_paravirtual_controller_comes_first() -> None:
    target = vm(controller(0, kind="VirtualLsiLogicController"), controller(1))
    [slot] = plan_slots(target, 1).slots
    assert (slot.controller.bus, slot.unit) == (1, 0)


def test_unit_numbers_that_no_disk_has_come_first() -> None:
    plan = plan_slots(vm(controller(0, 0, 1, 2), controller(1)), 3)
    assert [(slot.controller.bus, slot.unit) for slot in plan.slots] == [(0, 3), (0, 4), (0, 5)]


def test_a_controller_is_added_when_all_are_full() -> None:
    full = controller(0, *(n for n in range(16) if n != OWN_UNIT))
    plan = plan_slots(vm(full), 1)
    [added] = plan.new_controllers
    assert (added.bus, added.kind, added.key < 0) == (1, PARAVIRTUAL, True)
    [slot] = plan.slots
    assert (slot.controller.key, slot.unit) == (added.key, 0)


def test_no_room_is_said_in_numbers() -> None:
    full = [controller(bus, *(n for n in range(16) if n != OWN_UNIT)) for bus in range(4)]
    with pytest.raises(TransportUnavailableError, match="VM proxy1 has 0 free SCSI slots and 1 are"):
        plan_slots(vm(*full), 1)


@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 15).filter(lambda n: n != OWN_UNIT)), st.sampled_from([15, 63])
        ),
        max_size=MAX_CONTROLLERS,
    ),
    st.permutations(range(MAX_CONTROLLERS)),
    st.integers(1, 80),
)
def test_every_disk_gets_a_free_slot_of_its_own(
    present: list[tuple[set[int], int]], buses: list[int], count: int
) -> None:
    controllers = [
        controller(bus, *taken, max_disks=limit)
        for bus, (taken, limit) in zip(buses, present, strict=False)
    ]
    target = vm(*controllers)
    if free_slots(target) < count:
        with pytest.raises(TransportUnavailableError):
            plan_slots(target, count)
        return
    plan = plan_slots(target, count)
    places = {(slot.controller.bus, slot.unit) for slot in plan.slots}
    assert len(places) == len(plan.slots) == count
    assert not any(slot.unit in slot.controller.taken or slot.unit == OWN_UNIT for slot in plan.slots)
    all_of_them = [*controllers, *plan.new_controllers]
    assert len({one.bus for one in all_of_them}) == len(all_of_them) <= MAX_CONTROLLERS
    assert len({one.key for one in all_of_them}) == len(all_of_them)
    for one in all_of_them:
        new = sum(slot.controller.key == one.key for slot in plan.slots)
        assert len(one.taken) + new <= max(one.max_disks, len(one.taken))
