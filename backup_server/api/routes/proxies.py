"""Backup proxies, as administrators see them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import (
    ConfirmVmBody,
    NothingBody,
    ProxyBody,
    ProxyChanges,
    ProxyDeployBody,
    ProxyUninstallBody,
    ProxyUpgradeBody,
)
from backup_server.services import deployments, proxies, proxy_discovery

router = APIRouter(prefix="/proxies", tags=["proxies"])


@router.get("", responses=answers.ok(answers.Page[answers.Proxy]))
def list_proxies(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(proxies.list_all(ctx), limit, cursor)


@router.post("", responses=answers.ok(answers.ProxyWithToken, 409, 422))
def add_proxy(ctx: Ctx, body: ProxyBody) -> Any:
    """Add one. When it is not local, `join_token` is shown, here and never again."""
    return proxies.add(
        ctx, name=body.name, slots=body.slots, local=body.local, description=body.description
    )


@router.get("/{ref}", responses=answers.ok(answers.ProxyWithDiscovery, 404))
def get_proxy(ctx: Ctx, ref: str) -> Any:
    return proxies.get(ctx, ref)


@router.patch("/{ref}", responses=answers.ok(answers.ProxyWithDiscovery, 404, 422))
def edit_proxy(ctx: Ctx, ref: str, body: ProxyChanges) -> Any:
    return proxies.edit(ctx, ref, body.given())


@router.delete("/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_proxy(ctx: Ctx, ref: str, force: bool = False) -> None:
    """Forget one that runs elsewhere or is local; what vmhaul installed on its machine stays there."""
    proxies.remove(ctx, ref, force=force)


@router.post("/deploy", responses=answers.ok(answers.Operation, 409, 422))
def deploy_proxy(ctx: Ctx, body: ProxyDeployBody) -> Any:
    """Make a machine a proxy over SSH, or over WinRM (experimental). The operation tells how far it is."""
    return deployments.start_add(ctx, body.values())


@router.post("/upgrade", responses=answers.ok(answers.Operation, 404, 409, 422))
def upgrade_proxies(ctx: Ctx, body: ProxyUpgradeBody) -> Any:
    """Bring proxies that vmhaul installed to the server's release, one by one; tasks end in peace."""
    return deployments.start_upgrade(ctx, body.values())


@router.post("/{ref}/uninstall", responses=answers.ok(answers.Operation, 404, 409, 422))
def uninstall_proxy(ctx: Ctx, ref: str, body: ProxyUninstallBody) -> Any:
    """Take a proxy off the machine on which vmhaul installed it, and forget it."""
    return deployments.start_remove(ctx, ref, body.values())


@router.post("/{ref}/rescan", responses=answers.ok(answers.ProxyWithDiscovery, 404))
def rescan_proxy(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Ask it to look around now: datastores that it reaches, the VM that it is. `looked_at` tells when it did."""
    del body
    return proxies.get(ctx, proxy_discovery.rescan(ctx, ref))


@router.post("/{ref}/confirm-vm", responses=answers.ok(answers.ProxyWithDiscovery, 404, 409))
def confirm_vm(ctx: Ctx, ref: str, body: ConfirmVmBody) -> Any:
    """Stand for it that the proxy is the VM with the SMBIOS UUID that it shows, so that disks may be attached to it."""
    return proxies.confirm_vm(ctx, ref, body.vm_uuid)


@router.post("/{ref}/revoke", responses=answers.ok(answers.ProxyRevoked, 404, 409))
def revoke_proxy(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Trust it no longer: keys, broker user and leases end at once, and its tasks are placed again."""
    del body
    return proxies.revoke(ctx, ref)


@router.post("/{ref}/join-token", responses=answers.ok(answers.ProxyWithToken, 404, 409))
def new_join_token(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Let a proxy enrol again: its old keys are trusted no longer."""
    del body
    return proxies.new_token(ctx, ref)
