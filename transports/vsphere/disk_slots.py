"""Where disks are attached to a VM: arithmetic on its SCSI controllers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from transports.errors import TransportUnavailableError
from transports.vsphere.model import AttachableVm, ScsiController

PARAVIRTUAL: Final = "ParaVirtualSCSIController"
MAX_CONTROLLERS: Final = 4
OWN_UNIT: Final = 7
"""A controller sits on its own bus, at this unit."""
_NARROW_UNITS: Final = 16
_WIDE_UNITS: Final = 64
"""Of a paravirtual controller from hardware version 14 on. 65 are said to exist; the last is left alone."""
_WIDE_FROM_VERSION: Final = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    controller: ScsiController
    unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    slots: tuple[Slot, ...]
    new_controllers: tuple[ScsiController, ...]
    """To be added with the disks. Their keys are negative, as those of new devices are."""


def disks_of_controller(kind: str, hardware_version: int, told: int | None) -> int:
    """How many disks a controller takes: what the host says, else what is documented."""
    if told:
        return min(told, _WIDE_UNITS - 1)
    if kind == PARAVIRTUAL and hardware_version >= _WIDE_FROM_VERSION:
        return _WIDE_UNITS - 1
    return _NARROW_UNITS - 1


def free_units(controller: ScsiController) -> list[int]:
    """Ascending."""
    width = _WIDE_UNITS if controller.max_disks >= _NARROW_UNITS else _NARROW_UNITS
    free = [n for n in range(width) if n != OWN_UNIT and n not in controller.taken]
    return free[: max(0, controller.max_disks - len(controller.taken))]


def free_slots(vm: AttachableVm) -> int:
    """How many disks fit, controllers that may be added included."""
    more = MAX_CONTROLLERS - len(vm.controllers)
    present = sum(len(free_units(controller)) for controller in vm.controllers)
    return present + max(0, more) * vm.new_controller_disks


def plan_slots(vm: AttachableVm, count: int) -> SlotPlan:
    """Slots for so many disks. TransportUnavailableError when they do not fit.

    Unit numbers that no other disk of the VM has come first: a guest that is not told what its disks are
    called can then still tell them apart.
    """
    room = free_slots(vm)
    if room < count:
        raise TransportUnavailableError(
            f"VM {vm.name} has {room} free SCSI slots and {count} are needed; give the proxy fewer task "
            "slots, or use another proxy"
        )
    controllers = list(vm.controllers)
    added: list[ScsiController] = []
    slots: list[Slot] = []
    while len(slots) < count:
        found = _best(controllers, count - len(slots))
        if not found:
            added.append(_new_controller(vm, controllers))
            controllers.append(added[-1])
            continue
        slots += found
        controllers = [_with(controller, found) for controller in controllers]
    by_key = {controller.key: controller for controller in (*vm.controllers, *added)}
    return SlotPlan(
        slots=tuple(Slot(controller=by_key[s.controller.key], unit=s.unit) for s in slots),
        new_controllers=tuple(added),
    )


def _best(controllers: list[ScsiController], count: int) -> list[Slot]:
    used = Counter(unit for controller in controllers for unit in controller.taken)
    found: list[Slot] = []
    # Each unit number once in a round: two disks of one round must not share it either.
    for slot in sorted(_free(controllers), key=lambda slot: (used[slot.unit], *_liking(slot))):
        if len(found) == count:
            break
        if slot.unit not in {other.unit for other in found}:
            found.append(slot)
    return found


def _free(controllers: list[ScsiController]) -> Iterator[Slot]:
    for controller in controllers:
        for unit in free_units(controller):
            yield Slot(controller=controller, unit=unit)


def _liking(slot: Slot) -> tuple[bool, int, int]:
    return slot.controller.kind != PARAVIRTUAL, slot.controller.bus, slot.unit


def _with(controller: ScsiController, slots: list[Slot]) -> ScsiController:
    units = {slot.unit for slot in slots if slot.controller.key == controller.key}
    return replace(controller, taken=controller.taken | units)


def _new_controller(vm: AttachableVm, controllers: list[ScsiController]) -> ScsiController:
    buses = {controller.bus for controller in controllers}
    bus = next(bus for bus in range(MAX_CONTROLLERS) if bus not in buses)
    return ScsiController(
        key=-(1000 + bus),
        bus=bus,
        kind=PARAVIRTUAL,
        taken=frozenset(),
        max_disks=vm.new_controller_disks,
    )
