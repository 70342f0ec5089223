"""Ray Tune around training runs: ranked, resumable, by turns or by TPE, some on one GPU; a failed trial is a row.

python tests/ray/test_sweep.py CONFIG    a sweep on a Ray of its own, whose one GPU is a CPU; a line an epoch
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segray.cluster import connect, resources
from segray.config import load
from segray.core.search.space import Trial
from segray.core.training import checkpoint
from segray.errors import ClusterError, OutputExists, TrainingDiverged
from segray.stages.sweep import _scheduler, _train, concurrent, sweep
from segray.trials.leaderboard import Entry, read_entries, read_sweep, write_entries
from segray.trials.queue import Turns


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_ranks_its_trials_and_given_models_and_runs_again_without_training(settings, tmp_path):
    config = settings(sweep__learning_rates=[1e-3, 1e-5], sweep__grace_epochs=2)
    seen = []
    result = sweep(config, on_row=lambda trial, row: seen.append(trial))
    board = result.leaderboard
    assert [(row.learning_rate, row.status) for row in board] == [(1e-3, "finished"), (1e-5, "finished")]
    assert [row.rank for row in board] == [1, 2]
    assert (board[0].pareto, board[0].chosen, board[1].chosen) == (True, True, False)
    assert board[0].label_images_per_s > 0 < board[0].gmacs
    assert result.advice == f"{board[0].trial} is the best, and none within a tenth of its mIoU labels faster."
    assert result.state == "Complete: 2 finished."
    assert Counter(seen) == dict.fromkeys([row.trial for row in board], 2)
    best = tmp_path / "sweep" / "trials" / board[0].trial / "best" / "segray.json"
    assert Path(result.best, "segray.json").read_bytes() == best.read_bytes()
    assert pq.read_table(tmp_path / "sweep" / "leaderboard.parquet")["trial"].to_pylist() == [r.trial for r in board]
    assert json.loads((tmp_path / "sweep" / "leaderboard.json").read_text())[0]["trial"] == board[0].trial
    curves = EventAccumulator(str(best.parents[1] / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("loss")] == [1, 2]

    stamps = {state: state.stat().st_mtime_ns for state in tmp_path.rglob(checkpoint.STATE)}
    assert [row.trial for row in sweep(config).leaderboard] == [row.trial for row in board]
    assert {state: state.stat().st_mtime_ns for state in tmp_path.rglob(checkpoint.STATE)} == stamps

    with pytest.raises(OutputExists, match="holds a sweep with other settings"):
        sweep(config.changed({"train.batch_size": 2}))

    # Given as a model, its own best scores as it did while it trained.
    own = f"{tmp_path}/sweep/trials/{board[0].trial}/best"
    against = config.changed({"sweep.against": [own], "sweep.price": 1.0})
    ranked = sweep(against).leaderboard
    (given,) = (row for row in ranked if row.status == "given")
    assert given.trial == own
    assert given.miou == pytest.approx(board[0].miou, abs=0.01)
    assert given.label_images_per_s > 0 < given.cost_per_million
    assert [row.trial for row in ranked if row.chosen] == [board[0].trial]
    assert sweep(against).leaderboard == ranked  # it is not measured twice
    assert read_sweep(str(tmp_path / "sweep")).leaderboard == ranked


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_fails_is_the_last_row(settings):
    config = settings(sweep__learning_rates=[1e-3, 1e30])
    result = sweep(config)
    board = result.leaderboard
    assert [(row.rank, row.learning_rate, row.status) for row in board] == [(1, 1e-3, "finished"), (2, 1e30, "failed")]
    assert board[1].error.startswith("The loss is ")
    assert (board[0].chosen, board[1].chosen, board[1].gmacs) == (True, False, None)
    assert result.state == "Complete: 1 finished, 1 failed."


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_tpe_stops_in_time_goes_on_with_the_same_command_and_outlives_a_driver(settings, tmp_path):
    epochs = 12  # some may end before a trial is stopped
    config = settings(
        sweep__search="tpe", sweep__trials=2, sweep__time="0.1s", sweep__concurrent=1, sweep__grace_epochs=epochs,
        train__epochs=epochs, model__encoder="mobilenet_v2",
    )  # fmt: skip
    first = sweep(config.changed({"sweep.price": 3.6}))
    (row,) = first.leaderboard
    assert row.status == "interrupted"
    assert 1 <= row.epochs < epochs
    assert row.cost_per_million == pytest.approx(1e6 / row.label_images_per_s / 1000)
    assert first.state.startswith("Not running: 1 interrupted, 1 not run. To resume: segray sweep --resume --out ")
    before = checkpoint.read_history(tmp_path / "sweep" / "trials" / row.trial)
    rows, killed = [], []

    def kill(trial, row):
        rows.append((trial, row["epoch"]))
        if trial != first.leaderboard[0].trial and not killed:
            killed.extend(pid for pid, name in processes().items() if "ImplicitFunc" in name)  # Tune's name for it
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    again = sweep(config.changed({"sweep.time": None}), on_row=kill)
    assert len(killed) == 1
    assert [row.status for row in again.leaderboard] == ["finished", "finished"]
    one, other = (entry.trial.name for entry in read_entries(str(tmp_path / "sweep")))
    assert rows == [
        *((one, epoch) for epoch in range(row.epochs + 1, epochs + 1)),
        *((other, epoch) for epoch in range(1, epochs + 1)),
    ]
    assert checkpoint.read_history(tmp_path / "sweep" / "trials" / one)[: row.epochs] == before


def processes():
    """Process id → name, of this process's descendants: raylets are its children, and actors theirs."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue

    def ours(pid):
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return {pid: name for pid, name in names.items() if ours(pid)}


SCORES = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.3, 0.1, 0.5, 0.6], "c": [0.2, 0.4, 0.4, 0.5], "d": [0.25, 0.3, 0.2, 0.1]}
ORDER = "abacbdacbdcbd"  # in which trials end their epochs


@pytest.mark.parametrize("kill_after", range(1, len(ORDER)))
def test_asha_decides_after_a_kill_as_it_would_have_without(settings, tmp_path, kill_after):
    config = settings(sweep__learning_rates=[0.1], train__epochs=4)

    def scheduler(out):
        out.mkdir(exist_ok=True)
        turns = SimpleNamespace(
            entries={name: Entry(Trial(name, name, {}), "running") for name in SCORES}, set=lambda name, state: None
        )
        return _scheduler(config.changed({"sweep.out": str(out)}), turns, gpus=1)

    def end_epochs(asha, out, order, ended):
        decisions = []
        for name in order:
            rows = [{"epoch": i, "miou": score, "seconds": 1.0} for i, score in enumerate(SCORES[name], 1)]
            ended[name] = ended.get(name, 0) + 1
            (out / "trials" / name).mkdir(parents=True, exist_ok=True)
            checkpoint.write_history(out / "trials" / name, rows[: ended[name]])
            trial = SimpleNamespace(trial_id=f"of Tune's {len(decisions)}", config={"trial": {"name": name}})
            decisions.append(asha.on_trial_result(None, trial, rows[ended[name] - 1]))
        return decisions

    whole = scheduler(tmp_path / "whole")
    decisions = end_epochs(whole, tmp_path / "whole", ORDER, {})
    assert {"STOP", "CONTINUE"} == set(decisions)
    ended = {}
    before = end_epochs(scheduler(tmp_path / "cut"), tmp_path / "cut", ORDER[:kill_after], ended)
    after = end_epochs(again := scheduler(tmp_path / "cut"), tmp_path / "cut", ORDER[kill_after:], ended)
    assert before + after == decisions
    assert again.seconds == whole.seconds


def test_a_trial_that_asha_stopped_stays_stopped_and_one_that_failed_has_another_turn(settings, tmp_path):
    config = settings(sweep__learning_rates=[1e-1, 1e-2, 1e-3, 1e-4], train__epochs=2)
    with ExitStack() as stack:
        names = list(Turns(config, print, stack).entries)
    states = ("stopped", "failed", "running", "finished")
    trials = [entry.trial for entry in read_entries(str(tmp_path / "sweep"))]
    write_entries(str(tmp_path / "sweep"), [Entry(trial, state) for trial, state in zip(trials, states, strict=True)])
    rows = [{"epoch": epoch, "miou": 0.5, "seconds": 1.0} for epoch in (1, 2)]
    checkpoint.write_history(tmp_path / "sweep" / "trials" / names[3], rows)
    with ExitStack() as stack:
        turns = Turns(config, print, stack)
        assert [turns.next().name, turns.next().name, turns.next()] == [names[1], names[2], None]
        turns.ended(names[1], "There is no memory.")
        turns.ended(names[2], None)
    found = [(entry.state, entry.error) for entry in read_entries(str(tmp_path / "sweep"))]
    assert found == [("stopped", None), ("failed", "There is no memory."), ("interrupted", None), ("finished", None)]


def test_a_loss_that_is_no_number_is_tried_again_on_a_gpu_alone(settings, monkeypatch):
    tries = []

    def run(*args, **kwargs):
        tries.append(args)
        raise TrainingDiverged("The loss is nan.")

    monkeypatch.setattr("segray.stages.sweep.run", run)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", object)
    for gpus, count in ((0, 1), (0.5, 2)):
        tries.clear()
        with pytest.raises(TrainingDiverged):
            _train(settings(), None, resources.WorkerShape(1, 1, gpus), None)
        assert len(tries) == count


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "per_gpu", "at_once", "each"),
    [
        ([(8, 0)], 1, None, 1, 8, 1),
        ([(8, 0)], 2, 2, 1, 2, 2),
        ([(3, 0), (3, 0)], 1, 2, 1, 2, 2),  # six CPUs, of which one each is left over
        ([(4, 0), (32, 2)], 1, None, 1, 2, 16),
        ([(4, 0), (32, 2)], 1, None, 3, 6, 5),
        ([(16, 1), (16, 1)], 2, None, 1, 1, 16),
    ],
)
def test_trials_at_once_are_what_the_nodes_hold(nodes, workers, cpus, per_gpu, at_once, each):
    values = {"cluster.workers": workers, "cluster.cpus_per_worker": cpus, "sweep.trials_per_gpu": per_gpu}
    config = load(None, values)
    has = resources.Resources(*map(sum, zip(*nodes, strict=True)), 10**9, tuple(nodes))
    assert concurrent(config, has, 100) == at_once
    worker = resources.shape(config.cluster, has, at_once, per_gpu)
    assert worker.cpus == each
    assert has.fits(worker.cpus, worker.gpus) >= at_once * workers


def test_a_worker_that_no_node_can_hold_is_said_at_once():
    has = resources.Resources(8, 0, 10**9, ((4, 0), (4, 0)))
    assert resources.shape(load().cluster, has).cpus == 4
    with pytest.raises(ClusterError, match="1 × 6 CPUs asked, which do not fit on nodes of 4 CPUs and 0 GPUs"):
        resources.shape(load(None, {"cluster.cpus_per_worker": 6}).cluster, has)


# A sweep that is killed, on a Ray of its own: this file as a program.


def on_one_gpu(config):
    os.environ.update(connect.QUIET)
    import ray

    ray.init("local", num_cpus=2, num_gpus=1, log_to_driver=False, runtime_env={"worker_process_setup_hook": pretend})

    def tell(trial, row):
        groups = [group for group in ray.util.placement_group_table().values() if group["state"] == "CREATED"]
        bundles = [bundle for group in groups for bundle in group["bundles"].values()]
        print(json.dumps([bundle["GPU"] for bundle in bundles if bundle.get("GPU")]), flush=True)

    sweep(config, on_row=tell)


def pretend():
    """A GPU that is a CPU."""
    import torch
    from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager
    from ray.train.torch import TorchConfig

    CUDATorchDeviceManager.get_devices = lambda self: [torch.device("cpu")]
    TorchConfig.__init__.__defaults__ = ("gloo", *TorchConfig.__init__.__defaults__[1:])


EPOCHS = 20  # one trial may start half a minute after the other, and both must be on their way


@pytest.mark.torture
def test_two_trials_share_a_gpu_and_go_on_after_their_sweep_was_killed(settings, tmp_path):
    config = settings(
        sweep__learning_rates=[1e-3, 2e-3], sweep__trials_per_gpu=2, sweep__grace_epochs=EPOCHS, train__epochs=EPOCHS
    )
    out, log = tmp_path / "sweep", tmp_path / "log"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets' paths are short
        env = {**os.environ, "RAY_TMPDIR": folder}
        command = [sys.executable, __file__, json.dumps(config.model_dump(mode="json"))]
        run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=log.open("w"))
        while run.poll() is None and [0 < len(rows) < EPOCHS for rows in histories(out).values()] != [True, True]:
            time.sleep(0.05)
        assert run.poll() is None, log.read_text()
        assert [row.status for row in read_sweep(str(out)).leaderboard] == ["running", "running"]
        run.kill()
        run.wait()
        killed = read_sweep(str(out))
        assert [row.status for row in killed.leaderboard] == ["interrupted", "interrupted"]
        before = histories(out)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [0.5, 0.5] in [json.loads(line) for line in done.stdout.splitlines()]
    assert read_sweep(str(out)).state == "Complete: 2 finished."
    for name, rows in histories(out).items():
        assert [row["epoch"] for row in rows] == [*range(1, EPOCHS + 1)]
        assert rows[: len(before[name])] == before[name]


def histories(out):
    return {folder.name: checkpoint.read_history(folder) for folder in out.glob("trials/*")}


if __name__ == "__main__":
    on_one_gpu(load(None, json.loads(sys.argv[1])))
