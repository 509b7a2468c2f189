"""What proxies ask. No bearer token: the join token, or signature and lease, are the authority."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from backup_server.api import answers
from backup_server.api.deps import Ctx, Step
from backup_server.api.schemas import EnrolBody
from backup_server.errors import BadRequestError
from backup_server.services import proxies
from transports.vsphere.model import Secret

router = APIRouter(tags=["proxies' calls"])

MAX_ENVELOPE_BYTES: Final = 16 * 1024
"""A signed request for secrets is far below; more than this is not read."""


@router.post("/enrol", responses=answers.ok(answers.Enrolment, 422))
def enrol(ctx: Ctx, step: Step, body: EnrolBody) -> Any:
    """A proxy presents its join token and its public keys, and learns the server's."""
    proxy_id = proxies.enrol(
        ctx,
        token=Secret(body.token.get_secret_value()),
        name=body.name,
        signing_key=body.signing_key,
        sealing_key=body.sealing_key,
        version=body.version,
    )
    return {"proxy_id": proxy_id, **step.enrolment()}


@router.post(
    "/proxy/secrets",
    response_class=Response,
    responses={401: {"model": answers.ErrorAnswer}, 403: {"model": answers.ErrorAnswer}},
)
async def secrets(request: Request, step: Step) -> Response:
    """Signed envelope of a SecretsRequest in, signed envelope of sealed TaskSecrets out."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > MAX_ENVELOPE_BYTES:
            raise BadRequestError("the envelope is too long to be a request for secrets")
    try:
        envelope = text.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequestError("the body is not an envelope") from None
    answer = await run_in_threadpool(step.secrets_for_proxy, envelope)
    return Response(answer, media_type="text/plain")
