"""Locations of buckets, and what errors may say."""

from __future__ import annotations

import pytest

from pipeline.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    PermanentPipelineError,
    PipelineError,
    StorageFullError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.location import (
    BadLocationError,
    StorageKind,
    is_object_location,
    parse_object_location,
)
from pipeline.storage.object_errors import Scrubber, translate_code


def test_a_location_in_full() -> None:
    found = parse_object_location(
        "s3://backups/site/a?endpoint=https://s3.example.org:9000/&region=eu&virtual_host=true&quota=5TiB"
    )
    assert (found.kind, found.container, found.prefix) == (StorageKind.S3, "backups", "site/a")
    assert found.endpoint == "https://s3.example.org:9000"
    assert (found.region, found.virtual_host, found.quota_bytes) == ("eu", True, 5 << 40)
    assert not found.allow_http


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("2GB", 2 * 10**9), ("3MiB", 3 << 20)])
def test_sizes_of_quotas(text: str, size: int) -> None:
    assert parse_object_location(f"gs://bucket?quota={text}").quota_bytes == size


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("ftp://bucket/x", "begins with none"),
        ("s3://", "names no bucket"),
        ("s3://UPPER/x", "names no bucket"),
        ("s3://bucket/a//b", "a prefix has letters"),
        ("s3://bucket/../b", "a prefix has letters"),
        ("s3://bucket?secret_access_key=hush", "secrets are given apart"),
        ("s3://bucket?region=a&region=b", "stands twice"),
        ("s3://bucket?endpoint=http://s3.example.org", "no TLS"),
        ("s3://bucket?endpoint=ftp://s3.example.org", "must be an address"),
        ("s3://bucket?virtual_host=yes", "must be true or false"),
        ("s3://bucket?quota=much", "must be a size"),
        ("s3://bucket?conditional_put=never", "must be etag"),
        ("az://container/x", "lacks the storage account"),
    ],
)
def test_what_cannot_be_used_is_refused(location: str, what: str) -> None:
    with pytest.raises(BadLocationError, match=what) as caught:
        parse_object_location(location)
    assert "hush" not in str(caught.value)


def test_a_user_name_in_a_location_is_not_repeated() -> None:
    with pytest.raises(BadLocationError, match="never in a location") as caught:
        parse_object_location("s3://key:hush@bucket/x")
    assert "hush" not in str(caught.value)


def test_http_is_for_this_machine_or_for_who_says_so() -> None:
    for endpoint in ("http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:1"):
        assert parse_object_location(f"s3://bucket?endpoint={endpoint}").allow_http
    assert parse_object_location("s3://bucket?endpoint=http://far.example&allow_http=true").allow_http


def test_paths_are_no_buckets() -> None:
    assert not is_object_location("/srv/backup")
    assert not is_object_location("s3:/bucket")
    assert is_object_location("s3://bucket")


def test_a_text_is_scrubbed() -> None:
    scrub = Scrubber(["hush-hush", "x"])
    text = scrub("GET https://a.example/c?sig=abc&se=2 failed: hush-hush, Signature=deadbeef, xyz")
    assert text == "GET https://a.example/c?... failed: ***, Signature=***, xyz"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchBucket", 404, StorageMissingError),
        ("NoSuchKey", 404, ObjectNotFoundError),
        ("AccessDenied", 403, StoragePermissionError),
        ("SomethingNew", 403, StoragePermissionError),
        ("QuotaExceeded", 403, StorageFullError),
        ("", 507, StorageFullError),
        ("PreconditionFailed", 412, ObjectExistsError),
        ("SlowDown", 503, StorageUnavailableError),
        ("", 429, StorageUnavailableError),
        ("", 0, StorageUnavailableError),
        ("MalformedXML", 400, PermanentPipelineError),
    ],
)
def test_errors_by_what_the_caller_can_do(code: str, status: int, kind: type[PipelineError]) -> None:
    assert type(translate_code(code, status, "why", "reading x", "there")) is kind
