"""Small pieces that all answers share: times as text, objects by name or id, checked fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import (
    Base,
    Job,
    ManagedServer,
    Proxy,
    Repository,
    StorageSystem,
    TrafficRule,
    Vcenter,
)
from backup_server.errors import InvalidError, NotFoundError

MAX_LIMIT = 1000
NAME_MAX_CHARS = 100

R = TypeVar("R", bound=Base)

_NOUNS: dict[type[Base], str] = {
    Vcenter: "vCenter",
    Repository: "repository",
    Proxy: "proxy",
    ManagedServer: "managed server",
    Job: "job",
    StorageSystem: "storage system",
    TrafficRule: "traffic rule",
}


def when(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, or None."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def by_ref(db: DbSession, table: type[R], ref: str) -> R:
    """The row of that id or name; NotFoundError with the names that exist."""
    columns = table.__table__.c
    row = db.get(table, ref) or db.scalar(sa.select(table).where(columns.name == ref))
    if row is None:
        noun = _NOUNS[table]
        names = db.scalars(sa.select(columns.name).order_by(columns.name).limit(20)).all()
        known = f"; there are: {', '.join(names)}" if names else "; none has been added yet"
        raise NotFoundError(f"there is no {noun} {ref!r}{known}")
    return row


@dataclass(slots=True)
class Fields:
    """Reads the fields of a request, and collects what is wrong with each before it complains once."""

    data: Mapping[str, Any]
    problems: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.data

    def take(self, name: str) -> Any:
        """The value as it is, None without one; the field is known then."""
        return self._take(name, None)

    def wrong(self, name: str, reason: str) -> None:
        self.problems.setdefault(name, reason)

    def text(self, name: str, *, default: str | None = None, empty: bool = False) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or (not value.strip() and not empty):
            self.wrong(name, "must be a text" if empty else "must be a text that is not empty")
            return ""
        return value if empty else value.strip()

    def name(self, name: str = "name", *, default: str | None = None) -> str:
        value = self.text(name, default=default)
        if len(value) > NAME_MAX_CHARS or any(ord(sign) < 32 for sign in value):  # noqa: PLR2004 - control characters
            self.wrong(name, f"must be at most {NAME_MAX_CHARS} printable characters")
        return value

    def path_name(self, name: str = "name", *, default: str | None = None) -> str:
        """A name that the paths of the API carry as one part."""
        value = self.name(name, default=default)
        if "/" in value or value in {".", ".."}:
            self.wrong(name, "must not hold a slash, nor be . or ..")
        return value

    def number(self, name: str, *, default: int | None = None, low: int, high: int) -> int:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.wrong(name, f"must be a whole number from {low} to {high}")
            return low
        return value

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        value = self._take(name, default)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
            return False
        return value

    def one_of(self, name: str, allowed: Sequence[str], *, default: str | None = None) -> str:
        value = self._take(name, default)
        if value not in allowed:
            self.wrong(name, f"must be one of {', '.join(allowed)}")
            return allowed[0]
        return str(value)

    def checked(self, name: str, check: Callable[[Any], Any], *, default: Any = None) -> Any:
        """Value through `check`, which raises ValueError with the reason."""
        value = self._take(name, default)
        try:
            return check(value)
        except ValueError as error:
            self.wrong(name, str(error))
            return None

    def _take(self, name: str, default: Any) -> Any:
        self._seen.add(name)
        return self.data.get(name, default)

    def finish(self, what: str, *, ignore: Sequence[str] = ()) -> None:
        """InvalidError that names every bad field, and those that do not exist."""
        for name in self.data:
            if name not in self._seen and name not in ignore:
                self.wrong(name, "there is no such field")
        if self.problems:
            listed = "; ".join(f"{name}: {reason}" for name, reason in self.problems.items())
            raise InvalidError(f"{what} cannot be accepted: {listed}", details=self.problems)


def page_limit(limit: int) -> int:
    return max(1, min(limit, MAX_LIMIT))
