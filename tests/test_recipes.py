"""Recipes are settings that exist, below files and flags, and train."""

import pytest
import yaml

from segray.cli.flags import settings
from segray.config import load
from segray.core.data import streets
from segray.errors import ConfigError
from segray.recipes import RECIPES, named
from segray.stages.batch_size import in_epochs
from segray.stages.train import train


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_settings_and_the_same_as_a_file(name, tmp_path):
    (tmp_path / "r.yaml").write_text(named(name).to_yaml())
    assert load(None, None, named(name).settings) == load(str(tmp_path / "r.yaml"))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^--recipe camvid: there is no such recipe\. Did you mean camvid-cnn\?$"):
        settings(None, (), recipe="camvid")


def test_a_file_goes_before_the_recipe_and_flags_before_both(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {loss: dice, seed: 3}\ndata: {size: 180x240}\n")
    config = settings(str(file), ("train.momentum=0.8",), recipe="camvid-cnn", train__seed=4)
    assert (config.train.loss, config.train.momentum, config.train.seed) == ({"dice": 1.0}, 0.8, 4)
    assert (config.train.optimizer, config.data.size, config.model.arch) == ("sgd", (180, 240), "deeplabv3plus")


def test_epochs_that_are_given_take_the_place_of_a_recipes_steps(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    assert settings(None, (), recipe="camvid-cnn").train.max_steps == 10_000
    for config in (
        settings(None, (), recipe="camvid-cnn", train__epochs=2),
        settings(str(tmp_path / "c.yaml"), (), recipe="camvid-cnn"),
    ):
        assert (config.train.epochs, config.train.max_steps) == (2, None)


def rates(config):
    return config.train.optimizer, config.train.peak_rate, config.train.decay


def test_a_recipes_rates_go_with_its_optimizer(tmp_path, caplog):
    (tmp_path / "c.yaml").write_text("train: {optimizer: adamw}\n")
    (tmp_path / "own.yaml").write_text("train: {optimizer: adamw, learning_rate: 0.0002}\n")
    assert rates(settings(None, (), recipe="camvid-cnn")) == ("sgd", 0.01, 5e-4)
    assert not caplog.records
    for file, more in ((None, ("train.optimizer=adamw",)), (str(tmp_path / "c.yaml"), ())):
        caplog.clear()
        assert rates(settings(file, more, recipe="camvid-cnn")) == ("adamw", 1e-3, 1e-2)
        assert caplog.messages == [
            "The recipe's rates are for sgd, and train.optimizer is adamw: "
            "train.learning_rate is 0.001, not 0.01 and train.weight_decay is 0.01, not 0.0005."
        ]
    given = settings(str(tmp_path / "own.yaml"), ("train.weight_decay=0.3",), recipe="camvid-cnn")
    assert rates(given) == ("adamw", 2e-4, 0.3)
    assert rates(settings(str(tmp_path / "c.yaml"), ("train.optimizer=sgd",), recipe="camvid-cnn")) == (
        "sgd",
        0.01,
        5e-4,
    )


def test_a_recipes_decay_is_not_that_of_optimizers_that_are_tried_against_each_other():
    varied = {"sweep__space": ("train.optimizer=sgd,adamw",)}
    with pytest.raises(ConfigError) as error:
        settings(None, (), recipe="camvid-cnn", **varied)
    assert str(error.value) == (
        "train.optimizer is varied, and the recipe's train.weight_decay is for sgd alone. Give one for all, "
        "--set train.weight_decay=1e-2, or vary it too."
    )
    assert settings(None, ("train.weight_decay=0.1",), recipe="camvid-cnn", **varied).train.decay == 0.1


@pytest.mark.parametrize(("steps", "frames", "epochs"), [(80_000, 2975, 216), (3, 4, 2), (1, 1000, 1), (10, 1, 10)])
def test_steps_are_the_whole_epochs_that_come_nearest(steps, frames, epochs):
    config = load(None, {"train.max_steps": steps, "train.batch_size": 8 if frames == 2975 else 2})
    assert in_epochs(config, frames).train.epochs == epochs


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in ("camvid-cnn", "small-data"))) for name in RECIPES],
)
def test_a_recipe_trains_on_drawn_streets(name, tmp_path):
    root = streets.write(tmp_path / "town", train=4, val=2, size=(48, 64), video_s=0)
    crop = "32x32" if "augment.crop" in named(name).settings else None
    small = {"data.size": "48x64", "augment.crop": crop, "train.batch_size": 2, "train.max_steps": 4}
    here = {"data.format": "streets", "data.root": str(root), "train.out": str(tmp_path / "run"), "cluster.workers": 0}
    result = train(load(None, small | here | {"model.encoder_weights": "none"}, named(name).settings))
    assert [row["epoch"] for row in result.history] == [1, 2]
    loaded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert loaded["train"]["optimizer"] == named(name).settings["train.optimizer"]
