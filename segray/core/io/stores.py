"""Object stores: what each can do, and how long a request to one is tried again.

    for store in (s3, gcs, azure):
        store.put(Place("bucket", "a/b.png"), data)
        store.get(Place("bucket", "a/b.png"), stamp=store.head(Place("bucket", "a/b.png")).stamp)

Their functions raise StoreFailure alone. Credentials come from the environment, a profile or a role, as each store's
own library finds them. The libraries are imported by the first request.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from mmap import mmap
from typing import NamedTuple, Protocol, TypeVar

from segray.core.io.failures import StoreFailure

RETRY_FOR_S = 60.0  # SEGRAY_RETRY_S in the environment overrides it
BACKOFF_S, BACKOFF_MOST_S = 0.1, 5.0  # the first pause and the longest one, at most; each is drawn at random below it
CONNECT_S, READ_S = 5.0, 30.0  # how long a server may be silent
UPLOAD_BYTES_S = 100_000  # an upload slower than this has failed
CONNECTIONS = 50  # as many threads may talk to a store at once
PAGE = 1000  # objects that one listing request gives
TRANSIENT_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})

T = TypeVar("T")


class Place(NamedTuple):
    """Where an object is; Azure calls a bucket a container."""

    bucket: str
    key: str


@dataclass(frozen=True)
class Stored:
    """An object. stamp changes when its content does. token: the one that put() was given, where head() is asked."""

    key: str
    size: int
    stamp: str
    modified_s: float  # Unix time
    token: str | None = None


@dataclass(frozen=True)
class Page:
    """Some of the objects below a prefix. folders: whether there are folders that were not entered. after: the rest."""

    objects: list[Stored]
    folders: bool
    after: str | None


class Store(Protocol):
    """An object store, as each of the modules s3, gcs and azure is one."""

    def get(self, place: Place, stamp: str | None = None, span: tuple[int, int] | None = None) -> bytes:
        """Read an object, or its bytes from span[0] up to span[1]; status 412 where it has another stamp."""

    def head(self, place: Place) -> Stored: ...

    def put(self, place: Place, data: bytes | mmap, token: str | None = None) -> None:
        """Write an object whole. token: only where the name is free, status 412 otherwise; it is kept beside."""

    def page(self, bucket: str, prefix: str, after: str | None = None, *, deep: bool = True, most: int = PAGE) -> Page:
        """List objects in the order of their keys. not deep: none that have a further slash in the key."""

    def delete(self, bucket: str, keys: list[str]) -> None:
        """Delete objects; one that is not there is fine."""


def patiently(request: Callable[[], T]) -> T:
    """Return what the request gives; while it fails for reasons that pass, repeat it for RETRY_FOR_S."""
    patience_s = float(os.environ.get("SEGRAY_RETRY_S") or RETRY_FOR_S)
    end = time.monotonic() + patience_s
    for attempt in count():
        try:
            return request()
        except StoreFailure as error:
            left_s = end - time.monotonic()
            if not error.passing:
                raise
            if left_s <= 0:
                error.add_note(f"tried {attempt + 1} times in {patience_s - left_s:.0f} s")
                raise
            most_s = min(BACKOFF_MOST_S, BACKOFF_S * 2 ** min(attempt, 9), left_s)
            # Full jitter, so that many workers do not come back at once; not from the generator that a training seeds.
            time.sleep(random.SystemRandom().uniform(0, most_s))
    raise AssertionError


def each(work: Callable[[str], object], keys: Iterable[str]) -> None:
    """Do the same for many keys at once, for stores that delete one by one."""
    with ThreadPoolExecutor(CONNECTIONS // 2) as pool:
        for _ in pool.map(work, keys):
            pass
