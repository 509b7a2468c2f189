"""Which VMs and disks a job takes, and why not the others. Pure: from an inventory to values.

Names are compared without regard to case; VM names of selectors may hold `*` and `?`. Folders,
resource pools, clusters and datacenters include what lies below them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transports.vsphere.model import DiskInfo, Inventory, VmInfo

SELECTOR_TYPES: Final = ("vm", "folder", "resource-pool", "cluster", "datacenter", "tag", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedDisk:
    key: int
    label: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenVm:
    vm: VmInfo
    disks: tuple[DiskInfo, ...]
    skipped_disks: tuple[SkippedDisk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedVm:
    name: str
    moref: str
    instance_uuid: str
    reason: str
    expected: bool
    """True for what the job excludes or never could mean; False for what a person should look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What a job takes from one state of the inventory."""

    vms: tuple[ChosenVm, ...]
    skipped: tuple[SkippedVm, ...]
    missing: tuple[str, ...]
    """VMs that the job names one by one and that do not exist."""
    warnings: tuple[str, ...]


def check_selection(value: Any) -> dict[str, Any]:
    """A selection in its full form; ValueError with the reason."""
    if not isinstance(value, Mapping):
        raise ValueError("must be {include, exclude, exclude_disks}")  # noqa: TRY004 - the doors expect ValueError
    unknown = set(value) - {"include", "exclude", "exclude_disks"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}")
    include = [_check_selector(item, "include") for item in _items(value, "include")]
    if not include:
        raise ValueError("include must name at least one VM, folder, tag ... or all")
    exclude = [_check_selector(item, "exclude") for item in _items(value, "exclude")]
    disks = [_check_disk_rule(item) for item in _items(value, "exclude_disks")]
    return {"include": include, "exclude": exclude, "exclude_disks": disks}


def _items(value: Mapping[str, Any], name: str) -> list[Any]:
    items = value.get(name) or []
    if not isinstance(items, list | tuple):
        raise ValueError(f"{name} must be a list")  # noqa: TRY004 - as above
    return list(items)


def _check_selector(item: Any, where: str) -> dict[str, str]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in SELECTOR_TYPES:
        raise ValueError(f"{where}: type must be one of {', '.join(SELECTOR_TYPES)}")
    name = str(item.get("name") or "").strip().strip("/")
    if kind != "all" and not name:
        raise ValueError(f"{where}: a selector of type {kind} needs a name")
    return {"type": str(kind), "name": "" if kind == "all" else name}


def _check_disk_rule(item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping) or item.get("disk") in (None, ""):
        raise ValueError(
            "exclude_disks: each entry is {vm: name or *, disk: key, label, position or *}"
        )
    return {"vm": str(item.get("vm") or "*"), "disk": str(item["disk"])}


def select(selection: Mapping[str, Any], inventory: Inventory) -> Selected:
    """Apply a selection (in its full form) to an inventory. VMs come in order of their names."""
    include: Sequence[Mapping[str, str]] = selection["include"]
    exclude: Sequence[Mapping[str, str]] = selection.get("exclude", [])
    rules: Sequence[Mapping[str, str]] = selection.get("exclude_disks", [])
    chosen: list[ChosenVm] = []
    skipped: list[SkippedVm] = []
    used: set[int] = set()
    for vm in sorted(inventory.vms, key=lambda vm: (vm.name.lower(), vm.moref)):
        hits = [at for at, selector in enumerate(include) if _matches(selector, vm)]
        used.update(hits)
        if not hits:
            continue
        named = any(_is_plain_name(include[at]) for at in hits)
        obstacle = _obstacle(vm, exclude, named=named)
        if obstacle is not None:
            skipped.append(obstacle)
            continue
        one = _choose_disks(vm, rules)
        if one.disks:
            chosen.append(one)
        else:
            reasons = "; ".join(f"{disk.label}: {disk.reason}" for disk in one.skipped_disks)
            text = f"no disk to back up ({reasons})" if reasons else "the VM has no disk"
            skipped.append(_skipped(vm, text, expected=False))
    return _with_warnings(chosen, skipped, include, used, inventory)


def _with_warnings(
    chosen: list[ChosenVm],
    skipped: list[SkippedVm],
    include: Sequence[Mapping[str, str]],
    used: set[int],
    inventory: Inventory,
) -> Selected:
    missing: list[str] = []
    warnings: list[str] = []
    for at, selector in enumerate(include):
        if at in used:
            continue
        if _is_plain_name(selector):
            missing.append(selector["name"])
        elif selector["type"] == "tag" and not inventory.tags_known:
            warnings.append(
                f"tag {selector['name']!r}: the server does not tell its tags; "
                "check that the account may read tags, or select by folder"
            )
        else:
            warnings.append(
                f"{selector['type']} {selector['name']!r} matches no VM; correct or remove it"
            )
    return Selected(
        vms=tuple(chosen),
        skipped=tuple(skipped),
        missing=tuple(missing),
        warnings=tuple(warnings),
    )


def _is_plain_name(selector: Mapping[str, str]) -> bool:
    return selector["type"] == "vm" and not set("*?") & set(selector["name"])


def _skipped(vm: VmInfo, reason: str, *, expected: bool) -> SkippedVm:
    return SkippedVm(
        name=vm.name,
        moref=vm.moref,
        instance_uuid=vm.instance_uuid,
        reason=reason,
        expected=expected,
    )


def _obstacle(vm: VmInfo, exclude: Sequence[Mapping[str, str]], *, named: bool) -> SkippedVm | None:
    for selector in exclude:
        if _matches(selector, vm):
            what = f"{selector['type']} {selector['name']}".strip()
            return _skipped(vm, f"excluded by the job ({what})", expected=True)
    if vm.is_template:
        return _skipped(vm, "a template: it cannot have snapshots", expected=not named)
    if vm.managed_by or vm.name.startswith("vCLS-"):
        owner = vm.managed_by or "vSphere Cluster Services"
        return _skipped(vm, f"managed by {owner}, which makes it again itself", expected=not named)
    if not vm.instance_uuid:
        return _skipped(vm, "has no instance uuid to be known by", expected=False)
    return None


def _choose_disks(vm: VmInfo, rules: Sequence[Mapping[str, str]]) -> ChosenVm:
    disks: list[DiskInfo] = []
    skipped: list[SkippedDisk] = []
    for disk in vm.disks:
        reason = disk_reason(vm.name, disk, rules)
        if reason:
            skipped.append(SkippedDisk(key=disk.key, label=disk.label, reason=reason))
        else:
            disks.append(disk)
    return ChosenVm(vm=vm, disks=tuple(disks), skipped_disks=tuple(skipped))


def disk_reason(vm_name: str, disk: DiskInfo, rules: Sequence[Mapping[str, str]]) -> str:
    """Why a disk is not backed up; empty when it is."""
    for rule in rules:
        if _like(rule["vm"], vm_name) and _names_disk(rule["disk"], disk):
            return f"excluded by the job (disk {rule['disk']})"
    return disk.backup_obstacle


def _names_disk(wanted: str, disk: DiskInfo) -> bool:
    if wanted == "*":
        return True
    names = (str(disk.key), disk.label, disk.controller)
    return _squeeze(wanted) in {_squeeze(name) for name in names}


def _squeeze(text: str) -> str:
    """The same text for "SCSI (0:1)", "scsi0:1" and "SCSI 0:1"."""
    return re.sub(r"[\s()]", "", text).lower()


def _like(pattern: str, text: str) -> bool:
    parts = (
        ".*" if sign == "*" else "." if sign == "?" else re.escape(sign) for sign in pattern.lower()
    )
    return re.fullmatch("".join(parts), text.lower(), re.DOTALL) is not None


def _below(place: str, wanted: str) -> bool:
    place, wanted = place.lower().strip("/"), wanted.lower().strip("/")
    return place == wanted or place.startswith(wanted + "/")


def _matches(selector: Mapping[str, str], vm: VmInfo) -> bool:
    name = selector["name"]
    match selector["type"]:
        case "all":
            return True
        case "vm":
            return _like(name, vm.name)
        case "datacenter":
            return vm.datacenter.lower() == name.lower()
        case "cluster":
            return vm.cluster.lower() in (name.lower(), name.lower().rsplit("/", 1)[-1])
        case "resource-pool":
            return _below(vm.resource_pool, name) or _below_last(vm.resource_pool, name)
        case "folder":
            return _in_folder(vm, name)
        case "tag":
            # "category/name" or the name alone
            return any(name.lower() in (tag.lower(), tag.lower().rsplit("/", 1)[-1]) for tag in vm.tags)
        case _:
            return False


def _below_last(path: str, name: str) -> bool:
    """A single name also means any part of the path that is called so."""
    return "/" not in name and name.lower() in path.lower().split("/")


def _in_folder(vm: VmInfo, name: str) -> bool:
    # ("DC0", "vm", "Prod") is "DC0/Prod" to people; the hidden "vm" folder may be written or not.
    full = "/".join(vm.path)
    short = "/".join(part for at, part in enumerate(vm.path) if not (at == 1 and part == "vm"))
    if _below(full, name) or _below(short, name):
        return True
    below_datacenter = "/".join(short.split("/")[1:])
    return bool(below_datacenter) and (
        _below(below_datacenter, name) or _below_last(below_datacenter, name)
    )
