"""Google Cloud Storage as a Store: its JSON API, with the credentials that Google's own tools find."""

from __future__ import annotations

import base64
import json
import os
import uuid
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from mmap import mmap
from typing import Any
from urllib.parse import quote

from segray.core.extras import extra
from segray.core.io import stores
from segray.core.io.failures import NotThere, StoreFailure
from segray.core.io.stores import Page, Place, Stored

TOKEN = "segray-token"  # object metadata: which call of create() an object comes from
FIELDS = "name,size,generation,updated"
NO_CREDENTIALS = (
    "No credentials were found; set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
)
NO_BUCKET = "The specified bucket does not exist."


def get(place: Place, stamp: str | None = None, span: tuple[int, int] | None = None) -> bytes:
    asked = {"alt": "media"} | ({"ifGenerationMatch": stamp} if stamp is not None else {})
    span_header = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
    # Objects that are stored compressed come as they are stored.
    return _request("GET", _object(place), asked, headers={"Accept-Encoding": "gzip"} | span_header)


def head(place: Place) -> Stored:
    return _stored(json.loads(_request("GET", _object(place), {"fields": f"{FIELDS},metadata"})))


def put(place: Place, data: bytes | mmap, token: str | None = None) -> None:
    data = data[:]
    about: dict[str, Any] = {"crc32c": _crc32c(data)}
    asked = {"uploadType": "multipart", "name": place.key}
    if token is not None:
        about["metadata"], asked["ifGenerationMatch"] = {TOKEN: token}, "0"
    line = f"--{(boundary := uuid.uuid4().hex)}".encode()
    types = (b"Content-Type: application/json\r\n\r\n", b"Content-Type: application/octet-stream\r\n\r\n")
    body = b"\r\n".join(
        [line, types[0] + json.dumps(about).encode(), line, types[1] + data, line + b"--", b""],
    )
    kind = {"Content-Type": f"multipart/related; boundary={boundary}"}
    _request("POST", f"/upload{_bucket(place.bucket)}/o", asked, body, kind)


def page(bucket: str, prefix: str, after: str | None = None, *, deep: bool = True, most: int = stores.PAGE) -> Page:
    asked = {"prefix": prefix, "maxResults": str(most), "fields": f"items({FIELDS}),prefixes,nextPageToken"}
    asked |= ({} if deep else {"delimiter": "/"}) | ({"pageToken": after} if after else {})
    answer = json.loads(_request("GET", f"{_bucket(bucket)}/o", asked))
    return Page(
        [_stored(found) for found in answer.get("items", ())], bool(answer.get("prefixes")), answer.get("nextPageToken")
    )


def delete(bucket: str, keys: list[str]) -> None:
    def gone(key: str) -> None:
        with suppress(FileNotFoundError):
            _request("DELETE", _object(Place(bucket, key)), {})

    stores.each(gone, keys)


def _bucket(bucket: str) -> str:
    return f"/storage/v1/b/{quote(bucket, safe='')}"


def _object(place: Place) -> str:
    return f"{_bucket(place.bucket)}/o/{quote(place.key, safe='')}"


def _stored(found: dict[str, Any]) -> Stored:
    token = found.get("metadata", {}).get(TOKEN)
    modified_s = datetime.fromisoformat(found["updated"]).timestamp()
    return Stored(found["name"], int(found.get("size", 0)), found["generation"], modified_s, token)


def _endpoint() -> str:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return emulator if not emulator or "://" in emulator else f"http://{emulator}"


@lru_cache(maxsize=4)
def _session(process: int, emulated: bool) -> Any:
    """Return the session of this process: a connection that two use after a fork would mix up their answers."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession

    from segray.core.io.sessions import steady

    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    credentials = AnonymousCredentials() if emulated else google.auth.default(scopes)[0]
    session = AuthorizedSession(credentials)
    steady(session)
    return session


def _request(
    method: str, path: str, query: dict[str, str], body: bytes | None = None, headers: dict[str, str] | None = None
) -> bytes:
    """Return the body of the answer; retry transient failures."""
    extra("google_crc32c", "gcs")  # the one of them that nothing else brings
    import google.auth.exceptions
    import requests
    import urllib3.exceptions

    from segray.core.io.sessions import unanswered

    emulator = _endpoint()
    endpoint = emulator or "https://storage.googleapis.com"

    def once() -> bytes:
        try:
            with _session(os.getpid(), bool(emulator)).request(
                method,
                endpoint + path,
                params=query,
                data=body,
                headers=headers,
                timeout=(stores.CONNECT_S, stores.READ_S),
                stream=True,
            ) as answer:
                data: bytes = answer.raw.read(decode_content="alt" not in query)
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise StoreFailure(NO_CREDENTIALS) from error
        except google.auth.exceptions.GoogleAuthError as error:
            raise StoreFailure(str(error), passing=bool(error.retryable)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unanswered(error, endpoint) from error
        if answer.status_code >= 300:
            raise _refusal(answer.status_code, data, is_object="/o/" in path)
        if answer.status_code == 200 and not _is_whole(data, answer.headers.get("X-Goog-Hash", "")):
            raise StoreFailure("The content was damaged on its way here", passing=True)
        return data

    return stores.patiently(once)


def _refusal(status: int, data: bytes, *, is_object: bool) -> StoreFailure:
    text = data.decode(errors="replace")
    try:
        told = json.loads(text)["error"]
        words, code = told["message"], told["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        words, code = text, ""
    if status == 404:
        return NotThere("No such file" if is_object and "bucket" not in words else NO_BUCKET, status=404, code=code)
    # A damaged upload is 400; a refusal of too many requests may be 403.
    passing = status in stores.TRANSIENT_STATUSES or code in ("rateLimitExceeded", "userRateLimitExceeded")
    return StoreFailure(words or code or f"The answer was {status}", status=status, code=code, passing=passing)


def _crc32c(data: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _is_whole(data: bytes, hashes: str) -> bool:
    """Compare with the hashes of X-Goog-Hash, as `crc32c=n03x6A==,md5=Ojk9c3dhfxgoKVVHYwFbHQ==`."""
    told = dict(one.strip().split("=", 1) for one in hashes.split(",") if "=" in one)
    return "crc32c" not in told or told["crc32c"] == _crc32c(data)
