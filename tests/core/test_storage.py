import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from segray.core import storage
from segray.errors import InputChanged, InputMissing, StorageError


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_a_name_is_taken_once(root):
    uri = storage.join(root, "labels", "part.parquet")
    assert storage.create(uri, b"first") is True
    assert storage.create(uri, b"second") is False
    assert storage.read_bytes(uri) == b"first"
    assert [entry.uri for entry in storage.list_files(root)] == [uri]  # and no temporary file is left


def test_of_eight_racing_writers_one_wins(root):
    uri = storage.join(root, "raced")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create(uri, bytes([i]) * 1000), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == bytes([won.index(True)]) * 1000


def test_replace_writes_over(root):
    uri = storage.join(root, "a")
    storage.replace(uri, b"1")
    storage.replace(uri, b"2")
    assert storage.read_bytes(uri) == b"2"


def test_a_file_that_changed_or_went_since_is_told_apart(root):
    uri = storage.join(root, "frame")
    storage.replace(uri, b"before")
    stamp = storage.stat(uri).stamp
    assert storage.read_unchanged(uri, stamp) == b"before"
    storage.replace(uri, b"after!")
    with pytest.raises(InputChanged):
        storage.read_unchanged(uri, stamp)
    storage.remove(uri)
    with pytest.raises(InputMissing):
        storage.read_unchanged(uri, stamp)


def test_any_name_is_listed(tmp_path):
    for name in (b"new\nline.png", "🚗.png".encode(), b"\xff\xfe.png", b"=cmd.png"):
        (tmp_path / os.fsdecode(name)).touch()
    assert len(storage.list_files(str(tmp_path))) == 4


@pytest.mark.parametrize(
    "uri",
    [
        "http://h/a",
        "simplecache::s3://b/k",
        "zip://a::b",
        "file:///etc/passwd",
        "s3://key:secret@b/k",
        "s3://",
        "",
        "a\0b",
    ],
)
def test_other_places_are_refused(uri):
    with pytest.raises(StorageError):
        storage.read_bytes(uri)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StorageError) as error:
        storage.read_bytes(f"{tmp_path}/none")
    assert str(error.value) == f"{tmp_path}/none cannot be read: No such file or directory."
