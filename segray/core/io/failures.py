"""What storage says when it fails: one line with the place, and a reason without secrets."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from segray.errors import AccessDenied, StorageError, shortened

# What is one input's own fault, and no reason to think that others cannot be read either.
OWN_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
# What to look at when an object store refuses.
CREDENTIALS = {
    "s3": "Check the credentials (AWS_PROFILE, a role) and the bucket's policy.",
    "gs": "Check the credentials (GOOGLE_APPLICATION_CREDENTIALS, a service account) and the bucket's permissions.",
    "az": "Check the credentials (AZURE_STORAGE_CONNECTION_STRING, a role) and the container's permissions.",
}
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
    *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET"),
)


class StoreFailure(OSError):
    """What an object store answered instead of what was asked, or why there was no answer.

    status: of HTTP, None without an answer; 412 where a condition does not hold. code: the store's own word, if any.
    passing: whether the same request may succeed later.
    """

    def __init__(self, words: str, *, status: int | None = None, code: str = "", passing: bool = False) -> None:
        super().__init__(words)
        self.status, self.code, self.passing = status, code, passing


class NotThere(StoreFailure, FileNotFoundError):
    """There is no such object, or no such bucket."""


def http_status(error: BaseException | None) -> int | None:
    """Return the status of the store's answer that the error is or comes from; None where there was none."""
    failure = error if isinstance(error, StoreFailure) else error and error.__cause__
    return failure.status if isinstance(failure, StoreFailure) else None


def reason(error: BaseException) -> str:
    """Return an error's own words on one line, without the path that the message names already and without secrets."""
    # FFmpeg's errors have a strerror, and are no OSErrors; a timeout of fsspec's says nothing, and its cause may.
    text = getattr(error, "strerror", None) or str(error) or str(error.__cause__ or "")
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return "; ".join([shortened(_without_secrets(text)), *getattr(error, "__notes__", ())])


def _without_secrets(text: str) -> str:
    """Remove the credentials of the environment, and those of a URL or a signed request."""
    for name in SECRETS:
        text = text.replace(os.environ.get(name) or "\0", "***")
    text = re.sub(r"(Credential|Signature|Token|AccessKeyId|AccountKey|\bsig)=[^&\s,;\"']+", r"\1=***", text)
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def printable(text: str) -> str:
    """Escape bytes that are not UTF-8, line ends and characters that change the direction of text, as in \\udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def one_line(uri: str, verb: str) -> Iterator[None]:
    """Turn failures inside into StorageError: `{uri} cannot be {verb}: {reason}.`; if denied, say what to look at."""
    try:
        yield
    except (OSError, ValueError) as error:
        hint = f" {CREDENTIALS[uri[:2]]}" if http_status(error) in (401, 403) else ""
        kind = AccessDenied if _is_denied(error) else StorageError
        raise kind(printable(f"{uri} cannot be {verb}: {reason(error)}.{hint}")) from error


def _is_denied(error: BaseException) -> bool:
    """Say whether another machine may do this: this one has no credentials, or none that may."""
    without = any("Credential" in type(one).__name__ for one in (error, error.__cause__))  # as the stores' packages say
    return without or isinstance(error, PermissionError) or http_status(error) in (401, 403)
