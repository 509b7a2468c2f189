"""Large objects on S3: parts that are sent while the object is still being written.

A part carries its MD5, which every store verifies, and the upload carries a mark of its own as metadata: when
the answer to the last request is lost, the mark tells whether the object is ours.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

from pipeline.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    PipelineError,
    StorageUnavailableError,
)
from pipeline.storage.base import Buffer
from pipeline.storage.location import ObjectLocation
from pipeline.storage.object_errors import Scrubber
from pipeline.storage.s3_errors import translate_botocore

PART_BYTES: Final = 8 << 20
"""Above the 5 MiB that S3 asks of every part but the last."""
PARTS_IN_FLIGHT: Final = 4
"""Of all writers of one storage: enough for a line with 30 ms to the store and 1 GBit/s."""
MARK: Final = "vmhaul-write"


T = TypeVar("T")


class Repeat(Protocol):
    """Makes a call, perhaps more than once."""

    def __call__(self, call: Callable[[], T], /) -> T: ...


def once(call: Callable[[], T], /) -> T:
    return call()


class Puts(Protocol):
    """What a small object needs."""

    def put(self, name: str, data: Buffer) -> None: ...


class PartUploads:
    """Uploads in parts of one bucket. Used by any number of writers."""

    def __init__(self, client: Any, location: ObjectLocation, scrub: Scrubber) -> None:
        self._client = client
        self._location = location
        self._scrub = scrub
        self._threads = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._free = threading.BoundedSemaphore(PARTS_IN_FLIGHT)

    def begin(self, name: str, mark: str) -> str:
        """Id of a new upload."""
        with self.translated(f"beginning {name}"):
            answer = self._client.create_multipart_upload(**self._key(name), Metadata={MARK: mark})
        return str(answer["UploadId"])

    def send(
        self, name: str, upload_id: str, number: int, data: bytearray, repeat: Repeat
    ) -> Future[str]:
        """Send one part beside the caller's work; the result is its ETag. Waits while too many are
        under way, so that memory is bounded.
        """
        self._free.acquire()
        try:
            future = self._threads.submit(repeat, lambda: self._send(name, upload_id, number, data))
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future

    def _send(self, name: str, upload_id: str, number: int, data: bytearray) -> str:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        with self.translated(f"writing {name}"):
            answer = self._client.upload_part(
                **self._key(name),
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ContentMD5=base64.b64encode(digest).decode(),
            )
        return str(answer["ETag"])

    def complete(self, name: str, upload_id: str, tags: Sequence[str], mark: str) -> None:
        """Make the object visible. Raises ObjectExistsError."""
        # Asked before, because not every store that keeps the condition for a put keeps it here too.
        # Between the two requests nobody takes the name: large objects are packs, named at random.
        there = self._mark_of(name)
        if there == mark:
            return  # it had happened; only the answer was lost
        if there is not None:
            raise ObjectExistsError(f"{name} exists already in {self._location.text}")
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        try:
            with self.translated(f"committing {name}"):
                self._client.complete_multipart_upload(
                    **self._key(name),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                    IfNoneMatch="*",
                )
        except (StorageUnavailableError, ObjectNotFoundError, ObjectExistsError):
            with contextlib.suppress(PipelineError):
                if self._mark_of(name) == mark:
                    return
            raise

    def abort(self, name: str, upload_id: str) -> None:
        """Drop the parts. Never raises for the storage: what stays is stale, and clean() takes it."""
        with contextlib.suppress(PipelineError), self.translated(f"dropping {name}"):
            self._client.abort_multipart_upload(**self._key(name), UploadId=upload_id)

    def abort_stale(self, older_than_s: float) -> int:
        """Drop uploads that were begun before that time; the bytes of their parts."""
        freed_bytes = 0
        with self.translated("cleaning"):
            for upload in list(self._stale(older_than_s)):
                key = {"Bucket": self._location.container, "Key": upload["Key"]}
                pages = self._client.get_paginator("list_parts").paginate(
                    **key, UploadId=upload["UploadId"]
                )
                freed_bytes += sum(part["Size"] for page in pages for part in page.get("Parts", ()))
                self._client.abort_multipart_upload(**key, UploadId=upload["UploadId"])
        return freed_bytes

    def _stale(self, older_than_s: float) -> Iterator[dict[str, Any]]:
        prefix = f"{self._location.prefix}/" if self._location.prefix else ""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._location.container, Prefix=prefix
        )
        for page in pages:
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() < older_than_s and upload["Key"].startswith(prefix):
                    yield upload

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def translated(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return translate_botocore(doing, self._location.text, self._scrub)

    def _mark_of(self, name: str) -> str | None:
        """The mark of the object that has the name; empty for another's; None when there is none."""
        try:
            with self.translated(f"looking at {name}"):
                answer = self._client.head_object(**self._key(name))
        except ObjectNotFoundError:
            return None
        return str(answer.get("Metadata", {}).get(MARK, ""))

    def _key(self, name: str) -> dict[str, str]:
        prefix = self._location.prefix
        return {
            "Bucket": self._location.container,
            "Key": f"{prefix}/{name}" if prefix else name,
        }


class PartWriter:
    """An object that becomes one request when it stays small, and an upload in parts when it does not."""

    def __init__(
        self, puts: Puts, name: str, uploads: Callable[[], PartUploads], repeat: Repeat
    ) -> None:
        self._puts = puts
        self._repeat = repeat
        self._name = name
        self._uploads = uploads
        self._data = bytearray()
        self._mark = uuid4().hex
        self._upload_id = ""
        self._parts: list[Future[str]] = []
        self._committed = False

    def write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                if len(self._data) == PART_BYTES:
                    self._send_part()
                taken = min(len(rest), PART_BYTES - len(self._data))
                self._data += rest[:taken]
                rest = rest[taken:]

    def commit(self) -> None:
        if self._upload_id:
            self._send_part()
            tags = [part.result() for part in self._parts]
            upload_id = self._upload_id
            self._repeat(lambda: self._uploads().complete(self._name, upload_id, tags, self._mark))
        else:
            self._puts.put(self._name, self._data)
        self._data = bytearray()
        self._committed = True

    def abort(self) -> None:
        self._data = bytearray()
        upload_id, self._upload_id = self._upload_id, ""
        if not upload_id or self._committed:
            return
        for part in self._parts:
            part.cancel()
        # A part that is still under way would be stored after the upload was dropped.
        for part in self._parts:
            if not part.cancelled():
                part.exception()
        self._uploads().abort(self._name, upload_id)

    def _send_part(self) -> None:
        for part in self._parts:
            if part.done():
                part.result()  # what failed is told at once, not after the last byte
        if not self._upload_id:
            self._upload_id = self._repeat(lambda: self._uploads().begin(self._name, self._mark))
        data, self._data = self._data, bytearray()  # handed over as it is: no copy, no second buffer
        number = len(self._parts) + 1
        self._parts.append(
            self._uploads().send(self._name, self._upload_id, number, data, self._repeat)
        )
