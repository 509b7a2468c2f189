"""From a location and its secrets to obstore's stores and, for S3, to a client of the whole protocol."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from pipeline.errors import PermanentPipelineError, StorageMissingError, StoragePermissionError
from pipeline.storage.location import ObjectLocation, StorageKind

if TYPE_CHECKING:
    from obstore.store import ClientConfig

SECRET_NAMES: Final = {
    StorageKind.S3: frozenset({"access_key_id", "secret_access_key", "session_token"}),
    StorageKind.AZURE: frozenset({"account_key", "sas_token"}),
    StorageKind.GOOGLE: frozenset({"service_account_json"}),
}
CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 60
"""Without a byte from the store."""
REQUEST_TIMEOUT_S: Final = 600
"""Of a whole request: 64 MiB at the slowest line that is worth using (1 Mbit/s)."""
DEFAULT_REGION: Final = "us-east-1"

AnyStore = S3Store | AzureStore | GCSStore


def checked_secrets(location: ObjectLocation, secrets: Mapping[str, str]) -> dict[str, str]:
    """Those that were given, when they fit the kind of storage. Raises PermanentPipelineError."""
    given = {name: value for name, value in secrets.items() if value}
    known = SECRET_NAMES[location.kind]
    if unknown := given.keys() - known:
        raise PermanentPipelineError(
            f"{location.text} has no use for {', '.join(sorted(unknown))}; it takes {', '.join(sorted(known))}"
        )
    if location.kind is StorageKind.S3 and ("access_key_id" in given) != ("secret_access_key" in given):
        raise StoragePermissionError(
            f"{location.text}: access_key_id and secret_access_key belong together; give both, or none "
            "to use what this machine is given by its cloud"
        )
    if location.kind is StorageKind.AZURE and len(given) > 1:
        raise StoragePermissionError(f"{location.text}: give account_key or sas_token, not both")
    return given


def make_store(location: ObjectLocation, secrets: Mapping[str, str]) -> AnyStore:
    """Nothing is sent yet. Raises PermanentPipelineError for options that cannot be used."""
    given = checked_secrets(location, secrets)
    # The wrapper around a driver retries, and nothing below it: a repeated put whose first answer was
    # lost would find its own object and call it somebody else's.
    common: dict[str, Any] = {
        "prefix": location.prefix or None,
        "client_options": _client_options(location),
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(0)},
    }
    try:
        match location.kind:
            case StorageKind.S3:
                return _s3(location, given, common)
            case StorageKind.AZURE:
                return _azure(location, given, common)
            case StorageKind.GOOGLE:
                return _google(location, given, common)
    except PermanentPipelineError:
        raise
    except Exception:  # noqa: BLE001 - the text of whatever it is may hold the secret
        raise PermanentPipelineError(
            f"the credentials or options of {location.text} cannot be used: correct their form "
            f"({', '.join(sorted(SECRET_NAMES[location.kind]))})"
        ) from None


def s3_endpoint(location: ObjectLocation) -> str:
    """As obstore wants it: with the bucket in it where requests are virtual-hosted."""
    if not location.endpoint or not location.virtual_host:
        return location.endpoint
    parts = urlsplit(location.endpoint)
    return f"{parts.scheme}://{location.container}.{parts.netloc}{parts.path}"


def make_s3_client(location: ObjectLocation, secrets: Mapping[str, str]) -> Any:
    """A botocore client, for what obstore does not do: parts, object lock, versions.

    Imported here: it takes 30 MiB and a third of a second, and not every process needs it.
    """
    import botocore.session
    from botocore.config import Config

    given = checked_secrets(location, secrets)
    session = botocore.session.Session()
    config = Config(
        signature_version="s3v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=16,
        # Checksums in trailers are refused by many compatible stores; parts carry an MD5 instead.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "virtual" if location.virtual_host or not location.endpoint else "path"
        },
    )
    return session.create_client(
        "s3",
        region_name=location.region or DEFAULT_REGION,
        endpoint_url=location.endpoint or None,
        aws_access_key_id=given.get("access_key_id"),
        aws_secret_access_key=given.get("secret_access_key"),
        aws_session_token=given.get("session_token"),
        verify=location.ca_file or None,
        config=config,
    )


def _client_options(location: ObjectLocation) -> ClientConfig:
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        "allow_http": location.allow_http,
        "user_agent": "vmhaul",
    }
    if location.ca_file:
        try:
            options["root_certificate"] = Path(location.ca_file).read_bytes()
        except OSError as error:
            raise StorageMissingError(
                f"the CA file {location.ca_file} of {location.text}: {error.strerror}; put it there on the "
                "server and on every proxy"
            ) from error
    return options


def _s3(location: ObjectLocation, given: dict[str, str], common: dict[str, Any]) -> S3Store:
    config: dict[str, Any] = {
        "region": location.region or DEFAULT_REGION,
        "virtual_hosted_style_request": location.virtual_host,
        "checksum_algorithm": "sha256",
        "disable_bulk_delete": True,
        "skip_signature": location.anonymous,
    }
    if endpoint := s3_endpoint(location):
        # Both: the environment may set the second, which would win.
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if "access_key_id" in given:
        credential: Any = {
            "access_key_id": given["access_key_id"],
            "secret_access_key": given["secret_access_key"],
            "token": given.get("session_token"),
            "expires_at": None,
        }
        common["credential_provider"] = lambda: credential
    return S3Store(location.container, config=config, **common)  # type: ignore[arg-type]


def _azure(location: ObjectLocation, given: dict[str, str], common: dict[str, Any]) -> AzureStore:
    config: dict[str, Any] = {
        "account_name": location.account,
        "skip_signature": location.anonymous,
        "disable_tagging": True,
    }
    if location.endpoint:
        config["endpoint"] = location.endpoint
    if "account_key" in given:
        config["account_key"] = given["account_key"]
    if "sas_token" in given:
        config["sas_key"] = given["sas_token"].removeprefix("?")
    return AzureStore(location.container, config=config, **common)  # type: ignore[arg-type]


def _google(location: ObjectLocation, given: dict[str, str], common: dict[str, Any]) -> GCSStore:
    config: dict[str, Any] = {"skip_signature": location.anonymous}
    if location.endpoint:
        config["base_url"] = location.endpoint
    if "service_account_json" in given:
        config["service_account_key"] = given["service_account_json"]
    elif location.anonymous:
        # Without this, writing asks for a token all the same.
        nobody: Any = {"token": "anonymous", "expires_at": None}
        common["credential_provider"] = lambda: nobody
    return GCSStore(location.container, config=config, **common)  # type: ignore[arg-type]
