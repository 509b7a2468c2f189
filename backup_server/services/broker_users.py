"""Users of the broker: one for each proxy, one for Flower; the broker may be ours or somebody else's.

The list in SQL is right. It is written into the broker whenever it changed and whenever the broker started anew,
so it does not matter whether the broker keeps its users. Passwords lie sealed in `credentials`; the broker is told
their SHA-256 only.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import redis
import sqlalchemy as sa
from redis.lock import Lock
from sqlalchemy.orm import Session as DbSession

from backup_server import server_certificates
from backup_server.broker import SOCKET_NAME, USERS_FILE
from backup_server.db.tables import Credential, Proxy, Setting
from backup_server.errors import ConflictError
from backup_server.services import proxy_troubles
from backup_server.services.about import broker_url, connect_broker
from backup_server.services.broker_rules import (
    FLOWER_USER,
    OLDEST_REDIS,
    PROXY_PREFIX,
    SETINFO,
    SETINFO_SINCE,
    SHARED_TABLES,
    Trial,
    flower_rules,
    proxy_rules,
    proxy_user,
    trials,
)
from backup_server.services.context import Context
from backup_server.services.proxy_settings import ENROLLED_AS
from backup_server.up.options import FLOWER_FILE, write_private
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import celery_socket_url, down_stream, task_queue, up_stream
from transports.vsphere.model import Secret

CREDENTIAL_KIND: Final = "broker"
FLOWER_CREDENTIAL: Final = "flower_broker_credential"
SEPARATED: Final = "broker_separates_proxies"
"""Setting: `yes`, or why the broker does not keep proxies apart. Only asked where the broker is not ours."""
YES: Final = "yes"
REPLIES_WITHHELD: Final = "broker_replies_withheld_until"
"""Setting: until when (ISO) no proxy may answer Flower, because somebody flooded the broker with answers."""
_STRANGER: Final = "00000000-0000-0000-0000-000000000000"
"""A proxy that does not exist: what belongs to it must be out of reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """How one proxy reaches the broker."""

    url: str = field(repr=False)
    """With its login."""
    ca_pem: str = ""
    """The authority that its certificate is signed by; empty: none is needed, or the machine's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _User:
    name: str
    password: Secret
    rules: tuple[str, ...]


def is_embedded(ctx: Context) -> bool:
    return not ctx.settings.broker


def separated(ctx: Context) -> str:
    """`yes` when every proxy has a user of its own, else why not."""
    if is_embedded(ctx):
        return YES
    with ctx.db.read() as s:
        row = s.get(Setting, SEPARATED)
    return row.value if row else "the broker has not been asked yet"


def replies_withheld(s: DbSession, now: datetime) -> bool:
    """Whether proxies must not answer Flower now."""
    row = s.get(Setting, REPLIES_WITHHELD)
    return row is not None and now < datetime.fromisoformat(row.value)


# -- passwords


def give_password(ctx: Context, s: DbSession, row: Proxy) -> None:
    """A fresh password for a proxy that is being taken in; the old one is worth nothing after the commit."""
    forget_password(ctx, s, row)
    secret = Secret(secrets.token_hex(32))
    row.broker_credential_id = ctx.credentials.store(s, CREDENTIAL_KIND, secret, ctx.clock())


def forget_password(ctx: Context, s: DbSession, row: Proxy) -> None:
    """Of a proxy that is trusted no longer."""
    credential_id, row.broker_credential_id = row.broker_credential_id, None
    s.flush()
    if credential_id is not None:
        ctx.credentials.forget(s, credential_id)


def ensure_passwords(ctx: Context) -> None:
    """For Flower, and for local proxies that were enrolled before proxies had users of their own. Remote ones
    get theirs when they join again.
    """
    with ctx.db() as s:
        without = s.scalars(
            sa.select(Proxy).where(
                Proxy.local.is_(True),
                Proxy.signing_key.is_not(None),
                Proxy.broker_credential_id.is_(None),
            )
        ).all()
        for row in without:
            give_password(ctx, s, row)
        if s.get(Setting, FLOWER_CREDENTIAL) is None:
            secret = Secret(secrets.token_hex(32))
            stored = ctx.credentials.store(s, CREDENTIAL_KIND, secret, ctx.clock())
            s.add(Setting(name=FLOWER_CREDENTIAL, value=stored))


# -- addresses


def access_of(ctx: Context, s: DbSession, row: Proxy, host: str = "") -> BrokerAccess:
    """`host`: the name or address by which this proxy reached the server; empty: it is on this machine.

    ConflictError for a proxy elsewhere that has no password (any more), where each has its own.
    """
    if row.broker_credential_id is None and not row.local and separated(ctx) == YES:
        # Revoked while it joined. Without this it would get the server's own login.
        raise ConflictError(
            f"proxy {row.name!r} is trusted no longer; make a new join token with `vmhaul proxy token`"
        )
    own = row.broker_credential_id is not None and separated(ctx) == YES
    login = (
        (proxy_user(row.id), ctx.credentials.fetch(s, row.broker_credential_id).reveal())
        if own and row.broker_credential_id
        else None
    )
    return _access(ctx, login, "" if row.local else host)


def flower_url(ctx: Context) -> str:
    """The broker as Flower reaches it."""
    if separated(ctx) != YES:
        return broker_url(ctx)
    with ctx.db.read() as s:
        row = s.get(Setting, FLOWER_CREDENTIAL)
        password = ctx.credentials.fetch(s, row.value).reveal() if row else ""
    return _access(ctx, (FLOWER_USER, password), "").url if password else broker_url(ctx)


def write_flower_file(ctx: Context) -> None:
    """For Flower, which the supervisor starts, and for one that runs elsewhere (`flower_broker_file`)."""
    content = {"broker_url": flower_url(ctx)}
    write_private(ctx.settings.run_dir / FLOWER_FILE, content)
    if ctx.settings.flower_broker_file:
        write_private(Path(ctx.settings.flower_broker_file), content)


def _access(ctx: Context, login: tuple[str, str] | None, host: str) -> BrokerAccess:
    settings = ctx.settings
    if settings.broker:
        return _outside_access(settings.broker, login)
    if login is None:
        return BrokerAccess(url=broker_url(ctx))
    if not host or settings.proxies_door is None:
        return BrokerAccess(url=celery_socket_url(str(settings.run_dir / SOCKET_NAME), *login))
    place = f"[{host}]" if ":" in host else host
    query = urlencode({"ssl_cert_reqs": "required", "ssl_check_hostname": "false"})
    return BrokerAccess(
        url=f"rediss://{_login(login)}{place}:{settings.proxies_broker_port}/0?{query}",
        ca_pem=server_certificates.ca_pem(settings.tls_dir, ctx.clock()),
    )


def _outside_access(url: str, login: tuple[str, str] | None) -> BrokerAccess:
    """The administrator's URL with another login. The file of the authority is this machine's, so its content
    travels instead.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    ca_file = query.get("ssl_ca_certs", "")
    ca_pem = ""
    if ca_file:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            ca_pem = Path(ca_file).read_text(encoding="ascii")
    if login is not None:
        place = parts.netloc.rpartition("@")[2]
        parts = parts._replace(netloc=f"{_login(login)}{place}")
    return BrokerAccess(url=urlunsplit(parts), ca_pem=ca_pem)


def _login(login: tuple[str, str]) -> str:
    return f"{quote(login[0], safe='')}:{quote(login[1], safe='')}@"


def database_of(url: str) -> int:
    """Number of the database that a broker URL names: it stands in the names of channels."""
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        text = dict(parse_qsl(parts.query)).get("virtual_host", "")
    else:
        text = parts.path.strip("/")
    return int(text) if text.isdecimal() else 0


# -- the broker


class BrokerUsers:
    """Writes the broker's users as SQL says. Safe for threads."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._db = database_of(broker_url(ctx))
        self._written: tuple[Any, ...] = ()

    def step(self) -> bool:
        """Write what changed. Raises redis.ConnectionError while the broker is away."""
        self.apply()
        return False

    def apply(self) -> None:
        """See to it now that the broker knows exactly those who are trusted."""
        # One at a time, with the reading of SQL: an older list must not be written over a newer one.
        with self._ctx.writing_broker_users, connect_broker(self._ctx) as client:
            info: Any = client.info("server")
            wanted = self._wanted()
            now = (
                info["run_id"],
                tuple(sorted((one.name, _digest(one), one.rules) for one in wanted)),
            )
            if now == self._written:
                return
            problem = self._write(client, info, wanted)
            self._note(problem)
            self._written = now

    def _wanted(self) -> list[_User]:
        ctx = self._ctx
        with ctx.db.read() as s:
            replies = not replies_withheld(s, ctx.clock())
            rows = s.execute(
                sa.select(Proxy.id, Proxy.name, Proxy.settings, Proxy.facts, Credential.sealed)
                .join(Credential, Credential.id == Proxy.broker_credential_id)
                .where(Proxy.signing_key.is_not(None))
            ).all()
            flower = s.get(Setting, FLOWER_CREDENTIAL)
            users = [
                _User(
                    name=proxy_user(row.id),
                    password=ctx.credentials.open(row.sealed),
                    rules=proxy_rules(
                        row.id, row.settings.get(ENROLLED_AS, row.name), self._db, replies=replies
                    ),
                )
                for row in rows
                if not proxy_troubles.is_cut_off(row.facts)
            ]
            if flower is not None:
                password = ctx.credentials.fetch(s, flower.value)
                users.append(_User(name=FLOWER_USER, password=password, rules=flower_rules(self._db)))
        return users

    def _write(self, client: Any, info: Any, wanted: list[_User]) -> str:
        """What keeps proxies from having users of their own; empty when each has."""
        if _version(info) < OLDEST_REDIS:
            return f"the broker is Redis {info.get('redis_version')}; 7.0 or newer tells reading from writing"
        try:
            known = _known_users(client)
            setinfo = SETINFO if _version(info) >= SETINFO_SINCE else ()
            # Before there is anybody who needs it: proxies may run it and load none.
            client.script_load(Lock.LUA_RELEASE_SCRIPT)
            for name in known.keys() - {one.name for one in wanted}:
                self._remove(client, known[name])
            for user in wanted:
                if user.name in known and known[user.name].digest != _digest(user):
                    # Deleting it ends the connections that the old password opened.
                    client.execute_command("ACL", "DELUSER", user.name)
                client.execute_command(
                    "ACL", "SETUSER", user.name, "reset", "on", "sanitize-payload",
                    f"#{_digest(user)}", *user.rules, *setinfo,
                )  # fmt: skip
            with contextlib.suppress(redis.ResponseError):
                client.execute_command("ACL", "SAVE")  # a broker without a file of users forgets them
            return _failed_trials(client, wanted, self._db)
        except redis.ResponseError as error:
            return f"users could not be written into the broker ({error})"

    def _remove(self, client: Any, user: _Known) -> None:
        """One that is trusted no longer, with its connections and all that it could write alone."""
        client.execute_command("ACL", "DELUSER", user.name)
        if user.name.startswith(PROXY_PREFIX):
            own = ProxyId(user.name.removeprefix(PROXY_PREFIX))
            # Not DEL: of what a hostile proxy left there may be so much that freeing it takes seconds.
            client.unlink(task_queue(own), up_stream(own), down_stream(own), *user.keys)
            self._ctx.log.info("broker.user-removed", text=f"broker user {user.name} was deleted")

    def _note(self, problem: str) -> None:
        ctx = self._ctx
        before = separated(ctx)
        answer = problem or YES
        if problem:
            ctx.log.warning("broker.users", text=f"proxies share one broker user: {problem}")
        if not is_embedded(ctx) and before != answer:
            with ctx.db() as s:
                s.merge(Setting(name=SEPARATED, value=answer))
        write_flower_file(ctx)


def sync(ctx: Context) -> None:
    """After a commit that changed who is trusted: tell the broker now. While it is away the server's loop goes on
    trying.
    """
    try:
        BrokerUsers(ctx).apply()
    except (redis.RedisError, OSError) as error:
        ctx.log.warning(
            "broker.users", text="the broker was not told of a change yet", error=str(error)
        )


def _digest(user: _User) -> str:
    return hashlib.sha256(user.password.reveal().encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A user of ours as the broker has it."""

    name: str
    digest: str
    """SHA-256 of its password; empty: it has none."""
    keys: tuple[str, ...]
    """Those that it alone may write: they stand in its rules by their names."""


def _known_users(client: Any) -> dict[str, _Known]:
    """By name."""
    answer: Any = client.execute_command("ACL", "LIST")
    found: dict[str, _Known] = {}
    for line in answer:
        text = line.decode() if isinstance(line, bytes) else str(line)
        # In parentheses stand the rules for what all share.
        words = text.partition("(")[0].split()
        if len(words) > 1 and (words[1].startswith(PROXY_PREFIX) or words[1] == FLOWER_USER):
            digests = [word[1:] for word in words if word.startswith("#")]
            keys = (word.removeprefix("%W")[1:] for word in words if word.startswith(("~", "%W~")))
            found[words[1]] = _Known(
                name=words[1],
                digest=digests[0] if digests else "",
                keys=tuple(key for key in keys if "*" not in key and key not in SHARED_TABLES),
            )
    return found


def _version(info: Any) -> tuple[int, int]:
    parts = str(info.get("redis_version", "0.0")).split(".")
    return (int(parts[0]), int(parts[1])) if all(part.isdecimal() for part in parts[:2]) else (0, 0)


def _failed_trials(client: Any, wanted: Iterable[_User], db: int) -> str:
    """Ask the broker what one proxy's user may do, without doing it. Empty when all is as it must be."""
    name = next((one.name for one in wanted if one.name.startswith(PROXY_PREFIX)), None)
    if name is None:
        return ""
    wrong = [
        f"{' '.join(trial.command)} is {'refused' if trial.allowed else 'allowed'}"
        for trial in trials(name.removeprefix(PROXY_PREFIX), _STRANGER, db)
        if _may(client, name, trial) != trial.allowed
    ]
    return f"a trial of user {name} went wrong: {'; '.join(wrong)}" if wrong else ""


def _may(client: Any, user: str, trial: Trial) -> bool:
    answer: Any = client.execute_command("ACL", "DRYRUN", user, *trial.command)
    return answer in (b"OK", "OK", True)


def refused_by_broker(client: redis.Redis) -> list[str]:
    """What users of ours were refused lately, newest first: somebody tried, or a rule is missing."""
    try:
        answer: Any = client.acl_log(count=50)
    except redis.ResponseError:
        return []
    return [
        f"{entry['username']}: {entry['object']} ({entry['reason']}, {entry['count']} times)"
        for entry in answer
        if str(entry["username"]).startswith((PROXY_PREFIX, FLOWER_USER))
    ]


def users_file(ctx: Context) -> Path:
    return ctx.settings.broker_dir / USERS_FILE
