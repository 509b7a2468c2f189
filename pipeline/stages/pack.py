"""Where the workers put blobs: packs that fill while those before them are made durable."""

from __future__ import annotations

import math
import threading
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import NewerEpochError
from pipeline.repository.blobs import EncodedBlob
from pipeline.repository.index import IndexLoader, write_index_object
from pipeline.repository.packs import PackWriter
from pipeline.stages.encode import Claims
from pipeline.stages.flow import Channel, Clock, Flow, Meter
from pipeline.storage.base import Storage

PACKS_WAITING: Final = 1
"""Full packs that may wait while another is synced; then who appends has to wait too."""


REFRESH_EVERY_S: Final = 10.0
"""How often the index is brought up to date, so that disks that are backed up at the same time share
blocks."""


class PackStage:
    """Blobs of all threads into one open pack; full packs are closed by a thread of their own.

    A worker appends what it encoded itself, while the bytes are still in its core's cache: measured, the
    kernel's copy of a blob costs a fifth of what it costs when another thread writes it some MiB later.
    """

    def __init__(
        self,
        *,
        flow: Flow,
        storage: Storage,
        keyring: Keyring,
        algorithm: Aead,
        target_bytes: int,
        loader: IndexLoader,
        claims: Claims,
        clock: Clock,
        busy: Meter,
    ) -> None:
        self._flow = flow
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._target_bytes = target_bytes
        self._loader = loader
        self._claims = claims
        self._clock = clock
        self._refreshed_s = clock()
        self._busy = busy
        self._lock = threading.Lock()
        """Guards the open pack, and that full packs are handed on in order."""
        self._open = self._new_pack()
        self._closing: Channel[PackWriter | None] = Channel(flow, PACKS_WAITING)
        self._handed_on = 0
        self._state_lock = threading.Lock()
        """Guards the three below."""
        self._may_go_on = threading.Condition(self._state_lock)
        self._durable = 0
        self._fresh: set[bytes] = set()
        self._stored_bytes = 0
        flow.wake_on_failure(self._may_go_on)

    @property
    def stored_bytes(self) -> int:
        """Of packs and index objects that are durable."""
        with self._state_lock:
            return self._stored_bytes

    def append(self, blob: EncodedBlob) -> None:
        """From any thread. Durable after the next drain()."""
        with self._lock:
            self._flow.raise_if_stopped()
            with self._busy:
                self._open.append(blob)
            with self._state_lock:
                self._fresh.add(blob.blob_id)
            if self._open.is_full:
                self._hand_on()

    def holds(self, blob_id: bytes) -> bool:
        """Appended in this run, or in the index."""
        with self._state_lock:
            if blob_id in self._fresh:
                return True
        return blob_id in self._loader.index

    def drain(self) -> None:
        """Return when everything that was appended before is durable and in the index."""
        with self._lock:
            if not self._open.is_empty:
                self._hand_on()
            wanted = self._handed_on
        with self._may_go_on:
            while self._durable < wanted:
                self._flow.raise_if_stopped()
                self._may_go_on.wait()

    def run(self) -> None:
        """The closing thread; ends after end()."""
        while (pack := self._closing.get()) is not None:
            try:
                with self._busy:
                    self._close(pack)
            finally:
                pack.abort()

    def end(self) -> None:
        """Nothing will be appended any more; what is in the open pack is dropped."""
        self._closing.put(None)

    def abort(self) -> None:
        """Drop what is not durable. Only when no thread uses this any more."""
        self._open.abort()
        for pack in self._closing.left():
            if pack is not None:
                pack.abort()

    def _hand_on(self) -> None:
        full, self._open = self._open, self._new_pack()
        self._handed_on += 1
        try:
            self._closing.put(full)
        except BaseException:
            full.abort()
            raise

    def _close(self, pack: PackWriter) -> None:
        """Pack first, index object second: the index only names what is durable."""
        segment = pack.close()
        if segment is None:
            raise AssertionError("an empty pack was handed on")
        name = write_index_object(self._storage, self._keyring, self._algorithm, [segment])
        self._loader.written(name, [segment])
        stored_bytes = segment.pack_size + self._storage.size_bytes(name)
        ids = [entry.blob_id for entry in segment.entries]
        # Only now that the index has them: somebody may ask at any moment.
        self._claims.release(ids)
        with self._may_go_on:
            self._fresh.difference_update(ids)
            self._stored_bytes += stored_bytes
            self._durable += 1
            self._may_go_on.notify_all()
        self._learn_from_others()

    def _learn_from_others(self) -> None:
        """What other writers have stored meanwhile need not be stored again."""
        if self._clock() - self._refreshed_s >= REFRESH_EVERY_S:
            try:
                self._loader.follow()
                self._refreshed_s = self._clock()
            except NewerEpochError:
                # The data key was changed meanwhile. This task goes on with the one that it began with, and
                # stores again what others store with the new one.
                self._refreshed_s = math.inf

    def _new_pack(self) -> PackWriter:
        return PackWriter(self._storage, self._keyring, self._algorithm, self._target_bytes)
