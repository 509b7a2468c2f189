"""The wheel that a server carries to its proxies: this very vmhaul, packed from where it is installed.

The same files give the same bytes, so the release that a machine has can be told from the one that the server runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

from backup_server.errors import SettingsError

PACKAGES: Final = ("backup_server", "pipeline", "proxy_worker", "transports")
_SKIPPED_SUFFIXES: Final = (".pyc", ".pyo", ".so.tmp")
_MOMENT: Final = (2020, 1, 1, 0, 0, 0)
"""Of every file inside: when a file was written says nothing about what is in it."""
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: vmhaul\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    name: str
    """Its file's: "vmhaul-0.5.0-py3-none-any.whl"."""
    version: str
    content: bytes = field(repr=False)
    extras: frozenset[str]
    """Names that may stand in brackets behind it."""

    @property
    def release_id(self) -> str:
        """Names the directory on the machine: version and beginning of the content's hash."""
        return f"{self.version}-{hashlib.sha256(self.content).hexdigest()[:12]}"


def carried_wheel() -> Wheel:
    """SettingsError when vmhaul runs from files that were never installed."""
    try:
        installed = metadata.distribution("vmhaul")
    except metadata.PackageNotFoundError as error:
        raise SettingsError(
            "this vmhaul was never installed, so there is nothing to give to proxies: install it with pip"
        ) from error
    version = installed.version
    info = f"vmhaul-{version}.dist-info"
    files = dict(sorted(_sources()))
    # A source tree beside the program is found in an older form, where the file is called otherwise.
    files[f"{info}/METADATA"] = _text(installed, "METADATA", "PKG-INFO")
    files[f"{info}/entry_points.txt"] = _text(installed, "entry_points.txt")
    files[f"{info}/top_level.txt"] = "".join(f"{name}\n" for name in PACKAGES).encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    return Wheel(
        name=f"vmhaul-{version}-py3-none-any.whl",
        version=version,
        content=_zip(files),
        extras=frozenset(installed.metadata.get_all("Provides-Extra") or ()),
    )


def _sources() -> Iterator[tuple[str, bytes]]:
    for name in PACKAGES:
        for place in import_module(name).__path__:
            root = Path(place)
            for path in sorted(root.rglob("*")):
                inside = path.relative_to(root)
                if (
                    "__pycache__" in inside.parts
                    or path.suffix in _SKIPPED_SUFFIXES
                    or not path.is_file()
                ):
                    continue
                yield f"{name}/{inside.as_posix()}", path.read_bytes()


def _text(installed: metadata.Distribution, *names: str) -> bytes:
    for name in names:
        text = installed.read_text(name)
        if text is not None:
            return text.encode()
    raise SettingsError(f"the installed vmhaul has no {names[0]}: install it again with pip")


def _record(files: dict[str, bytes], own: str) -> bytes:
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{own},,\n"]).encode()


def _zip(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return target.getvalue()
