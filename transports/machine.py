"""The machine on which a proxy runs, as far as transport modes look at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the kernel shows devices. A proxy in a container may see those of its host at other places."""

    sys_path: str = "/sys"
    dev_path: str = "/dev"
    vm_uuid: str = ""
    """SMBIOS UUID of this VM, where the guest cannot read its own; empty: as the kernel says."""
    mountinfo_path: str = "/proc/self/mountinfo"
    """What is mounted, in the form of proc(5)."""


def own_vm_uuid(machine: Machine) -> str:
    """SMBIOS UUID, lower case with dashes; empty when the machine shows none (it takes root to read it)."""
    text = machine.vm_uuid
    if not text:
        try:
            text = (Path(machine.sys_path) / "class/dmi/id/product_uuid").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
    try:
        return str(UUID(text))
    except ValueError:
        return ""
