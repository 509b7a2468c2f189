"""How a proxy and what it found look to people."""

from __future__ import annotations

from typing import Any

from backup_server import formats
from backup_server.cli import output


def print_proxy(proxy: dict[str, Any]) -> None:
    """Its settings and state, then what it found when it looked around."""
    offset = proxy.get("clock_offset_s")
    hops = proxy.get("max_nfs_hops")
    output.facts(
        [
            ("name", proxy["name"]),
            ("id", proxy["id"]),
            ("description", proxy.get("description")),
            ("state", proxy["state"]),
            *([("trouble", proxy["state_note"])] if proxy.get("state_note") else []),
            ("enabled", proxy["enabled"]),
            ("local", proxy["local"]),
            ("running", f"{proxy['running']} of {formats.plural(proxy['slots'], 'slot')}"),
            ("modes", proxy["modes"] or "any"),
            *([("no directories", proxy["no_directories"])] if proxy.get("no_directories") else []),
            ("failover to network", proxy.get("failover_to_network")),
            ("connected datastores", _datastores(proxy)),
            ("preferred networks", proxy.get("preferred_networks") or "none"),
            (
                "HotAdd on NFS 3",
                "from any host" if proxy.get("hotadd_nfs3_any_host") else "from the VM's host",
            ),
            (
                "direct NFS",
                "however far" if hops is None else f"at most {formats.plural(hops, 'router')} away",
            ),
            ("near repositories", proxy.get("repositories") or "none"),
            *_rate(proxy),
            ("its VM is confirmed", _confirmed(proxy)),
            ("version", proxy.get("version")),
            ("last seen", formats.moment(proxy.get("last_seen_at"))),
            ("clock offset", None if offset is None else f"{offset:+.1f}s"),
            (
                "last look around",
                formats.moment(proxy["looked_at"]) if proxy.get("looked_at") else "never",
            ),
        ]
    )
    if proxy.get("discovery") and proxy.get("looked_at"):
        print_discovery(proxy["discovery"])


def _datastores(proxy: dict[str, Any]) -> str | list[str]:
    named = proxy.get("connected_datastores")
    if named is None:
        return "as it finds them"
    return list(named) or "none"


def _rate(proxy: dict[str, Any]) -> list[tuple[str, Any]]:
    """Its own rate, when it has one."""
    others = proxy.get("rate_windows") or []
    if proxy.get("rate_limit_bytes_per_s") is None and not others:
        return []
    return [
        ("rate of its tasks together", proxy["rate_limit"]),
        *((f"rate {one['hours']} ({one['window']['time_zone']})", one["rate"]) for one in others),
        *([("rate now", proxy["rate_now"])] if others else []),
        ("its rate holds restores", proxy["rate_restores"]),
    ]


def _confirmed(proxy: dict[str, Any]) -> str:
    said = {
        "local": "it runs on the server's machine",
        "address": "by the address from which it calls",
        "administrator": "by an administrator",
    }
    how = proxy.get("vm_confirmed")
    return said[str(how)] if how else f"no (`vmhaul proxy confirm-vm {proxy['name']}`)"


def print_discovery_vm(found: dict[str, Any]) -> None:
    """Which VM it says it is."""
    output.facts(
        [
            ("SMBIOS UUID", found["vm_uuid"] or "not shown by its machine"),
            ("is the VM", formats.proxy_vms(found)),
            ("addresses", found["addresses"] or "none"),
            (
                "addresses of that VM",
                sorted({a for vm in found["vms"] for a in vm["addresses"]}) or "none",
            ),
            ("it called last from", found["called_from"] or "this machine"),
        ]
    )


def _way(one: dict[str, Any]) -> str:
    """How its LUNs come to the proxy, where that is known."""
    portals = one.get("portals") or []
    return f"over iSCSI from {', '.join(portals)}" if portals else ""


def print_discovery(found: dict[str, Any]) -> None:
    print_discovery_vm(found)
    output.table(
        ("vCenter", "datastore", "mode", "reads", "writes", "hops", "reason"),
        [
            (
                one["vcenter"],
                one["datastore"],
                one["mode"],
                one["readable"],
                one["writable"],
                "-" if one["hops"] is None else one["hops"],
                one["reason"] or _way(one),
            )
            for one in found["datastores"]
        ],
        right=("hops",),
        empty="It found no datastore that a direct mode could reach.",
    )
    for one in found["missing"]:
        output.say(f"does not offer {one['mode']}: {one['reason']}")
