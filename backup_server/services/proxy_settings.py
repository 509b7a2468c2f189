"""What an administrator sets of a proxy's transport modes (`Proxy.settings`), and how it is checked.

| name | what | default |
|---|---|---|
| failover_to_network | its network modes take over where its others fail | true |
| connected_datastores | names of datastores that it is connected to; null: those that it finds | null |
| preferred_networks | networks ("192.0.2.0/24") in which it meets hosts, best first | none |
| hotadd_nfs3_any_host | HotAdd of disks on NFS 3 from another host than the VM's | false |
| max_nfs_hops | direct NFS only to servers at most so many routers away; null: any | null |
| repositories | row ids of the repositories that it is near to: their tasks go to it before others | none |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any, Final

from backup_server.services.shapes import Fields

FAILOVER: Final = "failover_to_network"
DATASTORES: Final = "connected_datastores"
NETWORKS: Final = "preferred_networks"
NFS3_ANY_HOST: Final = "hotadd_nfs3_any_host"
MAX_HOPS: Final = "max_nfs_hops"
REPOSITORIES: Final = "repositories"
NAMES: Final = (FAILOVER, DATASTORES, NETWORKS, NFS3_ANY_HOST, MAX_HOPS, REPOSITORIES)
ENROLLED_AS: Final = "enrolled_as"
"""Kept beside them, set by nobody: the name with which a proxy joined that was renamed since, as its worker calls itself."""
MOST_HOPS: Final = 255
_LONGEST_LIST: Final = 1000


def shape(settings: Mapping[str, Any], repositories: Mapping[str, str]) -> dict[str, Any]:
    """All settings with their values, for people and programs. `repositories`: names by row id; those that exist no
    more are left out.
    """
    kept = connected_datastores(settings)
    return {
        FAILOVER: failover_to_network(settings),
        DATASTORES: None if kept is None else sorted(kept),
        NETWORKS: list(preferred_networks(settings)),
        NFS3_ANY_HOST: hotadd_nfs3_any_host(settings),
        MAX_HOPS: max_nfs_hops(settings),
        REPOSITORIES: sorted(
            repositories[one] for one in near_repositories(settings) if one in repositories
        ),
    }


def failover_to_network(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get(FAILOVER, True))


def connected_datastores(settings: Mapping[str, Any]) -> frozenset[str] | None:
    names = settings.get(DATASTORES)
    return None if names is None else frozenset(str(name) for name in names)


def preferred_networks(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(text) for text in settings.get(NETWORKS) or ())


def hotadd_nfs3_any_host(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get(NFS3_ANY_HOST, False))


def max_nfs_hops(settings: Mapping[str, Any]) -> int | None:
    most = settings.get(MAX_HOPS)
    return int(most) if isinstance(most, int) else None


def near_repositories(settings: Mapping[str, Any]) -> frozenset[str]:
    """Row ids."""
    return frozenset(str(one) for one in settings.get(REPOSITORIES) or ())


def changes(given: Fields, repository_id: Callable[[str], str]) -> dict[str, Any]:
    """Those that the request names, checked; problems go into `given`. `repository_id`: the row id of a repository by
    name or id; ValueError when there is none.
    """
    found: dict[str, Any] = {}
    for name in (FAILOVER, NFS3_ANY_HOST):
        if given.has(name):
            found[name] = given.flag(name)
    if given.has(DATASTORES):
        found[DATASTORES] = given.checked(DATASTORES, _check_datastores)
    if given.has(NETWORKS):
        found[NETWORKS] = given.checked(NETWORKS, _check_networks)
    if given.has(MAX_HOPS):
        found[MAX_HOPS] = given.checked(MAX_HOPS, _check_hops)
    if given.has(REPOSITORIES):
        found[REPOSITORIES] = given.checked(
            REPOSITORIES, lambda value: sorted({repository_id(one) for one in _texts(value or [])})
        )
    return found


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or len(value) > _LONGEST_LIST:
        raise ValueError(f"must be a list of at most {_LONGEST_LIST} texts")
    if any(not isinstance(one, str) or not one.strip() for one in value):
        raise ValueError("must be a list of texts that are not empty")
    return [one.strip() for one in value]


def _check_datastores(value: Any) -> list[str] | None:
    return None if value is None else sorted(set(_texts(value)))


def _check_networks(value: Any) -> list[str]:
    checked: list[str] = []
    for text in _texts(value or []):
        try:
            checked.append(str(ip_network(text)))
        except ValueError as error:
            raise ValueError(f"{text!r} is no network such as 192.0.2.0/24: {error}") from None
    return list(dict.fromkeys(checked))


def _check_hops(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_HOPS:
        raise ValueError(f"must be null or a whole number from 0 to {MOST_HOPS}")
    return value
