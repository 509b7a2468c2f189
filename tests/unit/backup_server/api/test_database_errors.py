"""What the doors answer when the database does not take a request, or does not answer at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI

from backup_server.api import errors
from backup_server.services.database_errors import translated
from tests.support.asgi import asgi_client

WORDS = "connection refused\n\tIs the server running?"
ERRORS = [
    (sa.exc.OperationalError("SELECT secret", {}, OSError(WORDS)), 503, "unavailable"),
    (sa.exc.InterfaceError("SELECT secret", {}, OSError(WORDS)), 503, "unavailable"),
    (sa.exc.DataError("SELECT secret", {}, ValueError("NUL")), 422, "unprocessable"),
    (sa.exc.IntegrityError("SELECT secret", {}, ValueError("twice")), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS)
def test_the_api_tells_them_apart(error: sa.exc.DBAPIError, status: int, code: str) -> None:
    app = FastAPI()
    context: Any = SimpleNamespace(log=structlog.get_logger())
    errors.install(app, context)

    @app.get("/asks")
    def asks() -> None:
        raise error

    with asgi_client(app, "http://127.0.0.1") as client:
        answer = client.get("/asks")
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (status, code)
    assert "secret" not in told["message"]
    if status == 503:
        assert "connection refused Is the server running?" in told["message"]


def test_a_defect_of_ours_stays_one() -> None:
    assert translated(ERRORS[-1][0]) is None
    assert translated(ValueError()) is None
