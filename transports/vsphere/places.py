"""Names and morefs of the inventory's places: datacenters, folders, pools, hosts, networks, datastores.

Read in one pass over names and parents; everything else is arithmetic on that tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from transports.vsphere.properties import Properties, read_view
from transports.vsphere.session import Connection

_CLUSTER: Final = "ClusterComputeResource"
_COMPUTE: Final = (_CLUSTER, "ComputeResource")

# Inventory names arrive with these three characters escaped, and nothing else.
_ESCAPES: Final = (("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\"), ("%25", "%"))


def unescape(name: str) -> str:
    for escape, character in _ESCAPES:
        name = name.replace(escape, character)
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    moref: str
    kind: str
    """Class name of the managed object: "Folder"."""
    name: str
    parent: str
    properties: Properties


class Places:
    """The tree of places as it was when read."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._by_moref = {place.moref: place for place in places}

    def of_kind(self, *kinds: str) -> list[Place]:
        return [place for place in self._by_moref.values() if place.kind in kinds]

    def get(self, moref: str) -> Place | None:
        return self._by_moref.get(moref)

    def ancestors(self, moref: str) -> Iterator[Place]:
        """The place itself and what holds it, upwards. Ends at the root folder (not included)."""
        place = self._by_moref.get(moref)
        while place is not None:
            yield place
            place = self._by_moref.get(place.parent)

    def datacenter(self, moref: str) -> str:
        return next((p.name for p in self.ancestors(moref) if p.kind == "Datacenter"), "")

    def cluster(self, moref: str) -> str:
        return next((p.name for p in self.ancestors(moref) if p.kind == _CLUSTER), "")

    def path(self, moref: str) -> tuple[str, ...]:
        """Names from the datacenter down to the place itself."""
        names: list[str] = []
        for place in self.ancestors(moref):
            names.append(place.name)
            if place.kind == "Datacenter":
                break
        return tuple(reversed(names))

    def datacenter_path(self, moref: str) -> str:
        """The datacenter that holds the place, with the folders above it, as /folder URLs name it."""
        places = list(self.ancestors(moref))
        below = next((i for i, place in enumerate(places) if place.kind == "Datacenter"), None)
        return "/".join(place.name for place in reversed(places[below:])) if below is not None else ""

    def vm_folder_path(self, moref: str) -> str:
        """Like "DC0/Prod/Web": without the hidden folder that holds the datacenter's VMs."""
        path = self.path(moref)
        return "/".join(path[:1] + path[2:])

    def pool_path(self, moref: str) -> str:
        """Like "DC0/Cluster0/Resources/Gold": without the hidden folder that holds the hosts."""
        names = [
            place.name
            for place in self.ancestors(moref)
            if place.kind in {"ResourcePool", "VirtualApp", *_COMPUTE}
        ]
        return "/".join(filter(None, [self.datacenter(moref), *reversed(names)]))

    def vm_folders(self) -> list[Place]:
        """Folders that hold VMs, the datacenters' root VM folders included."""
        roots = {
            str(place.properties["vmFolder"]._moId)  # noqa: SLF001
            for place in self.of_kind("Datacenter")
            if place.properties.get("vmFolder") is not None
        }
        return [
            place
            for place in self.of_kind("Folder")
            if any(ancestor.moref in roots for ancestor in self.ancestors(place.moref))
        ]

    def compute_of(self, moref: str) -> Place | None:
        """The cluster or lone host's compute resource that holds a pool or host."""
        return next((p for p in self.ancestors(moref) if p.kind in _COMPUTE), None)


def read_places(connection: Connection) -> Places:
    common = ("name", "parent")
    wanted: list[tuple[Any, Sequence[str]]] = [
        (vim.Folder, common),
        (vim.Datacenter, (*common, "vmFolder")),
        (vim.ComputeResource, (*common, "resourcePool")),
        (vim.ResourcePool, common),
        (
            vim.HostSystem,
            (
                *common,
                "summary.config.product.version",
                "summary.config.product.build",
                "runtime.connectionState",
                "runtime.inMaintenanceMode",
                "datastore",
                "network",
                "config.virtualNicManagerInfo.netConfig",
            ),
        ),
        (
            vim.Datastore,
            (
                *common,
                "summary.type",
                "summary.capacity",
                "summary.freeSpace",
                "summary.accessible",
                "info",
            ),
        ),
        (vim.Network, common),
        (vim.dvs.DistributedVirtualPortgroup, (*common, "key", "config.distributedVirtualSwitch")),
    ]
    seen: dict[str, Place] = {}
    for obj, properties in read_view(connection, wanted):
        place = _place(obj, properties)
        previous = seen.get(place.moref)
        # A subclass may arrive once for each kind that fits it.
        if previous is not None:
            place.properties.update({**previous.properties, **place.properties})
        seen[place.moref] = place
    return Places(list(seen.values()))


def moref(obj: Any) -> str:
    return str(obj._moId) if obj is not None else ""  # noqa: SLF001


def kind(obj: Any) -> str:
    return type(obj).__name__.rsplit(".", 1)[-1]


def _place(obj: Any, properties: Properties) -> Place:
    return Place(
        moref=moref(obj),
        kind=kind(obj),
        name=unescape(str(properties.get("name", ""))),
        parent=moref(properties.get("parent")),
        properties=properties,
    )
