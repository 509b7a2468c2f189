"""Checks of what the server depends on, one line each with what to do. The machine itself is looked at
by the command line (`backup_server.up.machine`), which needs no server for that.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import redis
import sqlalchemy as sa
from cryptography import x509

from backup_server.db.migrate import current_revision, head_revision
from backup_server.db.states import IntentState
from backup_server.db.tables import Intent, Job, Proxy, Repository, Vcenter
from backup_server.errors import VmhaulError
from backup_server.services import broker_checks, broker_users, vcenters
from backup_server.services.about import broker_problem, connect_broker
from backup_server.services.context import Context
from backup_server.services.proxies import state_of
from backup_server.services.repository_storage import UNLIMITED_BYTES
from backup_server.services.selection import select
from transports.base import TransportMode
from transports.errors import TransportError
from transports.vsphere.model import Inventory

T = TypeVar("T")

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
CLOCK_TOLERANCE_S: Final = 60.0
PROXY_CLOCK_TOLERANCE_S: Final = 60.0  # a fifth of the window in which envelopes are believed
CERTIFICATE_WARNING: Final = timedelta(days=30)
VCENTER_PATIENCE_S: Final = 30.0
NFC_PORT: Final = 902
NFC_TIMEOUT_S: Final = 3.0
NFC_HOSTS_TRIED: Final = 20
LOW_SPACE_SHARE: Final = 0.1
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    level: str
    text: str
    advice: str = ""


def run_checks(ctx: Context) -> list[dict[str, str]]:
    """All checks, in the order in which a person would look. Reads only."""
    checks: list[Check] = []
    for part in (_database, _broker, _broker_users, _vcenters, _repositories, _proxies, _intents):
        checks.extend(_guarded(part, ctx))
    return [asdict(check) for check in checks]


def _guarded(part: Callable[[Context], Iterator[Check]], ctx: Context) -> list[Check]:
    """A part that breaks is a finding too, and must not hide the others."""
    found: list[Check] = []
    try:
        found.extend(part(ctx))
    except (VmhaulError, TransportError, sa.exc.SQLAlchemyError, OSError) as error:
        name = part.__name__.strip("_")
        advice = "see the server's log"
        found.append(
            Check(name=name, level=ERROR, text=f"could not be checked: {error}", advice=advice)
        )
    return found


def _database(ctx: Context) -> Iterator[Check]:
    engine = ctx.db.engine
    name = "database"
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            version = connection.scalar(sa.text("SELECT sqlite_version()"))
            journal = str(connection.scalar(sa.text("PRAGMA journal_mode")))
            if journal != "wal":
                advice = "put the data directory on a local file system; WAL does not work over NFS"
                text = f"SQLite {version}, journal {journal}"
                yield Check(name=name, level=WARNING, text=text, advice=advice)
            else:
                yield Check(name=name, level=OK, text=f"SQLite {version}, WAL")
        else:
            version = connection.scalar(sa.text("SHOW server_version"))
            yield Check(name=name, level=OK, text=f"PostgreSQL {version}")
    revision = current_revision(engine)
    if revision != head_revision():
        text = f"schema {revision} instead of {head_revision()}"
        yield Check(name=name, level=ERROR, text=text, advice="restart the server to migrate it")


def _broker(ctx: Context) -> Iterator[Check]:
    problem = broker_problem(ctx)
    if problem:
        advice = "check that it runs and that the URL given with --broker is right"
        yield Check(name="broker", level=ERROR, text=problem, advice=advice)
        return
    with connect_broker(ctx) as client:
        server: Any = client.info("server")
        version = server.get("valkey_version") or server.get("redis_version") or "?"
        try:
            persistence: Any = client.info("persistence")
            kept = bool(int(persistence.get("aof_enabled", 0)))
        except redis.RedisError:
            kept = False
    if kept:
        yield Check(name="broker", level=OK, text=f"version {version}, append-only file on")
    else:
        text = f"version {version}, no append-only file"
        advice = "queued messages are sent again after its restart, but slower; set appendonly yes"
        yield Check(name="broker", level=WARNING, text=text, advice=advice)


# -- vCenters


def _broker_users(ctx: Context) -> Iterator[Check]:
    """Whether proxies are kept apart at the broker, and whom it refused something lately."""
    name = "broker users"
    answer = broker_users.separated(ctx)
    if answer != broker_users.YES:
        advice = "let the account of --broker manage users of Redis 7 or newer (`+acl +@all ~* &*`)"
        text = f"proxies share one broker user: {answer}"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    with ctx.db.read() as s:
        without = s.scalars(
            sa.select(Proxy.name)
            .where(Proxy.signing_key.is_not(None), Proxy.broker_credential_id.is_(None))
            .order_by(Proxy.name)
        ).all()
    if without:
        advice = "let each join again with a token of `vmhaul proxy token NAME`"
        text = f"these joined before proxies had broker users of their own: {_some(list(without))}"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    try:
        with connect_broker(ctx) as client:
            refused = broker_users.refused_by_broker(client)
            found = list(broker_checks.hardness(client))
    except (redis.RedisError, OSError):
        return  # said elsewhere, or the account may not ask
    if refused:
        text = f"the broker refused proxies something: {_some(refused, 5)}"
        advice = "look at those proxies: somebody tries what their workers never do, or they run another release"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    elif answer == broker_users.YES and not without:
        yield Check(name=name, level=OK, text="every proxy has its own, and none was refused anything")
    for text, advice in found:
        yield Check(name="broker", level=WARNING, text=text, advice=advice)


def _vcenters(ctx: Context) -> Iterator[Check]:
    with ctx.db.read() as s:
        rows = list(s.scalars(sa.select(Vcenter).order_by(Vcenter.name)))
    if not rows:
        advice = "add one with `vmhaul vcenter add`"
        yield Check(name="vCenter", level=WARNING, text="none has been added", advice=advice)
    asked = [(row, _in_background(partial(_vcenter_checks, ctx, row))) for row in rows]
    for row, answer in asked:
        try:
            yield from answer.result(VCENTER_PATIENCE_S)
        except TimeoutError:
            text = f"{row.host}:{row.port} gave no answer within {VCENTER_PATIENCE_S:.0f} s"
            advice = "see whether its services run and whether a firewall swallows the connection"
            yield Check(name=f"vCenter {row.name}", level=ERROR, text=text, advice=advice)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """The work in a thread of its own, which nobody waits for longer than he likes.

    A vCenter that takes connections and stays silent holds a login until its own time limits end, some
    minutes later; whoever calls for a doctor has not got that long.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="doctor").start()
    return answer


def _vcenter_checks(ctx: Context, row: Vcenter) -> list[Check]:
    return list(_vcenter(ctx, row))


def _vcenter(ctx: Context, row: Vcenter) -> Iterator[Check]:
    name = f"vCenter {row.name}"
    yield from _certificate(ctx, row, name)
    try:
        client = ctx.vcenters.get(row.id)
        about = client.about()
        offset_s = client.clock_offset_s()
        lacking = client.missing_privileges("backup")
        lacking_restore = client.missing_privileges("restore")
        lacking_hotadd = client.missing_privileges("hotadd") if _has_hotadd(ctx) else None
        inventory = vcenters.load_inventory(ctx, row.id, max_age_s=0)
    except TransportError as error:
        advice = f"correct it with `vmhaul vcenter edit {row.name}`"
        yield Check(name=name, level=ERROR, text=str(error), advice=advice)
        return
    yield Check(
        name=name, level=OK, text=f"{about.name} build {about.build}, logged in as {row.username}"
    )
    yield _clock(name, offset_s)
    yield _privileges(name, "backup", lacking, ERROR)
    yield _privileges(name, "restore", lacking_restore, WARNING)
    if lacking_hotadd is not None:
        yield _privileges(name, "hotadd", lacking_hotadd, WARNING)
    yield from _tracking(ctx, row, inventory)
    yield from _nfc_ports(name, inventory)


def _has_hotadd(ctx: Context) -> bool:
    """Whether any proxy runs in a VM and could have disks attached."""
    with ctx.db.read() as s:
        rows = list(s.scalars(sa.select(Proxy).where(Proxy.enabled)))
    return any(TransportMode.HOTADD.value in row.facts.get("modes", []) for row in rows)


def _certificate(ctx: Context, row: Vcenter, name: str) -> Iterator[Check]:
    name = f"{name} certificate"
    try:
        shown = ctx.vcenters.probe(row.host, row.port)
    except TransportError as error:
        advice = "check name, port and firewall"
        yield Check(name=name, level=ERROR, text=str(error), advice=advice)
        return
    if shown.thumbprint_sha256.upper() != row.thumbprint_sha256.upper():
        text = f"is not the pinned one: {shown.thumbprint_sha256}"
        advice = f"if it was renewed on purpose: `vmhaul vcenter edit {row.name} --thumbprint ...`"
        yield Check(name=name, level=ERROR, text=text, advice=advice)
        return
    if not shown.certificate_pem:
        yield Check(name=name, level=OK, text="is the pinned one")
        return
    ends = x509.load_pem_x509_certificate(shown.certificate_pem.encode()).not_valid_after_utc
    left = ends - ctx.clock()
    if left < timedelta(0):
        text, level = f"is the pinned one, but ended on {ends:%Y-%m-%d}", WARNING
    elif left < CERTIFICATE_WARNING:
        text, level = f"is the pinned one and ends on {ends:%Y-%m-%d}", WARNING
    else:
        text, level = f"is the pinned one, good until {ends:%Y-%m-%d}", OK
    advice = "" if level == OK else "renew it, then pin the new one with `vmhaul vcenter edit`"
    yield Check(name=name, level=level, text=text, advice=advice)


def _clock(name: str, offset_s: float) -> Check:
    name = f"{name} clock"
    text = f"{offset_s:+.1f} s from ours"
    if abs(offset_s) > CLOCK_TOLERANCE_S:
        return Check(name=name, level=WARNING, text=text, advice="let NTP set both clocks")
    return Check(name=name, level=OK, text=text)


def _privileges(name: str, role: str, lacking: list[str], level: str) -> Check:
    name = f"{name} rights"
    if lacking:
        text = f"for {role} these are missing: {_some(lacking, 100)}"
        advice = "give the account's role these privileges at the vCenter root, with propagation"
        return Check(name=name, level=level, text=text, advice=advice)
    return Check(name=name, level=OK, text=f"all for {role}")


def _tracking(ctx: Context, row: Vcenter, inventory: Inventory) -> Iterator[Check]:
    """Change tracking of the VMs that jobs take."""
    with ctx.db.read() as s:
        jobs = list(s.scalars(sa.select(Job).where(Job.vcenter_id == row.id)))
    vms = {one.vm.moref: one.vm for job in jobs for one in select(job.selection, inventory).vms}
    if not vms:
        return
    name = f"vCenter {row.name} change tracking"
    off = [vm for vm in vms.values() if not vm.change_tracking_enabled]
    stuck = [vm.name for vm in off if vm.has_snapshots]
    never = [vm.name for vm in off if not vm.change_tracking_supported]
    if stuck:
        text = f"off, and the VM has snapshots: {_some(stuck)}"
        advice = "remove the snapshots; until then each run reads everything"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    if never:
        text = f"not supported: {_some(never)}"
        advice = "upgrade the virtual hardware; until then each run reads everything"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    if not stuck and not never:
        text = f"on for {len(vms) - len(off)} of {len(vms)} VMs of jobs"
        yield Check(name=name, level=OK, text=text + (", on with the next run" if off else ""))
    needing = [vm.name for vm in vms.values() if vm.consolidation_needed]
    if needing:
        text = f"disks need consolidation: {_some(needing)}"
        advice = "consolidate them in the vSphere client when nothing else works on the VM"
        yield Check(name=f"vCenter {row.name} VMs", level=WARNING, text=text, advice=advice)


def _nfc_ports(name: str, inventory: Inventory) -> Iterator[Check]:
    """Port 902 of the hosts from here; proxies elsewhere have to reach them themselves."""
    hosts = [host for host in inventory.hosts if host.connected][:NFC_HOSTS_TRIED]
    deaf = [host.name for host in hosts if not _reachable(host.name, NFC_PORT)]
    name = f"{name} port {NFC_PORT}"
    if deaf:
        text = f"not reachable from the server: {_some(deaf)}"
        advice = "open it for every proxy that reads over the network, or check the hosts' names in DNS"
        yield Check(name=name, level=WARNING, text=text, advice=advice)
    elif hosts:
        yield Check(name=name, level=OK, text=f"reachable on {len(hosts)} hosts")


def _reachable(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=NFC_TIMEOUT_S):
            return True
    except OSError:
        return False


# -- repositories, proxies, leftovers


def _repositories(ctx: Context) -> Iterator[Check]:
    with ctx.db.read() as s:
        rows = list(s.scalars(sa.select(Repository).order_by(Repository.name)))
    if not rows:
        advice = "add one with `vmhaul repository add`"
        yield Check(name="repository", level=WARNING, text="none has been added", advice=advice)
    for row in rows:
        name = f"repository {row.name}"
        try:
            space = ctx.agents.get(row.id).space()
        except VmhaulError as error:
            advice = f"check that {row.location} is mounted and may be written"
            yield Check(name=name, level=ERROR, text=str(error), advice=advice)
            continue
        if space.total_bytes >= UNLIMITED_BYTES:
            yield Check(name=name, level=OK, text="answers; its storage tells no free space")
            continue
        text = f"{space.free_bytes / 2**30:.1f} of {space.total_bytes / 2**30:.1f} GiB free"
        if space.free_bytes < space.total_bytes * LOW_SPACE_SHARE:
            advice = "free space, keep fewer restore points, or prune"
            yield Check(name=name, level=WARNING, text=text, advice=advice)
        else:
            yield Check(name=name, level=OK, text=text)


def _proxies(ctx: Context) -> Iterator[Check]:
    now = ctx.clock()
    with ctx.db.read() as s:
        rows = list(s.scalars(sa.select(Proxy).order_by(Proxy.name)))
    for row in rows:
        name = f"proxy {row.name}"
        state = state_of(row, now, ctx.settings.proxy_offline_after_s)
        if state in ("offline", "never-seen") and row.enabled and not row.state_note:
            yield Check(name=name, level=ERROR, text=state, advice=_how_to_start(row))
        elif row.state_note:
            advice = "it gets no new tasks until that is in order"
            yield Check(name=name, level=ERROR, text=row.state_note, advice=advice)
        elif abs(row.clock_offset_s or 0) > PROXY_CLOCK_TOLERANCE_S:
            text = f"clock {row.clock_offset_s:+.0f} s from ours: its messages may be refused"
            yield Check(name=name, level=WARNING, text=text, advice="let NTP set both clocks")
        else:
            yield Check(name=name, level=OK, text=f"{state}, {row.slots} slots")
    if not any(row.enabled for row in rows):
        advice = "enable one or add one with `vmhaul proxy add`"
        yield Check(name="proxies", level=ERROR, text="none is enabled", advice=advice)


def _how_to_start(row: Proxy) -> str:
    if row.local:
        return "`vmhaul up` runs it; see the log of its worker"
    if row.signing_key is None:
        return "enrol it with its join token"
    return "start its service, and check its way to the broker"


def _intents(ctx: Context) -> Iterator[Check]:
    """What the janitor could not clean so far."""
    with ctx.db.read() as s:
        rows = list(
            s.scalars(
                sa.select(Intent).where(Intent.state == IntentState.OPEN.value, Intent.problem != "")
            )
        )
    for row in rows:
        text = f"{row.kind} of {row.created_at:%Y-%m-%d %H:%M} is left after {row.tries} tries: {row.problem}"
        advice = "vmhaul goes on trying; look for a task or a proxy that still holds the disk"
        yield Check(name=f"VM {row.vm_name}", level=WARNING, text=text, advice=advice)
    if not rows:
        yield Check(
            name="leftovers",
            level=OK,
            text="no snapshot, no attached disk and no half restored VM is left",
        )


def _some(names: list[str], shown: int = _NAMES_SHOWN) -> str:
    more = len(names) - shown
    return ", ".join(sorted(names)[:shown]) + (f" and {more} more" if more > 0 else "")
