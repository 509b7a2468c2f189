"""`vmhaul repository list` and `show`."""

from __future__ import annotations

from typing import Any

import typer

from backup_server import formats
from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.repository.common import NameArgument


def register(app: typer.Typer) -> None:
    app.command("list")(with_door(list_))
    app.command("show")(with_door(show))


def list_(door: Door) -> None:
    """List the repositories: what they hold, what that takes, and when it was last verified."""
    items = list(door.api.items("/repositories"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "location", "points", "stored", "reduction", "free", "last check", "result"),
        [
            (
                item["name"],
                item["location"],
                item["restore_points"],
                formats.size(item.get("stored_bytes")),
                reduction(item),
                free(item),
                formats.moment((item.get("last_check") or {}).get("finished_at")),
                (item.get("last_check") or {}).get("result") or "never checked",
            )
            for item in items
        ],
        right=("points", "stored", "reduction", "free"),
        empty="No repository yet: create one with `vmhaul repository add NAME PATH`.",
    )


def reduction(repository: dict[str, Any]) -> str:
    """How many bytes of restore points a stored one stands for: "41.2x"."""
    return formats.ratio(repository.get("logical_bytes"), repository.get("stored_bytes"))


def free(repository: dict[str, Any]) -> str:
    free_bytes = repository.get("free_bytes")
    return "no limit" if (free_bytes or 0) >= formats.NO_LIMIT_BYTES else formats.size(free_bytes)


def print_repository(door: Door, repository: dict[str, Any]) -> None:
    if door.json:
        output.print_json(repository)
        return
    days = repository.get("immutable_days")
    total_bytes = repository.get("total_bytes") or 0
    output.facts(
        [
            ("name", repository["name"]),
            ("id", repository["id"]),
            ("location", repository["location"]),
            ("repository id", repository.get("repository_id")),
            ("block size", formats.size(repository["block_size_bytes"])),
            ("max tasks", repository["max_tasks"]),
            ("restore points", repository["restore_points"]),
            ("hold", formats.size(repository.get("logical_bytes"))),
            ("read for them", formats.size(repository.get("read_bytes"))),
            (
                "stored",
                f"{formats.size(repository.get('stored_bytes'))} in {repository.get('packs') or 0} packs",
            ),
            ("reduction", reduction(repository)),
            (
                "volume",
                "no limit" if total_bytes >= formats.NO_LIMIT_BYTES else formats.size(total_bytes),
            ),
            ("free", free(repository)),
            ("as of", formats.moment(repository.get("space_at"))),
            ("immutable", f"for {days} days" if days else "no"),
            ("features", ", ".join(repository.get("features") or []) or "none"),
            ("encryption", repository.get("aead")),
            ("keys", f"{repository.get('keys') or '-'}, data key {repository.get('key_epoch') or '-'}"),
            ("verification", describe_verification(repository.get("verification"))),
            ("next check", formats.moment(repository.get("next_check_at"))),
            ("last check", describe_check(repository.get("last_check"))),
            ("last prune", describe_prune(repository.get("last_prune"))),
        ]
    )


def describe_verification(value: dict[str, Any] | None) -> str:
    if not value:
        return "no schedule: set one with `vmhaul repository edit NAME --verify-every day`"
    schedule = value["schedule"]
    when = f"{schedule['cron']} ({schedule['time_zone']})"
    if not value.get("read_data", True):
        return f"{when}, structure alone"
    share = value.get("sample_share")
    return f"{when}, {f'{share:.4g} of the data' if share else 'all data every 30 days'}"


def describe_check(check: dict[str, Any] | None) -> str:
    if check is None:
        return "never"
    words = [f"{check['result']}, {formats.moment(check['finished_at'])}"]
    if check["problems"]:
        words.append(formats.plural(int(check["problems"]), "problem"))
    if check["confidence"]:
        words.append(check["confidence"])
    elif not check["read_data"]:
        words.append("structure alone, no data read")
    return "; ".join(words)


def describe_prune(prune: dict[str, Any] | None) -> str:
    if prune is None:
        return "never"
    freed = prune.get("removed_bytes")
    text = f"{prune['result']}, {formats.moment(prune['finished_at'])}"
    return text if freed is None else f"{text}; {formats.size(freed)} freed"


def show(door: Door, name: NameArgument) -> None:
    """Show one repository: contents, space, keys, the last check with its confidence."""
    print_repository(door, door.api.get(f"/repositories/{part(name)}"))
