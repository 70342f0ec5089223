"""Models that a sweep is compared with, apart from the processes that measure them."""

from dataclasses import replace

import pytest

from segray.cluster.resources import WorkerShape
from segray.config import load
from segray.core.data import streets
from segray.core.models import bundle
from segray.core.search.pareto import Cost
from segray.errors import ModelError
from segray.stages import against
from segray.stages.run_data import plan_data
from segray.trials.leaderboard import Given


@pytest.fixture
def config(tmp_path):
    streets.write(tmp_path / "town", train=1, val=1, size=(32, 48), video_s=0)
    return load(None, {"data.format": "streets", "data.root": str(tmp_path / "town"), "sweep.out": str(tmp_path)})


def models(plain_bundle, tmp_path, *names):
    for name in names:
        bundle.copy_to(str(tmp_path / name), str(plain_bundle))
    return [str(tmp_path / name) for name in names]


def test_a_model_that_is_gone_when_it_is_measured_is_a_row_with_the_reason(config, plain_bundle, tmp_path):
    config = config.changed({"sweep.against": [str(tmp_path / "gone")]})
    (row,) = against.measure(config, plan_data(config), None)
    assert row.error.startswith(f"{tmp_path}/gone does not exist.")
    with pytest.raises(ModelError, match=r"gone cannot be compared with \(sweep.against\). .*/gone does not exist"):
        against.check(config, plan_data(config).label_space)


def test_a_killed_sweep_keeps_what_it_has_measured_and_a_model_that_is_given_twice_is_one(
    config, plain_bundle, tmp_path, monkeypatch
):
    first, second = models(plain_bundle, tmp_path, "first", "second")
    config = config.changed({"sweep.against": [first, first, second]})
    measured = []

    def look(row, *more):
        measured.append(row.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return row._replace(miou=0.5)

    monkeypatch.setattr(against, "_measured", look)
    with pytest.raises(KeyboardInterrupt):
        against.measure(config, plan_data(config), None)
    assert [row.name for row in against.measure(config, plan_data(config), None)] == [first, second]
    assert measured == [first, second, second]


def test_an_undefined_score_is_none(config, plain_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(against, "labelling_cost", lambda *given: Cost(1.0, None, None, None))
    plan = replace(plan_data(config), val=())
    row = against._look(Given(str(plain_bundle), "", "", "", ""), None, plan, WorkerShape(1, 1, 0))
    assert (row.miou, row.cost) == (None, Cost(1.0, None, None, None))
