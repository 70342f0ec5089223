"""Azure Blob Storage as a Store, by Azure's own library; its own retries are off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from mmap import mmap
from typing import Any, TypeVar

from segray.core.extras import extra
from segray.core.io import stores
from segray.core.io.failures import NotThere, StoreFailure
from segray.core.io.stores import Page, Place, Stored

TOKEN = "segray_token"  # object metadata: which call of create() an object comes from; Azure takes no hyphen
ONE_PUT = 5000 << 20  # bytes that Azure takes in one request
NO_ACCOUNT = "No account is named; set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME"
NO_CREDENTIALS = (
    "No credentials were found; set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY, or run az login"
)
TRANSIENT_CODES = frozenset({"InternalError", "Md5Mismatch", "OperationTimedOut", "ServerBusy"})
# What adlfs reads, too.
SETTINGS = tuple(f"AZURE_STORAGE_{name}" for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"))

T = TypeVar("T")


def get(place: Place, stamp: str | None = None, span: tuple[int, int] | None = None) -> bytes:
    def work(service: Any) -> bytes:
        from azure.core import MatchConditions

        asked: dict[str, Any] = {"offset": span[0], "length": span[1] - span[0]} if span else {}
        if stamp is not None:
            asked |= {"etag": f'"{stamp}"', "match_condition": MatchConditions.IfNotModified}
        opened = service.get_blob_client(*place).download_blob(**asked)
        data: bytes = opened.readall()
        md5 = opened.properties.content_settings.content_md5
        if md5 and not span and hashlib.md5(data).digest() != md5:
            raise StoreFailure("The content was damaged on its way here", passing=True)
        return data

    try:
        return _request(work)
    except StoreFailure as error:
        if error.status == 412:
            head(place)  # one that is gone has no stamp either: NotThere
        raise


def head(place: Place) -> Stored:
    return _request(lambda service: _stored(service.get_blob_client(*place).get_blob_properties()))


def put(place: Place, data: bytes | mmap, token: str | None = None) -> None:
    """Write in one request; what is above ONE_PUT in blocks, which become the object with the last request."""
    kept = {} if token is None else {"metadata": {TOKEN: token}}
    _request(
        lambda service: service.get_blob_client(*place).upload_blob(
            data[:], overwrite=token is None, validate_content=True, **kept
        )
    )


def page(bucket: str, prefix: str, after: str | None = None, *, deep: bool = True, most: int = stores.PAGE) -> Page:
    def work(service: Any) -> Page:
        container = service.get_container_client(bucket)
        walk = container.list_blobs if deep else container.walk_blobs
        # The metadata tells the folders of a hierarchical account from objects.
        pages = walk(name_starts_with=prefix, include=["metadata"], results_per_page=most).by_page(after)
        found = list(next(pages))
        objects = [_stored(one) for one in found if hasattr(one, "etag")]
        return Page(objects, len(objects) < len(found), pages.continuation_token or None)

    return _request(work)


def delete(bucket: str, keys: list[str]) -> None:
    def gone(key: str) -> None:
        with suppress(FileNotFoundError):
            _request(lambda service: service.get_blob_client(bucket, key).delete_blob(delete_snapshots="include"))

    stores.each(gone, [key for key in keys if not key.endswith("/")])
    for marker in sorted((key for key in keys if key.endswith("/")), reverse=True):  # a folder after what is in it
        gone(marker)
        gone(marker.rstrip("/"))  # as an account with a hierarchy calls it


def _stored(found: Any) -> Stored:
    kept = found.metadata or {}
    key = f"{found.name}/" if kept.get("hdi_isfolder") == "true" else found.name
    return Stored(key, found.size, found.etag.strip('"'), found.last_modified.timestamp(), kept.get(TOKEN))


@lru_cache(maxsize=4)
def _service(process: int, timeouts_s: tuple[float, float], *settings: str) -> Any:
    """Return the client of this process: a connection that two use after a fork would mix up their answers."""
    import requests
    from azure.core.pipeline.transport import RequestsTransport
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    from segray.core.io.sessions import steady

    session = requests.Session()
    steady(session)
    connect_s, read_s = timeouts_s
    how: dict[str, Any] = {
        "transport": RequestsTransport(
            session=session, session_owner=False, connection_timeout=connect_s, read_timeout=read_s
        ),
        "retry_total": 0,
        "max_single_put_size": ONE_PUT,
        "max_block_size": 100 << 20,
        "max_single_get_size": 256 << 20,
        "max_chunk_get_size": 256 << 20,
    }
    connection, account, key, sas = settings
    if connection:
        return BlobServiceClient.from_connection_string(connection, **how)
    if not account:
        raise StoreFailure(NO_ACCOUNT)
    url = f"https://{account}.blob.core.windows.net"
    return BlobServiceClient(url, key or sas or DefaultAzureCredential(), **how)


def _request(work: Callable[[Any], T]) -> T:
    """Return what `work` makes of the client; retry transient failures."""
    for module in ("azure.storage.blob", "azure.identity"):
        extra(module, "azure")
    from azure.core import exceptions as azure

    from segray.core.io.sessions import unanswered

    def once() -> T:
        endpoint = "the account"
        try:
            settings = [os.environ.get(name, "") for name in SETTINGS]
            service = _service(os.getpid(), (stores.CONNECT_S, stores.READ_S), *settings)
            endpoint = service.url
            return work(service)
        except StoreFailure:
            raise
        except azure.ClientAuthenticationError as error:
            raise _refusal(error) if error.status_code else StoreFailure(NO_CREDENTIALS) from error
        except azure.HttpResponseError as error:
            raise (_refusal(error) if error.status_code else unanswered(error, endpoint)) from error
        except (azure.AzureError, OSError, ValueError) as error:
            raise unanswered(error, endpoint) from error

    return stores.patiently(once)


def _refusal(error: Any) -> StoreFailure:
    status, code = error.status_code, str(getattr(error, "error_code", "") or "")
    words = (error.message or code or f"The answer was {status}").splitlines()[0]
    if code and words.startswith("Operation returned an invalid status"):  # answers to HEAD have no words
        words = code
    if status == 404:
        words = "The specified container does not exist" if code == "ContainerNotFound" else "No such file"
        return NotThere(words, status=404, code=code)
    if code == "BlobAlreadyExists":
        status = 412
    passing = status in stores.TRANSIENT_STATUSES - {409} or code in TRANSIENT_CODES
    return StoreFailure(words, status=status, code=code, passing=passing)
