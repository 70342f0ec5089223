"""What feeds the labelling processes, without a Ray: a source that streams, and what the register knows."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from segray.cluster import pool
from segray.cluster.connect import NeverUp
from segray.cluster.pool import Pool, Register, _rows
from segray.errors import ClusterError


class Clock:
    """Seconds that pass with each sleep."""

    def __init__(self):
        self.now_s, self.naps = 0.0, 0

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s, self.naps = self.now_s + 60, self.naps + 1


@pytest.fixture
def begun(monkeypatch):
    """How many shards actors began, and how long they worked; the clock counts the looks."""
    does = SimpleNamespace(count=0, ended=None, worked_s=1e6, clock=Clock())
    monkeypatch.setattr(pool, "time", does.clock)
    monkeypatch.setattr(pool.ray, "get", lambda answer: answer)

    def told():
        return does.count, does.count if does.ended is None else does.ended, does.worked_s

    does.register = SimpleNamespace(begun=SimpleNamespace(remote=told))
    return does


def shards(rows):
    return [pair for row in rows for pair in zip(row["plan"][0].as_py(), row["shard"][0].as_py(), strict=True)]


def source(todo, begun, starts=(0,)):
    return _rows(np.packbits(todo), np.array(starts), begun.register)


def test_a_block_is_a_shard_that_is_to_do_of_any_plan(begun):
    todo = np.array([False, True, True, False, True], bool)
    assert shards(source(todo, begun, starts=(0, 2))) == [(0, 1), (1, 0), (1, 2)]


def test_the_source_is_a_few_hundred_shards_ahead_of_the_actors(begun):
    rows = source(np.ones(2000, bool), begun)
    assert shards(islice(rows, 500))[-1] == (0, 499)
    begun.count = 100
    assert shards(islice(rows, 100))[-1] == (0, 599)
    assert begun.clock.naps == 0


def test_shards_that_are_done_in_no_time_are_given_several_at_once(begun):
    rows = source(np.ones(20_000, bool), begun)
    assert {len(row["shard"][0]) for row in islice(rows, 500)} == {1}
    begun.count, begun.worked_s = 200, 20.0
    assert {len(row["shard"][0]) for row in islice(rows, 470)} == {10}
    begun.count, begun.worked_s = 400, 1020.0  # and then they are slow
    assert len(next(rows)["shard"][0]) == 1


def test_the_first_shards_of_many_threads_are_not_taken_for_done_in_no_time(begun):
    """On eight GPUs some 140 begin at once, and none has ended."""
    rows = source(np.ones(2000, bool), begun)
    assert {len(row["shard"][0]) for row in islice(rows, 500)} == {1}
    begun.count, begun.ended, begun.worked_s = 144, 0, 0.0
    assert {len(row["shard"][0]) for row in islice(rows, 144)} == {1}
    begun.count, begun.ended, begun.worked_s = 288, 144, 576.0
    assert {len(row["shard"][0]) for row in islice(rows, 144)} == {1}


def test_shards_that_were_lost_before_they_began_are_not_waited_for_for_ever(begun):
    rows = source(np.ones(2000, bool), begun)
    assert len(shards(islice(rows, 1000))) == 1000
    assert begun.clock.now_s > pool.STUCK_S
    begun.count, naps = 1, begun.clock.naps
    assert shards(rows.__next__() for _ in range(1)) == [(0, 1000)]
    assert begun.clock.naps == naps


def test_the_register_knows_what_each_thread_began_last_and_where_actors_are():
    register = Register()
    register.begin("a", 1, 1, "node 7", 0.0, (0, 1))
    register.begin("a", 1, 2, "node 7", 0.0, (0, 2))
    register.begin("a", 1, 1, "node 7", 2.5, (0, 3))
    register.begin("b", 9, 1, "node 8", 0.0, (1, 0))
    assert register.begun() == (4, 1, 2.5)
    assert sorted(register.last()) == [("node 7", (0, 2)), ("node 7", (0, 3)), ("node 8", (1, 0))]
    register.begin("a", 2, 1, "node 8", 0.0, (0, 2))  # its process died, and was started again elsewhere
    assert (register.actors_on("node 7"), register.actors_on("node 8")) == (set(), {"a", "b"})
    assert ("node 7", (0, 3)) in register.last()


def test_what_ray_raises_while_shards_are_labelled_is_one_line(monkeypatch):
    def rows():
        yield {"receipt": "one\ntwo"}
        raise ActorDiedError

    monkeypatch.setattr(Pool, "_dataset", lambda self: SimpleNamespace(iter_rows=rows))
    answers = Pool.__new__(Pool).answers()
    assert [next(answers), next(answers)] == ["one", "two"]
    with pytest.raises(ClusterError, match=r"^ActorDiedError: [^\n]+$") as told:
        next(answers)
    assert type(told.value) is ClusterError


def test_a_process_that_ends_before_it_is_up_is_of_a_node(monkeypatch):
    def rows():
        trace = "ray::Labeller.__init__() (pid=4, ip=10.0.0.7, actor_id=0b)\n  File …\nImportError: no libnvrtc.so"
        yield from ()
        raise ActorDiedError(RayTaskError("Labeller.__init__", trace, ImportError("no libnvrtc.so"), actor_id="0b"))

    monkeypatch.setattr(Pool, "_dataset", lambda self: SimpleNamespace(iter_rows=rows))
    with pytest.raises(NeverUp, match=r"^ActorDiedError: ImportError: no libnvrtc\.so$") as told:
        list(Pool.__new__(Pool).answers())
    assert told.value.node == "10.0.0.7"
