"""What a sweep tries, and what it makes of scores and costs; no Ray."""

import math
import re
import statistics
import sys
from dataclasses import replace

import pytest

from segray.config import load
from segray.core.search.pareto import Cost, pareto_front
from segray.core.search.space import Outcome, list_trials, propose
from segray.core.training.checkpoint import write_history
from segray.errors import ConfigError
from segray.trials.leaderboard import Entry, LeaderboardRow, advice, cheapest, leaderboard


def config(**more):
    return load(None, {key.replace("__", "."): value for key, value in more.items()})


def names(**more):
    return [trial.name for trial in list_trials(config(**more))]


def test_trials_of_a_range_are_shared_out_and_the_same_every_time():
    given = {"sweep__encoders": ["resnet18", "vgg11"], "sweep__learning_rates": "1e-4..1e-2", "sweep__trials": 4}
    assert names(**given) == [
        "unet-resnet18-lr3.2e-04",
        "unet-resnet18-lr3.2e-03",
        "unet-vgg11-lr3.2e-04",
        "unet-vgg11-lr3.2e-03",
    ]
    assert names(**given) == names(**given)


def test_rates_that_differ_by_a_little_are_trials_of_their_own():
    assert names(sweep__learning_rates=[1e-3, 1.02e-3, 1e-3], sweep__seeds=2) == [
        "unet-resnet18-lr1.0e-03-seed0",
        "unet-resnet18-lr1.0e-03-seed1",
        "unet-resnet18-lr0.00102-seed0",
        "unet-resnet18-lr0.00102-seed1",
    ]


def test_a_grid_is_every_combination_of_any_settings():
    space = {"model.arch": ["unet", "fpn"], "train.loss": ["dice", {"dice": 1, "focal": 2}]}
    trials = list_trials(config(sweep__learning_rates=[1e-3], sweep__space=space, sweep__seeds=2, train__seed=7))
    assert [trial.name for trial in trials[:4]] == [
        "unet-resnet18-lr1.0e-03-loss_dice-seed7",
        "unet-resnet18-lr1.0e-03-loss_dice-seed8",
        "unet-resnet18-lr1.0e-03-loss_dice_1_focal_2-seed7",
        "unet-resnet18-lr1.0e-03-loss_dice_1_focal_2-seed8",
    ]
    assert len({trial.name for trial in trials}) == 8
    assert len({trial.point for trial in trials}) == 4
    assert trials[3].settings["train.seed"] == 8


def test_an_encoder_is_named_where_the_architecture_has_one():
    rates = {"sweep__learning_rates": [1e-3]}
    assert names(model__arch="unet-plain", **rates) == ["unet-plain-lr1.0e-03"]
    assert names(model__arch="danet", **rates) == ["danet-resnet18-lr1.0e-03"]


def test_trials_of_models_in_deep_folders_have_short_names_of_their_own():
    deep = [f"/{'projects/' * 40}{name}/best" for name in "ab"]
    config = load(None, {"sweep.learning_rates": [1e-3], "sweep.space": {"train.teacher": deep}})
    first, second = (trial.name for trial in list_trials(config))
    assert first != second
    assert re.fullmatch(r"unet-resnet18-lr1\.0e-03-teacherbest-[0-9a-f]{6}", first)


def test_random_points_lie_in_their_ranges_and_are_the_seeds_own():
    space = {"train.weight_decay": "1e-4..1e-1", "augment.flip": [0, 0.5]}
    given = {"sweep__search": "random", "sweep__space": space, "sweep__trials": 20}
    trials = list_trials(config(**given))
    assert len(trials) == 20
    decays = [trial.settings["train.weight_decay"] for trial in trials]
    assert 1e-4 <= min(decays) < 1e-3
    assert 1e-2 < max(decays) <= 1e-1
    assert {trial.settings["augment.flip"] for trial in trials} == {0, 0.5}
    assert [trial.name for trial in trials] == names(**given) != names(**given, train__seed=1)


def distance(settings):
    """Of a point from the best one: a rate of 1e-3 with Dice."""
    return abs(math.log10(settings["train.learning_rate"]) + 3) + (settings["train.loss"] != "dice")


def test_tpe_comes_near_the_best_point_and_gives_the_same_point_for_the_same_outcomes():
    space = {"train.loss": ["cross_entropy", "dice", {"ohem": 1.0}]}
    given = config(sweep__search="tpe", sweep__trials=40, sweep__learning_rates="1e-6..1", sweep__space=space)
    outcomes = []
    while len(outcomes) < 40:
        settings = propose(given, outcomes)
        assert settings == propose(given, outcomes)
        far = distance(settings)
        state, epochs = ("finished", 4) if far < 1 else ("stopped", 2) if far < 3 else ("failed", 0)
        outcomes.append(Outcome(settings, state, epochs, miou=1 - 0.1 * far if epochs else None))
    assert len({str(outcome.settings) for outcome in outcomes}) == 40
    found = [distance(outcome.settings) for outcome in outcomes]
    drawn = [distance(trial.settings) for trial in list_trials(given)]  # as many at random
    assert min(found) < 0.05 < 0.4 < min(drawn)
    assert statistics.median(found[25:]) < 1.4 < 2.3 < statistics.median(drawn)
    assert propose(given, outcomes) != propose(given.changed({"train.seed": 1}), outcomes)


def test_tpe_does_not_wait_beside_a_trial_that_runs_and_ends_when_a_small_space_is_used_up():
    given = config(sweep__search="tpe", sweep__trials=9, sweep__learning_rates=[1e-3, 1e-2, 1e-1])
    outcomes = []
    while settings := propose(given, outcomes):
        outcomes.append(Outcome(settings, "running", epochs=0, miou=None))
    assert sorted(outcome.settings["train.learning_rate"] for outcome in outcomes) == [1e-3, 1e-2, 1e-1]


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=re.escape("optuna is not installed; pip install 'segray[sweep]' brings it.")):
        propose(config(sweep__search="tpe"), [])


@pytest.mark.parametrize("key", ["train.out", "train.seed", "label.out", "nothing"])
def test_what_is_no_choice_of_a_model_cannot_be_swept(key):
    with pytest.raises(ConfigError, match="cannot be swept"):
        names(sweep__space={key: [1]})


def test_the_front_has_what_nothing_beats_in_both():
    points = [(0.9, 10.0), (0.8, 5.0), (0.8, 6.0), (0.7, 5.0), (0.5, 1.0), (0.9, 10.0)]
    assert pareto_front(points) == [True, True, False, False, True, True]


def row(trial, miou, speed):
    nothing = dict.fromkeys(LeaderboardRow.__dataclass_fields__)
    return LeaderboardRow(**nothing | {"trial": trial, "miou": miou, "miou_mean": miou, "label_images_per_s": speed})


def test_the_advice_names_the_fastest_that_is_nearly_as_good_and_what_it_saves():
    board = [row("large", 0.80, 2.0), row("small", 0.73, 10.0), row("tiny", 0.5, 50.0), row("broken", None, None)]
    assert advice(board) == "small: 7.0 points below the best (large) at 0.20 of its cost (10 against 2 images/s)."
    assert cheapest(board, 0.6).trial == "tiny"
    assert cheapest(board, 0.95).trial == "large"
    assert advice(board[:1]) == "large is the best, and none within a tenth of its mIoU labels faster."
    assert advice([replace(board[0], label_images_per_s=None)]).startswith("large is the best; its speed")
    assert advice([row("broken", None, None)]) == advice([]) == "No trial has a score yet."


def test_seeds_have_a_mean_and_a_spread_and_the_objective_chooses(tmp_path):
    given = config(sweep__out=str(tmp_path), sweep__learning_rates=[1e-3, 1e-2], sweep__seeds=2)
    trials = list_trials(given)
    entries = [Entry(trial) for trial in trials]
    scores = dict(zip((trial.name for trial in trials), (0.5, 0.7, 0.65, 0.59), strict=True))
    for name, miou in scores.items():
        (tmp_path / "trials" / name).mkdir(parents=True)
        write_history(str(tmp_path / "trials" / name), [{"miou": miou, "seconds": 1.0, "epoch": 1}])
    speeds = dict(zip(scores, (30.0, 30.0, 10.0, 10.0), strict=True))
    costs = {name: Cost(speed, None, 1.0, 1) for name, speed in speeds.items()}
    board = leaderboard(given, entries, costs)
    assert [(r.learning_rate, r.miou) for r in board] == [(1e-2, 0.65), (1e-2, 0.59), (1e-3, 0.7), (1e-3, 0.5)]
    assert [r.miou_mean for r in board] == pytest.approx([0.62, 0.62, 0.6, 0.6])
    assert board[2].miou_spread == pytest.approx(0.02**0.5)
    assert [r.chosen for r in board] == [True, False, False, False]
    board = leaderboard(given.changed({"sweep.objective": "pareto:0.9"}), entries, costs)
    assert [r.chosen for r in board] == [False, False, True, False]
