"""The promise of docs/labelling.md under faults: a little of it here, `pytest -m torture --rounds 40` for long.

What labels is the protocol without Ray; tests/ray/test_faults.py has runs of Ray.
"""

import random

import pytest
import servers
import torture
from faultproxy import FaultProxy
from torture import FAULTS, Found, World, round_

from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder
from segray.core.labels.plan import load_plans


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.write(tmp_path_factory.mktemp("world"))


@pytest.fixture(
    scope="module", params=["s3", *(pytest.param(name, marks=pytest.mark.torture) for name in ("gs", "az"))]
)
def bucket_world(request, tmp_path_factory):
    """Inputs in a bucket too, of each store."""
    return World.write(tmp_path_factory.mktemp("world"), f"{request.getfixturevalue(request.param)}/world")


@pytest.fixture
def show(capsys):
    def show(text):
        with capsys.disabled():
            print(text, flush=True)

    return show


def local_round(world, folder, seed):
    return round_(world, str(folder / f"out-{seed}"), seed, {}, folder)


def bucket_round(world, folder, seed):
    """Writers and readers go through a proxy that breaks some of what passes; the last look does not."""
    out, scheme = f"{world.first}-out/{folder.name}-{seed}", world.first[:2]
    with FaultProxy(servers.url_of(scheme), seed, hang_s=1, delay_s=0.05) as proxy:
        proxy.set(**FAULTS)
        env = servers.environment(scheme, proxy.url) | {"SEGRAY_RETRY_S": "30"}
        found = round_(world, out, seed, env, folder)
        found.count["fault"] = sum(proxy.count[name] for name in FAULTS)
    return found


def rounds(one, world, folder, seeds, show):
    """Each round's figures as it ends, then those of all."""
    total = Found(torture.Counter(), [])
    for seed in seeds:
        found = one(world, folder, seed)
        show("\n  ".join([f"{one.__name__} {seed}: {found}", *found.problems]))
        total.count += found.count
        total.problems += found.problems
    show(f"{one.__name__}s: {total}")
    return total


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 5])
def test_writers_that_race_and_are_killed_leave_each_row_once(world, tmp_path, seed):
    assert local_round(world, tmp_path, seed).problems == []


@pytest.mark.long
def test_in_a_bucket_too_through_lost_answers_errors_and_cut_bodies(bucket_world, tmp_path):
    found = bucket_round(bucket_world, tmp_path, 5)
    assert found.problems == []
    assert found.count["fault"] > 10


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """One part a plan."""
    return World.write(tmp_path_factory.mktemp("small"), frames=3, shard_size=100)


def crash(world, folder, step):
    """Whether there is such a step; then a fresh run has made all right."""
    out = str(folder / str(step))
    crashed = torture.crash_at(world, out, step)
    assert torture.after(world, out, kills=1) == [], f"crash at {step}"
    storage.remove(out)
    return crashed


@pytest.mark.long
def test_a_crash_at_some_changes_of_the_file_system_is_mended_by_the_next_run(small_world, tmp_path):
    for step in random.Random(0).sample(range(1, 100), 8):
        assert crash(small_world, tmp_path, step)


def test_a_run_that_ends_after_a_further_one_takes_nothing_from_it(small_world, tmp_path, monkeypatch):
    out = str(tmp_path)
    torture.label(small_world, out, random.Random(0))
    plans, names = load_plans(out), ("_SUCCESS", "summary.json", "errors.parquet")
    before = [(tmp_path / name).read_bytes() for name in names]
    assert parts.finish(plans[:1], {})["rows"] == plans[0].rows
    assert [(tmp_path / name).read_bytes() for name in names] == before

    failed = LabelFolder(plans[:2]).failed_rows()
    monkeypatch.setattr(parts, "load_plans", lambda out: plans[:1])  # the further plan came just after the look
    parts.finish(plans[:1], {})
    assert parts.verify(plans) == []
    assert LabelFolder(plans[:2]).failed_rows() == failed
    assert len(failed) == 4


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_a_crash_at_every_change_of_the_file_system_is_mended_by_the_next_run(small_world, tmp_path, show):
    step = 1
    while crash(small_world, tmp_path, step):
        step += 1
    show(f"{step - 1} crash points")
    assert step > 100


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_many_local_rounds(world, tmp_path, show, pytestconfig):
    seeds = range(pytestconfig.getoption("rounds"))
    assert rounds(local_round, world, tmp_path, seeds, show).problems == []


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_many_rounds_in_a_bucket(bucket_world, tmp_path, show, pytestconfig):
    seeds = range(pytestconfig.getoption("rounds") // 4)
    assert rounds(bucket_round, bucket_world, tmp_path, seeds, show).problems == []
