"""What proxies ask. No bearer token: the join token, or signature and lease, are the authority."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from backup_server.api import answers
from backup_server.api.deps import Ctx, Doorstep, Step, require_private_way
from backup_server.api.schemas import EnrolBody
from backup_server.errors import BadRequestError
from backup_server.services import proxies
from proxy_worker.contracts.messages import (
    DatastoresRequest,
    PresentRequest,
    SecretsRequest,
    WithdrawRequest,
)
from transports.vsphere.model import Secret

router = APIRouter(tags=["proxies' calls"], dependencies=[Depends(require_private_way)])

MAX_ENVELOPE_BYTES: Final = 16 * 1024
"""A signed question is far below; more than this is not read."""
PATIENT_CALLS: Final = 40
"""Changes of VMs and storage that are waited for at a time, each for minutes at the worst: they have threads of their
own, so that administrators, secrets and everything else never wait for them.
"""


@router.post("/enrol", responses=answers.ok(answers.Enrolment, 422))
def enrol(ctx: Ctx, step: Step, body: EnrolBody, request: Request) -> Any:
    """A proxy presents its join token and its public keys, and learns the server's."""
    proxy_id = proxies.enrol(
        ctx,
        token=Secret(body.token.get_secret_value()),
        name=body.name,
        signing_key=body.signing_key,
        sealing_key=body.sealing_key,
        version=body.version,
    )
    secure = request.url.scheme == "https"
    return {
        "proxy_id": proxy_id,
        **step.enrolment(proxy_id, (request.url.hostname or "") if secure else ""),
    }


_CALL: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": {401: {"model": answers.ErrorAnswer}, 403: {"model": answers.ErrorAnswer}},
}


@router.post("/proxy/secrets", **_CALL)
async def secrets(request: Request, step: Step) -> Response:
    """Signed envelope of a SecretsRequest in, signed envelope of sealed TaskSecrets out."""
    return await _answered(request, step, SecretsRequest)


@router.post("/proxy/present", **_CALL)
async def present(request: Request, step: Step) -> Response:
    """Signed envelope of a PresentRequest in, of a PresentAnswer out: the task's disk can be reached then."""
    return await _answered(request, step, PresentRequest, _patient(request))


@router.post("/proxy/withdraw", **_CALL)
async def withdraw(request: Request, step: Step) -> Response:
    """Signed envelope of a WithdrawRequest in, of a WithdrawAnswer out: the presentation is undone then."""
    return await _answered(request, step, WithdrawRequest, _patient(request))


@router.post("/proxy/datastores", **_CALL)
async def datastores(request: Request, step: Step) -> Response:
    """Signed envelope of a DatastoresRequest in, of a DatastoresAnswer out."""
    return await _answered(request, step, DatastoresRequest)


def _patient(request: Request) -> CapacityLimiter:
    state = request.app.state
    if not hasattr(state, "patient_calls"):
        state.patient_calls = CapacityLimiter(PATIENT_CALLS)
    limiter: CapacityLimiter = state.patient_calls
    return limiter


async def _answered(
    request: Request, step: Doorstep, expect: type[Any], limiter: CapacityLimiter | None = None
) -> Response:
    """`limiter`: whose threads it takes; None: those of all routes."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > MAX_ENVELOPE_BYTES:
            raise BadRequestError("the envelope is too long for a proxy's question")
    try:
        envelope = text.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequestError("the body is not an envelope") from None
    peer = "" if request.client is None else request.client.host
    answer = await to_thread.run_sync(
        partial(step.answer_proxy, envelope, expect, peer), limiter=limiter
    )
    return Response(answer, media_type="text/plain")
