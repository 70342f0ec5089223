"""What storage says when it fails: one line with the place, and a reason without secrets."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from segray.core.io import s3
from segray.errors import StorageError, shortened

# What is one input's own fault, and no reason to think that others cannot be read either.
OWN_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)


def reason(error: BaseException) -> str:
    """Return an error's own words on one line, without the path that the message names already and without secrets."""
    answer = s3.answer_of(error).get("Error", {})
    if isinstance(error, FileNotFoundError) and answer.get("Code") in ("404", "NoSuchKey"):
        return "No such file"
    # FFmpeg's errors have a strerror, and are no OSErrors; a timeout of fsspec's says nothing, and its cause may.
    text = getattr(error, "strerror", None) or str(error) or str(error.__cause__ or "")
    if answer and not answer.get("Message"):  # Ceph sends a code without words
        text = answer.get("Code", text)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return "; ".join([shortened(_without_secrets(text)), *getattr(error, "__notes__", ())])


def _without_secrets(text: str) -> str:
    """Remove the credentials of the environment, and those of a URL or a signed request."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        text = text.replace(os.environ.get(name) or "\0", "***")
    text = re.sub(r"(Credential|Signature|Token|AccessKeyId)=[^&\s,;\"']+", r"\1=***", text)
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def printable(text: str) -> str:
    """Escape bytes that are not UTF-8, line ends and characters that change the direction of text, as in \\udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def one_line(uri: str, verb: str) -> Iterator[None]:
    """Turn failures inside into StorageError: `{uri} cannot be {verb}: {reason}.`; if denied, say what to look at."""
    try:
        yield
    except s3.failures() as error:
        refused = " Check the credentials (AWS_PROFILE, a role) and the bucket's policy."
        hint = refused if s3.http_status(error) == 403 else ""
        raise StorageError(printable(f"{uri} cannot be {verb}: {reason(error)}.{hint}")) from error
