"""Requests to S3: each goes through request(), which retries transient failures for RETRY_FOR_S.

Those are a busy or broken server, a lost connection, a body cut short or damaged. s3fs keeps the connections; its own
retries are off. Credentials come from the environment, a profile or a role, as botocore finds them.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from itertools import count
from typing import Any

RETRY_FOR_S = 60.0  # SEGRAY_RETRY_S in the environment overrides it
BACKOFF_S, BACKOFF_MOST_S = 0.1, 5.0  # the first pause and the longest one, at most; each is drawn at random below it
CONNECT_S, READ_S = 5.0, 30.0  # how long a server may be silent
UPLOAD_BYTES_S = 100_000  # an upload slower than this has failed
CONNECTIONS = 50  # as many threads may talk to S3 at once

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
TRANSIENT_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})


def failures() -> tuple[type[Exception], ...]:
    """Return what a failed request raises: OSError and ValueError alone while nobody has asked S3 for anything.

    Not all are OSErrors: missing credentials, a body that was cut; a ValueError is an endpoint that is no URL.
    """
    if "botocore" not in sys.modules:  # local files do without it
        return OSError, ValueError
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    return OSError, ValueError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ResponseParserError


def _transient() -> tuple[type[Exception], ...]:
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    own = boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError
    return (ConnectionError, TimeoutError, aiohttp.ClientError, ResponseParserError, *own)


def filesystem() -> Any:
    """Create the s3fs file system where it is used; it is never pickled.

    Its cache of listings is off, as it does not see what other processes create, change and delete.
    """
    import fsspec

    config = {
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "max_pool_connections": CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
    fs.retries = 1
    return fs


def request(method: str, **arguments: Any) -> dict[str, Any]:
    """Call a method of boto's S3 client and return the answer, with its Body read; retry transient failures."""
    import fsspec.asyn
    from botocore.exceptions import ClientError

    fs = filesystem()

    async def call() -> dict[str, Any]:
        answer: dict[str, Any] = await fs._call_s3(method, **arguments)
        if "Errors" in answer:  # DeleteObjects says 200 and then which keys it did not delete
            raise ClientError({"Error": answer["Errors"][0]}, method)
        if "Body" in answer:
            body = answer["Body"]
            try:
                answer["Body"] = await body.read()
            finally:
                body.close()
        return answer

    # READ_S does not count while aiohttp waits to be let in, after `Expect: 100-continue`, nor while it sends.
    limit_s = CONNECT_S + READ_S + len(arguments.get("Body", b"")) / UPLOAD_BYTES_S
    patience_s = float(os.environ.get("SEGRAY_RETRY_S") or RETRY_FOR_S)
    end = time.monotonic() + patience_s
    for attempt in count():
        try:
            answer: dict[str, Any] = fsspec.asyn.sync(
                fs.loop, call, timeout=None if method == "get_object" else limit_s
            )
            return answer
        except failures() as error:
            left_s = end - time.monotonic()
            if not _is_transient(error):
                raise
            if left_s <= 0:
                error.add_note(f"tried {attempt + 1} times in {patience_s - left_s:.0f} s")
                raise
            most_s = min(BACKOFF_MOST_S, BACKOFF_S * 2 ** min(attempt, 9), left_s)
            # Full jitter, so that many workers do not come back at once; not from the generator that a training seeds.
            time.sleep(random.SystemRandom().uniform(0, most_s))
    raise AssertionError


def _is_transient(error: BaseException) -> bool:
    from aiohttp import ClientConnectorCertificateError

    answer = answer_of(error)
    if answer:
        return http_status(error) in TRANSIENT_STATUSES or answer.get("Error", {}).get("Code") in TRANSIENT_CODES
    inner = getattr(error, "kwargs", {}).get("error")  # what botocore's errors have wrapped
    unknown_host = getattr(getattr(inner, "os_error", None), "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA)
    if unknown_host or isinstance(inner, (ValueError, ClientConnectorCertificateError)):
        return False
    return isinstance(error, _transient())


def answer_of(error: BaseException | None) -> dict[str, Any]:
    """Return the store's answer, {} where there was none: s3fs wraps botocore's errors, which are the cause."""
    while error:
        response: dict[str, Any] | None = getattr(error, "response", None)
        if response:
            return response
        error = error.__cause__
    return {}


def http_status(error: BaseException) -> int | None:
    status: int | None = answer_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
