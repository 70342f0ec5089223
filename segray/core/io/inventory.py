"""An S3 Inventory → the objects that it lists, with sizes and etags: a bucket's names without a request for a thousand.

    s3://inventories/drives/daily/2026-11-01T01-00Z/manifest.json

S3 writes one a day or a week where it is configured: the manifest, and files of CSV or Parquet that it names.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

import pyarrow.parquet as pq

from segray.core.io import storage
from segray.core.io.paths import Entry
from segray.errors import DataError

MANIFEST = "manifest.json"
BATCH = 10_000
# Parquet's names of the columns that CSV files have under the names of the manifest's schema.
COLUMNS = {"Key": "key", "Size": "size", "ETag": "e_tag", "IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker"}
NEEDED = ("Key", "Size", "ETag")


def iter_inventory(uri: str, enter: Callable[[str], bool]) -> Iterator[Entry]:
    """List the objects of an inventory, those alone that are the newest of their versions.

    enter: whether to list what is in a folder.
    DataError where it is no manifest, or lacks sizes or etags.
    """
    about = storage.read_json(uri)
    try:
        bucket, columns = about["sourceBucket"], [name.strip() for name in about["fileSchema"].split(",")]
        store = about["destinationBucket"].rpartition(":")[2]
        kind, files = about["fileFormat"], [file["key"] for file in about["files"]]
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{uri} is no manifest of an S3 Inventory; give a folder, a glob or a list.") from None
    if kind not in ("CSV", "Parquet"):
        raise DataError(f"{uri}: an inventory in {kind} is not read; have it written as CSV or Parquet.")
    entered: dict[str, bool] = {}

    def wanted(folder: str) -> bool:
        if folder not in entered:
            above = storage.folder_of(folder)
            entered[folder] = above == "s3:/" or (wanted(above) and enter(folder))
        return entered[folder]

    read = partial(_csv, columns=columns) if kind == "CSV" else _parquet
    for file in files:
        for row in read(f"s3://{store}/{file}"):
            if (
                _says(row, "IsDeleteMarker", False)
                or not _says(row, "IsLatest", True)
                or row.get("Key", "").endswith("/")
            ):
                continue
            if missing := [name for name in NEEDED if row.get(name) is None]:
                raise DataError(f"{uri} lacks {', '.join(missing)}; add them to the inventory's fields.")
            place = f"s3://{bucket}/{row['Key']}"
            if wanted(storage.folder_of(place)):
                yield Entry(place, int(row["Size"]), str(row["ETag"]).strip('"'), 0.0)


def _says(row: dict[str, Any], name: str, otherwise: bool) -> bool:
    value = row.get(name)
    return otherwise if value in (None, "") else str(value).lower() == "true"


def _csv(uri: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    with storage.open_read(uri) as packed, gzip.open(packed) as file:
        for cells in csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            row = dict(zip(columns, cells, strict=False))
            yield row | {"Key": unquote_plus(row["Key"])}


def _parquet(uri: str) -> Iterator[dict[str, Any]]:
    with storage.open_read(uri) as opened:
        file = pq.ParquetFile(opened)
        names = {own: name for name, own in COLUMNS.items() if own in file.schema_arrow.names}
        for batch in file.iter_batches(BATCH, columns=list(names)):
            for row in batch.to_pylist():
                yield {names[own]: value for own, value in row.items()}
