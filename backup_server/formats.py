"""How figures and times look to people, in the console and on the command line. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from transports.base import TransportMode

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
NO_LIMIT_BYTES: Final = 1 << 60
"""So much free space says storage that has no limit of its own."""


def size(count_bytes: float | None) -> str:
    """1536 -> "1.5 KiB"; "-" for unknown."""
    if count_bytes is None:
        return "-"
    value = float(count_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 - the unit's own base
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes everything")


def rate(bytes_per_s: float | None) -> str:
    """Decimal megabytes per second, as network and storage people count."""
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e6:.1f} MB/s"


def duration(seconds: float | None) -> str:
    """59 -> "59s", 61 -> "1m 01s", 3700 -> "1h 01m", 90000 -> "1d 01h"; "-" for unknown."""
    if seconds is None:
        return "-"
    whole_s = int(seconds)
    if whole_s < _MINUTE_S:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole_s}s"  # noqa: PLR2004
    if whole_s < _HOUR_S:
        return f"{whole_s // _MINUTE_S}m {whole_s % _MINUTE_S:02d}s"
    if whole_s < _DAY_S:
        return f"{whole_s // _HOUR_S}h {whole_s % _HOUR_S // _MINUTE_S:02d}m"
    return f"{whole_s // _DAY_S}d {whole_s % _DAY_S // _HOUR_S:02d}h"


def ratio(read_bytes: float | None, stored_bytes: float | None) -> str:
    """How many bytes were read for each byte that was stored: "3.4x"."""
    if not read_bytes or not stored_bytes:
        return "-"
    return f"{read_bytes / stored_bytes:.1f}x"


def moment(text: str | None) -> str:
    """An RFC 3339 time in the local time zone, to the second; "-" for none."""
    return "-" if not text else parse_time(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def parse_time(text: str) -> datetime:
    """Aware datetime of an RFC 3339 text."""
    return datetime.fromisoformat(text)


def span(start: str | None, end: str | None) -> timedelta | None:
    return parse_time(end) - parse_time(start) if start and end else None


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def retention(rule: Mapping[str, Any]) -> str:
    """As in "14 days, 4 weekly, 12 monthly" or "last 7"."""
    parts = [f"{rule['days']} days" if rule.get("days") else f"last {rule.get('keep')}"]
    periods = ("weekly", "monthly", "yearly")
    return ", ".join(parts + [f"{rule[name]} {name}" for name in periods if rule.get(name)])


def candidate_rows(decision: Mapping[str, Any]) -> list[dict[str, str]]:
    """The candidates of a stored decision for a table, best mode first: proxy, mode, slots, verdict (chosen,
    accepted or refused) and reason. Modes that come into question for no proxy stand among them.
    """
    order = [mode.value for mode in TransportMode]
    chosen = (decision.get("proxy"), decision.get("mode"))
    rows = [
        {
            "proxy": "any",
            "mode": str(one["mode"]),
            "slots": "",
            "verdict": "refused",
            "reason": str(one["reason"]),
        }
        for one in decision.get("modes") or ()
    ]
    for one in decision.get("candidates") or ():
        taken = (one["proxy"], one["mode"]) == chosen
        rows.append(
            {
                "proxy": str(one.get("name") or one["proxy"]),
                "mode": str(one["mode"]),
                "slots": f"{one['used']} of {one['slots']}",
                "verdict": "chosen" if taken else "accepted" if one["accepted"] else "refused",
                "reason": str(one["reason"]),
            }
        )
    verdicts = ("chosen", "accepted", "refused")
    rows.sort(key=lambda row: (_place(order, row["mode"]), verdicts.index(row["verdict"])))
    return rows


def _place(order: list[str], mode: str) -> int:
    """Modes of a newer release stand last."""
    return order.index(mode) if mode in order else len(order)


def plan_left_out(plan: Mapping[str, Any]) -> list[str]:
    """One line for each VM and disk that a job's plan does not take, with the reason."""
    lines = [f"{item['name']}: {item['reason']}" for item in plan["skipped"]]
    for vm in plan["vms"]:
        lines += [f"{vm['name']} / {disk['label']}: {disk['reason']}" for disk in vm["skipped_disks"]]
    return lines


def plan_warnings(plan: Mapping[str, Any]) -> list[str]:
    """Of the job and of its VMs."""
    own = [f"{vm['name']}: {text}" for vm in plan["vms"] for text in vm["warnings"]]
    return [*plan["warnings"], *own]


def proxy_vms(found: Mapping[str, Any]) -> str:
    """Which VM a proxy is, from what it found; several are a problem that the words name."""
    vms = found["vms"]
    texts = [
        f"{vm['name']} ({vm['moref']}) of {vm['vcenter']}, {vm['datacenter']}, {vm['host']}"
        for vm in vms
    ]
    if len({vm["vcenter"] for vm in vms}) < len(vms):
        return "not certain, several VMs have its UUID: " + "; ".join(texts)
    return "; ".join(texts) or "none that a vCenter knows"
