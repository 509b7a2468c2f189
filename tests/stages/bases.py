"""Stand-ins for public base images, for machines that reach Debian's mirror but no registry.

`debian` is made by debootstrap; the others are Debian with the same program at the same place and with the parts of
the public image's behaviour that our files rely on. What this machine needs to reach pip (its certificates, its
configuration) goes into the stand-in, never into an image's own Dockerfile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.stages.engine import CHECKOUT, DockerError, Engine

HERE: Final = Path(__file__).parent
CACHE: Final = CHECKOUT / ".venv" / "stages"
"""Of what is made once: `make clean` removes it."""
DEBIAN: Final = "debian:bookworm-slim"
PYTHON: Final = "python:3.11-slim-bookworm"
_IN_DEBIAN: Final = "ca-certificates,python3,python3-venv,python3-pip"
_CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"


def have(engine: Engine, tag: str) -> bool:
    return bool(engine.docker("images", "--quiet", tag).strip())


def make_debian(engine: Engine) -> None:
    """`debian:bookworm-slim`, with Python's and pip's packages in it."""
    if have(engine, DEBIAN):
        return
    archive = _debian_archive()
    with archive.open("rb") as file:
        engine.docker("import", "--change", 'CMD ["bash"]', "-", DEBIAN, stdin=file)


def make_python(engine: Engine) -> None:
    """`python:3.11-slim-bookworm`: `python` and `pip` in /usr/local/bin, and pip may install."""
    make_debian(engine)
    build_stand_in(engine, PYTHON, HERE / "images" / "python")


def make_for_compose(engine: Engine) -> dict[str, str]:
    """Stand-ins for the images of docker-compose.yml that are not ours; their tags by the variables of that file."""
    make_python(engine)
    tags = {
        "REDIS_IMAGE": ("redis:7-alpine", "redis"),
        "POSTGRES_IMAGE": ("postgres:16-alpine", "postgres"),
        "PROMETHEUS_IMAGE": ("prom/prometheus:v3.5.0", "prometheus"),
    }
    for tag, directory in tags.values():
        build_stand_in(engine, tag, HERE / "images" / directory)
    return {variable: tag for variable, (tag, _) in tags.items()}


def build_stand_in(engine: Engine, tag: str, directory: Path) -> None:
    """From a directory with a Dockerfile that begins with one of the other stand-ins."""
    if not have(engine, tag):
        engine.build(directory, tag)


def _debian_archive() -> Path:
    archive = CACHE / "debian-bookworm.tar"
    if archive.exists():
        return archive
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmhaul-debian-", dir=CACHE) as scratch:
        root = Path(scratch) / "root"
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_IN_DEBIAN}", "bookworm", str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DockerError(f"debootstrap failed ({done.returncode}):\n{done.stdout[-2000:]}")
        _let_pip_reach_its_index(root)
        _slim(root)
        fresh = Path(scratch) / "archive.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(fresh), "."], check=True)
        fresh.replace(archive)
    return archive


def _let_pip_reach_its_index(root: Path) -> None:
    """As this machine does: with its certificates, and with its indexes as far as they are on the network."""
    shutil.copyfile(Path("/") / _CERTIFICATES, root / _CERTIFICATES)
    lines = ["[global]", f"cert = /{_CERTIFICATES}", "disable-pip-version-check = true"]
    for name in ("index-url", "extra-index-url"):
        value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or _configured(f"global.{name}")
        reachable = [url for url in value.split() if not url.startswith("file:")]
        if reachable:
            lines.append(f"{name} = {' '.join(reachable)}")
    (root / "etc" / "pip.conf").write_text("\n".join(lines) + "\n")


def _configured(key: str) -> str:
    done = subprocess.run(
        ["python3", "-m", "pip", "config", "get", key], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _slim(root: Path) -> None:
    for unwanted in (
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ):
        for path in (root / unwanted).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
