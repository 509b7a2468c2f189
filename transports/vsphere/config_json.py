"""pyVmomi's data objects as JSON and back.

The JSON is that of pyVmomi's own encoder: each object names its class in `_vimtype`, a managed object
is text like "vim.Network:network-7". pyVmomi has no decoder, so it is here.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from pyVmomi import Iso8601, VmomiSupport
from pyVmomi.VmomiJSONEncoder import VmomiJSONEncoder

from transports.errors import PermanentTransportError


def to_plain(obj: Any) -> Any:
    """The object as dicts, lists and scalars; unset properties left out."""
    return _without_unset(json.loads(json.dumps(obj, cls=VmomiJSONEncoder, strip_dynamic=True)))


def from_plain(plain: Any) -> Any:
    """The pyVmomi object that `to_plain` was given. PermanentTransportError for a class unknown here, and
    for what is none of pyVmomi's objects.
    """
    try:
        return _decode(plain, object)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PermanentTransportError(
            f"the saved VM configuration is not one ({error}); restore the VM's disks to files instead"
        ) from error


def _without_unset(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {
            name: _without_unset(value)
            for name, value in plain.items()
            if value is not None and value != []
        }
    if isinstance(plain, list):
        return [_without_unset(value) for value in plain]
    return plain


def _decode(plain: Any, kind: Any) -> Any:
    if isinstance(plain, dict):
        return _decode_object(plain)
    if isinstance(plain, list):
        item = getattr(kind, "Item", object)
        values = [_decode(value, item) for value in plain]
        return (
            kind(values) if isinstance(kind, type) and issubclass(kind, VmomiSupport.Array) else values
        )
    if not isinstance(kind, type):
        return plain
    if issubclass(kind, VmomiSupport.ManagedObject) and isinstance(plain, str):
        name, _, moref = plain.partition(":")
        return _vmodl_type(name)(moref)
    if issubclass(kind, datetime) and isinstance(plain, str):
        return Iso8601.ParseISO8601(plain)
    if issubclass(kind, VmomiSupport.binary) and isinstance(plain, str):
        return VmomiSupport.binary(base64.b64decode(plain))
    return plain


def _decode_object(plain: dict[str, Any]) -> Any:
    kind = _vmodl_type(str(plain.get("_vimtype", "")))
    obj = kind()
    for info in kind._GetPropertyList():  # noqa: SLF001
        if info.name in plain:
            setattr(obj, info.name, _decode(plain[info.name], info.type))
    return obj


def _vmodl_type(name: str) -> Any:
    try:
        return VmomiSupport.GetVmodlType(name)
    except (KeyError, AttributeError) as error:
        raise PermanentTransportError(
            f"the saved VM configuration names {name or 'no class'}, which this version does not know;"
            " use the version that made the restore point, or a newer one"
        ) from error
