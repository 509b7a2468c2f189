"""Options of `vmhaul repository` for what a bucket needs: keys, and for how long it keeps what is written.

Keys are read from files, the environment or the terminal, never from the command line; the id of an access key
is no secret.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from backup_server.cli import secrets_in
from backup_server.cli.exits import CliError, Exit

AccessKeyOption = Annotated[
    str | None,
    typer.Option(
        "--access-key-id", metavar="ID", help="S3: id of the access key; its secret is asked for."
    ),
]
SecretKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-access-key-file",
        metavar="FILE",
        help="S3: file with the secret of the access key. Else the variable VMHAUL_SECRET_ACCESS_KEY.",
    ),
]
AccountKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--account-key-file", metavar="FILE", help="Azure: file with a key of the storage account."
    ),
]
SasTokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--sas-token-file", metavar="FILE", help="Azure: file with a shared access signature."
    ),
]
ServiceAccountFileOption = Annotated[
    Path | None,
    typer.Option(
        "--service-account-file", metavar="FILE", help="Google: the JSON key file of a service account."
    ),
]
ImmutableDaysOption = Annotated[
    int | None,
    typer.Option(
        "--immutable-days",
        min=0,
        metavar="DAYS",
        help="Nobody can delete a restore point before it is so old; 0: anybody who may delete can.",
    ),
]
SECRET_KEY_VARIABLE: Final = "VMHAUL_SECRET_ACCESS_KEY"  # noqa: S105 - the name of it


def storage_secrets(
    *,
    access_key_id: str | None,
    secret_access_key_file: Path | None,
    account_key_file: Path | None,
    sas_token_file: Path | None,
    service_account_file: Path | None,
) -> dict[str, str]:
    """What the options name, by the API's names; nothing when none was given. Raises CliError."""
    secrets: dict[str, str] = {}
    if access_key_id:
        secrets["access_key_id"] = access_key_id
        secrets["secret_access_key"] = _secret_access_key(secret_access_key_file)
    elif secret_access_key_file:
        raise CliError("--secret-access-key-file needs --access-key-id", Exit.USAGE)
    for name, file in (
        ("account_key", account_key_file),
        ("sas_token", sas_token_file),
        ("service_account_json", service_account_file),
    ):
        if file is not None:
            secrets[name] = _read(file)
    return secrets


def is_bucket(location: str) -> bool:
    """Whether a location is more than a path of this shell's machine."""
    return location.startswith(("s3://", "az://", "gs://", "scale-out:"))


def _secret_access_key(file: Path | None) -> str:
    if file is not None:
        return _read(file)
    if text := os.environ.get(SECRET_KEY_VARIABLE):
        return text
    return secrets_in.read_secret(
        "Secret access key", from_stdin=False, option="--secret-access-key-file"
    )


def _read(file: Path) -> str:
    try:
        text = file.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error
    if not text:
        raise CliError(f"{file} is empty")
    return text
