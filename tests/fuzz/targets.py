"""All targets: the repository's, and here messages, transports and what people type."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from nacl.public import SealedBox

from backup_server.cli.exits import CliError
from backup_server.cli.points import parse_point as parse_point_reference
from backup_server.cli.sizes import parse_size
from backup_server.cli.vcenter import split_address
from backup_server.up.options import UpError, parse_listen
from pipeline.errors import PipelineError
from pipeline.storage.extents import parse_location
from pipeline.storage.immutable import split_location
from pipeline.storage.location import parse_object_location
from pipeline.testing.builders import ManualClock, disk_point, restore_point
from proxy_worker import keeper_server
from proxy_worker.contracts.agent import decode_restore_point, encode_restore_point
from proxy_worker.contracts.base64url import decode_base64url, encode_base64url
from proxy_worker.contracts.codec import (
    MESSAGE_TYPES,
    MessageError,
    decode_order,
    from_json,
    unseal_secrets,
)
from proxy_worker.contracts.envelope import SERVER, Opener
from proxy_worker.contracts.messages import SealedSecrets
from proxy_worker.mover_lines import parse_order
from tests.fuzz import repository_targets, san_targets
from tests.fuzz.nfc import good_answers, read_a_disk
from tests.fuzz.target import (
    BOX_KEY,
    NOW_S,
    SEEDS,
    SIGNER,
    TARGETS,
    target,
)
from transports.errors import PermanentTransportError, TransportError
from transports.network import fastlz, skipz
from transports.network.allocation import set_runs
from transports.tls import matches
from transports.vsphere.config_export import FORMAT, SavedConfig
from transports.vsphere.model import VmConfig

__all__ = ["SEEDS", "TARGETS", "repository_targets", "san_targets"]

MESSAGES: Final = Path(__file__).parents[1] / "format" / "messages" / "1"

# ---- messages ------------------------------------------------------------------------------------

_SEED_MESSAGES: Final = tuple(path.read_bytes() for path in sorted(MESSAGES.glob("*.json")))


@target((MessageError, ValueError), _SEED_MESSAGES)
def message_body(data: bytes) -> None:
    body = _json(data)
    for cls in MESSAGE_TYPES.values():
        try:
            from_json(cls, body)
        except MessageError:
            continue
    for kind in ("backup-disk", "restore-disk", "copy-disk"):
        try:
            decode_order(kind, body)
        except MessageError:
            continue


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error


def _opener() -> Opener:
    verify_key = SIGNER.verify_key
    return Opener(SERVER, {"p": verify_key}.get, ManualClock(NOW_S), max_age_s=300)


_OUTER: Final = json.dumps(
    {
        "v": 1,
        "from": "p",
        "to": "server",
        "at": NOW_S,
        "nonce": "00",
        "type": "SecretsRequest",
        "body": {},
    }
).encode()


@target((MessageError,), [_OUTER])
def signed_envelope(data: bytes) -> None:
    """Signed by somebody who is known, whatever it says."""
    text = f"{encode_base64url(data)}.{encode_base64url(SIGNER.sign(data).signature)}"
    _opener().open(text, expect=MESSAGE_TYPES.values())


@target((MessageError,), [b"e30.AAAA", encode_base64url(_OUTER).encode() + b"." + b"A" * 86])
def envelope_text(data: bytes) -> None:
    _opener().open(data, expect=MESSAGE_TYPES.values())
    _opener().open(data.decode("latin-1"), expect=MESSAGE_TYPES.values())


@target((ValueError,), [b"AAAA", b"_-8"])
def base64_text(data: bytes) -> None:
    decode_base64url(data.decode("latin-1"))


@target((MessageError,), [b'{"task_id":"t","attempt":1}', *_SEED_MESSAGES])
def sealed_secrets(data: bytes) -> None:
    box = SealedBox(BOX_KEY.public_key).encrypt(data)
    sealed = SealedSecrets(task_id="t", attempt=1, sealed=encode_base64url(box))
    unseal_secrets(sealed, BOX_KEY)


@target((MessageError, KeyError, TypeError, ValueError), _SEED_MESSAGES)
def mover_order(data: bytes) -> None:
    parse_order(_json(data))


@target(
    (KeyError, TypeError, ValueError),
    [json.dumps(encode_restore_point(restore_point(disk_point("ab" * 32, 1 << 30)))).encode()],
)
def agent_restore_point(data: bytes) -> None:
    decode_restore_point(_json(data))


# ---- transports ----------------------------------------------------------------------------------


@target((TransportError,), [good_answers()])
def nfc_answers(data: bytes) -> None:
    """Everything that a host says after the doorman, to a reader of a disk."""
    read_a_disk(data)


@target((fastlz.CorruptBlockError,), [b"\4hello", b"\x24hello\x20\0\x80\0"])
def fastlz_block(data: bytes) -> None:
    fastlz.decompress(data[1:], memoryview(bytearray(1 + 64 * (data[0] if data else 0))))


@target((skipz.CorruptBlockError,), [bytes([64, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1, 1])])
def skipz_block(data: bytes) -> None:
    skipz.decompress(data, memoryview(bytearray(64)))


@target((), [b"\xff\x0f\0\x80"])
def allocation_bitmap(data: bytes) -> None:
    last = 0
    for start, end in set_runs(data, len(data) * 8 - 3):
        assert last <= start < end
        last = end


_CONFIG: Final = json.dumps(
    {
        "format": FORMAT,
        "version": 1,
        "name": "vm",
        "place": {"folder": "f"},
        "networks": {"4000": "n"},
        "config": {
            "_vimtype": "vim.vm.ConfigInfo",
            "name": "vm",
            "modified": "2025-01-01T00:00:00Z",
            "hardware": {
                "_vimtype": "vim.vm.VirtualHardware",
                "numCPU": 2,
                "device": [{"_vimtype": "vim.vm.device.VirtualDisk", "key": 2000}],
            },
            "extraConfig": [{"_vimtype": "vim.option.OptionValue", "key": "a", "value": "b"}],
        },
    }
).encode()


@target((PermanentTransportError,), [_CONFIG])
def vm_configuration(data: bytes) -> None:
    saved = SavedConfig(VmConfig(json=data, nvram=b""))
    saved.config_info()
    saved.place("folder")
    saved.network(4000)


@target((), [b"AA:BB", b"ab" * 20, b"ab" * 32])
def thumbprint(data: bytes) -> None:
    matches(b"certificate", data.decode("utf-8", "replace"))


# ---- what people type ----------------------------------------------------------------------------


@target(
    (PipelineError,),
    [
        b"s3://bucket/a?endpoint=https://h:9000&quota=1T",
        b"az://c?account=x",
        b"gs://b/p",
        b"s3://[::1/x",
    ],
)
def object_location(data: bytes) -> None:
    parse_object_location(data.decode("utf-8", "replace"))


@target((PipelineError,), [b'scale-out:[{"name":"a","location":"/a"},{"name":"b","location":"/b"}]'])
def scale_out_location(data: bytes) -> None:
    parse_location(data.decode("utf-8", "replace"))


@target((PipelineError,), [b"/backup?keeper=/run/keeper.sock"])
def directory_location(data: bytes) -> None:
    split_location(data.decode("utf-8", "replace"))


@target((), [b'{"call":"keep","root":"/r","name":"packs/a","until":2e9}', b'{"call":"release"}'])
def keeper_request(data: bytes) -> None:
    """To the helper that runs as root: it answers, whatever it was asked."""
    handler = keeper_server._Handler.__new__(keeper_server._Handler)
    handler.server = cast("Any", SimpleNamespace(keeper=_REFUSING_KEEPER))
    answer = handler._answer(data)
    assert set(answer) in ({"error", "message"}, {"until"}, {"released"})


_REFUSING_KEEPER: Final = SimpleNamespace(
    keep=lambda _root, _name, until: until, until=lambda _root, _name: 0.0, release=lambda: 0
)


@target((CliError,), [b"1MiB", b"512K", b"1e3", b"inf", b"nan"])
def size(data: bytes) -> None:
    assert parse_size(data.decode("utf-8", "replace")) > 0


@target((CliError,), [b"vm@latest", b"vm@2", b"vm@2026-11-23", b"abcd-1234"])
def point_reference(data: bytes) -> None:
    parse_point_reference(data.decode("utf-8", "replace"))


@target((UpError,), [b"127.0.0.1:8470", b"[::1]:0"])
def listen_address(data: bytes) -> None:
    parse_listen(data.decode("utf-8", "replace"))


@target((CliError,), [b"vc.example.com:443", b"[::1]:443", b"https://vc/"])
def vcenter_address(data: bytes) -> None:
    split_address(data.decode("utf-8", "replace"))
