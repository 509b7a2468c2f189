"""Versions and object lock of an S3 bucket.

In a bucket with versions a plain delete only hides an object behind a marker: it frees nothing and protects
nothing. So deleting here removes every version, and says so when the store keeps one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pipeline.errors import (
    ObjectNotFoundError,
    ObjectRetainedError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.base import checked_name
from pipeline.storage.location import ObjectLocation
from pipeline.storage.object_errors import Scrubber
from pipeline.storage.s3_errors import translate_botocore

COMPLIANCE: Final = "COMPLIANCE"
_NO_LOCK: Final = frozenset(
    {
        "ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "InvalidRequest",
        "NotImplemented", "MethodNotAllowed",
    }
)  # fmt: skip
"""What stores say of a bucket without object lock, or of an object without retention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectVersion:
    """One version of an object, or a marker that hides the older ones."""

    name: str
    version_id: str
    modified_at_s: float
    is_latest: bool
    is_marker: bool
    content: str = ""
    """The store's word for its content (ETag): the same for a copy."""


class BucketVersions:
    """Of one prefix of one bucket. Also its `Retention`, where the bucket has object lock."""

    def __init__(self, client: Any, location: ObjectLocation, scrub: Scrubber) -> None:
        self._client = client
        self._location = location
        self._scrub = scrub
        self._prefix = f"{location.prefix}/" if location.prefix else ""
        self._lock = threading.Lock()
        self._known_versioned: bool | None = None
        self._known_locked: bool | None = None

    # ---- facts -------------------------------------------------------------------------------------

    @property
    def is_versioned(self) -> bool:
        """The bucket keeps, or kept, old versions. Asked once."""
        with self._lock:
            if self._known_versioned is None:
                try:
                    with self._translated("asking whether objects have versions"):
                        answer = self._client.get_bucket_versioning(Bucket=self._location.container)
                    self._known_versioned = bool(answer.get("Status"))
                except (StoragePermissionError, ObjectNotFoundError):
                    # Keys that may not ask. A bucket with a lock has versions, and who may delete may ask.
                    self._known_versioned = False
            return self._known_versioned

    @property
    def is_locked(self) -> bool:
        """The bucket was made with object lock. Asked once."""
        with self._lock:
            if self._known_locked is None:
                self._known_locked = self._ask_locked()
            return self._known_locked

    def _ask_locked(self) -> bool:
        from botocore.exceptions import ClientError

        with self._translated("asking for object lock"):
            try:
                answer = self._client.get_object_lock_configuration(Bucket=self._location.container)
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in _NO_LOCK:
                    return False
                raise
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    # ---- retention ---------------------------------------------------------------------------------

    def keep(self, name: str, until_s: float) -> None:
        """Retention in compliance mode: nobody can shorten it, not even the account's owner."""
        if self.kept_until_s(name) >= until_s:
            return
        with self._translated(f"keeping {name}"):
            self._client.put_object_retention(
                Bucket=self._location.container,
                Key=self._prefix + checked_name(name),
                Retention={
                    "Mode": COMPLIANCE,
                    # Whole seconds, up: the protocol has no fractions everywhere.
                    "RetainUntilDate": datetime.fromtimestamp(int(until_s) + 1, UTC),
                },
            )

    def kept_until_s(self, name: str) -> float:
        return self._kept(checked_name(name), {})[0]

    def version_kept_until_s(self, version: ObjectVersion) -> float:
        """The same of one version."""
        return self._kept(version.name, {"VersionId": version.version_id})[0]

    def _kept(self, name: str, version: dict[str, str]) -> tuple[float, float]:
        """Until when, and the time of the store's clock."""
        from botocore.exceptions import ClientError

        with self._translated(f"looking at {name}"):
            try:
                answer = self._client.get_object_retention(
                    Bucket=self._location.container, Key=self._prefix + name, **version
                )
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in _NO_LOCK:
                    return 0.0, 0.0  # no retention of its own
                raise
        retention = answer.get("Retention", {})
        until = retention.get("RetainUntilDate")
        # Governance mode can be lifted by who has the right: not a promise.
        if until is None or retention.get("Mode") != COMPLIANCE:
            return 0.0, 0.0
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        now_s = parsedate_to_datetime(date).timestamp() if date else 0.0
        return float(until.timestamp()), now_s

    # ---- versions ----------------------------------------------------------------------------------

    def delete_all(self, name: str) -> None:
        """Every version of the object, newest first. Raises ObjectRetainedError before anything is
        deleted when the current one is kept.
        """
        versions = [version for version in self.of_prefix(name) if version.name == name]
        for version in versions:
            if self.is_locked and version.is_latest and not version.is_marker:
                self._refuse_kept(name, version)
        kept: ObjectRetainedError | None = None
        for version in versions:
            try:
                self.delete_version(version)
            except StoragePermissionError:
                try:
                    self._refuse_kept(name, version)
                except ObjectRetainedError as error:
                    kept = error
                    continue
                raise
        if kept is not None:
            raise kept

    def is_first(self, name: str, version_id: str) -> bool:
        """Whether no other version of the object became visible before that one, since it was deleted
        last. By the order in which the store lists, which is the one in which it took them.
        """
        page = self._page(self._prefix + name, None, None)
        key = self._prefix + name
        hidden_at = max(
            (entry["LastModified"] for entry in page.get("DeleteMarkers", ()) if entry["Key"] == key),
            default=None,
        )
        ids = [
            entry["VersionId"]
            for entry in page.get("Versions", ())
            if entry["Key"] == key and (hidden_at is None or entry["LastModified"] >= hidden_at)
        ]
        return not ids or ids[-1] == version_id

    def delete_version_id(self, name: str, version_id: str) -> None:
        """One version that is known by its id, for good."""
        with self._translated(f"deleting {name}"):
            self._client.delete_object(
                Bucket=self._location.container, Key=self._prefix + name, VersionId=version_id
            )

    def delete_version(self, version: ObjectVersion) -> None:
        """One version or marker, for good. Raises StoragePermissionError for a kept one."""
        self.delete_version_id(version.name, version.version_id)

    def hide(self, name: str) -> None:
        """Put a marker on the object; its versions stay."""
        with self._translated(f"setting {name} aside"):
            self._client.delete_object(
                Bucket=self._location.container, Key=self._prefix + checked_name(name)
            )

    def bring_back(self, version: ObjectVersion) -> None:
        """Make an old version the current one, by a copy inside the store."""
        key = self._prefix + version.name
        with self._translated(f"bringing {version.name} back"):
            self._client.copy_object(
                Bucket=self._location.container,
                Key=key,
                CopySource={
                    "Bucket": self._location.container,
                    "Key": key,
                    "VersionId": version.version_id,
                },
                MetadataDirective="COPY",
            )

    def of_prefix(self, prefix: str) -> Iterator[ObjectVersion]:
        """Every version and marker of objects whose name begins so: by name, then newest first."""
        key_marker = id_marker = None
        while True:
            page = self._page(self._prefix + prefix, key_marker, id_marker)
            yield from self._in_order(page)
            if not page.get("IsTruncated"):
                return
            key_marker, id_marker = page.get("NextKeyMarker"), page.get("NextVersionIdMarker")
            if not key_marker:
                raise StorageUnavailableError(
                    f"the list of versions in {self._location.text} breaks off; run again"
                )

    def _page(self, prefix: str, key_marker: str | None, id_marker: str | None) -> dict[str, Any]:
        where = {"KeyMarker": key_marker, "VersionIdMarker": id_marker}
        with self._translated("listing versions"):
            answer: dict[str, Any] = self._client.list_object_versions(
                Bucket=self._location.container,
                Prefix=prefix,
                **{name: value for name, value in where.items() if value},
            )
        return answer

    def _in_order(self, page: dict[str, Any]) -> list[ObjectVersion]:
        found = [
            ObjectVersion(
                name=entry["Key"].removeprefix(self._prefix),
                version_id=entry["VersionId"],
                modified_at_s=entry["LastModified"].timestamp(),
                is_latest=bool(entry["IsLatest"]),
                is_marker=is_marker,
                content=f"{entry.get('ETag', '')}/{entry.get('Size', 0)}",
            )
            for key, is_marker in (("Versions", False), ("DeleteMarkers", True))
            for entry in page.get(key, ())
        ]
        # The answer has versions and markers apart. One and the same second: the current one is newer.
        return sorted(found, key=lambda v: (v.name, -v.modified_at_s, not v.is_latest))

    def _refuse_kept(self, name: str, version: ObjectVersion) -> None:
        try:
            until_s, now_s = self._kept(name, {"VersionId": version.version_id})
        except ObjectNotFoundError:
            return
        if until_s > now_s:
            until = datetime.fromtimestamp(until_s, UTC)
            raise ObjectRetainedError(
                f"{name} in {self._location.text} is immutable until {until:%Y-%m-%d %H:%M} UTC; "
                "nobody can delete it before"
            )

    def _translated(self, doing: str) -> Any:
        return translate_botocore(doing, self._location.text, self._scrub)
