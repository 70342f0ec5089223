"""Where labels are verified, and what the command says of a part of them."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from labelled import label_all, settings_of

from segray.cli import cli
from segray.cluster import tasks
from segray.cluster.tasks import spread
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.labels import parts
from segray.core.labels.planning import make_plan
from segray.errors import ClusterError, ConfigError
from segray.sections.labelling import ClusterSection
from segray.stages import verify as stage


@pytest.fixture
def labels(tiny_bundle, tmp_path):
    """Six finished parts."""
    town = streets.write(tmp_path / "town", train=0, val=6, size=(48, 64), video_s=0)
    plan = make_plan(str(tmp_path / "out"), settings_of([town / "val"], shard_size=1), streets.LABEL_SPACE)
    label_all(plan, Predictor(str(tiny_bundle)))
    parts.finish([plan], {})
    return plan


def said(*args):
    result = CliRunner().invoke(cli, ["verify", *args])
    return result.exit_code, result.output


def test_what_was_not_read_is_said(labels):
    assert said(labels.out) == (0, "Every row is there exactly once: 6 rows in 6 undamaged parts.\n")
    some = "All 6 parts are there, and 2 of them are undamaged. The rows of 4 parts were not read.\n"
    assert said(labels.out, "--sample", "0.2") == (0, some)
    Path(labels.part_uri(3)).unlink()
    code, text = said(labels.out, "--sample", "0.2")
    assert (code, text.splitlines()[-1]) == (1, "1 problem in 6 parts. The rows of 5 parts were not read.")
    with pytest.raises(ConfigError, match=r"^--sample is 0; give a share of the parts, above 0 and up to 1\.$"):
        stage.verify(labels.out, 0)


def test_many_rows_are_read_by_all_processors(labels, monkeypatch):
    Path(labels.part_uri(3)).write_bytes(Path(labels.part_uri(2)).read_bytes())
    used, process_map = [], stage.spread
    monkeypatch.setattr(stage, "LITTLE_ROWS", 0)
    monkeypatch.setattr(
        stage, "spread", lambda *a, is_little: used.append(is_little) or process_map(*a, is_little=True)
    )
    found = stage.verify(labels.out)
    assert used == [False]
    assert found.problems == [f"{Path(labels.part_uri(3)).name} holds 1 row that are not the plan's 1"]


def test_processes_give_their_results_in_order():
    with spread(ClusterSection(), []) as run:
        assert list(run(abs, iter(range(-20, 0)))) == list(range(20, 0, -1))


def test_a_cluster_gets_as_many_tasks_as_it_has_room_for(monkeypatch):
    """A Ray that is not real: a task is done when it is asked for."""
    begun, most = [], []

    def remote(**resources):
        assert resources == {"num_cpus": 1}
        return lambda work: SimpleNamespace(remote=lambda item: begun.append(item) or (work, item))

    def get(task):
        most.append(len(begun))
        begun.remove(task[1])
        return task[0](task[1])

    exceptions = SimpleNamespace(RayError=RuntimeError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=remote, get=get, exceptions=exceptions))
    assert list(tasks._over_cluster(abs, range(-20, 0), 4)) == list(range(20, 0, -1))
    assert max(most) == 5

    def fail(item):
        raise RuntimeError(f"no {item}")

    with pytest.raises(ClusterError, match=r"^RuntimeError: no 1$"):
        list(tasks._over_cluster(fail, [1], 4))


def test_a_process_that_dies_is_one_line():
    with spread(ClusterSection(), []) as run, pytest.raises(ClusterError, match=r"^A process of this machine died"):
        list(run(os._exit, [1]))
