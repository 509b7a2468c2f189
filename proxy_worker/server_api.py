"""The two requests that a proxy makes to the server over HTTP: enrolment and the secrets of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx
from nacl.public import PrivateKey

from proxy_worker.contracts.codec import MessageError, unseal_secrets
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.messages import SealedSecrets, SecretsRequest, TaskRequest, TaskSecrets
from proxy_worker.errors import EnrolmentError, LeaseRefusedError, ServerUnavailableError

_TIMEOUT_S: Final = 60.0
_REFUSED: Final = range(400, 500)


def _client() -> httpx.Client:
    # Proxy settings of the environment would carry signed requests to strangers.
    return httpx.Client(timeout=_TIMEOUT_S, trust_env=False)


def _explain(response: httpx.Response) -> str:
    """The server's own words, when it had some."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"


def post_enrolment(server_url: str, body: dict[str, Any]) -> dict[str, Any]:
    """EnrolmentError when it is refused, ServerUnavailableError when nobody answers."""
    url = f"{server_url.rstrip('/')}/api/v1/enrol"
    try:
        with _client() as client:
            response = client.post(url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnavailableError(
            f"the server at {server_url} does not answer ({error}); check the address and that it runs"
        ) from error
    if response.is_success:
        answer: dict[str, Any] = response.json()
        return answer
    if response.status_code in _REFUSED:
        raise EnrolmentError(f"the server at {server_url} refused: {_explain(response)}")
    raise ServerUnavailableError(f"the server at {server_url} could not: {_explain(response)}")


class SecretsClient:
    """Fetches the secrets of tasks. Safe for threads."""

    def __init__(
        self, server_url: Callable[[], str], sealer: Sealer, opener: Opener, key: PrivateKey
    ) -> None:
        self._server_url = server_url
        self._sealer = sealer
        self._opener = opener
        self._key = key

    def fetch(self, request: TaskRequest) -> TaskSecrets:
        """LeaseRefusedError: stop, the attempt is over. ServerUnavailableError: try later."""
        question = SecretsRequest(task_id=request.task_id, attempt=request.attempt)
        url = f"{self._server_url().rstrip('/')}/api/v1/proxy/secrets"
        try:
            with _client() as client:
                response = client.post(
                    url,
                    content=self._sealer.seal(question, to=SERVER),
                    headers={"Content-Type": "text/plain"},
                )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnavailableError(f"the server at {url} does not answer: {error}") from error
        if response.status_code in _REFUSED:
            raise LeaseRefusedError(_explain(response))
        if not response.is_success:
            raise ServerUnavailableError(f"the server could not give secrets: {_explain(response)}")
        return self._open(request, response)

    def _open(self, request: TaskRequest, response: httpx.Response) -> TaskSecrets:
        text = response.text.strip()
        if text.startswith('"'):
            text = str(response.json())
        try:
            message = self._opener.open(text, expect={SealedSecrets}).message
            if not isinstance(message, SealedSecrets):
                raise MessageError("another message than sealed secrets came")
            secrets = unseal_secrets(message, self._key)
        except MessageError as error:
            # Not the server's word, so nothing to obey either; another try may reach the server.
            raise ServerUnavailableError(
                f"the answer with secrets is not to be used: {error}"
            ) from error
        if (secrets.task_id, secrets.attempt) != (request.task_id, request.attempt):
            raise ServerUnavailableError("secrets of another task came")
        return secrets
