"""What is sent to vCenter when disks are attached and taken away: never a file operation, never another's disk."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.vsphere import attachments
from transports.vsphere.model import DiskToAttach

_d: Any = vim.vm.device
READ, WRITE = "independent_nonpersistent", "independent_persistent"
PATHS = [f"[ds1] {name}/{name}.vmdk" for name in ("a", "b", "c")]


def disk(
    key: int, path: str, mode: str = READ, parent: str = "", *, controller: int = 1000, unit: int = 1
) -> Any:
    backing = _d.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode, uuid="6000C29a")
    if parent:
        backing.parent = _d.VirtualDisk.FlatVer2BackingInfo(fileName=parent, diskMode=mode)
    return _d.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=1024,
        capacityInBytes=1 << 20,
        backing=backing,
        deviceInfo=vim.Description(label=f"Hard disk {key}", summary=""),
    )


class FakeConnection:
    """A VM's devices; a reconfiguration is written down and carried out."""

    def __init__(self, *devices: Any) -> None:
        self.devices = [_d.ParaVirtualSCSIController(key=1000, busNumber=0), *devices]
        self.sent: list[Any] = []
        self.running: list[tuple[str, str]] = []
        self.stays = False
        self.version = "7"
        self.versions: list[str | None] = []
        self.gone = False

    def vm(self, moref: str) -> Any:
        return self

    def object(self, kind: Any, moref: str) -> Any:
        raise vmodl.fault.NotSupported

    @property
    def _moId(self) -> str:  # noqa: N802 - pyVmomi's name
        return "vm-1"

    def ReconfigVM_Task(self, spec: Any) -> str:  # noqa: N802 - vSphere's name
        self.versions.append(spec.changeVersion)
        if spec.changeVersion not in (None, self.version):
            raise vim.fault.ConcurrentAccess
        self.sent += spec.deviceChange
        for change in spec.deviceChange:
            if change.operation == "remove" and not self.stays:
                self.devices.remove(change.device)
            elif change.operation == "add":
                self.devices.append(change.device)
        return "task"

    def read(self, _connection: Any, _obj: Any, *names: str) -> dict[str, Any]:
        if self.gone:
            raise vmodl.fault.ManagedObjectNotFound
        values = {
            "config.hardware.device": list(self.devices),
            "recentTask": self.running,
            "config.version": "vmx-19",
            "config.changeVersion": self.version,
            "name": "proxy1",
        }
        return {name: values[name] for name in names if name in values}


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    return wired(monkeypatch, FakeConnection())


def wired(monkeypatch: pytest.MonkeyPatch, connection: FakeConnection) -> FakeConnection:
    monkeypatch.setattr(attachments, "read", connection.read)
    monkeypatch.setattr(attachments.tasks, "wait", lambda *_, **__: None)
    monkeypatch.setattr(
        attachments,
        "read_objects",
        lambda *_: [
            (None, {"info.state": state, "info.descriptionId": kind})
            for state, kind in connection.running
        ],
    )
    return connection


MODES = st.sampled_from([READ, WRITE, "persistent"])
DISKS = st.lists(
    st.tuples(
        st.sampled_from([*PATHS, "[ds1] p/p.vmdk", "[ds1] p/REDO_1"]),
        MODES,
        st.sampled_from(["", *PATHS]),
    ),
    max_size=6,
)
WANTED = st.lists(st.builds(DiskToAttach, path=st.sampled_from(PATHS), write=st.booleans()), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(present=DISKS, wanted=WANTED)
def test_taking_away_touches_no_file_and_no_other_disk(
    monkeypatch: pytest.MonkeyPatch, present: list[tuple[str, str, str]], wanted: list[DiskToAttach]
) -> None:
    disks = [disk(2000 + n, *one, unit=n) for n, one in enumerate(present)]
    connection = wired(monkeypatch, FakeConnection(*disks))
    attachments.detach_disks(connection, "vm-1", wanted)  # type: ignore[arg-type]
    ours = {(one.path, WRITE if one.write else READ) for one in wanted}
    for change in connection.sent:
        assert change.operation == "remove"
        assert change.fileOperation is None
        backing = change.device.backing
        names = {backing.fileName}
        if "REDO_" in backing.fileName and backing.diskMode == READ and backing.parent:
            names = {backing.parent.fileName}
        assert {(name, backing.diskMode) for name in names} <= ours
    assert len(connection.devices) == 1 + len(disks) - len(connection.sent)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=WANTED)
def test_attaching_makes_no_file(monkeypatch: pytest.MonkeyPatch, wanted: list[DiskToAttach]) -> None:
    connection = wired(monkeypatch, FakeConnection(disk(2000, "[ds1] p/p.vmdk", "persistent", unit=0)))
    one_way = list({one.path: one for one in wanted}.values())
    attached = attachments.attach_disks(connection, "vm-1", one_way)  # type: ignore[arg-type]
    assert [one.path for one in attached] == [one.path for one in one_way]
    assert len({(one.controller_bus, one.unit) for one in attached}) == len(one_way)
    for change in connection.sent:
        assert (change.operation, change.fileOperation) == ("add", None)
    modes = {c.device.backing.fileName: c.device.backing.diskMode for c in connection.sent}
    assert modes == {one.path: WRITE if one.write else READ for one in one_way}


@pytest.mark.parametrize("operation", ["destroy", "create", "replace"])
def test_a_file_operation_is_never_sent(connection: FakeConnection, operation: str) -> None:
    change = vim.vm.device.VirtualDeviceSpec(
        operation="remove", fileOperation=operation, device=disk(2001, PATHS[0])
    )
    with pytest.raises(PermanentTransportError, match="never sent; nothing was changed"):
        attachments._reconfigure(connection, connection, [change], "")  # type: ignore[arg-type]
    assert connection.sent == []


def test_the_same_file_in_the_same_mode_at_another_place_is_somebody_else_s(
    connection: FakeConnection,
) -> None:
    connection.devices.append(disk(2001, PATHS[0], unit=3))
    ours = DiskToAttach(path=PATHS[0], write=False, places=((0, 4), (1, 3)))
    attachments.detach_disks(connection, "vm-1", [ours])  # type: ignore[arg-type]
    with pytest.raises(TransportUnavailableError, match="not by vmhaul"):
        attachments.attach_disks(connection, "vm-1", [ours])  # type: ignore[arg-type]
    assert connection.sent == []
    there = DiskToAttach(path=PATHS[0], write=False, places=((0, 3),))
    attachments.detach_disks(connection, "vm-1", [there])  # type: ignore[arg-type]
    assert [change.device.key for change in connection.sent] == [2001]


def test_the_redo_log_of_somebody_else_s_disk_is_in_the_way(connection: FakeConnection) -> None:
    connection.devices.append(disk(2001, "[ds1] p/REDO_1", READ, PATHS[0], unit=3))
    ours = DiskToAttach(path=PATHS[0], write=False, places=())
    with pytest.raises(TransportUnavailableError, match="not by vmhaul"):
        attachments.attach_disks(connection, "vm-1", [ours])  # type: ignore[arg-type]


def test_places_are_told_before_anything_changes(connection: FakeConnection) -> None:
    told: list[Any] = []
    wanted = [DiskToAttach(path=path, write=False, places=()) for path in PATHS]

    def announce(places: Any) -> None:
        assert connection.sent == []
        told.extend(places)

    found = attachments.attach_disks(connection, "vm-1", wanted, announce)  # type: ignore[arg-type]
    assert [(one.controller_bus, one.unit) for one in found] == told
    assert len(set(told)) == 3
    known = [DiskToAttach(path=p, write=False, places=(at,)) for p, at in zip(PATHS, told, strict=True)]
    sent = len(connection.sent)
    again = attachments.attach_disks(connection, "vm-1", known)  # type: ignore[arg-type]
    assert again == found
    assert len(connection.sent) == sent


def test_nothing_is_changed_of_a_vm_that_somebody_changed_meanwhile(connection: FakeConnection) -> None:
    """vSphere refuses a change that names another version of the configuration than there is."""
    connection.devices.append(disk(2001, PATHS[0], unit=3))

    def moves_on(_places: Any) -> None:
        connection.version = "8"

    with pytest.raises(vim.fault.ConcurrentAccess):
        attachments.attach_disks(
            connection,  # type: ignore[arg-type]
            "vm-1",
            [DiskToAttach(path=PATHS[1], write=False, places=())],
            moves_on,
        )
    attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]
    assert connection.versions == ["7", "8"]
    assert [change.operation for change in connection.sent] == ["remove"]


def test_a_linked_clone_of_the_disk_is_its_owner_s(connection: FakeConnection) -> None:
    connection.devices.append(disk(2001, "[ds1] p/p-000001.vmdk", READ, PATHS[0]))
    attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]
    assert connection.sent == []


@pytest.mark.parametrize("kind", ["VirtualMachine.reconfigure", "vim.VirtualMachine.reconfigure"])
@pytest.mark.parametrize("state", ["queued", "running"])
def test_nothing_is_said_to_be_gone_while_the_vm_is_changed(
    connection: FakeConnection, kind: str, state: str
) -> None:
    connection.running = [("success", kind), (state, kind)]
    with pytest.raises(TransientTransportError, match="is being reconfigured"):
        attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]
    connection.running = [("success", kind), (state, "VirtualMachine.createSnapshot")]
    attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]


def test_a_disk_that_stays_is_not_said_to_be_gone(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "GONE_WITHIN_S", 0.0)
    connection.devices.append(disk(2001, PATHS[0]))
    connection.stays = True
    with pytest.raises(TransientTransportError, match="still shows it"):
        attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]


def test_a_vm_that_is_gone_has_no_disks(connection: FakeConnection) -> None:
    connection.gone = True
    attachments.detach_disks(connection, "vm-1", [DiskToAttach(path=PATHS[0], write=False)])  # type: ignore[arg-type]


def test_the_byte_orders_of_a_uuid() -> None:
    uuid = "42209f1e-0c2d-4b3a-8f10-aabbccddeeff"
    assert attachments.swapped(uuid) == "1e9f2042-2d0c-3a4b-8f10-aabbccddeeff"
    assert attachments.swapped(attachments.swapped(uuid)) == uuid
