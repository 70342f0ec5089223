"""Amazon S3, and what speaks its protocol, as a Store. s3fs keeps the connections; its own retries are off."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import datetime
from mmap import mmap
from typing import Any

from segray.core.io import stores
from segray.core.io.failures import NotThere, StoreFailure
from segray.core.io.stores import Page, Place, Stored

UPLOAD_PART_BYTES = 1 << 28  # in memory at a time; S3 takes 10,000 of at most 5 GB
TOKEN = "segray-token"  # object metadata: which call of create() an object comes from
# What statuses do not tell, for errors of single keys and for those of status 400; HEAD's answers have no code.
TRANSIENT_CODES = frozenset(
    {
        "BadDigest",  # the body was damaged on its way there; so are the next two
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
    }
)

# What S3 says with status 400, and other stores with 401 or 403: the credentials are to be looked at.
ENDED_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})


def get(place: Place, stamp: str | None = None, span: tuple[int, int] | None = None) -> bytes:
    conditions = {"IfMatch": stamp} if stamp is not None else {}
    if span:
        conditions["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    data: bytes = request("get_object", **_named(place), **conditions)["Body"]
    return data


def head(place: Place) -> Stored:
    try:
        answer = request("head_object", **_named(place))
    except StoreFailure as error:
        if error.code == "400":  # no code: what is wrong, a GET says
            get(place, span=(0, 1))
        raise
    return _stored(place.key, answer["ContentLength"], answer, answer["Metadata"].get(TOKEN))


def put(place: Place, data: bytes | mmap, token: str | None = None) -> None:
    """Write in one request, or as a multipart upload, which becomes visible when it is complete."""
    if token is not None:
        request("put_object", **_named(place), Body=data[:], IfNoneMatch="*", Metadata={TOKEN: token})
        return
    if len(data) <= UPLOAD_PART_BYTES:
        request("put_object", **_named(place), Body=data[:])
        return
    upload = {**_named(place), "UploadId": request("create_multipart_upload", **_named(place))["UploadId"]}
    try:
        parts: list[dict[str, Any]] = []
        for start in range(0, len(data), UPLOAD_PART_BYTES):
            number = {"PartNumber": len(parts) + 1}
            sent = request("upload_part", **upload, **number, Body=data[start : start + UPLOAD_PART_BYTES])
            parts.append({**number, "ETag": sent["ETag"]})
        request("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(OSError):  # what was sent is paid for until it is aborted
            request("abort_multipart_upload", **upload)
        raise


def page(bucket: str, prefix: str, after: str | None = None, *, deep: bool = True, most: int = stores.PAGE) -> Page:
    """List by list_objects_v2: s3fs's find() holds all keys and can return a prefix as a file."""
    more = ({} if deep else {"Delimiter": "/"}) | ({"ContinuationToken": after} if after else {})
    answer = request("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=most, **more)
    found = [_stored(one["Key"], one["Size"], one) for one in answer.get("Contents", ())]
    return Page(found, "CommonPrefixes" in answer, answer.get("NextContinuationToken"))


def delete(bucket: str, keys: list[str]) -> None:
    for start in range(0, len(keys), 1000):  # as many as one DeleteObjects takes
        named = [{"Key": key} for key in keys[start : start + 1000]]
        request("delete_objects", Bucket=bucket, Delete={"Objects": named, "Quiet": True})


def _named(place: Place) -> dict[str, str]:
    return {"Bucket": place.bucket, "Key": place.key}


def _stored(key: str, size: int, answer: dict[str, Any], token: str | None = None) -> Stored:
    return Stored(key, size, answer["ETag"].strip('"'), answer["LastModified"].timestamp(), token)


def filesystem() -> Any:
    """Create the s3fs file system where it is used; it is never pickled.

    Its cache of listings is off, as it does not see what other processes create, change and delete.
    """
    import fsspec

    config = {
        "connect_timeout": stores.CONNECT_S,
        "read_timeout": stores.READ_S,
        "max_pool_connections": stores.CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
    fs.retries = 1
    if fs.session is None:
        fs.session = _session(fs.kwargs)
    return fs


def _session(given: dict[str, Any]) -> Any:
    """Create the session that s3fs would, which reads times by itself: botocore's way is most of a listing's work."""
    from aiobotocore.session import AioSession

    session = AioSession(**given)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time_of)
    return session


def _time_of(told: Any) -> datetime:
    """Read a time as a listing has it, 2026-11-01T09:30:00.000Z; another, as a header's, is left to botocore."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(told)
    except (TypeError, ValueError):
        found: datetime = parse_timestamp(told)
        return found


def request(method: str, **arguments: Any) -> dict[str, Any]:
    """Call a method of boto's S3 client and return the answer, with its Body read; retry transient failures."""
    import aiohttp
    import fsspec.asyn
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    fs = filesystem()
    # Not all are OSErrors: missing credentials, a body that was cut; a ValueError is an endpoint that is no URL.
    native = (OSError, ValueError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ResponseParserError)
    # READ_S does not count while aiohttp waits to be let in, after `Expect: 100-continue`, nor while it sends.
    limit_s = stores.CONNECT_S + stores.READ_S + len(arguments.get("Body", b"")) / stores.UPLOAD_BYTES_S

    def once() -> dict[str, Any]:
        try:
            timeout_s = None if method == "get_object" else limit_s
            answer: dict[str, Any] = fs.call_s3(method, timeout=timeout_s, **arguments)
            if "Errors" in answer:  # DeleteObjects says 200 and then which keys it did not delete
                raise boto.ClientError({"Error": answer["Errors"][0]}, method)
            if "Body" in answer:
                answer["Body"] = fsspec.asyn.sync(fs.loop, _whole, answer["Body"])
            return answer
        except native as error:
            raise _failure(error) from error

    return stores.patiently(once)


async def _whole(body: Any) -> Any:
    try:
        return await body.read()
    finally:
        body.close()


def _failure(error: Exception) -> StoreFailure:
    answer = _answer_of(error)
    told = answer.get("Error", {})
    code, status = told.get("Code", ""), answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = 403 if code in ENDED_CODES else status
    # A timeout of fsspec's says nothing, and its cause may.
    words = getattr(error, "strerror", None) or str(error) or str(error.__cause__ or "") or type(error).__name__
    if answer and not told.get("Message"):  # Ceph sends a code without words
        words = code or words
    if isinstance(error, FileNotFoundError):
        return NotThere("No such file" if code in ("404", "NoSuchKey") else words, status=404, code=code)
    passing = (status in stores.TRANSIENT_STATUSES or code in TRANSIENT_CODES) if answer else _is_transient(error)
    return StoreFailure(words, status=status, code=code, passing=passing)


def _is_transient(error: Exception) -> bool:
    """Say whether what kept an answer from coming may pass."""
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    inner = getattr(error, "kwargs", {}).get("error")  # what botocore's errors have wrapped
    unknown_host = getattr(getattr(inner, "os_error", None), "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA)
    if unknown_host or isinstance(inner, (ValueError, aiohttp.ClientConnectorCertificateError)):
        return False
    own = boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError
    return isinstance(error, (ConnectionError, TimeoutError, aiohttp.ClientError, ResponseParserError, *own))


def _answer_of(error: BaseException | None) -> dict[str, Any]:
    """Return the store's answer, {} where there was none: s3fs wraps botocore's errors, which are the cause."""
    while error:
        response: dict[str, Any] | None = getattr(error, "response", None)
        if response:
            return response
        error = error.__cause__
    return {}
