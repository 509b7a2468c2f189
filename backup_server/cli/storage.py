"""`vmhaul storage`: the storage systems from whose snapshots VMs are backed up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit

app = noun("Storage systems: arrays and file servers whose snapshots are read instead of the VMs'.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the storage system.")]
ProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy",
        metavar="PROXY[=HOST]",
        help="A proxy that may read from it, and what the system calls that machine; repeat for more.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="What the driver is told (`vmhaul storage drivers` lists it); repeat for more.",
    ),
]
SecretOption = Annotated[
    str | None,
    typer.Option(
        "--secret", metavar="NAME", help="Which secret is given, where the driver takes several."
    ),
]
SecretStdinOption = Annotated[
    bool, typer.Option("--secret-stdin", help="Read the secret from standard input.")
]
SecretFileOption = Annotated[
    Path | None, typer.Option("--secret-file", metavar="FILE", help="Read the secret from a file.")
]
IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        metavar="PRINT",
        help="Thumbprint of its certificate, or fingerprint of its host key, that it must show.",
    ),
]
AcceptOption = Annotated[
    bool, typer.Option("--accept-identity", help="Trust what it shows now, without asking.")
]


def _agreed_identity(door: Door, driver: str, address: str, *, given: str | None, accept: bool) -> str:
    """What a person stands for. Shows what the system presents and asks."""
    if given:
        return given
    shown = door.api.post("/storage-systems/probe", {"driver": driver, "address": address}, slow=True)
    identity = str(shown["identity"])
    output.note(f"{address} is known by\n  {identity}")
    secrets_in.confirm("Is this the right one?", assume_yes=accept, option="--accept-identity")
    return identity


def proxies_of(texts: Sequence[str]) -> list[dict[str, str]]:
    """PROXY or PROXY=HOST."""
    found = []
    for text in texts:
        proxy, _, host = text.partition("=")
        if not proxy:
            raise CliError(f"--proxy '{text}' is not PROXY or PROXY=HOST", Exit.USAGE)
        found.append({"proxy": proxy, "host": host})
    return found


def options_of(texts: Sequence[str], many: frozenset[str]) -> dict[str, Any]:
    """NAME=VALUE; names in `many` collect a list."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise CliError(f"--option '{text}' is not NAME=VALUE", Exit.USAGE)
        if name in many:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise CliError(f"--option {name} is given twice", Exit.USAGE)
        else:
            found[name] = value
    return found


def _driver(door: Door, name: str) -> dict[str, Any]:
    drivers = door.api.get("/storage-drivers")["drivers"]
    for driver in drivers:
        if driver["name"] == name:
            return dict(driver)
    known = ", ".join(driver["name"] for driver in drivers)
    raise CliError(f"there is no driver '{name}' of storage systems; there are: {known}", Exit.USAGE)


def _many(driver: dict[str, Any]) -> frozenset[str]:
    return frozenset(option["name"] for option in driver["options"] if option["many"])


def _secret(
    driver: dict[str, Any], name: str | None, *, from_stdin: bool, file: Path | None
) -> dict[str, str]:
    known = [names[0] for names in driver["secrets"]]
    chosen = name or known[0]
    if chosen not in known:
        raise CliError(f"--secret '{chosen}': the driver takes {' or '.join(known)}", Exit.USAGE)
    if file is not None:
        try:
            return {
                chosen: file.read_text().strip() + "\n" if "key" in chosen else file.read_text().strip()
            }
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"{file} cannot be read: {error}") from error
    text = secrets_in.read_secret(
        chosen.replace("_", " "), from_stdin=from_stdin, option="--secret-stdin"
    )
    return {chosen: text}


@app.command("drivers")
@with_door
def drivers(door: Door) -> None:
    """List the kinds of storage systems and what each is told."""
    found = door.api.get("/storage-drivers")
    if door.json:
        output.print_json(found)
        return
    rows = [
        (
            driver["name"],
            driver["title"],
            " or ".join(" and ".join(names) for names in driver["secrets"]),
            option["name"],
            option["help"] + (f" One of {', '.join(option['choices'])}." if option["choices"] else ""),
        )
        for driver in found["drivers"]
        for option in driver["options"]
    ]
    output.table(("driver", "what", "secret", "option", "which says"), rows, empty="No driver.")


@app.command("add")
@with_door
def add(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    address: Annotated[str, typer.Argument(metavar="HOST[:PORT]")],
    driver: Annotated[
        str, typer.Option("--driver", metavar="NAME", help="Kind of system: `vmhaul storage drivers`.")
    ],
    proxy: ProxyOption = None,
    option: SettingOption = None,
    secret: SecretOption = None,
    secret_stdin: SecretStdinOption = False,
    secret_file: SecretFileOption = None,
    identity: IdentityOption = None,
    accept_identity: AcceptOption = False,
) -> None:
    """Register a storage system: its identity is pinned, the login tried, its volumes read."""
    kind = _driver(door, driver)
    # Before anything is asked of the system: what is mistyped is said at once.
    options, proxies = options_of(option or (), _many(kind)), proxies_of(proxy or ())
    pin = _agreed_identity(door, driver, address, given=identity, accept=accept_identity)
    system = door.api.post(
        "/storage-systems",
        {
            "name": name,
            "driver": driver,
            "address": address,
            "identity": pin,
            "secrets": _secret(kind, secret, from_stdin=secret_stdin, file=secret_file),
            "options": options,
            "proxies": proxies,
        },
        slow=True,
    )
    if door.json:
        output.print_json(system)
        return
    output.say(f"Storage system '{name}' added: {system['model']} {system['version']}.")
    output.say(_found(system))
    if not proxy:
        edit_hint = door.hint(f"storage edit {name} --proxy PROXY")
        output.say(f"No proxy may read from it yet: `{edit_hint}`.")


def _found(system: dict[str, Any]) -> str:
    if system.get("problem"):
        return f"Its volumes could not be read: {system['problem']}"
    stores = sorted({store["name"] for volume in system["volumes"] for store in volume["datastores"]})
    on = f"with datastores {', '.join(stores)}" if stores else "but no datastore of a known vCenter"
    return f"It has {formats.plural(len(system['volumes']), 'volume')}, {on}."


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the storage systems."""
    items = list(door.api.items("/storage-systems"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "driver", "address", "on", "volumes", "datastores", "proxies", "read", "problem"),
        [
            (
                item["name"],
                item["driver"],
                item["address"],
                item["enabled"],
                len(item["volumes"]),
                sum(len(volume["datastores"]) for volume in item["volumes"]),
                ", ".join(one["proxy"] for one in item["proxies"]),
                formats.moment(item.get("rescanned_at")),
                item["problem"],
            )
            for item in items
        ],
        right=("volumes", "datastores"),
        empty="No storage system yet: add one with `vmhaul storage add NAME HOST --driver DRIVER`.",
    )


def _show(door: Door, system: dict[str, Any]) -> None:
    if door.json:
        output.print_json(system)
        return
    output.facts(
        [
            ("name", system["name"]),
            ("id", system["id"]),
            ("driver", system["driver"]),
            ("address", system["address"]),
            ("identity", system["identity"]),
            ("what", f"{system['model']} {system['version']}".strip()),
            ("enabled", system["enabled"]),
            *((name, value) for name, value in system["options"].items()),
            ("proxies", ", ".join(_proxy(one) for one in system["proxies"]) or "none"),
            ("snapshots of vmhaul", ", ".join(system["open_snapshots"]) or "none"),
            ("volumes read", formats.moment(system.get("rescanned_at"))),
            ("problem", system["problem"]),
        ]
    )
    output.table(
        ("volume", "kind", "size", "known as", "datastores"),
        [
            (
                volume["name"],
                volume["kind"],
                formats.size(volume["size_bytes"]),
                volume["lun"] or ", ".join(volume["exports"]),
                ", ".join(f"{store['vcenter']}/{store['name']}" for store in volume["datastores"]),
            )
            for volume in system["volumes"]
        ],
        right=("size",),
        empty="No volumes were found.",
    )


def _proxy(one: dict[str, str]) -> str:
    return f"{one['proxy']} ({one['host']})" if one["host"] else one["proxy"]


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one storage system with its volumes."""
    _show(door, door.api.get(f"/storage-systems/{part(name)}"))


@app.command("edit")
@with_door
def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="HOST[:PORT]")] = None,
    proxy: ProxyOption = None,
    no_proxies: Annotated[
        bool, typer.Option("--no-proxies", help="No proxy may read from it any more.")
    ] = False,
    option: SettingOption = None,
    secret: SecretOption = None,
    secret_stdin: SecretStdinOption = False,
    secret_file: SecretFileOption = None,
    identity: IdentityOption = None,
    accept_identity: AcceptOption = False,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether backups may use it.", show_default=False),
    ] = None,
) -> None:
    """Change a storage system: what is not named stays; the proxies and options named replace the old ones."""
    path = f"/storage-systems/{part(name)}"
    old = door.api.get(path)
    kind = _driver(door, old["driver"])
    changes: dict[str, Any] = {}
    if new_name:
        changes["name"] = new_name
    if address:
        changes["address"] = address
    if proxy or no_proxies:
        changes["proxies"] = proxies_of(proxy or ())
    if option:
        changes["options"] = {**old["options"], **options_of(option, _many(kind))}
    if secret_stdin or secret_file:
        changes["secrets"] = _secret(kind, secret, from_stdin=secret_stdin, file=secret_file)
    if identity or accept_identity:
        changes["identity"] = _agreed_identity(
            door, old["driver"], address or old["address"], given=identity, accept=accept_identity
        )
    if enabled is not None:
        changes["enabled"] = enabled
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    _show(door, door.api.patch(path, changes, slow=True))


@app.command("rescan")
@with_door
def rescan(door: Door, name: NameArgument) -> None:
    """Read its volumes, and which datastores lie on them, now."""
    system = door.api.post(f"/storage-systems/{part(name)}/rescan", {}, slow=True)
    _show(door, system)
    if system["problem"]:
        raise CliError(f"the volumes of '{name}' could not be read: {system['problem']}")


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Forget a storage system; refused while a job uses it or snapshots of vmhaul are left there."""
    door.api.delete(f"/storage-systems/{part(name)}")
    if not door.json:
        output.say(f"Storage system '{name}' removed.")
