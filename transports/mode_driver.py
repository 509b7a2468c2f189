"""What a transport mode offers to the registry, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from transports.base import (
    DatastoreRef,
    DiskReader,
    DiskRef,
    DiskWriter,
    Presented,
    Presenter,
    TransportMode,
)
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.network import NetworkOptions
from transports.nfs_options import NfsOptions
from transports.reached import Reached
from transports.vddk_options import NetworkClient, VddkOptions
from transports.vsphere.api import Vsphere


class NothingPresented:
    """The presenter of who has no backup server to ask."""

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        raise TransportUnavailableError(
            f"{mode} {'writes' if write else 'reads'} what the backup server presents, and there is none"
        )

    def withdraw(self, mode: TransportMode) -> None:
        """Nothing was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """Settings of all modes on this proxy; each mode looks at its own."""

    network: NetworkOptions = field(default_factory=NetworkOptions)
    machine: Machine = field(default_factory=Machine)
    nfs: NfsOptions = field(default_factory=NfsOptions)
    vddk: VddkOptions = field(default_factory=VddkOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """By what means a disk may be opened."""

    vsphere: Vsphere
    presenter: Presenter = field(default_factory=NothingPresented)
    options: ModeOptions = field(default_factory=ModeOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeDriver:
    """How one mode opens disks. Both functions raise TransportUnavailableError when another mode may do."""

    mode: TransportMode
    missing: Callable[[ModeOptions], str]
    """What this machine lacks for the mode, for people; empty: it can be offered."""
    open_reader: Callable[[Access, DiskRef], DiskReader]
    open_writer: Callable[[Access, DiskRef], DiskWriter]
    probe: Callable[[ModeOptions, DatastoreRef], Reached | None] | None = None
    """Whether this machine reaches a datastore in the mode; its answer None: not of the mode's kind. No probe:
    the mode needs no connection to datastores."""


def uses_vddk(options: ModeOptions) -> bool:
    """Whether the network modes are those of the VDDK that the proxy's settings name."""
    return options.vddk.client is NetworkClient.VDDK
