"""Small text files and tables that people write: lists, classes, conditions."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from segray.core.io import storage
from segray.errors import DataError


def read_text(uri: str) -> str:
    """Read a small UTF-8 file, with or without a byte order mark. DataError for another encoding."""
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{uri} is not UTF-8 text; save it as UTF-8.") from None


def open_table(text: str) -> csv.DictReader[str]:
    """Open a CSV with commas between its cells, or with semicolons or tabs, as spreadsheets of many languages write.

    >>> list(open_table("name;id\\nroad; 7"))
    [{'name': 'road', 'id': '7'}]
    """
    header = text.partition("\n")[0]
    between = next((sign for sign in ",;\t" if sign in header), ",")
    return csv.DictReader(io.StringIO(text), delimiter=between, skipinitialspace=True)


def check_columns(names: Sequence[str], uri: str) -> None:
    """Raise DataError where two columns of a table have one name: one of them would be ignored."""
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{uri} has {names.count(twice[0])} columns called {twice[0]}; rename all but one of them.")
