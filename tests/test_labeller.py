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
from segray.cluster.connect import NeverUp
from segray.cluster.labeller import Done, Labeller, Lost, Sickness, read_answer
from segray.core.infer.isolated import Unfit
from segray.core.labels.parts import Receipt
from segray.errors import AccessDenied, ClusterError, ModelError, StorageError, in_a_line
from segray.sections.labelling import InferSection, LabelSection

ILLEGAL = "CUDA error: an illegal memory access was encountered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
SAID = "RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.fixture
def process(monkeypatch):
    """A Labeller whose model does what the test says; `ended` is set when its process would end."""
    does = SimpleNamespace(
        load=None, label=None, check=None, rows=lambda clock: None, ended=threading.Event(), begun=[]
    )

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

    here = SimpleNamespace(get_actor_id=lambda: "actor 1", get_node_id=lambda: "node 7")
    register = SimpleNamespace(begin=SimpleNamespace(remote=lambda *about: does.begun.append(about[-1])))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(labeller, "LabelCounters", lambda run: SimpleNamespace(add=lambda receipt: None))
    monkeypatch.setattr(labeller, "Predictor", Predictor)
    monkeypatch.setattr(labeller, "Careful", lambda *given, **options: does.rows)
    monkeypatch.setattr(labeller, "settle_precision", lambda out, infer, device: infer)
    monkeypatch.setattr(labeller, "label_rows", lambda plan, rows, clock, predictor, batch_size: does.rows(clock))
    monkeypatch.setattr(labeller, "end_if_held", lambda timeout_s: None)
    monkeypatch.setattr(labeller.parts, "label_shard", label_shard)
    monkeypatch.setattr(labeller, "PlanReader", lambda plan: SimpleNamespace(shard=lambda shard: []))
    monkeypatch.setattr(labeller, "REST_S", 0.2)
    monkeypatch.setattr(labeller, "END_S", 0.05)
    monkeypatch.setattr(Labeller, "_end", lambda self: does.ended.set())
    plan = SimpleNamespace(number=0, plan_id="0123456789")

    def start(careful=False):
        section = LabelSection(out="out", model="best", input_timeout=0.1)
        made = Labeller(register, section, InferSection(), [plan], 1, "cpu", careful)

        def label(*shards):
            batch = {"plan": np.zeros((1, len(shards)), int), "shard": np.array([shards])}
            answers = list(map(read_answer, made(batch)["receipt"][0].splitlines()))
            return answers if len(shards) > 1 else answers[0]

        return label

    does.start = start
    return does


def lost(shard, reason, sick, kind=""):
    return Lost(0, shard, reason, sick, kind, "actor 1", os.getpid(), "10.0.0.7", "node 7")


def labelled(shard):
    return Done(Receipt(shard, 4, 0, created=True), "actor 1")


def test_a_shard_that_no_code_expects_comes_back_and_the_process_goes_on(process):
    label = process.start()
    process.label = IndexError("list index out of range")
    assert label(3) == lost(3, "IndexError: list index out of range", sick=False)
    process.label = None
    assert label(4) == labelled(4)
    assert not process.ended.is_set()
    assert process.begun == [(0, 3), (0, 4)]


@pytest.mark.parametrize(
    ("label_error", "check_error", "said"),
    [
        (RuntimeError(ILLEGAL), None, SAID),
        (ValueError("of the model"), ValueError("always"), "ValueError: of the model"),
    ],
)
def test_a_process_that_cannot_label_any_more_says_so_once_and_ends(process, label_error, check_error, said):
    label = process.start()
    assert label(2) == labelled(2)
    process.label, process.check = label_error, check_error
    assert label(3) == lost(3, said, sick=True)
    process.label = None
    assert not process.ended.is_set()
    assert label(4) == lost(4, said, sick=True)  # not before the process is about to end
    assert process.ended.wait(5)


def test_a_row_of_shards_has_an_answer_for_each_and_a_sick_process_gives_the_rest_back(process):
    label = process.start()
    assert label(0, 1) == [labelled(0), labelled(1)]
    process.label = RuntimeError(ILLEGAL)
    assert label(2, 3) == [lost(2, SAID, sick=True), lost(3, SAID, sick=True)]
    assert not process.ended.is_set()
    assert process.begun == [(0, shard) for shard in range(4)]


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
            assert label(shard + 1) == labelled(shard + 1)
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
    assert process.begun == [(0, 0)]


@pytest.mark.parametrize(
    ("when", "error"),
    [
        ("load", ModelError("infer.precision fp16 needs a GPU.")),
        ("label", AccessDenied("s3://b/a.jpg cannot be read: Unable to locate credentials.")),
    ],
)
def test_what_is_wrong_with_a_node_is_said_by_its_kind(process, when, error):
    setattr(process, when, error)
    assert process.start()(0) == lost(0, str(error), sick=True, kind=type(error).__name__)


def test_a_model_that_no_process_of_its_own_can_load_is_the_nodes_fault_and_ends_no_run(process):
    """As where a GPU ends each process that uses it, which the shards that it lost have in common."""
    error = Unfit("best cannot be loaded in a process of its own.")
    error.__cause__ = ModelError(str(error))
    process.label = error
    assert process.start(careful=True)(0) == lost(0, str(error), sick=True, kind="ModelError")


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


# What the driver makes of it.


class Pool:
    """Nodes 7 and 8, and by node the actors that began shards there."""

    def __init__(self, **actors):
        self.actors = {name.replace("_", " "): set(ids) for name, ids in actors.items()}

    def nodes(self):
        return {"node 7", "node 8"}

    def nodes_at(self, address):
        return {f"node {address[-1]}"} & self.nodes()

    def actors_on(self, node):
        return self.actors.get(node, set())


SICK = lost(1, SAID, sick=True)
FAILED = f"A labelling process failed on 10.0.0.7 ({SAID}). It is started again; its shards go to others."
LEFT_OUT = f"Node 10.0.0.7 is left out for the rest of this run ({SAID}). The others go on."


@pytest.fixture
def sickness():
    told = Sickness(lambda note: told.notes.append(note))
    told.notes = []
    return told


def fails(sickness, pool, processes=(1, 2, 3), **about):
    return [sickness.lost(replace(SICK, process=process, **about), pool) for process in processes]


def test_a_reason_is_said_once_and_a_shard_that_fails_makes_no_process_sick(sickness):
    for shard in range(5):  # which one process had in hand
        sickness.lost(replace(SICK, shard=shard), Pool())
    failed = lost(7, "IndexError: list index out of range", sick=False)
    for process in range(9):
        sickness.lost(replace(failed, process=process), Pool())
    assert sickness.notes == [
        FAILED,
        "Shard 7 failed on 10.0.0.7 (IndexError: list index out of range). Its inputs are labelled one by one later.",
    ]
    assert (sickness.left_out, sickness.last) == (frozenset(), "IndexError: list index out of range")


def test_a_node_is_left_out_when_its_actors_failed_three_times_in_a_row(sickness):
    pool = Pool(node_7=["actor 1"])
    assert fails(sickness, pool, [1, 2]) == [False, False]
    sickness.labelled("actor 1")
    assert fails(sickness, pool, [3, 4]) == [False, False]
    assert sickness.notes == [FAILED]
    assert fails(sickness, pool, [5, 5]) == [False, True]  # the second time, it is to start again
    assert sickness.notes == [FAILED, LEFT_OUT]
    assert sickness.left_out == {"node 7"}


def test_a_node_on_which_another_actor_works_is_not_left_out(sickness):
    pool = Pool(node_7=["actor 1", "actor 2"], node_8=["actor 3"])
    fails(sickness, pool)
    assert sickness.left_out == frozenset()
    fails(sickness, pool, actor="actor 2")
    assert sickness.left_out == {"node 7"}


def test_an_actor_that_went_to_another_node_begins_anew(sickness):
    fails(sickness, Pool(), [1, 2])
    fails(sickness, Pool(), [3, 4], node_id="node 8")
    assert sickness.left_out == frozenset()


def test_the_actors_of_a_pool_that_was_started_again_go_on_counting(sickness):
    fails(sickness, Pool(node_7=["actor 1"]), [1, 2])
    fails(sickness, Pool(node_7=["actor 9"]), [3], actor="actor 9")
    assert sickness.left_out == {"node 7"}


def test_the_run_ends_when_every_node_is_left_out(sickness):
    fails(sickness, Pool())
    with pytest.raises(ClusterError) as told:
        fails(sickness, Pool(), actor="actor 2", node="10.0.0.8", node_id="node 8")
    assert str(told.value) == (
        f"Labelling processes failed 3 times in a row on every node, the last on 10.0.0.8 ({SAID}). Look at that "
        "machine's GPU, and at Ray's logs for the traceback. Then the same command resumes."
    )


def test_a_node_without_credentials_is_left_out_at_once_and_its_error_is_that_of_the_run_if_all_are(sickness):
    said = "s3://b/best cannot be read: Unable to locate credentials."
    assert sickness.lost(lost(1, said, sick=True, kind="AccessDenied"), Pool()) is False
    assert sickness.notes == [
        "Node 10.0.0.7 is left out for the rest of this run (s3://b/best cannot be read: Unable to locate credentials). "
        "The others go on."
    ]
    with pytest.raises(AccessDenied) as told:
        sickness.lost(replace(lost(1, said, sick=True, kind="AccessDenied"), node_id="node 8"), Pool())
    assert str(told.value) == said


def test_a_node_on_which_no_process_is_up_is_left_out_and_its_error_is_that_of_the_run_if_all_are_so(sickness):
    error = NeverUp("ActorDiedError: ImportError: no libnvrtc.so", "10.0.0.7")
    sickness.never_up(error, Pool())
    assert sickness.notes == [
        "Node 10.0.0.7 is left out for the rest of this run (ActorDiedError: ImportError: no libnvrtc.so). The others go on."
    ]
    assert sickness.left_out == {"node 7"}
    with pytest.raises(NeverUp):
        sickness.never_up(NeverUp(str(error), "10.0.0.8"), Pool())


def test_a_run_of_which_no_process_is_ever_up_ends_though_there_are_more_nodes(sickness):
    for node in (1, 2, 3):  # which are gone by now
        sickness.never_up(NeverUp("ImportError: no segray", f"10.0.0.{node}"), Pool())
    with pytest.raises(NeverUp):
        sickness.never_up(NeverUp("ImportError: no segray", "10.0.0.4"), Pool())
    sickness.labelled("actor 1")
    sickness.never_up(NeverUp("ImportError: no segray", "10.0.0.5"), Pool())
