"""Which datastores proxies should look for."""

from __future__ import annotations

import sqlalchemy as sa

from backup_server.db.tables import Vcenter
from backup_server.errors import ForbiddenError, VmhaulError
from backup_server.services import vcenters
from backup_server.services.context import Context
from proxy_worker.contracts.messages import DatastoreProbe, DatastoresAnswer, DatastoresRequest
from transports.errors import TransportError

MAX_AGE_S = 3600.0
"""Of an inventory that is good enough: storage changes seldom."""


def datastores(ctx: Context, proxy_id: str, question: DatastoresRequest) -> DatastoresAnswer:
    """Every datastore of every vCenter whose storage vSphere describes. A vCenter that does not answer is left
    out, with a line in the log.
    """
    if question.proxy_id != proxy_id:
        raise ForbiddenError(f"proxy {proxy_id} asked for another proxy")
    with ctx.db.read() as s:
        vcenter_ids = list(s.scalars(sa.select(Vcenter.id).order_by(Vcenter.name)))
    probes: list[DatastoreProbe] = []
    for vcenter_id in vcenter_ids:
        try:
            inventory = vcenters.load_inventory(ctx, vcenter_id, max_age_s=MAX_AGE_S)
        except (TransportError, VmhaulError) as error:
            ctx.log.warning("discovery.vcenter-failed", vcenter_id=vcenter_id, reason=str(error))
            continue
        probes += [
            DatastoreProbe(datastore=f"{vcenter_id}/{store.name}", storage=store.storage)
            for store in inventory.datastores
            if store.storage is not None
        ]
    return DatastoresAnswer(probes=tuple(probes))
