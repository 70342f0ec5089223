"""Files come in order of kind and name, each once, in however small pieces they are sorted."""

import random

import pyarrow as pa
import pytest

from segray.core.io import files
from segray.core.io.files import IMAGE, VIDEO, Files, Found


def file(name, kind=IMAGE):
    return Found(kind, name.encode(), 1, "stamp")


def names(listed):
    return [one.name.decode() for one in listed]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 10)
    monkeypatch.setattr(files, "PIECE", 30)


@pytest.mark.parametrize("shuffled", [False, True])
def test_files_in_any_order_come_in_order_of_kind_and_name_each_once(shuffled):
    listed, given = Files(), [file(f"{i:03}.{kind}", kind) for i in range(200) for kind in (VIDEO, IMAGE)]
    given += [file("100.0"), file("007.0"), file("199.2", VIDEO)]
    if shuffled:
        random.Random(0).shuffle(given)
    for start in range(0, len(given), 17):
        listed.add(given[start : start + 17])
    assert listed.settle() == 3
    assert names(listed) == [f"{i:03}.{kind}" for kind in (IMAGE, VIDEO) for i in range(200)]
    assert (len(listed), listed.count(IMAGE), listed.count(VIDEO)) == (400, 200, 200)
    assert all(len(batch) <= 17 for batch in listed.batches(IMAGE))


def test_files_of_one_listing_in_order_are_neither_sorted_nor_merged(monkeypatch):
    listed = Files()
    for start in range(0, 100, 10):
        listed.add(file(f"{i:03}") for i in range(start, start + 10))
    monkeypatch.setattr(Files, "_merged", None)
    assert listed.settle() == 0
    assert names(listed) == [f"{i:03}" for i in range(100)]


def test_what_is_left_out_is_of_those_alone_that_came_after_a_mark():
    listed = Files()
    listed.add([file("b"), file("a")])
    since = listed.mark()
    listed.add([file("c"), file("d"), file("e")])
    assert listed.keep(lambda batch: None, since) == 0
    assert listed.keep(lambda batch: pa.array(name == b"d" for name in batch["name"].to_pylist()), since) == 2
    listed.settle()
    assert names(listed) == ["a", "b", "d"]
