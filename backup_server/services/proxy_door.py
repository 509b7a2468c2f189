"""What a proxy may ask over HTTP: the secrets of a task that it holds, that its disk be presented, and which
datastores it should look for. Nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from nacl.signing import SigningKey, VerifyKey

from backup_server.credentials import load_or_create_key
from backup_server.db.tables import Proxy
from backup_server.errors import ForbiddenError, UnauthorizedError
from backup_server.services import datastore_probes, presentations, proxy_vms, task_secrets
from backup_server.services.context import Context
from proxy_worker.contracts.codec import MessageError, seal_secrets
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.messages import (
    DatastoresRequest,
    PresentRequest,
    SealedSecrets,
    SecretsRequest,
    TaskSecrets,
    WithdrawRequest,
)

Redeem = Callable[[Context, str, str, int], TaskSecrets]

_ANSWERS: Final[Mapping[type[Any], Callable[[Context, str, Any], Any]]] = {
    PresentRequest: presentations.present,
    WithdrawRequest: presentations.withdraw,
    DatastoresRequest: datastore_probes.datastores,
}
"""What is answered in the clear, in a signed envelope."""


class ProxyDoor:
    """One for the process: it remembers the nonces that it has seen."""

    def __init__(self, ctx: Context, *, redeem: Redeem = task_secrets.redeem) -> None:
        """`redeem` gives the secrets of an attempt to the proxy that holds it, or raises."""
        self._ctx = ctx
        self._redeem = redeem
        self._peers: dict[str, str] = {}
        self._asking = threading.local()
        key = SigningKey(load_or_create_key(ctx.settings.signing_key_file))
        self._sealer = Sealer(SERVER, key, self._now_s)
        self._opener = Opener(SERVER, self._verify_key, self._now_s)

    def _now_s(self) -> float:
        return self._ctx.clock().timestamp()

    def _verify_key(self, sender: str) -> VerifyKey | None:
        """Keeps the row for the rest of the answer, on this thread."""
        with self._ctx.db.read() as db:
            row = db.execute(
                sa.select(Proxy.signing_key, Proxy.sealing_key).where(Proxy.id == sender)
            ).one_or_none()
        if row is None or row.signing_key is None:
            return None
        self._asking.sealing_key = row.sealing_key
        return VerifyKey(bytes.fromhex(row.signing_key))

    def answer(self, text: str | bytes, expect: type[Any], peer: str = "") -> str:
        """Answer the envelope of a question of class `expect` with an envelope. `peer`: the IP address from which
        it came; empty: not known.

        UnauthorizedError when the envelope is not to be believed; ForbiddenError when the proxy does not hold
        that attempt now; ConflictError for what another transport mode may do.
        """
        try:
            envelope = self._opener.open(text, expect={expect})
        except MessageError as error:
            raise UnauthorizedError(f"a proxy's question was refused: {error}") from error
        self._note_peer(envelope.sender, peer)
        message = envelope.message
        if isinstance(message, SecretsRequest):
            secrets = self._redeem(self._ctx, envelope.sender, message.task_id, message.attempt)
            return self._sealer.seal(self._sealed(envelope.sender, secrets), to=envelope.sender)
        answer = _ANSWERS[expect](self._ctx, envelope.sender, message)
        return self._sealer.seal(answer, to=envelope.sender)

    def _note_peer(self, proxy_id: str, peer: str) -> None:
        """Only what tells machines apart, and only when it is another than before."""
        if self._peers.get(proxy_id) == peer or not proxy_vms.is_telling(peer):
            return
        with self._ctx.db() as db:
            proxy_vms.note_peer(db, proxy_id, peer)
        self._peers[proxy_id] = peer

    def _sealed(self, proxy_id: str, secrets: TaskSecrets) -> SealedSecrets:
        sealing_key: str | None = self._asking.sealing_key
        if sealing_key is None:
            raise ForbiddenError(f"proxy {proxy_id} is no longer enrolled")
        return seal_secrets(secrets, sealing_key)


def server_verify_key(ctx: Context) -> str:
    """The server's Ed25519 verify key, hexadecimal: what a proxy learns when it enrols."""
    key = SigningKey(load_or_create_key(ctx.settings.signing_key_file))
    return bytes(key.verify_key).hex()
