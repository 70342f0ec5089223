"""Names of places, which are local paths and URIs of objects: how they are checked, joined, split and made absolute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from segray.errors import ConfigError, StorageError

SCHEMES = ("s3", "gs", "az")  # Amazon S3, Google Cloud Storage, Azure Blob Storage
# Folders that systems and tools make beside one's own; those that begin with a dot, as .ipynb_checkpoints, are known.
SYSTEM = frozenset(
    {
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of Synology's and QNAP's servers
    }
)


@dataclass(frozen=True)
class Entry:
    """One stored file. stamp changes when the content does: mtime in ns on a disk, generation or etag elsewhere."""

    uri: str
    size: int
    stamp: str
    modified_s: float  # Unix time


def in_bucket(uri: str) -> bool:
    """Say whether this is s3://, gs:// or az://, and no local path."""
    return uri[2:5] == "://" and uri[:2] in SCHEMES


def scheme_of(uri: str) -> str:
    """Return s3, gs or az, for a place that is in a bucket."""
    return uri[:2]


def check_uri(uri: str) -> str:
    """Return the URI if it is an absolute or relative local path or s3://bucket/key; StorageError otherwise."""
    if "\0" in uri or not uri:
        raise StorageError("An empty path, or one with a NUL in it, cannot be opened.")
    right = f"{uri[:2]}://{'container' if uri[:2] == 'az' else 'bucket'}/key"
    if in_bucket(uri):
        bucket = uri[5:].split("/", 1)[0]
        if not bucket or "@" in bucket or ":" in bucket or "?" in bucket or "::" in uri:
            raise StorageError(f"{uri!r} is not {right}; credentials come from the environment.")
        return uri
    if uri.startswith(tuple(f"{scheme}:/" for scheme in SCHEMES)):
        raise StorageError(f"{uri!r} has lost a slash, as a pathlib.Path does it; give {right} as text.")
    if not uri.startswith("/") and ("://" in uri or "::" in uri):
        raise StorageError(f"{uri!r}: only local paths, s3://, gs:// and az:// are read. Copy the data to one of them.")
    return uri


def absolute(uri: str) -> str:
    """Return a URI that means the same in every working directory, in one spelling."""
    return check_uri(uri).rstrip("/") if in_bucket(uri) else normal(str(Path(check_uri(uri)).expanduser().absolute()))


def normal(path: str) -> str:
    """Return an absolute local path without `.`, `..` and `//`.

    >>> normal("/drives/day1/../day2//./a.jpg")
    '/drives/day2/a.jpg'
    """
    whole = "/"
    for part in path.split("/"):
        if part == "..":  # above a link is the folder that holds what the link leads to
            whole = os.path.dirname(os.path.realpath(whole) if os.path.islink(whole) else whole)  # noqa: PTH120, PTH114
        elif part not in ("", "."):
            whole = f"{whole.rstrip('/')}/{part}"
    return whole


def real(uri: str) -> str:
    """Return a place with the links in its folder resolved; the last name stays."""
    return uri if in_bucket(uri) else join(_real_folder(folder_of(uri)), name_of(uri))


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def local(uri: str, what: str) -> Path:
    """Return a place as a path, for what is written to disks alone; ConfigError for a bucket. what: "a video"."""
    if in_bucket(uri):
        raise ConfigError(f"{uri}: {what} is written to a local disk. Name a place there, and copy it afterwards.")
    return Path(check_uri(uri)).expanduser()


def join(root: str | Path, *names: str) -> str:
    return "/".join([str(root).rstrip("/"), *names])


def name_of(uri: str) -> str:
    """Return the last part of a path or key."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def folder_of(uri: str) -> str:
    """Return the folder of a path or key; '' for a name alone."""
    return uri.rstrip("/").rpartition("/")[0]


def stem_of(uri: str) -> str:
    """Return the last part without its suffix."""
    return name_of(uri).rsplit(".", 1)[0]


def is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def above_glob(place: str) -> str:
    """Return the folder in which a glob begins; a place without a glob as it is.

    >>> above_glob("/drives/**/front_*.jpg"), above_glob("/drives/a.jpg"), above_glob("/*.jpg")
    ('/drives', '/drives/a.jpg', '/')
    """
    parts = place.split("/")
    return "/".join(takewhile(lambda part: not is_glob(part), parts)) or "/"


def is_hidden(name: str) -> bool:
    """Say whether this is the name of a system's or tool's file or folder: .ipynb_checkpoints, ._a.jpg or @eaDir."""
    return name.startswith(".") or name.lower() in SYSTEM


def not_hidden(folder: str) -> bool:
    """Say whether a folder is not hidden: iter_files(enter=not_hidden) skips hidden folders."""
    return not is_hidden(name_of(folder))
