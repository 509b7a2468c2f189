"""What a proxy asks the server over HTTP: to be enrolled, secrets of a task, that a disk be presented, and
which datastores there are.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import httpx
from nacl.public import PrivateKey

from proxy_worker.contracts.codec import MessageError, unseal_secrets
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.messages import (
    DatastoresAnswer,
    DatastoresRequest,
    PresentAnswer,
    PresentRequest,
    SealedSecrets,
    SecretsRequest,
    TaskRequest,
    TaskSecrets,
    WithdrawAnswer,
    WithdrawRequest,
)
from proxy_worker.errors import (
    EnrolmentError,
    LeaseRefusedError,
    NotPresentedError,
    ServerUnavailableError,
)

T = TypeVar("T")

_TIMEOUT_S: Final = 60.0
_PRESENT_TIMEOUT_S: Final = 170.0
"""vCenter may take its time to reconfigure a VM."""
_KEPT_S: Final = 2.0
"""An idle connection: shorter than the server keeps it, so that none is used which it is closing."""
_REFUSED: Final = range(400, 500)
_CONFLICT: Final = 409


def _client(timeout_s: float, trust: ssl.SSLContext | None) -> httpx.Client:
    # Proxy settings of the environment would carry signed requests to strangers. A redirect is not followed:
    # it would leave the door that is known.
    return httpx.Client(
        timeout=timeout_s,
        trust_env=False,
        follow_redirects=False,
        verify=True if trust is None else trust,
        limits=httpx.Limits(keepalive_expiry=_KEPT_S),
    )


def _explain(response: httpx.Response) -> str:
    """The server's own words, when it had some."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"


def post_enrolment(
    server_url: str, body: dict[str, Any], trust: ssl.SSLContext | None = None
) -> dict[str, Any]:
    """EnrolmentError when it is refused, ServerUnavailableError when nobody answers. The caller has looked at
    the address (`trust.check_server_url`).
    """
    url = f"{server_url.rstrip('/')}/api/v1/enrol"
    try:
        with _client(_TIMEOUT_S, trust) as client:
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


class ServerClient:
    """Asks in signed envelopes. Safe for threads.

    LeaseRefusedError: stop, the attempt is over. ServerUnavailableError: try later.
    """

    def __init__(
        self,
        server_url: Callable[[], str],
        sealer: Sealer,
        opener: Opener,
        key: PrivateKey,
        *,
        more_urls: Sequence[str] = (),
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`more_urls` are asked when the first does not answer; `trust`: what the server's door is known by,
        None where the machine's own authorities decide.
        """
        self._server_url = server_url
        self._more_urls = more_urls
        self._trust = trust
        self._sealer = sealer
        self._opener = opener
        self._key = key
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Give the connections back; another question opens them anew."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _kept(self) -> httpx.Client:
        """One for all questions: to make one means to read every certificate authority of the machine, some 30 ms.
        Made with the first question, after any fork.
        """
        with self._lock:
            if self._client is None:
                self._client = _client(_TIMEOUT_S, self._trust)
            return self._client

    def secrets(self, request: TaskRequest) -> TaskSecrets:
        question = SecretsRequest(task_id=request.task_id, attempt=request.attempt)
        sealed = self._ask("secrets", question, SealedSecrets)
        try:
            secrets = unseal_secrets(sealed, self._key)
        except MessageError as error:
            raise _useless(error) from error
        _same_task(secrets, request)
        return secrets

    def present(self, question: PresentRequest) -> PresentAnswer:
        """NotPresentedError: the server will not; another mode may do."""
        answer = self._ask("present", question, PresentAnswer, timeout_s=_PRESENT_TIMEOUT_S)
        _same_task(answer, question)
        return answer

    def withdraw(self, question: WithdrawRequest) -> WithdrawAnswer:
        answer = self._ask("withdraw", question, WithdrawAnswer, timeout_s=_PRESENT_TIMEOUT_S)
        _same_task(answer, question)
        return answer

    def datastores(self, question: DatastoresRequest) -> DatastoresAnswer:
        return self._ask("datastores", question, DatastoresAnswer)

    def _ask(self, path: str, question: Any, expect: type[T], *, timeout_s: float = _TIMEOUT_S) -> T:
        response = self._post(path, question, timeout_s)
        if response.status_code == _CONFLICT:
            raise NotPresentedError(_explain(response))
        if response.status_code in _REFUSED:
            raise LeaseRefusedError(_explain(response))
        if not response.is_success:
            raise ServerUnavailableError(f"the server could not answer: {_explain(response)}")
        text = response.text.strip()
        if text.startswith('"'):
            text = str(response.json())
        try:
            message = self._opener.open(text, expect={expect}).message
        except MessageError as error:
            # Not the server's word, so nothing to obey either; another try may reach the server.
            raise _useless(error) from error
        if not isinstance(message, expect):
            raise ServerUnavailableError("another message than the one that was asked for came")
        return message

    def _post(self, path: str, question: Any, timeout_s: float) -> httpx.Response:
        """The answer of the first address that gives one. Each try is an envelope of its own: one that was
        read although its answer was lost would be refused as seen before.
        """
        problem = ""
        for server in (self._server_url(), *self._more_urls):
            url = f"{server.rstrip('/')}/api/v1/proxy/{path}"
            try:
                return self._kept().post(
                    url,
                    content=self._sealer.seal(question, to=SERVER),
                    headers={"Content-Type": "text/plain"},
                    timeout=timeout_s,
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = problem or f"the server at {url} does not answer: {error}"
        raise ServerUnavailableError(problem)


def _useless(error: MessageError) -> ServerUnavailableError:
    return ServerUnavailableError(f"the server's answer is not to be used: {error}")


def _same_task(answer: Any, question: Any) -> None:
    if (answer.task_id, answer.attempt) != (question.task_id, question.attempt):
        raise ServerUnavailableError("an answer about another task came")
