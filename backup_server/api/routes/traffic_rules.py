"""Traffic rules: how fast data may move between two sets of addresses, and whether in the clear."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import TrafficRuleBody, TrafficRuleChanges
from backup_server.services import traffic_rules

router = APIRouter(tags=["traffic rules"])


@router.get("/traffic-rules", responses=answers.ok(answers.Page[answers.TrafficRule]))
def list_rules(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(traffic_rules.list_all(ctx), limit, cursor)


@router.post("/traffic-rules", responses=answers.ok(answers.TrafficRule, 409, 422))
def add_rule(ctx: Ctx, body: TrafficRuleBody) -> Any:
    return traffic_rules.add(ctx, body.given())


@router.get("/traffic-rules/{ref}", responses=answers.ok(answers.TrafficRule, 404))
def get_rule(ctx: Ctx, ref: str) -> Any:
    return traffic_rules.get(ctx, ref)


@router.patch("/traffic-rules/{ref}", responses=answers.ok(answers.TrafficRule, 404, 409, 422))
def edit_rule(ctx: Ctx, ref: str, body: TrafficRuleChanges) -> Any:
    return traffic_rules.edit(ctx, ref, body.given())


@router.delete("/traffic-rules/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_rule(ctx: Ctx, ref: str) -> None:
    traffic_rules.remove(ctx, ref)
