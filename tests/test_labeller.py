"""A labelling process that fails: what it answers, what is said of it, and when the run ends."""

import json
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from segray.cluster import labeller
from segray.cluster.labeller import Labeller, Lost, Sickness, read_answer
from segray.core.labels.parts import Receipt
from segray.errors import ClusterError, StorageError, in_a_line
from segray.sections.labelling import InferSection, LabelSection

ILLEGAL = "CUDA error: an illegal memory access was encountered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
SAID = "RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.fixture
def process(monkeypatch):
    """A Labeller whose model does what the test says; `ended` is set when its process would end."""
    does = SimpleNamespace(load=None, label=None, check=None, rows=lambda clock: None, ended=threading.Event())

    def fail(name):
        if error := getattr(does, name):
            raise error

    def label_shard(plan, rows, shard, label, clock):
        fail("label")
        label(plan, rows, clock)
        return Receipt(shard, 4, 0, created=True)

    class Predictor:
        def __init__(self, **options):
            fail("load")

        def check(self):
            fail("check")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "actor 1"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(labeller, "LabelCounters", lambda run: SimpleNamespace(add=lambda receipt: None))
    monkeypatch.setattr(labeller, "Predictor", Predictor)
    monkeypatch.setattr(labeller, "settle_precision", lambda out, infer, device: infer)
    monkeypatch.setattr(labeller, "label_rows", lambda plan, rows, clock, predictor, batch_size: does.rows(clock))
    monkeypatch.setattr(labeller, "end_if_held", lambda timeout_s: None)
    monkeypatch.setattr(labeller.parts, "label_shard", label_shard)
    monkeypatch.setattr(labeller, "PlanReader", lambda plan: SimpleNamespace(shard=lambda shard: []))
    monkeypatch.setattr(labeller, "REST_S", 0.2)
    monkeypatch.setattr(labeller, "END_S", 0.05)
    monkeypatch.setattr(Labeller, "_end", lambda self: does.ended.set())
    plan = SimpleNamespace(number=0, plan_id="0123456789")

    def start():
        made = Labeller(
            LabelSection(out="out", model="best", input_timeout=0.1), InferSection(), [plan], 1, "cpu", False
        )
        return lambda shard: read_answer(made({"plan": np.array([0]), "shard": np.array([shard])})["receipt"][0])

    does.start = start
    return does


def lost(shard, reason, sick):
    return Lost(0, shard, reason, sick, "actor 1", os.getpid(), "10.0.0.7")


def test_a_shard_that_no_code_expects_comes_back_and_the_process_goes_on(process):
    label = process.start()
    process.label = IndexError("list index out of range")
    assert label(3) == lost(3, "IndexError: list index out of range", sick=False)
    process.label = None
    assert label(4) == Receipt(4, 4, 0, created=True)
    assert not process.ended.is_set()


@pytest.mark.parametrize(
    ("label_error", "check_error", "said"),
    [
        (RuntimeError(ILLEGAL), None, SAID),
        (ValueError("of the model"), ValueError("always"), "ValueError: of the model"),
    ],
)
def test_a_process_that_cannot_label_any_more_says_so_once_and_ends(process, label_error, check_error, said):
    label = process.start()
    assert label(2) == Receipt(2, 4, 0, created=True)
    process.label, process.check = label_error, check_error
    assert label(3) == lost(3, said, sick=True)
    process.label = None
    assert not process.ended.is_set()
    assert label(4) == lost(4, said, sick=True)  # not before the process is about to end
    assert process.ended.wait(5)


def test_a_process_that_cannot_load_its_model_gives_its_shards_back(process):
    process.load = RuntimeError(ILLEGAL)
    label = process.start()
    assert label(0) == lost(0, SAID, sick=True)
    assert process.ended.wait(5)


@pytest.fixture
def hanging():
    """hanging(stage) → work that never leaves that stage, until the test is over."""
    over = threading.Event()

    def in_stage(stage):
        def work(clock):
            with clock(stage):
                over.wait()

        return work

    yield in_stage
    over.set()


def test_a_shard_that_hangs_comes_back_and_its_neighbours_are_labelled(process, hanging):
    """After some of them, whose threads cannot be ended, the process ends."""
    label = process.start()
    for shard in (0, 2, 4):
        assert not process.ended.is_set()
        process.rows = hanging("decode")
        assert label(shard) == lost(shard, "no progress in 0.1 s of decode", sick=False)
        process.rows = lambda clock: None
        if shard < 4:
            assert label(shard + 1) == Receipt(shard + 1, 4, 0, created=True)
    assert label(5) == lost(5, "no progress in 0.1 s of decode", sick=True)
    assert process.ended.wait(5)


def test_a_model_that_hangs_is_not_the_inputs_fault(process, hanging):
    label = process.start()
    process.rows = hanging("model")
    assert label(0) == lost(0, "no progress in 0.1 s of model", sick=True)
    assert process.ended.wait(5)


def test_a_model_is_loaded_with_the_first_shard(process):
    """A process that dies of it then dies with a shard in hand, which is counted; Ray counts no starts."""
    process.load = SystemExit(1)
    label = process.start()
    with pytest.raises(SystemExit):
        label(0)


def test_a_store_that_is_gone_ends_the_run(process):
    label = process.start()
    process.label = StorageError("s3://b cannot be written: gone.")
    with pytest.raises(StorageError, match=r"^s3://b cannot be written: gone\.$"):
        label(0)


def test_an_answer_is_plain_text(process):
    answer = json.dumps({"lost": {**lost(1, SAID, sick=True).__dict__}})
    assert read_answer(answer) == lost(1, SAID, sick=True)


def test_what_was_raised_is_one_short_line():
    assert in_a_line(RuntimeError("out of memory\nFor debugging …")) == "RuntimeError: out of memory"
    assert in_a_line(RuntimeError()) == "RuntimeError"
    assert in_a_line(ValueError("7" * 10**6)) == f"ValueError: {'7' * 300}…"


def test_each_reason_is_said_once_and_the_run_ends_when_all_processes_are_sick():
    notes = []
    sickness = Sickness(notes.append)
    one, other = lost(1, SAID, sick=True), Lost(0, 2, SAID, True, "actor 2", 20, "10.0.0.8")
    for shard in range(5):  # which one process had in hand
        sickness.lost(replace(one, shard=shard), actors=1)
    assert notes == [f"A labelling process failed on 10.0.0.7 ({SAID}). It is started again; its shards go to others."]
    for process in (20, 21, 22):
        sickness.lost(replace(other, process=process), actors=2)
    sickness.labelled()  # by whichever
    for process in (10, 11, 12):
        sickness.lost(replace(one, process=process), actors=2)
    sickness.lost(lost(7, "IndexError: list index out of range", sick=False), actors=2)
    assert notes[2:] == [
        "Shard 7 failed on 10.0.0.7 (IndexError: list index out of range). Its inputs are labelled one by one later."
    ]
    for process in (23, 24):
        sickness.lost(replace(other, process=process), actors=2)
    with pytest.raises(ClusterError) as told:
        sickness.lost(replace(other, process=25), actors=2)
    assert str(told.value) == (
        f"Every labelling process failed 3 times in a row, the last on 10.0.0.8 ({SAID}). Look at that machine's GPU, "
        "and at Ray's logs for the traceback. Then the same command resumes."
    )
