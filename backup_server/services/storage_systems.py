"""Storage systems: added after their key or certificate was confirmed, read for their volumes, tied to datastores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState
from backup_server.db.tables import Intent, Job, Proxy, Vcenter, new_id
from backup_server.db.tables import StorageSystem as StorageRow
from backup_server.errors import ConflictError, InvalidError, NotFoundError, VmhaulError
from backup_server.services import vcenters
from backup_server.services.context import Context
from backup_server.services.shapes import Fields, by_ref, when
from backup_server.services.storage_pool import DRIVER_OPTIONS, IDENTITY, PROXIES, opened, packed
from proxy_worker.contracts.codec import from_json, to_json
from transports.base import DatastoreRef
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportError,
)
from transports.storage_systems.base import Option, StorageAccess, StorageDriver, SystemInfo, Volume
from transports.storage_systems.matching import volumes_below
from transports.vsphere.model import Secret

MODEL: Final = "model"
VERSION: Final = "version"
DATASTORES: Final = "datastores"
INVENTORY_AGE_S: Final = 3600.0
"""Of an inventory that tells well enough which datastores there are."""
_LOGIN: Final = frozenset({"address", "identity", "secrets", "options"})
_CHANGEABLE: Final = (
    "name",
    "address",
    "identity",
    "secrets",
    "options",
    "proxies",
    "enabled",
)


def list_drivers(ctx: Context) -> list[dict[str, Any]]:
    return [
        {
            "name": driver.name,
            "title": driver.title,
            "needs_host": driver.needs_host,
            "options": [_option_shape(option) for option in driver.options],
            "secrets": [list(names) for names in driver.secrets],
        }
        for driver in ctx.storage.drivers.values()
    ]


def _option_shape(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "help": option.help,
        "required": option.required,
        "many": option.many,
        "choices": list(option.choices),
        "default": option.default,
    }


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(StorageRow).order_by(StorageRow.name))
        return [_shape(s, row) for row in rows]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        return _shape(s, by_ref(s, StorageRow, ref))


def probe(ctx: Context, driver: str, address: str) -> dict[str, Any]:
    """What identifies the system that answers there, for a person to compare."""
    chosen = _driver(ctx, driver)
    try:
        return {"driver": driver, "address": address, "identity": chosen.probe(address)}
    except ValueError as error:
        raise InvalidError(str(error), details={"address": str(error)}) from error
    except TransportError as error:
        raise vcenters.as_server_error(error) from error


def add(ctx: Context, data: Mapping[str, Any]) -> dict[str, Any]:
    """Log in, read the volumes, store it. InvalidError names every field that cannot be accepted."""
    with ctx.db.read() as s:
        values, secrets = _values(ctx, s, data)
    info = _try(ctx, values, secrets)
    now = ctx.clock()
    try:
        with ctx.db() as s:
            row = StorageRow(
                id=new_id(),
                credential_id=ctx.credentials.store(s, "storage-system", packed(secrets), now),
                rescanned_at=None,
                created_at=now,
                **_with_info(values, info),
            )
            s.add(row)
    except DuplicateError:
        raise _taken(values["name"]) from None
    return rescan(ctx, row.id)


def edit(ctx: Context, ref: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change what is named; secrets that are not named stay. Logs in to check what the login rests on: one that is
    away can be switched off all the same.
    """
    with ctx.db.read() as s:
        row = by_ref(s, StorageRow, ref)
        old = _as_data(s, row)
        known = opened(ctx.credentials.fetch(s, row.credential_id)) if row.credential_id else {}
        for name in set(changes) - set(_CHANGEABLE):
            raise InvalidError(f"a storage system has no field {name} that can be changed")
        merged = {**old, **changes}
        if "secrets" not in changes:
            merged["secrets"] = known
        values, secrets = _values(ctx, s, merged)
    info = SystemInfo(model=row.options.get(MODEL, ""), version=row.options.get(VERSION, ""))
    if _LOGIN & set(changes):
        info = _try(ctx, values, secrets)
    try:
        with ctx.db() as s:
            stored = s.get_one(StorageRow, row.id)
            _refuse_another(s, stored, values)
            for name, value in _with_info(values, info).items():
                setattr(stored, name, value)
            if stored.credential_id:
                ctx.credentials.replace(s, stored.credential_id, packed(secrets))
    except DuplicateError:
        raise _taken(values["name"]) from None
    ctx.storage.forget(row.id)
    return rescan(ctx, row.id)


def _refuse_another(s: DbSession, row: StorageRow, values: Mapping[str, Any]) -> None:
    """What was made on one system would be looked for on the other, not found, and taken for removed."""
    moved = values["address"] != row.address
    if not moved or values["options"][IDENTITY] == row.options.get(IDENTITY):
        return
    if left := open_names(s, row.id):
        raise ConflictError(
            f"storage system {row.name!r} still has snapshots of vmhaul ({', '.join(left)}): with another address and "
            "another identity it would be another system; add that one under a name of its own"
        )


def remove(ctx: Context, ref: str) -> None:
    """Refused while jobs use it, or while something of ours is left on it."""
    with ctx.db() as s:
        row = by_ref(s, StorageRow, ref)
        if jobs := _jobs_using(s, row):
            raise ConflictError(
                f"storage system {row.name!r} is used by job {', '.join(jobs)}; switch their storage snapshots off "
                "first, with `vmhaul job edit JOB --no-storage-snapshots`"
            )
        if left := open_names(s, row.id):
            raise ConflictError(
                f"storage system {row.name!r} still has snapshots of vmhaul ({', '.join(left)}); the janitor goes "
                "on removing them, `vmhaul doctor` shows why it cannot"
            )
        credential = row.credential_id
        s.delete(row)
        s.flush()
        if credential:
            ctx.credentials.forget(s, credential)
        row_id = row.id
    ctx.storage.forget(row_id)


def _jobs_using(s: DbSession, row: StorageRow) -> list[str]:
    """Names of jobs that ask for storage snapshots in a vCenter with a datastore on the system."""
    vcenter_ids = {store["vcenter_id"] for volume in row.volumes for store in volume[DATASTORES]}
    jobs = s.scalars(sa.select(Job).where(Job.vcenter_id.in_(vcenter_ids)).order_by(Job.name))
    return [job.name for job in jobs if job.options.get("storage_snapshots")]


def open_names(s: DbSession, system_id: str) -> list[str]:
    """Names of the storage snapshots that open intents hold on the system."""
    rows = s.scalars(
        sa.select(Intent).where(
            Intent.state == IntentState.OPEN.value,
            Intent.kind.in_([IntentKind.STORAGE_SNAPSHOT.value, IntentKind.STORAGE_EXPOSURE.value]),
        )
    )
    return sorted(
        {
            row.mark
            for row in rows
            if system_id in {part["system"] for part in row.details.get("systems", [])}
        }
    )


def rescan(ctx: Context, ref: str) -> dict[str, Any]:
    """Read the volumes and the datastores on them now. What fails is stored as the system's problem."""
    with ctx.db.read() as s:
        row = by_ref(s, StorageRow, ref)
    problem, volumes = "", list(row.volumes)
    try:
        found = ctx.storage.get(row.id).volumes()
        volumes = _with_datastores(ctx, found)
    except (TransportError, VmhaulError) as error:
        problem = str(error)
        ctx.log.warning("storage.rescan-failed", system=row.name, reason=problem)
    with ctx.db() as s:
        stored = s.get_one(StorageRow, row.id)
        stored.volumes, stored.problem = volumes, problem
        stored.rescanned_at = ctx.clock()
    return get(ctx, row.id)


def rescan_all(ctx: Context) -> None:
    with ctx.db.read() as s:
        ids = list(s.scalars(sa.select(StorageRow.id).where(StorageRow.enabled.is_(True))))
    for system_id in ids:
        try:
            rescan(ctx, system_id)
        except NotFoundError:
            continue  # removed meanwhile


def volumes_of(row: StorageRow) -> tuple[Volume, ...]:
    """As of the last rescan."""
    return tuple(
        from_json(Volume, {name: value for name, value in item.items() if name != DATASTORES})
        for item in row.volumes
    )


def _with_datastores(ctx: Context, volumes: tuple[Volume, ...]) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        known = s.execute(sa.select(Vcenter.id, Vcenter.name).order_by(Vcenter.name)).all()
    on: dict[str, list[dict[str, str]]] = {volume.id: [] for volume in volumes}
    for vcenter in known:
        for store in _datastores(ctx, vcenter.id):
            for volume in volumes_below(store, volumes):
                on[volume.id].append(
                    {"vcenter_id": vcenter.id, "vcenter": vcenter.name, "name": store.name}
                )
    return [{**to_json(volume), DATASTORES: on[volume.id]} for volume in volumes]


def _datastores(ctx: Context, vcenter_id: str) -> list[DatastoreRef]:
    try:
        inventory = vcenters.load_inventory(ctx, vcenter_id, max_age_s=INVENTORY_AGE_S)
    except (TransportError, VmhaulError) as error:
        ctx.log.warning("storage.vcenter-unread", vcenter_id=vcenter_id, reason=str(error))
        return []
    return [store.storage for store in inventory.datastores if store.storage is not None]


# ---- what doors give ------------------------------------------------------------------------------


def _values(
    ctx: Context, s: DbSession, data: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Secret]]:
    given = Fields(data)
    driver = given.one_of("driver", tuple(ctx.storage.drivers))
    chosen = ctx.storage.drivers[driver]
    values = {
        "name": given.path_name(),
        "driver": driver,
        "address": given.text("address"),
        "enabled": given.flag("enabled", default=True),
    }
    secrets = given.checked("secrets", lambda value: _check_secrets(chosen, value), default={})
    values["options"] = {
        IDENTITY: given.text("identity"),
        PROXIES: given.checked("proxies", lambda value: _check_proxies(s, chosen, value), default=[]),
        DRIVER_OPTIONS: given.checked(
            "options", lambda value: check_options(chosen, value), default={}
        ),
    }
    given.finish("the storage system")
    return values, secrets


def _check_secrets(driver: StorageDriver, value: Any) -> dict[str, Secret]:
    """The message repeats no secret."""
    wanted = " or ".join(" and ".join(names) for names in driver.secrets)
    if not isinstance(value, Mapping) or tuple(sorted(value)) not in {
        tuple(sorted(names)) for names in driver.secrets
    }:
        raise ValueError(f"must hold {wanted}")
    secrets = {
        name: text if isinstance(text, Secret) else Secret(str(text)) for name, text in value.items()
    }
    if not all(secret.reveal() for secret in secrets.values()):
        raise ValueError(f"must hold {wanted}, none of them empty")
    return secrets


def _check_proxies(s: DbSession, driver: StorageDriver, value: Any) -> list[dict[str, str]]:
    """[{"proxy": name or id, "host": …}] -> [{"proxy_id": …, "host": …}]"""
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError("must be a list of {proxy, host}")
    found: list[dict[str, str]] = []
    for one in value:
        host = str(one.get("host") or "")
        if driver.needs_host and not host:
            raise ValueError(
                f"{one.get('proxy')}: the system must know the proxy as a host; name it (PROXY=HOST)"
            )
        try:
            proxy = by_ref(s, Proxy, str(one.get("proxy", "")))
        except NotFoundError as error:
            raise ValueError(str(error)) from error
        if any(proxy.id == other["proxy_id"] for other in found):
            raise ValueError(f"names proxy {proxy.name} twice")
        # Arrays do not tell upper from lower case in names of hosts.
        if host and any(host.casefold() == other["host"].casefold() for other in found):
            raise ValueError(
                f"two proxies are the host {host}: each needs an initiator group of its own"
            )
        found.append({"proxy_id": proxy.id, "host": host})
    return found


def check_options(driver: StorageDriver, value: Any) -> dict[str, Any]:
    """What the driver is told, with its defaults. ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")  # noqa: TRY004 - as every other check
    known = {option.name: option for option in driver.options}
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(
            f"{driver.name} has no {', '.join(unknown)}; there are {', '.join(known) or 'none'}"
        )
    return {name: _option(option, value.get(name)) for name, option in known.items()}


def _option(option: Option, value: Any) -> str | list[str]:
    texts = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{option.name} must hold texts that are not empty")
    if option.required and not texts:
        raise ValueError(f"{option.name} is needed: {option.help}")
    if option.choices and (wrong := [text for text in texts if text not in option.choices]):
        raise ValueError(f"{option.name} must be one of {', '.join(option.choices)}, not {wrong[0]}")
    if option.many:
        return texts
    if len(texts) > 1:
        raise ValueError(f"{option.name} takes one value")
    return texts[0] if texts else option.default


def _try(ctx: Context, values: Mapping[str, Any], secrets: Mapping[str, Secret]) -> SystemInfo:
    """Log in with what was given."""
    driver = _driver(ctx, values["driver"])
    access = StorageAccess(
        address=values["address"],
        identity=values["options"][IDENTITY],
        secrets=secrets,
        options=values["options"][DRIVER_OPTIONS],
    )
    try:
        system = driver.connect(access)
        try:
            return system.describe()
        finally:
            system.close()
    except ValueError as error:
        raise InvalidError(str(error), details={"address": str(error)}) from error
    except PeerIdentityError as error:
        raise InvalidError(str(error), details={"identity": str(error)}) from error
    except PermanentTransportError as error:
        raise InvalidError(str(error), details={"secrets": str(error)}) from error
    except TransientTransportError as error:
        raise vcenters.as_server_error(error) from error


def _driver(ctx: Context, name: str) -> StorageDriver:
    driver = ctx.storage.drivers.get(name)
    if driver is None:
        known = ", ".join(ctx.storage.drivers)
        raise InvalidError(
            f"there is no driver {name!r} of storage systems; there are: {known}",
            details={"driver": f"must be one of {known}"},
        )
    return driver


def _with_info(values: Mapping[str, Any], info: SystemInfo) -> dict[str, Any]:
    return {**values, "options": {**values["options"], MODEL: info.model, VERSION: info.version}}


def _as_data(s: DbSession, row: StorageRow) -> dict[str, Any]:
    """The row as a door would give it, without secrets."""
    return {
        "name": row.name,
        "driver": row.driver,
        "address": row.address,
        "identity": row.options.get(IDENTITY, ""),
        "enabled": row.enabled,
        "options": row.options.get(DRIVER_OPTIONS, {}),
        "proxies": _proxies(s, row),
    }


def _proxies(s: DbSession, row: StorageRow) -> list[dict[str, str]]:
    """Those that still exist, by name."""
    listed = row.options.get(PROXIES, [])
    ids = [one["proxy_id"] for one in listed]
    found = s.execute(sa.select(Proxy.id, Proxy.name).where(Proxy.id.in_(ids)))
    names = {proxy.id: proxy.name for proxy in found}
    return [
        {"proxy": names[one["proxy_id"]], "host": one["host"]}
        for one in listed
        if one["proxy_id"] in names
    ]


def _taken(name: str) -> ConflictError:
    return ConflictError(f"a storage system named {name!r} exists already; give another name")


def _shape(s: DbSession, row: StorageRow) -> dict[str, Any]:
    return {
        "id": row.id,
        **_as_data(s, row),
        "model": row.options.get(MODEL, ""),
        "version": row.options.get(VERSION, ""),
        "volumes": row.volumes,
        "open_snapshots": open_names(s, row.id),
        "rescanned_at": when(row.rescanned_at),
        "problem": row.problem,
        "created_at": when(row.created_at),
    }
