"""Decoded frames that a machine's processes share on its disk, and batches read from there."""

import errno
import fcntl
import os
import pickle
import tempfile
import threading

import numpy as np
import pytest
import torch

from segray.config import load
from segray.core import data
from segray.core.data import FileSamples, MemorySamples, frame_cache, open_dataset, streets
from segray.core.data.frame_cache import FrameCache
from segray.core.samples import Sample, TrainData
from segray.core.training import loop
from segray.core.training.batches import Memory, read_batches
from segray.core.training.checkpoint import read_history
from segray.core.training.workers import LocalWorker
from segray.errors import DataError
from segray.sections.training import DataSection
from segray.stages import train

SIZE = (32, 48)
FRAME_BYTES = FrameCache(1, SIZE)._bytes


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch):
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    torch.set_num_threads(1)
    root = streets.write(tmp_path_factory.mktemp("cache") / "town", train=6, val=2, size=SIZE, video_s=0)
    return open_dataset(DataSection(format="streets", root=str(root)))


def sample(value):
    return Sample(np.full((*SIZE, 3), value, np.uint8), np.full(SIZE, value + 1, np.uint8))


def in_another_process(cache):
    return pickle.loads(pickle.dumps(cache))


def settle(cache):
    """Wait until what was given to a cache is written."""
    cache._writer.submit(int).result()


def held(cache):
    """What of each position is there."""
    settle(cache)
    found = [cache.read(i) for i in range(cache.count)]
    return [None if one is None else (int(one.image_hwc.max()), int(one.mask_hw.max())) for one in found]


def test_what_one_process_wrote_another_reads():
    with FrameCache(3, SIZE) as mine, in_another_process(mine) as other:
        mine.write(1, sample(7))
        other.write(2, sample(9))
        settle(mine)
        settle(other)
        for cache in (mine, other):
            assert held(cache) == [None, (7, 8), (9, 10)]


def test_a_limit_keeps_the_first_positions_and_zero_keeps_none(disk):
    for limit, kept in ((2 * FRAME_BYTES + 1, 2), (0, 0), (None, 4)):
        with FrameCache(4, SIZE, limit) as cache:
            for i in range(4):
                cache.write(i, sample(i))
            assert held(cache) == [(i, i + 1) for i in range(kept)] + [None] * (4 - kept)


def test_the_last_process_of_a_machine_to_leave_removes_the_folder(disk):
    cache = FrameCache(3, SIZE)
    first, second = in_another_process(cache), in_another_process(cache)
    with first:
        with second:
            second.write(0, sample(1))
        assert held(first) == [(1, 2), None, None]
    assert list(disk.iterdir()) == []
    assert [first.read(i) for i in range(3)] == [None] * 3  # nothing is kept outside of `with`


def test_the_process_that_made_it_removes_it_at_once_and_the_others_read_on(disk):
    with FrameCache(3, SIZE) as mine:
        mine.write(0, sample(1))
        settle(mine)
        other = in_another_process(mine).__enter__()
    assert list(disk.iterdir()) == []
    assert held(other) == [(1, 2), None, None]
    other.__exit__(None, None, None)


def test_a_folder_whose_processes_were_killed_goes_when_the_next_one_comes(disk):
    killed = in_another_process(FrameCache(3, SIZE)).__enter__()
    with FrameCache(3, SIZE):
        assert killed.folder.exists()
    killed._close()  # as the system does
    with FrameCache(3, SIZE) as cache:
        assert [path.name for path in disk.iterdir()] == [cache.folder.name]


def test_a_full_disk_ends_the_keeping_and_nothing_else(monkeypatch, town):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    refs = town.splits["train"]
    with FrameCache(6, SIZE) as cache:
        samples = FileSamples(refs, town.label_space, SIZE, cache)
        kept = samples[0]
        settle(cache)
        monkeypatch.setattr(os, "pwrite", full)
        assert np.array_equal(samples[1].image_hwc, MemorySamples.read(refs, town.label_space, SIZE)[1].image_hwc)
        assert np.array_equal(samples[0].image_hwc, kept.image_hwc)


def test_a_slow_disk_holds_up_no_reader(monkeypatch):
    disk_is_free, write = threading.Event(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *given: disk_is_free.wait() and write(*given))
    monkeypatch.setattr(frame_cache, "WAITING_BYTES", 3 * FRAME_BYTES)
    with FrameCache(5, SIZE) as cache:
        for i in range(5):
            cache.write(i, sample(i))
        disk_is_free.set()
        assert held(cache) == [(0, 1), (1, 2), (2, 3), None, None]
        cache.write(4, sample(4))
        assert held(cache)[3:] == [None, (4, 5)]


def test_a_disk_that_cannot_be_written_past_the_memory_of_files_keeps_frames_as_well(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with FrameCache(3, SIZE) as cache:
        cache.write(1, sample(7))
        assert held(cache) == [None, (7, 8), None]


def test_a_disk_that_refuses_only_the_write_past_the_memory_of_files_keeps_frames_as_well(monkeypatch):
    """Some file systems take O_DIRECT as a flag alone, and some want blocks larger than a page."""
    write = os.pwrite

    def refuse(file, data, at):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", refuse)
    with FrameCache(3, SIZE) as cache:
        cache.write(1, sample(7))
        cache.write(2, sample(9))
        assert held(cache) == [None, (7, 8), (9, 10)]


def test_every_pixel_of_a_frame_comes_back():
    random = np.random.default_rng(0)
    size = (31, 47)  # no whole pages
    frames = [
        Sample(random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 256, size, np.uint8)) for _ in "abc"
    ]
    with FrameCache(3, size) as cache:
        for i in (2, 0, 1):
            cache.write(i, frames[i])
        settle(cache)
        for i, frame in enumerate(frames):
            assert all(map(np.array_equal, cache.read(i), frame))


def test_a_folder_that_cannot_be_written_is_done_without(disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(disk / "gone"))
    with FrameCache(3, SIZE) as cache:
        cache.write(0, sample(1))
        assert held(cache) == [None] * 3


def test_a_frame_is_decoded_once(monkeypatch, town):
    decoded = []
    monkeypatch.setattr(
        data, "read_sample", lambda *given, read=data.read_sample: decoded.append(given[0]) or read(*given)
    )
    refs = town.splits["train"]
    with FrameCache(8, SIZE) as cache:
        samples = FileSamples(refs, town.label_space, SIZE, cache, first=2)
        first = [samples[i] for i in range(6)]
        settle(cache)
        again = [samples[i] for i in range(6)]
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one.image_hwc, other.image_hwc)
            assert np.array_equal(one.mask_hw, other.mask_hw)
        assert decoded == list(refs)
        assert held(cache)[:2] == [None, None]  # the other split's


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batches_are_the_same_whatever_the_number_of_threads(monkeypatch, town, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    refs, steps = town.splits["train"], [[3, 0], [5], [1, 1, 2]]
    whole = MemorySamples.read(refs, town.label_space, SIZE)
    with FrameCache(6, SIZE) as cache:
        for _ in range(2):
            samples = FileSamples(refs, town.label_space, SIZE, cache)
            batches = list(read_batches(samples, SIZE, steps, torch.device("cpu")))
            for (images, masks), step in zip(batches, steps, strict=True):
                assert np.array_equal(images.numpy(), np.stack([whole[i].image_hwc for i in step]))
                assert np.array_equal(masks.numpy(), np.stack([whole[i].mask_hw for i in step]))


def test_a_frame_that_cannot_be_read_is_named_and_no_thread_is_left(town, tmp_path):
    refs = list(town.splits["train"])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    refs[4] = refs[4].__class__("broken", str(tmp_path / "broken.jpg"), refs[4].mask)
    before = threading.active_count()
    samples = FileSamples(tuple(refs), town.label_space, SIZE)
    batches = read_batches(samples, SIZE, [[0, 1], [2, 3], [4, 5], [0, 1]], torch.device("cpu"))
    next(batches)
    next(batches)
    with pytest.raises(DataError, match=rf"^{tmp_path}/broken\.jpg is not an image: "):
        next(batches)
    assert threading.active_count() == before


def test_the_memory_of_a_batch_is_used_again_once_the_last_tensor_in_it_is_gone():
    memory = Memory()
    batch = memory.empty((2, 3))
    place, part = batch.data_ptr(), batch[1]
    del batch
    assert memory.empty((2, 3)).data_ptr() != place
    del part
    assert memory.empty((1, 3)).data_ptr() != place
    assert memory.empty((2, 3)).data_ptr() == place


def test_batches_that_are_not_wanted_any_more_leave_no_thread(town):
    before = threading.active_count()
    samples = FileSamples(town.splits["train"], town.label_space, SIZE)
    batches = read_batches(samples, SIZE, [[0, 1, 2]] * 50, torch.device("cpu"))
    next(batches)
    batches.close()  # as Ctrl-C does
    assert threading.active_count() == before


def test_training_from_the_disk_and_from_memory_gives_the_same_weights(town, tmp_path):
    small = {"model.arch": "unet-plain", "model.options": {"channels": 8}}
    config = load(None, {"train.epochs": 2, "train.batch_size": 2, **small})
    parts = [town.splits[split] for split in ("train", "val")]
    weights = []
    for name in ("memory", "disk"):
        (tmp_path / f"run-{name}").mkdir()
        with FrameCache(8, SIZE) as cache:
            if name == "memory":
                splits = [MemorySamples.read(refs, town.label_space, SIZE) for refs in parts]
            else:
                splits = [FileSamples(refs, town.label_space, SIZE, cache, 6 * i) for i, refs in enumerate(parts)]
            data = TrainData(*splits, town.label_space, SIZE)
            loop.fit(LocalWorker(), config.changed({"train.out": str(tmp_path / f"run-{name}")}), data)
        weights.append(torch.load(tmp_path / f"run-{name}" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_frames_that_are_too_many_for_the_memory_go_to_the_disk_and_leave_it(disk, town, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "MEMORY_BYTES", 0)
    root = os.path.dirname(os.path.dirname(town.splits["train"][0].image))  # noqa: PTH120
    config = load(None, {
        "data.format": "streets", "data.root": root, "train.out": str(tmp_path / "run"), "train.epochs": 1,
        "cluster.workers": 0, "model.arch": "unet-plain", "model.options": {"channels": 8},
    })  # fmt: skip
    train.train(config, on_row=lambda row: seen.extend(path.name for path in disk.iterdir()))
    assert [name.startswith(frame_cache.PREFIX) for name in seen] == [True]
    assert len(read_history(str(tmp_path / "run"))) == 1
    assert list(disk.iterdir()) == []
