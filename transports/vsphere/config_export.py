"""A VM's configuration as it is kept with a restore point: ConfigInfo, and names for its morefs.

Morefs mean nothing in another vCenter, nor in this one after a network was made anew; names do.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pyVmomi import vim

from transports.errors import ObjectGoneError, PermanentTransportError, TransportError
from transports.vsphere.config_json import from_plain, to_plain
from transports.vsphere.datastore_files import get_file
from transports.vsphere.faults import translated
from transports.vsphere.model import VmConfig
from transports.vsphere.places import Places, moref, read_places, unescape
from transports.vsphere.properties import read
from transports.vsphere.session import Connection

FORMAT: Final = "vmhaul-vm-config"
VERSION: Final = 1
_d: Any = vim.vm.device
_NVRAM: Final = "nvram"


def export(connection: Connection, vm_moref: str, snapshot_moref: str | None) -> VmConfig:
    vm = connection.vm(vm_moref)
    source = connection.object(vim.vm.Snapshot, snapshot_moref) if snapshot_moref else vm
    config = read(connection, source, "config")["config"]
    seen = read(
        connection,
        vm,
        "name",
        "parent",
        "parentVApp",
        "resourcePool",
        "runtime.host",
        "guest.guestFullName",
        "guest.hostName",
        "guest.toolsVersion",
        "layoutEx.file",
    )
    places = read_places(connection)
    nvram, nvram_problem = _nvram(
        connection,
        nvram_path(config, seen.get("layoutEx.file")),
        places,
        moref(seen.get("runtime.host")),
    )
    parent = moref(seen.get("parent")) or moref(seen.get("parentVApp"))
    pool, host = moref(seen.get("resourcePool")), moref(seen.get("runtime.host"))
    host_place = places.get(host)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": unescape(str(seen.get("name", ""))),
        "place": {
            "datacenter": places.datacenter(parent) or places.datacenter(host),
            "folder": places.vm_folder_path(parent) if parent else "",
            "resource_pool": places.pool_path(pool) if pool else "",
            "host": host_place.name if host_place else "",
            "cluster": places.cluster(host),
        },
        "networks": _networks(config, places),
        "guest": {
            "os": str(seen.get("guest.guestFullName") or ""),
            "host_name": str(seen.get("guest.hostName") or ""),
            "tools_version": str(seen.get("guest.toolsVersion") or ""),
        },
        "nvram_problem": nvram_problem,
        "config": to_plain(config),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return VmConfig(json=text.encode(), nvram=nvram)


class SavedConfig:
    """A VmConfig, opened. PermanentTransportError when it is none, or of a newer version."""

    def __init__(self, config: VmConfig) -> None:
        try:
            document = json.loads(config.json)
            known = document["format"] == FORMAT and document["version"] == VERSION
            self.name = str(document["name"]) if known else ""
            parts = (document["config"], document["place"], document["networks"]) if known else ()
            if not all(isinstance(part, dict) for part in parts):
                raise TypeError("its parts are no objects")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PermanentTransportError(
                "the restore point holds no readable VM configuration; restore its disks to files instead"
            ) from error
        if not known:
            raise PermanentTransportError(
                f"the VM configuration has format {document['format']} {document.get('version')};"
                f" this version reads {FORMAT} {VERSION}: use a newer vmhaul"
            )
        self._document = document
        self.nvram = config.nvram

    def config_info(self) -> Any:
        """A new pyVmomi ConfigInfo at each call; the caller may change it."""
        return from_plain(self._document["config"])

    def place(self, what: str) -> str:
        """One of datacenter, folder, resource_pool, host, cluster: where the VM was."""
        return str(self._document["place"].get(what, ""))

    def network(self, device_key: int) -> str:
        """Name of the network that the card was connected to; empty when unknown."""
        return str(self._document["networks"].get(str(device_key), ""))

    @property
    def nvram_problem(self) -> str:
        return str(self._document.get("nvram_problem", ""))


def nvram_path(config: Any, files: Any = None) -> str:
    """Datastore path of the VM's nvram file; empty when it has none. `files`: the VM's layoutEx.file."""
    for option in config.extraConfig or []:
        if option.key == _NVRAM and option.value:
            directory = str(config.files.vmPathName).rpartition("/")[0]
            return f"{directory}/{option.value}" if directory else ""
    return next((str(file.name) for file in files or [] if str(file.type) == _NVRAM), "")


def _nvram(connection: Connection, path: str, places: Places, host: str) -> tuple[bytes, str]:
    if not path:
        return b"", ""
    try:
        with translated(f"read {path}"):
            return get_file(connection.session, path, places.datacenter_path(host)), ""
    except ObjectGoneError:
        return b"", ""  # made at the first power-on: there is none yet
    except TransportError as error:
        # A VM without its nvram still starts; one without a backup does not. The problem is kept
        # with the configuration and told at the restore.
        return b"", str(error)


def _networks(config: Any, places: Places) -> dict[str, str]:
    """Network names by key of the card."""
    by_key = {
        str(place.properties.get("key") or place.moref): place.name
        for place in places.of_kind("DistributedVirtualPortgroup")
    }
    names: dict[str, str] = {}
    for card in config.hardware.device:
        if not isinstance(card, _d.VirtualEthernetCard):
            continue
        backing = card.backing
        if isinstance(backing, _d.VirtualEthernetCard.NetworkBackingInfo):
            network = places.get(moref(backing.network))
            names[str(card.key)] = network.name if network else unescape(str(backing.deviceName))
        elif isinstance(backing, _d.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
            names[str(card.key)] = by_key.get(str(backing.port.portgroupKey), "")
        elif isinstance(backing, _d.VirtualEthernetCard.OpaqueNetworkBackingInfo):
            names[str(card.key)] = str(card.deviceInfo.summary or "") if card.deviceInfo else ""
    return names
