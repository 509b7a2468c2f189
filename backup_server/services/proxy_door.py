"""What a proxy may ask over HTTP: the secrets of a task that it holds, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from nacl.signing import SigningKey, VerifyKey

from backup_server.credentials import load_or_create_key
from backup_server.db.tables import Proxy
from backup_server.errors import ForbiddenError, UnauthorizedError
from backup_server.services import task_secrets
from backup_server.services.context import Context
from proxy_worker.contracts.codec import MessageError, seal_secrets
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.messages import SecretsRequest, TaskSecrets

Redeem = Callable[[Context, str, str, int], TaskSecrets]


class ProxyDoor:
    """One for the process: it remembers the nonces that it has seen."""

    def __init__(self, ctx: Context, *, redeem: Redeem = task_secrets.redeem) -> None:
        """`redeem` gives the secrets of an attempt to the proxy that holds it, or raises."""
        self._ctx = ctx
        self._redeem = redeem
        key = SigningKey(load_or_create_key(ctx.settings.signing_key_file))
        self._sealer = Sealer(SERVER, key, self._now_s)
        self._opener = Opener(SERVER, self._verify_key, self._now_s)

    def _now_s(self) -> float:
        return self._ctx.clock().timestamp()

    def _verify_key(self, sender: str) -> VerifyKey | None:
        with self._ctx.db.read() as db:
            row = db.get(Proxy, sender)
        if row is None or row.signing_key is None:
            return None
        return VerifyKey(bytes.fromhex(row.signing_key))

    def secrets(self, text: str | bytes) -> str:
        """Answer the envelope of a SecretsRequest with the envelope of a SealedSecrets.

        UnauthorizedError when the envelope is not to be believed; what `task_secrets.redeem` raises
        when the proxy does not hold that attempt now.
        """
        try:
            envelope = self._opener.open(text, expect={SecretsRequest})
        except MessageError as error:
            raise UnauthorizedError(f"request for secrets refused: {error}") from error
        request = envelope.message
        if not isinstance(request, SecretsRequest):
            raise UnauthorizedError("request for secrets refused: another message came")
        secrets = self._redeem(self._ctx, envelope.sender, request.task_id, request.attempt)
        with self._ctx.db.read() as db:
            row = db.get(Proxy, envelope.sender)
        if row is None or row.sealing_key is None:
            raise ForbiddenError(f"proxy {envelope.sender} is no longer enrolled")
        return self._sealer.seal(seal_secrets(secrets, row.sealing_key), to=envelope.sender)


def server_verify_key(ctx: Context) -> str:
    """The server's Ed25519 verify key, hexadecimal: what a proxy learns when it enrols."""
    key = SigningKey(load_or_create_key(ctx.settings.signing_key_file))
    return bytes(key.verify_key).hex()
