"""Storage on a disk and on a real S3 server: the same promises on both."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import s3fs

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
    with pytest.raises(InputChanged) as error:
        storage.read_unchanged(uri, stamp)
    assert str(error.value) == f"{uri} has changed since the plan was made; label it anew with another --out."
    storage.remove(uri)
    with pytest.raises(InputMissing) as error:
        storage.read_unchanged(uri, stamp)
    assert str(error.value) == f"{uri} is gone since the plan was made."


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "frame").write_bytes(b"before")
    uri = str(tmp_path / "frame")
    stamp = storage.stat(uri).stamp

    def read(path):
        path.write_bytes(b"mixed!")
        return b"before"

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(InputChanged):
        storage.read_unchanged(uri, stamp)


def test_listing_is_all_below_a_folder_in_order(root):
    for name in ("t/b.png", "t/a.png", "t/deep/er/c.png", "t2/not.png", "t.png"):
        storage.create(storage.join(root, name), name.encode())
    folder = storage.join(root, "t")
    uris = [storage.join(folder, name) for name in ("a.png", "b.png", "deep/er/c.png")]
    for place in (folder, folder + "/"):
        assert [entry.uri for entry in storage.list_files(place)] == uris
    (one,) = storage.list_files(uris[0])
    assert one == storage.stat(uris[0])
    assert (one.uri, one.size) == (uris[0], len("t/a.png"))
    assert storage.list_files(storage.join(root, "none")) == []


ODD = ["🚗.png", "a b+c.png", "a#b.png", "a%20b.png", "a?b.png", "x*y.png", "=cmd.png", "[1].png", "<script>.png"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_is_created_listed_and_read(root, name):
    uri = storage.join(root, name)
    assert storage.create(uri, name.encode())
    (entry,) = storage.list_files(root)
    assert entry.uri == uri
    assert storage.read_bytes(uri) == storage.read_unchanged(uri, entry.stamp) == storage.open_read(uri).read()


@pytest.mark.parametrize("name", [b"new\nline.png", b"\xff\xfe.png"])  # moto knows no key with a newline
def test_a_name_that_only_a_disk_has_is_listed_and_read(tmp_path, name):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"data")
    (entry,) = storage.list_files(str(tmp_path))
    assert os.fsencode(entry.uri).endswith(name)
    assert storage.read_unchanged(entry.uri, entry.stamp) == b"data"


def test_a_link_to_a_folder_that_it_stands_in_is_not_followed(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    assert [storage.name_of(entry.uri) for entry in storage.list_files(str(tmp_path))] == ["a.png"]


def test_a_link_to_another_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "more").symlink_to(tmp_path / "disk")
    assert [entry.uri for entry in storage.list_files(f"{tmp_path}/in")] == [f"{tmp_path}/in/more/a.png"]


def test_removing_takes_a_name_for_a_name_and_not_for_a_pattern(root):
    for name in ("out1", "out[1]", "out*", "out"):
        storage.create(storage.join(root, name, "part"), b"x")
    for name in ("out[1]", "out*", "none"):
        storage.remove(storage.join(root, name))
    left = [storage.join(root, name, "part") for name in ("out", "out1")]
    assert [entry.uri for entry in storage.list_files(root)] == left


def test_what_others_do_on_s3_is_seen_at_once(s3, tmp_path):
    """s3fs keeps listings; with them a lister would not see what another process does in the same folder."""
    theirs = boto3.client("s3")
    bucket, prefix = s3[5:].split("/")
    key, uri = f"{prefix}/{tmp_path.name}/_SUCCESS", f"{s3}/{tmp_path.name}/_SUCCESS"
    storage.create(f"{s3}/{tmp_path.name}/first", b"")

    storage.list_files(f"{s3}/{tmp_path.name}")
    theirs.put_object(Bucket=bucket, Key=key, Body=b"done")
    assert storage.exists(uri)
    assert storage.open_read(uri).read() == b"done"

    storage.list_files(f"{s3}/{tmp_path.name}")
    theirs.put_object(Bucket=bucket, Key=key, Body=b"done, and longer")
    assert storage.open_read(uri).read() == b"done, and longer"

    storage.list_files(f"{s3}/{tmp_path.name}")
    theirs.delete_object(Bucket=bucket, Key=key)
    assert not storage.exists(uri)


ONLY = "only local paths and s3:// are read. Copy the data to one of them."
NOT_S3 = "is not s3://bucket/key; credentials come from the environment."
EMPTY = "An empty path, or one with a NUL in it, cannot be opened."


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("http://169.254.169.254/a", f"'http://169.254.169.254/a': {ONLY}"),
        ("simplecache::s3://b/k", f"'simplecache::s3://b/k': {ONLY}"),
        ("zip://a::b", f"'zip://a::b': {ONLY}"),
        ("file:///etc/passwd", f"'file:///etc/passwd': {ONLY}"),
        ("S3://b/k", f"'S3://b/k': {ONLY}"),
        ("s3://key:secret@b/k", f"'s3://key:secret@b/k' {NOT_S3}"),
        ("s3://b?endpoint_override=x/k", f"'s3://b?endpoint_override=x/k' {NOT_S3}"),
        ("s3://b/k::zip", f"'s3://b/k::zip' {NOT_S3}"),
        ("s3://", f"'s3://' {NOT_S3}"),
        ("", EMPTY),
        ("a\0b", EMPTY),
    ],
)
def test_other_places_are_refused_by_every_door(uri, text):
    doors = [
        storage.absolute,
        storage.exists,
        storage.list_files,
        storage.open_read,
        storage.read_bytes,
        storage.remove,
        storage.stat,
        lambda place: storage.create(place, b""),
        lambda place: storage.replace(place, b""),
        lambda place: storage.read_unchanged(place, ""),
    ]
    for door in doors:
        with pytest.raises(StorageError) as error:
            door(uri)
        assert str(error.value) == text


def test_absolute_means_the_same_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert storage.absolute("labels/") == f"{tmp_path}/labels"
    assert storage.absolute("~/labels") == "/home/ada/labels"
    assert storage.absolute("s3://bucket/labels/") == "s3://bucket/labels"


def one_line(call, *args):
    with pytest.raises(StorageError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_one_line(root):
    uri = f"{root}/none"
    words = "No such file" if storage.is_s3(root) else "No such file or directory"
    for read in (storage.read_bytes, storage.stat, storage.open_read):
        assert one_line(read, uri) == f"{uri} cannot be read: {words}."


def test_a_disk_that_says_no_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    file, folder, long = f"{tmp_path}/file", f"{tmp_path}/folder", f"{tmp_path}/{'x' * 300}"
    assert one_line(storage.read_bytes, folder) == f"{folder} cannot be read: Is a directory."
    assert one_line(storage.replace, folder, b"") == f"{folder} cannot be written: Is a directory."
    assert one_line(storage.create, f"{file}/below", b"") == f"{file}/below cannot be written: File exists."
    assert one_line(storage.list_files, f"{file}/below") == f"{file}/below cannot be listed: Not a directory."
    assert one_line(storage.create, long, b"") == f"{long} cannot be written: File name too long."
    assert one_line(storage.list_files, long) == f"{long} cannot be listed: File name too long."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_of_somebody_else_is_one_line(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "a").touch()
    folder.chmod(0)
    as_root = os.geteuid() == 0
    try:
        if as_root:
            os.seteuid(65534)  # to root, every door is open
        messages = [
            one_line(storage.list_files, str(folder)),
            one_line(storage.read_bytes, f"{folder}/a"),
            one_line(storage.create, f"{folder}/b", b""),
        ]
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o700)
    assert [message.rsplit(": ", 1)[1] for message in messages] == ["Permission denied."] * 3


def test_a_bucket_that_is_not_there_is_one_line(s3):
    why = "The specified bucket does not exist."
    uri = "s3://nobody/k"
    assert one_line(storage.list_files, uri) == f"{uri} cannot be listed: {why}"
    assert one_line(storage.read_bytes, uri) == f"{uri} cannot be read: {why}"
    assert one_line(storage.create, uri, b"") == f"{uri} cannot be created: {why}"
    assert one_line(storage.replace, uri, b"") == f"{uri} cannot be written: {why}"


@pytest.fixture
def fresh_s3(s3):
    """s3fs keeps file systems by their arguments, and not by the environment that they were made in."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_server_that_does_not_answer_is_one_line(fresh_s3, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SEGRAY_RETRY_S", "0.2")
    why = 'Could not connect to the endpoint URL: "http://127.0.0.1:9/frames'
    for call in (storage.read_bytes, storage.list_files, storage.exists, storage.stat):
        assert why in one_line(call, "s3://frames/k")


def test_missing_credentials_are_one_line(fresh_s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert (
        one_line(storage.read_bytes, "s3://frames/k") == "s3://frames/k cannot be read: Unable to locate credentials."
    )


def test_the_temporary_file_is_gone_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = f"{tmp_path}/part cannot be written: No space left on device."
    assert one_line(storage.create, f"{tmp_path}/part", b"x") == message
    assert list(tmp_path.iterdir()) == []
