"""A training run from its start, without Ray: on what it runs, and what is left of one that could not begin."""

import re
import shutil

import pytest
import torch
from PIL import Image

from segray.config import load
from segray.core.data import streets
from segray.core.models.info import BundleInfo
from segray.core.samples import LabelSpace
from segray.core.training import loop
from segray.errors import DataError, ModelError
from segray.sections.training import ModelSection
from segray.stages import train as stage
from segray.stages.run_data import plan_data


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=2, val=1, size=(32, 48), video_s=0)


@pytest.fixture
def settings(town, tmp_path):
    """A run of one epoch of one step; keyword arguments are settings with __ for the dot."""

    def make(**more):
        values = {
            "data.format": "streets", "data.root": str(town), "model.arch": "unet-plain", "model.options": {"channels": 4},
            "train.batch_size": 2, "train.epochs": 1, "train.out": str(tmp_path / "run"), "cluster.workers": 0,
        }  # fmt: skip
        return load(None, values | {key.replace("__", "."): value for key, value in more.items()})

    return make


@pytest.mark.parametrize(("gpu", "device"), [(None, "cuda"), (False, "cpu"), (True, "cuda")])
def test_a_run_without_ray_is_on_this_machines_gpu_where_it_has_one(settings, monkeypatch, gpu, device):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loop, "fit", lambda worker, *rest: given.append(worker.device.type))
    stage.train(settings(cluster__gpu=gpu))
    assert given == [device]


def test_a_run_says_what_it_computes_on_before_its_first_epoch_and_keeps_it(settings):
    torch.set_num_threads(1)
    told, steps, plans = [], [], []
    config = settings(train__precision="fp32")
    hear = {"on_row": lambda row: told.append(row["epoch"]), "on_start": told.append, "on_plan": plans.append}
    result = stage.train(config, **hear, on_step=lambda *step: steps.append(step))
    assert told == ["1 CPU worker × 1 thread, fp32", 1]
    assert result.history[0]["device"] == told[0]
    phases = list(dict.fromkeys(phase for phase, _, _ in steps))
    assert phases == ["epoch 1 of 1", "validating", "checking the saved model"]
    trained = [(done, of) for phase, done, of in steps if phase == phases[0]]
    assert trained == [(i + 1, len(trained)) for i in range(len(trained))]
    stage.train(config, **hear)
    assert plans.pop() == (
        "Already finished, after 1 epoch. A higher --epochs trains on from there; --overwrite begins anew."
    )
    stage.train(config.changed({"train.epochs": 2}), **hear)
    assert re.fullmatch(
        r"unet-plain, [\d.]+ million parameters, trains on \d+ frames of 32×48 and is validated on \d+\.", plans[0]
    )
    assert plans[1] == f"{plans[0]} It resumes after epoch 1 of 2."


def test_a_run_that_fails_before_its_first_epoch_leaves_nothing_that_refuses_the_corrected_command(
    settings, town, tmp_path
):
    root = tmp_path / "town"
    shutil.copytree(town, root)
    (mask,) = sorted((root / "trainannot").glob("*"))[:1]
    Image.new("L", (48, 32), 40).save(mask)
    with pytest.raises(DataError, match="has class id 40"):
        stage.train(settings(data__root=str(root), train__learning_rate=0.1))
    assert not (tmp_path / "run").exists()
    result = stage.train(settings(data__root=str(root), data__id_map={40: 255}, train__learning_rate=0.2))
    assert len(result.history) == 1


def test_a_new_run_from_random_weights_says_that_there_are_pretrained_ones(settings):
    unet = settings(model__arch="unet", model__options={})
    line = "resnet18 starts from random weights; --weights imagenet starts it from pretrained ones."
    assert stage.random_start(unet) == line
    for other in (
        settings(),
        unet.changed({"model.encoder_weights": "imagenet"}),
        unet.changed({"model.encoder": "dpn92"}),
    ):
        assert stage.random_start(other) is None


def trained(*confusion):
    """A bundle's info with this confusion matrix of its validation frames."""
    space = LabelSpace(("road", "sky"), ((0, 0, 0), (1, 1, 1)))
    return BundleInfo(
        model=ModelSection(), label_space=space.to_dict(), input_size=(32, 48), confusion=list(map(list, confusion))
    )


def test_a_model_that_is_hardly_better_than_a_constant_guess_is_told_so():
    assert stage.hardly_learnt(trained((90, 0), (9, 1))) == (
        "That is hardly better than predicting road everywhere, which has mIoU 0.450. Train for more --epochs or with a "
        "higher --lr, and check the masks: segray data check."
    )
    assert stage.hardly_learnt(trained((10, 0), (90, 0))).startswith("That is no better than predicting sky everywhere")
    assert stage.hardly_learnt(trained((90, 0), (7, 3))) is None
    assert stage.hardly_learnt(trained((0, 0), (0, 0))) is None


@pytest.mark.parametrize(
    ("values", "higher"),
    [
        ({"train.epochs": 5}, "--epochs"),
        ({"train.epochs": 9, "train.patience": 3}, "train.patience"),
        ({"train.epochs": 5, "train.max_steps": 10}, "train.max_steps"),
    ],
)
def test_a_finished_run_says_what_would_train_on(settings, values, higher):
    told = stage.finished(settings().changed(values), 5)
    assert told.startswith(f"Already finished, after 5 epochs. A higher {higher} trains on from there;")


@pytest.mark.parametrize(("mix", "batch", "told"), [("none", 1, False), ("cutmix", 1, True), ("cutmix", 2, False)])
def test_pasting_without_another_frame_to_paste_from_is_said(settings, caplog, mix, batch, told):
    plan_data(settings(augment__mix=mix, train__batch_size=batch))
    assert any("give a train.batch_size of 2 or more for 1 worker." in line for line in caplog.messages) == told


def test_to_freeze_random_weights_is_refused_with_what_to_do(settings, tmp_path):
    with pytest.raises(ModelError) as error:
        stage.train(settings(model__arch="unet", model__options={}, train__freeze_encoder=True))
    assert str(error.value) == (
        "train.freeze_encoder would keep an encoder of random weights as it is (model.encoder_weights is none). Give it "
        "pretrained ones, --weights imagenet or a file, or leave --freeze-encoder out."
    )
    assert not (tmp_path / "run").exists()


def test_to_go_on_after_the_end_of_a_schedule_says_how_the_rate_jumps(settings, caplog):
    stage.train(settings(train__schedule="cosine", train__batch_size=1, train__epochs=2))
    assert caplog.messages == []
    stage.train(settings(train__schedule="cosine", train__batch_size=1, train__epochs=4))
    (line,) = caplog.messages
    assert line.startswith("Epoch 2 ended at a learning rate of ")
    assert line.endswith("; by the schedule of now 4 epochs the next one begins at 0.0005.")
    caplog.clear()
    stage.train(settings(train__schedule="cosine", train__batch_size=1, train__epochs=4))
    assert caplog.messages == []
