"""The privileges that each part of the product needs, and which of them an account lacks."""

from __future__ import annotations

from typing import Final

from transports.vsphere.places import moref
from transports.vsphere.session import Connection

_ALWAYS: Final = (
    "System.View",
    "System.Read",
    "Sessions.ValidateSession",
    "Datastore.Browse",
    "Datastore.FileManagement",
)
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "backup": (
        *_ALWAYS,
        "VirtualMachine.Config.ChangeTracking",
        "VirtualMachine.State.CreateSnapshot",
        "VirtualMachine.State.RemoveSnapshot",
        "VirtualMachine.Provisioning.DiskRandomRead",
        "VirtualMachine.Provisioning.GetVmFiles",
    ),
    "restore": (
        *_ALWAYS,
        "VirtualMachine.Provisioning.DiskRandomAccess",
        "VirtualMachine.Provisioning.PutVmFiles",
        "VirtualMachine.Inventory.Create",
        "VirtualMachine.Inventory.Delete",
        "VirtualMachine.Config.AddNewDisk",
        "VirtualMachine.Config.AddRemoveDevice",
        "VirtualMachine.Config.AdvancedConfig",
        "VirtualMachine.Config.Settings",
        "VirtualMachine.Interact.PowerOn",
        "VirtualMachine.Interact.PowerOff",
        "Datastore.AllocateSpace",
        "Resource.AssignVMToPool",
        "Network.Assign",
    ),
    "hotadd": (
        *_ALWAYS,
        "VirtualMachine.Config.AddExistingDisk",
        "VirtualMachine.Config.RemoveDisk",
        "VirtualMachine.Config.AddRemoveDevice",
    ),
}


def missing_privileges(connection: Connection, role: str) -> list[str]:
    """Privileges of `role` that the session's account lacks at the root folder. ValueError for a role
    that is none of ROLES.
    """
    if role not in ROLES:
        raise ValueError(f"{role!r} is no role; the roles are {', '.join(ROLES)}")
    content = connection.content
    answers = content.authorizationManager.HasPrivilegeOnEntities(
        [content.rootFolder], connection.session.key, list(ROLES[role])
    )
    granted = {
        str(entry.privId)
        for answer in answers or []
        if moref(answer.entity) == moref(content.rootFolder)
        for entry in answer.privAvailability
        if entry.isGranted
    }
    return [privilege for privilege in ROLES[role] if privilege not in granted]
