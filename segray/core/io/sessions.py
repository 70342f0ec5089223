"""HTTP sessions for the stores whose libraries speak it by `requests`: Google Cloud Storage and Azure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from segray.core.io import stores
from segray.core.io.failures import StoreFailure


class Steady(HTTPAdapter):
    """Sends a body by small pieces: of one that is bytes, urllib3 wants all to be sent within the connect timeout."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        if isinstance(request.body, bytes):
            request.body = io.BytesIO(request.body)  # type: ignore[assignment]
        return super().send(request, *args, **kwargs)


def steady(session: requests.Session) -> None:
    """Let a session hold as many connections as threads use, and send large bodies at any speed."""
    for start in ("https://", "http://"):
        session.mount(start, Steady(pool_maxsize=stores.CONNECTIONS))


def unanswered(error: BaseException, endpoint: str) -> StoreFailure:
    """Say in words why a request has had no whole answer, and whether that may pass."""
    import urllib3.exceptions as http

    causes = tuple(_causes(error))

    def by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if by(http.NameResolutionError):
        return StoreFailure(f"{endpoint} has no address; is the name right?")
    if by(http.SSLError):
        return StoreFailure(f"{endpoint}: {next(one for one in causes if isinstance(one, http.SSLError))}")
    if by(http.NewConnectionError, http.ConnectTimeoutError):
        return StoreFailure(f"Could not connect to {endpoint}", passing=True)
    if by(TimeoutError, http.TimeoutError):
        return StoreFailure(f"{endpoint} has not answered in time", passing=True)
    if by(ConnectionError, http.HTTPError):
        return StoreFailure("The connection was closed before the whole answer had come", passing=True)
    return StoreFailure(str(error) or type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error with all that it comes from: requests and Azure keep it under names of their own."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__, *one.args]
            left += [getattr(one, name, None) for name in ("reason", "inner_exception")]
