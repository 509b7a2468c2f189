"""Proxies installed, upgraded and removed on managed servers: each an operation whose steps can be followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from backup_server.db.tables import ManagedServer, Proxy
from backup_server.deploy.install import InstallOrder, Undo
from backup_server.deploy.look import Facts
from backup_server.deploy.machine import StepError
from backup_server.deploy.places import AnyPlaces
from backup_server.deploy.releases import Release
from backup_server.deploy.ways import Way
from backup_server.deploy.wheel import Wheel, carried_wheel
from backup_server.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VmhaulError,
)
from backup_server.services import join_tokens, managed_servers, operations, proxies
from backup_server.services.context import Context
from backup_server.services.managed_servers import Access, Connect
from backup_server.services.operations import Journal
from backup_server.services.shapes import Fields, by_ref
from transports.vsphere.model import Secret

HEARD_S: Final = 120.0
"""How long a worker may take from its start until the server heard it and what it found."""
DRAIN_S: Final = 24 * 3600.0
QUIET_S: Final = 3.0
"""So long nothing must run before a proxy counts as drained: a claim may be under way when it is disabled."""
POLL_S: Final = 0.5


# ---- add


@dataclass(frozen=True, slots=True, kw_only=True)
class _AddOrder:
    access: Access
    name: str
    slots: int | None
    description: str
    keep_credentials: bool
    install_packages: bool
    extras: tuple[str, ...]
    wheelhouse: Path | None
    python: str
    places: AnyPlaces


def start_add(
    ctx: Context, data: Mapping[str, Any], *, connect: Connect | None = None
) -> dict[str, Any]:
    """The operation that makes a machine a proxy. InvalidError names every field that cannot be accepted."""
    given = Fields(data)
    access = managed_servers.access_of(ctx, given)
    order = _AddOrder(
        access=access,
        name=given.checked("name", proxies.check_name, default=default_name(access.address.host)),
        slots=given.take("slots"),
        description=given.text("description", default="", empty=True),
        keep_credentials=given.flag("keep_credentials", default=access.login.private_key is not None),
        install_packages=given.flag("install_packages", default=False),
        extras=tuple(given.checked("extras", _texts, default=())),
        wheelhouse=given.checked("wheelhouse", _directory, default=None),
        python=given.text("python", default="", empty=True),
        places=given.checked("places", managed_servers.places_of(access), default={}),
    )
    given.finish("the proxy's machine")
    _refuse_out_of_reach(ctx, access)
    with ctx.db.read() as s:
        if s.scalar(sa.select(Proxy.id).where(Proxy.name == order.name)):
            raise ConflictError(
                f"a proxy named {order.name!r} exists already; give another name with --name"
            )
    return operations.start(
        ctx,
        "add",
        order.name,
        lambda journal: _add(ctx, journal, order, connect),
        takes=[f"proxy-name/{order.name}", _machine(access)],
    )


def _machine(access: Access) -> str:
    """What operations on that machine hold. It is known by its host key: it may have several names and addresses."""
    return f"machine/{access.address.host_key}"


def default_name(host: str) -> str:
    """Of a proxy: its host's short name, or the whole of an address."""
    short = host.split(".", 1)[0]
    return host.replace(":", "-") if short.isdigit() or ":" in host else short


def _add(ctx: Context, journal: Journal, order: _AddOrder, connect: Connect | None) -> dict[str, Any]:
    wheel = carried_wheel()
    way = order.access.way
    address = order.access.address
    journal.step("connect", f"connecting to {address.host}:{address.port}")
    with (connect or way.connect)(address, order.access.login) as machine:
        journal.step("look", "looking at the machine")
        facts = way.look(machine, order.places, lambda: ctx.clock().timestamp(), python=order.python)
        _refuse_unfit(machine, facts, order)
        return _install(ctx, journal, order, machine, facts, wheel)


def _refuse_unfit(machine: Any, facts: Facts, order: _AddOrder) -> None:
    if facts.problems:
        raise StepError(f"{machine.name} cannot become a proxy: {'; '.join(facts.problems)}")
    if facts.missing and not order.install_packages:
        raise StepError(
            f"{machine.name} lacks {', '.join(facts.missing)}; install these there, or let it be done with "
            "--install-packages"
        )


def _install(
    ctx: Context, journal: Journal, order: _AddOrder, machine: Any, facts: Facts, wheel: Wheel
) -> dict[str, Any]:
    python = order.python or facts.python_then
    release = _release(wheel, order.extras, python, order.wheelhouse)
    release.check()
    journal.step("register", f"registering the server and proxy {order.name}")
    with ctx.db() as s:
        server, new_server = managed_servers.keep(
            ctx, s, order.access, facts, credentials=order.keep_credentials
        )
        server_id = server.id
    undo = Undo()
    added: dict[str, Any] = {}
    try:
        added = proxies.add(ctx, name=order.name, slots=order.slots, description=order.description)
        kept = {
            "places": order.places.values(),
            "init": facts.init,
            "release": "",
            "extras": list(order.extras),
            "python": release.python,
        }
        with ctx.db() as s:
            s.get_one(Proxy, added["id"]).server_id = server_id
            managed_servers.set_installed(s, server_id, added["id"], kept)
        release_id = order.access.way.install(
            machine,
            InstallOrder(
                places=order.places,
                release=release,
                packages=facts.missing,
                optional_packages=facts.useful if order.install_packages else (),
                token=Secret(str(added["join_token"])),
            ),
            facts,
            journal.step,
            undo,
        )
        journal.step("heard", "waiting until the server hears it")
        # Read now: undoing takes the log away with the rest.
        with _with_last_words(order.access.way, machine, order.places, facts.init):
            _wait_heard(ctx, added["id"], None, connections=True)
    except VmhaulError as error:
        left = undo.all(ctx.log)
        _forget(ctx, server_id if new_server else None, server_id, added.get("id"))
        done = (
            f"not all that was done there could be undone: {'; '.join(left)}"
            if left
            else "what was done there was undone"
        )
        raise StepError(f"{error.message} ({done})") from error
    with ctx.db() as s:
        managed_servers.set_installed(s, server_id, added["id"], {**kept, "release": release_id})
    return {"proxy": added["id"], "server": server_id, "release": release_id}


def _refuse_out_of_reach(ctx: Context, access: Access) -> None:
    """ConflictError when a worker on that machine could not call this server."""
    embedded = not ctx.settings.broker
    if not join_tokens.door_urls(ctx) and (embedded or not _is_here(access.address.host)):
        raise ConflictError(
            "this server has no door for proxies on other machines; start it with "
            "`vmhaul up --proxies-listen ADDRESS`, then add the proxy"
        )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _forget(ctx: Context, new_server_id: str | None, server_id: str, proxy_id: str | None) -> None:
    if proxy_id:
        with suppress(NotFoundError):
            proxies.remove(ctx, proxy_id, force=True)
        with ctx.db() as s:
            managed_servers.set_installed(s, server_id, proxy_id, None)
    if new_server_id:
        with suppress(NotFoundError, ConflictError):
            managed_servers.remove(ctx, new_server_id)


def _release(wheel: Wheel, extras: Sequence[str], python: str, wheelhouse: Path | None) -> Release:
    return Release(wheel=wheel, python=python, extras=tuple(extras), wheelhouse=wheelhouse)


def _wait_heard(
    ctx: Context, proxy_id: str, old_boot: str | None, *, connections: bool = False, version: str = ""
) -> None:
    """Until a worker with another boot than `old_boot` was heard. StepError when it was not in time."""
    until = ctx.clock().timestamp() + HEARD_S
    name, seen = proxy_id, False
    while True:
        with _whatever_the_database_does(ctx), ctx.db.read() as s:
            row = s.get(Proxy, proxy_id)
            if row is None:
                raise StepError("the proxy was removed meanwhile")
            heard = row.last_seen_at is not None and row.boot_id not in (None, old_boot)
            if heard and version and row.version != version:
                raise StepError(
                    f"proxy {row.name!r} came back with release {row.version} instead of {version}"
                )
            if heard and (row.connections_at is not None or not connections):
                return
            name, seen = row.name, heard
        if ctx.clock().timestamp() > until:
            what = "what it found when it looked around" if seen else "its heartbeat"
            raise StepError(
                f"the server did not hear {what} of proxy {name!r} within {HEARD_S:.0f} s; most often the broker's "
                "address or a firewall is the reason"
            )
        if ctx.stopping.wait(POLL_S):
            raise ConflictError("the server is being stopped")


@contextmanager
def _with_last_words(way: Way, machine: Any, places: AnyPlaces, init: str) -> Iterator[None]:
    """A worker that is not heard may have said why, on its machine."""
    try:
        yield
    except StepError as error:
        said = ""
        with suppress(VmhaulError):
            said = way.last_words(machine, places, init)
        raise StepError(f"{error.message}; its log ends: {said}" if said else error.message) from error


@contextmanager
def _whatever_the_database_does(ctx: Context) -> Iterator[None]:
    """For a look that is taken again: a wait of a day must outlive a database that is started anew."""
    try:
        yield
    except sa.exc.OperationalError as error:
        ctx.log.warning("operation.database", text="the database did not answer", error=str(error.orig))


# ---- drain


def wait_drained(ctx: Context, proxy_id: str, limit_s: float) -> None:
    """Until nothing ran on the disabled proxy for a while. StepError when it takes longer than `limit_s`."""
    until = ctx.clock().timestamp() + limit_s
    quiet_since: datetime | None = None
    while True:
        now, running = ctx.clock(), -1
        with _whatever_the_database_does(ctx), ctx.db.read() as s:
            running = proxies.running_on(s, proxy_id)
        if running:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        elif (now - quiet_since).total_seconds() >= QUIET_S:
            return
        if now.timestamp() > until:
            count = "tasks" if running < 0 else f"{running} tasks"
            raise StepError(
                f"{count} still run on it after {limit_s:.0f} s; wait for their sessions or cancel them"
            )
        if ctx.stopping.wait(POLL_S):
            raise ConflictError("the server is being stopped")


# ---- upgrade


def start_upgrade(
    ctx: Context, data: Mapping[str, Any], *, connect: Connect | None = None
) -> dict[str, Any]:
    """The operation that brings proxies to the server's release, one by one.

    `names`, or `all` true for every one that vmhaul installed. ConflictError for those that it did not.
    """
    given = Fields(data)
    every = given.flag("all", default=False)
    names = given.checked("names", _texts, default=())
    force = given.flag("force", default=False)
    drain_s = float(given.number("drain_timeout_s", default=int(DRAIN_S), low=1, high=30 * 86400))
    wheelhouse = given.checked("wheelhouse", _directory, default=None)
    login = managed_servers.login_of(given)
    given.finish("the upgrade")
    if every == bool(names):
        raise InvalidError("name the proxies to upgrade, or all of them")
    with ctx.db.read() as s:
        if every:
            rows = list(
                s.scalars(sa.select(Proxy).where(Proxy.server_id.is_not(None)).order_by(Proxy.name))
            )
            if not rows:
                raise ConflictError("vmhaul installed no proxy: there is none that it can upgrade")
        else:
            rows = [by_ref(s, Proxy, ref) for ref in dict.fromkeys(names)]
        for row in rows:
            _refuse_unmanaged(row)
            # Before anything is begun: that credentials are missing is said at once.
            managed_servers.kept_access(ctx, s, s.get_one(ManagedServer, row.server_id), login)
        todo = [(row.id, row.name) for row in rows]

    def work(journal: Journal) -> dict[str, Any]:
        wheel = carried_wheel()
        done: dict[str, str] = {}
        for proxy_id, name in todo:
            upgrade = _Upgrade(
                ctx=ctx, journal=journal, proxy_id=proxy_id, name=name, wheel=wheel, drain_s=drain_s
            )
            try:
                journal.take(f"proxy/{proxy_id}")
                with ctx.db.read() as s:
                    row = s.get_one(Proxy, proxy_id)
                    server = s.get_one(ManagedServer, row.server_id)
                    access = managed_servers.kept_access(ctx, s, server, login)
                    known = managed_servers.installed(server, proxy_id)
                journal.take(_machine(access))
                way = access.way
                with (connect or way.connect)(access.address, access.login) as machine:
                    done[name] = upgrade.run(way, machine, known, wheelhouse, force=force)
            except VmhaulError as error:
                left = [other for _, other in todo if other not in done and other != name]
                rest = f"; not begun: {', '.join(left)}" if left else ""
                raise StepError(f"proxy {name!r} was not upgraded: {error.message}{rest}") from error
            journal.give_back(_machine(access))
            journal.give_back(f"proxy/{proxy_id}")
        return {"upgraded": done}

    return operations.start(ctx, "upgrade", ", ".join(name for _, name in todo), work, takes=())


def _refuse_unmanaged(row: Proxy) -> None:
    if row.local:
        raise ConflictError(
            f"proxy {row.name!r} runs on the server's machine: it has the server's release after `vmhaul up` starts anew"
        )
    if row.server_id is None:
        raise ConflictError(
            f"proxy {row.name!r} joined by itself, so vmhaul has no access to its machine: run the new release's "
            "`vmhaul proxy upgrade-here` there"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upgrade:
    """One proxy's. What runs on it ends in peace; the old release comes back when the new one is not heard."""

    ctx: Context
    journal: Journal
    proxy_id: str
    name: str
    wheel: Wheel
    drain_s: float

    def run(
        self, way: Way, machine: Any, known: Mapping[str, Any], wheelhouse: Path | None, *, force: bool
    ) -> str:
        """Id of the release that it has now."""
        places = way.places_of(known.get("places", {}))
        init = str(known["init"])
        old = way.current(machine, places)
        if old == self.wheel.release_id and not force:
            self._step("current", "has this release already")
            # An upgrade that was cut off may have left it stopped. One that runs is left alone.
            way.start(machine, places, init)
            self._remember(known, old)
            return old
        self._step("environment", f"installing vmhaul {self.wheel.version} beside the old one")
        release = _release(self.wheel, known.get("extras", ()), str(known["python"]), wheelhouse)
        release.check()
        new = way.build(machine, places, release)
        was_enabled = self._enable(on=False)
        self.journal.note(disabled=self.proxy_id if was_enabled else "")
        try:
            self._step("drain", "no new tasks; waiting until those that run have ended")
            wait_drained(self.ctx, self.proxy_id, self.drain_s)
            self._switch(way, machine, places, init, old, new)
        finally:
            if was_enabled:
                self._enable(on=True)
            self.journal.note(disabled="")
        self._remember(known, new)
        with suppress(VmhaulError):
            way.forget_others(machine, places, [new, old])
        self._step("done", f"runs release {new}")
        return new

    def _remember(self, known: Mapping[str, Any], release_id: str) -> None:
        with self.ctx.db() as s:
            row = s.get_one(Proxy, self.proxy_id)
            if row.server_id:
                found = {**known, "release": release_id}
                managed_servers.set_installed(s, row.server_id, self.proxy_id, found)

    def _switch(self, way: Way, machine: Any, places: AnyPlaces, init: str, old: str, new: str) -> None:
        self._step("switch", f"switching from {old or 'nothing'} to {new}")
        before = self._boot()
        try:
            way.change_to(machine, places, init, new)
            self._step("heard", "waiting until the server hears it")
            with _with_last_words(way, machine, places, init):
                _wait_heard(self.ctx, self.proxy_id, before, version=self.wheel.version)
        except VmhaulError as error:
            if not old or old == new:
                raise
            self._step("back", f"the new release did not come up; going back to {old}")
            before = self._boot()
            try:
                way.change_to(machine, places, init, old)
                _wait_heard(self.ctx, self.proxy_id, before)
            except VmhaulError as second:
                raise StepError(
                    f"{error.message}; its old release {old} did not come back either: {second.message}; see its log on "
                    "the machine, then upgrade it again"
                ) from second
            raise StepError(f"{error.message}; it runs its old release {old} again") from error

    def _step(self, name: str, text: str) -> None:
        self.journal.step(name, f"{self.name}: {text}")

    def _boot(self) -> str | None:
        with self.ctx.db.read() as s:
            return s.get_one(Proxy, self.proxy_id).boot_id

    def _enable(self, *, on: bool) -> bool:
        """Whether it was enabled before."""
        with self.ctx.db.read() as s:
            before = s.get_one(Proxy, self.proxy_id).enabled
        if before != on:
            proxies.edit(self.ctx, self.proxy_id, {"enabled": on})
        return before


# ---- remove


def start_remove(
    ctx: Context, ref: str, data: Mapping[str, Any], *, connect: Connect | None = None
) -> dict[str, Any]:
    """The operation that takes a proxy off its machine and forgets it. The server stays managed.

    ConflictError while a job names it. `force`: also when the machine does not answer, or tasks run.
    """
    given = Fields(data)
    keep_files = given.flag("keep_files", default=False)
    force = given.flag("force", default=False)
    drain_s = float(given.number("drain_timeout_s", default=int(DRAIN_S), low=1, high=30 * 86400))
    login = managed_servers.login_of(given)
    given.finish("the removal of the proxy")
    with ctx.db.read() as s:
        row = by_ref(s, Proxy, ref)
        proxies.refuse_while_named(s, row)
        if row.server_id is None:
            raise ConflictError(
                f"proxy {row.name!r} was not installed by vmhaul; nothing is to be removed on its machine"
            )
        server = s.get_one(ManagedServer, row.server_id)
        known = managed_servers.installed(server, row.id)
        proxy_id, server_id, name = row.id, server.id, row.name
        try:
            access: Access | None = managed_servers.kept_access(ctx, s, server, login)
        except InvalidError:
            if not force:
                raise
            access = None

    def work(journal: Journal) -> dict[str, Any]:
        proxies.edit(ctx, proxy_id, {"enabled": False})
        try:
            left = take_off(journal)
        except VmhaulError as error:
            raise StepError(
                f"{error.message}; proxy {name!r} is still there and gets no tasks: remove it again (--force where its "
                f"machine is gone), or give it tasks with `vmhaul proxy enable {name}`"
            ) from error
        journal.step("forget", f"forgetting proxy {name}; its keys are trusted no longer")
        proxies.remove(ctx, proxy_id, force=force)
        with ctx.db() as s:
            managed_servers.set_installed(s, server_id, proxy_id, None)
        return {"left_on_machine": left}

    def take_off(journal: Journal) -> str:
        """Why its machine was left as it is; empty: it was not."""
        left = ""
        if not force:
            journal.step("drain", "no new tasks; waiting until those that run have ended")
            wait_drained(ctx, proxy_id, drain_s)
        try:
            if access is None:
                raise UnavailableError("no credentials are kept for its machine")
            journal.step("connect", f"connecting to {access.address.host}:{access.address.port}")
            way = access.way
            with (connect or way.connect)(access.address, access.login) as machine:
                places = way.places_of(known.get("places", {}))
                way.uninstall(
                    machine,
                    places,
                    str(known.get("init", "systemd")),
                    journal.step,
                    keep_files=keep_files,
                )
        except VmhaulError as error:
            if not force:
                raise
            left = error.message
            journal.step("left", f"its machine was left as it is: {left}")
        return left

    takes = [f"proxy/{proxy_id}", *([] if access is None else [_machine(access)])]
    return operations.start(ctx, "remove", name, work, takes=takes)


# ---- after a crash of the server


def recover(ctx: Context) -> None:
    """What operations left that the server's end cut off: a proxy that an upgrade disabled takes tasks again."""
    for row in operations.interrupted(ctx):
        disabled = row["facts"].get("disabled")
        if disabled:
            with suppress(NotFoundError):
                proxies.edit(ctx, disabled, {"enabled": True})
        ctx.log.warning("operation.interrupted", operation=row["id"], kind=row["kind"])


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or any(not isinstance(one, str) or not one for one in value):
        raise ValueError("must be a list of texts that are not empty")
    return list(value)


def _directory(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise ValueError("must be the absolute path of a directory on the server's machine")
    return Path(value)
