"""What a run's folder keeps of its settings, and what a command that fails leaves of it; no Ray."""

import json
import shutil
from contextlib import nullcontext
from io import StringIO

import numpy as np
import pytest
import torch
from hanging import leased
from labelled import label_all
from PIL import Image
from videos import write

from segray.cli import demo
from segray.cluster import connect
from segray.cluster.resources import Resources
from segray.config import load
from segray.core import metrics
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.io.claims import alone
from segray.core.training import loop
from segray.core.training.checkpoint import read_history, read_settings
from segray.errors import ClusterError, DataError, ModelTooLarge, OutputExists, SegrayError, TooManyErrors
from segray.stages import evaluate, label, sweep
from segray.stages.batch_size import until_it_fits, with_batch
from segray.stages.resume import claim
from segray.stages.run_data import DataPlan
from segray.stages.train import new_start, new_steps, run, train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=4, val=2, size=(32, 48), video_s=0)


@pytest.fixture
def config(town, tmp_path):
    return load(None, {
        "data.format": "streets", "data.root": str(town), "data.size": "32x48", "train.out": str(tmp_path / "run"),
        "model.arch": "unet-plain", "model.options": {"channels": 4}, "train.epochs": 1, "train.batch_size": 2,
        "cluster.workers": 0, "cluster.gpu": False,
    })  # fmt: skip


def train_one_epoch(out):
    """As far as the folder says."""
    (out / "history.jsonl").touch()


def of(height, width):
    """Frames of this size."""
    return DataPlan((), (), streets.LABEL_SPACE, (height, width), "")


def kept(out):
    train = read_settings(str(out)).train
    return train.optimizer, train.learning_rate, train.weight_decay


def test_a_run_keeps_the_rate_and_decay_that_its_optimizer_was_given(tmp_path):
    claim(load(None, {"train.out": str(tmp_path), "train.optimizer": "sgd"}), overwrite=False)
    assert kept(tmp_path) == ("sgd", 1e-2, 5e-4)


def test_settings_that_a_person_wrote_are_no_runs_and_stay(tmp_path):
    own = "train:\n  optimizer: sgd  # as in the paper\nsweep:\n  trials: 2\n"
    (tmp_path / "config.yaml").write_text(own)
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="holds files that are no training run; give another --out"):
            claim(load(str(tmp_path / "config.yaml"), {"train.out": str(tmp_path)}), overwrite)
    assert (tmp_path / "config.yaml").read_text() == own


def test_a_run_that_began_with_other_defaults_goes_on_with_them(tmp_path):
    older = {"train.optimizer": "sgd", "train.learning_rate": 1e-3, "train.weight_decay": 1e-2}
    claim(load(None, {"train.out": str(tmp_path), **older}), overwrite=False)
    train_one_epoch(tmp_path)
    same = load(None, {"train.out": str(tmp_path), "train.optimizer": "sgd"})
    assert claim(same, overwrite=False).train.peak_rate == 1e-3
    assert kept(tmp_path) == ("sgd", 1e-3, 1e-2)
    with pytest.raises(OutputExists, match=r"\(train.learning_rate was 0.001, is 0.5\)"):
        claim(same.changed({"train.learning_rate": 0.5}), overwrite=False)
    claim(same, overwrite=True)
    assert kept(tmp_path) == ("sgd", 1e-2, 5e-4)


def test_large_frames_are_cropped_in_new_runs_and_not_in_those_that_began_whole(tmp_path):
    new, old = ({"train.out": str(tmp_path / name)} for name in ("new", "old"))
    assert claim(load(None, new), False, of(1024, 2048)).augment.crop == (512, 1024)
    assert claim(load(None, new), False, of(1024, 2048)).augment.crop == (512, 1024)
    given = {"augment.crop": "768x768"}
    assert claim(load(None, new | given), True, of(1024, 2048)).augment.crop == (768, 768)
    claim(load(None, old | {"augment.scale": [0.5, 2.0]}), overwrite=False)  # as it was before there was a rule
    train_one_epoch(tmp_path / "old")
    whole = claim(load(None, old), False, of(1024, 2048)).augment
    assert (whole.crop, whole.scale) == (None, (0.5, 2.0))
    assert claim(load(None, {"train.out": str(tmp_path / "small")}), False, of(360, 480)).augment.crop is None


def test_a_run_goes_on_with_the_pixels_of_its_bundle_whatever_this_version_would_choose(config, tmp_path):
    train(config)
    info = tmp_path / "run" / "best" / "segray.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"mean": [0.5, 0.5, 0.5]}))  # an earlier version's choice
    more = claim(config.changed({"train.epochs": 2}), overwrite=False).model
    assert (more.mean, more.std) == ((0.5, 0.5, 0.5), (0.229, 0.224, 0.225))
    assert claim(config.changed({"train.epochs": 3}), overwrite=False).model == more
    with pytest.raises(OutputExists, match=r"model\.mean was None, is \[0\.0, 0\.0, 0\.0\]"):
        claim(config.changed({"model.mean": [0, 0, 0]}), overwrite=False)


def test_a_run_without_an_epoch_hands_its_folder_to_the_next_command(tmp_path):
    claim(load(None, {"train.out": str(tmp_path), "train.optimizer": "sgd"}), overwrite=False)
    claim(load(None, {"train.out": str(tmp_path), "train.loss": "dice"}), overwrite=False)  # and nothing stays of sgd's
    assert kept(tmp_path) == ("adamw", 1e-3, 1e-2)


def test_a_second_run_in_the_folder_of_one_that_trains_is_refused(config, tmp_path):
    def second(row):
        with pytest.raises(OutputExists, match=rf"^A training run is running in {tmp_path}/run \(process \d+\); wait"):
            train(config.changed({"train.epochs": 3}), overwrite=True)

    assert len(train(config, on_row=second).history) == 1
    with pytest.raises(OutputExists, match=r"is running in"), alone(str(tmp_path / "run"), "training run"):
        train(config)


def test_a_finished_run_whose_state_was_deleted_is_kept_when_the_next_command_fails(config, tmp_path):
    train(config)
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(SegrayError):
        train(config.changed({"train.epochs": 2, "cluster.gpu": True}))
    assert (tmp_path / "run" / "best" / "segray.json").exists()
    assert len(read_history(config.train.out)) == 1


def test_a_sweep_that_finds_no_ray_leaves_nothing(config, tmp_path, monkeypatch):
    def connected(*_, **__):
        raise ClusterError("No Ray answers")

    monkeypatch.setattr(sweep.connect, "connected", connected)
    config = config.changed({"sweep.out": str(tmp_path / "sweep"), "sweep.learning_rates": [1e-3]})
    for rate in (1e-3, 1e-2):
        with pytest.raises(ClusterError, match="No Ray answers"):
            sweep.sweep(config.changed({"sweep.learning_rates": [rate], "train.momentum": rate}))
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_whose_later_trials_cannot_train_is_refused_before_the_first(config, tmp_path):
    train(config)
    good, other = str(tmp_path / "run" / "best"), tmp_path / "other"
    shutil.copytree(good, other)
    info = json.loads((other / "segray.json").read_text())
    info["label_space"]["names"].reverse()
    (other / "segray.json").write_text(json.dumps(info))
    pooled = {"model.options": {}, "train.batch_size": 1}
    config = config.changed({"sweep.out": str(tmp_path / "sweep"), "sweep.learning_rates": [1e-3]})
    for more, space, text in (
        ({"cluster.workers": 4}, {"train.batch_size": [8, 2]}, "train.batch_size 2 leaves some of 4"),
        (pooled, {"model.arch": ["unet", "deeplabv3plus"]}, "deeplabv3plus normalises pooled features"),
        ({}, {"train.teacher": [good, str(other)]}, "train.teacher .*other knows 11 classes"),
    ):
        with pytest.raises(SegrayError, match=f"^{text}"):
            sweep.sweep(config.changed({**more, "sweep.space": space}))


def test_a_trial_is_estimated_by_the_steps_that_it_trains(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "training_step_s", lambda *_: 1.0)
    config = config.changed({"sweep.out": str(tmp_path / "sweep"), "sweep.learning_rates": [1e-3], "train.epochs": 5})
    for batch, steps in ((3, 1), (2, 2), (8, 1)):  # four frames, without a last batch that is not full
        assert [*sweep.estimate(config.changed({"train.batch_size": batch})).values()] == [5 * steps]


def test_an_evaluation_writes_over_no_training_run_even_if_it_may_overwrite(config, town, tmp_path):
    train(config)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    into = config.changed({"evaluate.model": str(tmp_path / "run" / "best"), "evaluate.out": str(tmp_path / "run")})
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="run holds files that are no evaluation; give another --out"):
            evaluate.evaluate(into, overwrite=overwrite)
    with pytest.raises(OutputExists, match="run holds files that are no sweep; give another --out"):
        sweep.sweep(config.changed({"sweep.out": str(tmp_path / "run")}), overwrite=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_an_evaluation_that_fails_leaves_nothing(config, plain_bundle, tmp_path):
    config = config.changed({"evaluate.model": str(plain_bundle), "evaluate.out": str(tmp_path / "out")})
    with pytest.raises(SegrayError):
        evaluate.evaluate(config.changed({"cluster.gpu": True}))
    assert not (tmp_path / "out").exists()


def test_a_demo_that_fails_at_once_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.streets, "write", lambda *_, **__: (_ for _ in ()).throw(DataError("full")))
    with pytest.raises(DataError, match="full"):
        demo.demo(str(tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()


def test_labelling_that_labels_nothing_keeps_its_plan_for_whoever_works_by_it(
    plain_bundle, town, tmp_path, monkeypatch
):
    config = load(None, {
        "label.model": str(plain_bundle), "label.inputs": [str(town / "val")], "label.out": str(tmp_path / "labels"),
    })  # fmt: skip
    with pytest.raises(ClusterError, match=r"No Ray answers at 127\.0\.0\.1:1"):
        label.label(config.changed({"cluster.address": "127.0.0.1:1"}))
    assert not (tmp_path / "labels").exists()

    def check_places(*_):
        raise ClusterError("a node does not see it")

    def connected(*_):
        raise ClusterError("no Ray")

    planned = config.changed({"label.out": str(tmp_path / "planned")})
    monkeypatch.setattr(label.connect, "connected", connected)
    with pytest.raises(ClusterError, match="no Ray"):  # a plan can take an hour, and no setting of it is at fault
        label.label(planned)
    has = Resources(2, 0, 10**9, ((2, 0),))
    monkeypatch.setattr(label.connect, "connected", lambda *_: nullcontext(has))
    monkeypatch.setattr(label, "check_places", check_places)
    monkeypatch.setattr(label, "Gauges", lambda _: StringIO())
    with pytest.raises(ClusterError, match="a node does not see it"):
        label.label(config)
    with pytest.raises(OutputExists, match=r"\(every was 1, is 2\).* No part of it is labelled yet: --overwrite loses"):
        label.label(config.changed({"label.every": 2}))
    with pytest.raises(ClusterError, match="a node does not see it"):
        label.label(config.changed({"label.every": 2}), overwrite=True)
    with pytest.raises(ClusterError, match="a node does not see it"):
        label.label(planned)
    assert (tmp_path / "planned" / "_segray" / "plan-00000.json").exists()  # of an earlier command


def test_labels_that_are_finished_are_said_to_be(plain_bundle, town, tmp_path, monkeypatch):
    class Watch(label.Unwatched):
        def note(self, text):
            noted.append(text)

    config = load(None, {
        "label.model": str(plain_bundle), "label.inputs": [str(town / "val")], "label.out": str(tmp_path / "labels"),
        "infer.engine": "torch",
    })  # fmt: skip
    noted = []
    monkeypatch.setattr(label, "_run", lambda _, section, plans, watch: label_all(plans[0], Predictor(section.model)))
    first = label.label(config, watch=Watch())
    assert noted == []
    assert label.label(config, watch=Watch()) == first
    assert noted == ["Already finished: nothing is left to label."]


def test_a_video_that_hangs_while_the_plan_is_made_is_given_up_after_the_input_timeout(
    plain_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(label, "_run", lambda _, section, plans, watch: label_all(plans[0], Predictor(section.model)))
    (tmp_path / "in").mkdir()
    with (
        leased(write(tmp_path / "in" / "a.mp4", pts=range(3))),
        pytest.raises(
            TooManyErrors, match=r"^Every row is an error \(worker_timeout\); look at error_message in .*, mend"
        ),
    ):
        label.label(load(None, {
            "label.model": str(plain_bundle), "label.inputs": [str(tmp_path / "in")],
            "label.out": str(tmp_path / "labels"), "label.input_timeout": "1s", "infer.engine": "torch",
        }))  # fmt: skip
    assert json.loads((tmp_path / "labels" / "_SUCCESS").read_text())["errors"] == {"worker_timeout": 1}


@pytest.fixture
def mixed(config, town, tmp_path):
    """Settings for frames of 32×48 and as many of 48×32, without a size."""
    shutil.copytree(town, tmp_path / "mixed")
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image_hwc, mask_hw = streets.draw(90 + i, (48, 32))
            Image.fromarray(image_hwc).save(tmp_path / "mixed" / split / f"upright{i}.png")
            Image.fromarray(mask_hw).save(tmp_path / "mixed" / f"{split}annot" / f"upright{i}.png")
    return config.changed({"data.root": str(tmp_path / "mixed"), "data.size": None})


def shape(out):
    data, info = read_settings(str(out)).data, json.loads((out / "best" / "segray.json").read_text())
    assert info["resize"] == data.resize
    return info["input_size"], data.resize


def test_a_run_over_frames_of_several_ratios_keeps_them_and_measures_what_labelling_gives(mixed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (row,) = train(mixed).history
    assert shape(run) == ("48x48", "keep")
    info = json.loads((run / "best" / "segray.json").read_text())
    scored = mixed.changed({"evaluate.model": str(run / "best")})
    source = evaluate.open_source(scored)
    evaluate.start(source, scored)
    counts = [metrics.confusion_with_undecided(one.truth_hw, one.pred_hw, 11) for one in source.frames(source.refs)]
    assert np.sum(counts, 0)[:, :-1].tolist() == info["confusion"]  # at 48×48, and at the frames' own sizes
    assert np.array(info["confusion"]).sum() <= 4 * 32 * 48  # no padding
    text = (
        "Frames are RGB, resized, at their own aspect ratio, to fit into 48×48 (height × width), padded on the right "
    )
    assert f"{text}and below with RGB 124, 116, 104, scaled to 0..1" in (run / "best" / "README.md").read_text()
    monkeypatch.setattr("segray.stages.train.MEMORY_BYTES", 0)  # frames by way of the disk
    (other,) = train(mixed, overwrite=True).history
    assert (other["loss"], other["miou"]) == (row["loss"], row["miou"])
    assert len(train(mixed.changed({"train.epochs": 2})).history) == 2
    assert shape(run) == ("48x48", "keep")


def test_a_run_that_stretched_before_it_could_be_chosen_goes_on_stretching(mixed, tmp_path):
    run = tmp_path / "run"
    train(mixed.changed({"data.resize": "stretch"}))
    assert shape(run) == ("32x48", "stretch")
    lines = (run / "config.yaml").read_text().splitlines()
    older = [line for line in lines if line.split(":")[0].strip() not in ("resize", "size")]
    assert len(older) == len(lines) - 2
    (run / "config.yaml").write_text("\n".join(older))
    assert len(train(mixed.changed({"train.epochs": 2})).history) == 2
    assert shape(run) == ("32x48", "stretch")
    with pytest.raises(OutputExists, match=r"\(data\.resize was stretch, is keep\)"):
        train(mixed.changed({"data.resize": "keep"}))


class Memory:
    """A device that holds `most` frames of a batch while training; `asked` is what it was asked for."""

    def __init__(self, monkeypatch, most):
        self.most, self.asked, self.forward = most, [], loop.forward_all
        monkeypatch.setattr(loop, "forward_all", self)

    def __call__(self, model, images):
        self.asked.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.forward(model, images)


def used(history):
    return [(row["batch_size"], row["accumulate"]) for row in history]


def test_a_batch_size_of_auto_is_halved_until_it_fits_and_its_steps_accumulate(config, tmp_path, monkeypatch, caplog):
    config = config.changed({"train.batch_size": "auto"})
    memory = Memory(monkeypatch, most=2)
    assert used(train(config).history) == [(2, 4)]
    assert memory.asked == [8, 4, 2, 2]  # of four frames, the first batch holds each twice
    assert [record.message for record in caplog.records if "Memory" in record.message] == [
        "Memory ran out with train.batch_size 8: it is 4 now, and accumulate 2.",
        "Memory ran out with train.batch_size 4: it is 2 now, and accumulate 4.",
    ]
    memory.most, memory.asked = 1, []
    assert used(train(config.changed({"train.epochs": 2})).history) == [(2, 4), (1, 8)]  # it began with what had fitted
    assert memory.asked == [2, 1, 1, 1, 1]
    told = json.loads((tmp_path / "run" / "best" / "segray.json").read_text())["config"]["train"]
    assert (told["batch_size"], told["accumulate"]) in [(2, 4), (1, 8)]
    assert read_settings(config.train.out).train.batch_size == "auto"
    memory.most = 0
    with pytest.raises(
        ModelTooLarge, match=r"with 1 frame of 32×48 \(height × width\) a worker\. Set a smaller augment"
    ):
        train(config.changed({"train.epochs": 3}))


@pytest.mark.parametrize(
    ("arch", "workers", "given"),
    [("unet", 2, (2, 4)), ("unet", 3, (4, 2)), ("deeplabv3plus", 3, (8, 1)), ("unet", 20, (32, 1))],
)
def test_a_batch_that_auto_halved_has_an_image_for_each_worker_of_now(config, tmp_path, arch, workers, given):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text(json.dumps({"batch_size": 2, "accumulate": 4}))
    asked = []
    config = config.changed({"train.batch_size": "auto", "model.arch": arch, "cluster.workers": workers})
    until_it_fits(config, lambda sized: asked.append((sized.train.batch, sized.train.accumulate)))
    assert asked == [given]


def test_a_run_whose_batch_no_longer_fits_goes_on_with_auto(config, tmp_path, monkeypatch):
    memory = Memory(monkeypatch, most=4)
    config = config.changed({"train.batch_size": 4})
    train(config)
    memory.most, more = 2, config.changed({"train.epochs": 2})
    with pytest.raises(ModelTooLarge, match=r"--batch-size auto halves train\.batch_size \(4\)"):
        train(more)
    assert used(train(more.changed({"train.batch_size": "auto"})).history) == [(4, 1), (2, 2)]


def test_a_number_of_steps_is_as_many_epochs_when_auto_halves_the_batch(config, monkeypatch):
    """4 frames: 4 steps of 2 frames are 2 epochs, also where memory holds one frame of now on."""
    memory = Memory(monkeypatch, most=2)
    config = config.changed({"train.max_steps": 4})

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_row=stop)
    memory.most, auto = 1, config.changed({"train.batch_size": "auto"})
    assert used(train(auto).history) == [(2, 1), (1, 2)]
    assert used(train(auto).history) == [(2, 1), (1, 2)]


def test_a_run_of_an_older_version_goes_on_with_its_batch_under_auto(config, tmp_path):
    """Its history does not say the batch, its settings do."""
    train(config.changed({"train.batch_size": 4, "train.accumulate": 2}))
    rows = tmp_path / "run" / "history.jsonl"
    row = json.loads(rows.read_text())
    rows.write_text(
        json.dumps({key: value for key, value in row.items() if key not in ("batch_size", "accumulate")}) + "\n"
    )
    more = config.changed({"train.epochs": 2, "train.batch_size": "auto", "train.accumulate": 2})
    assert used(train(more).history)[-1] == (4, 2)


def test_workers_of_which_one_runs_out_of_memory_begin_again_with_half_the_batch(config, monkeypatch):
    begun = []

    def workers(config, *_):  # Ray Train ends them all, and raises what one of them raised
        begun.append((config.train.batch_size, config.train.accumulate))
        if config.train.batch_size > 4:
            raise ModelTooLarge("too large")

    monkeypatch.setattr("segray.stages.train._run", workers)
    given = {"cluster.workers": 3, "train.out": config.train.out}
    run(config.changed(given | {"train.batch_size": "auto"}), None, None, None)
    assert begun == [(8, 1), (4, 2)]
    with pytest.raises(ModelTooLarge, match="too large"):
        run(config.changed(given | {"train.batch_size": 8}), None, None, None)
    wide = config.changed(given | {"train.batch_size": "auto", "cluster.workers": 5})
    with pytest.raises(ModelTooLarge, match="too large"):  # half of 8 leaves one of five without an image
        run(wide, None, None, None)
    assert with_batch(wide.changed({"cluster.workers": 12})).train.batch_size == 12


def test_a_run_does_not_go_on_over_other_frames(config, town, tmp_path):
    moving = tmp_path / "moving"
    shutil.copytree(town, moving)
    config = config.changed({"data.root": str(moving)})
    train(config)
    more = config.changed({"train.epochs": 2})
    first, second, *_ = sorted((moving / "train").iterdir())
    for folder, suffix in (("train", first.suffix), ("trainannot", ".png")):
        (moving / folder / first.name).with_suffix(suffix).rename((moving / folder / "new").with_suffix(suffix))
    mask = (moving / "trainannot" / second.name).with_suffix(".png")
    Image.new("L", (48, 32), 1).save(mask)
    with pytest.raises(OutputExists) as error:
        train(more)
    assert str(error.value) == (
        f"{tmp_path}/run holds a training run with other settings (frames: 1 added, 1 removed, 1 changed). "
        "Give another --out, or --overwrite to begin anew."
    )
    assert len(train(more, overwrite=True).history) == 2


def test_a_run_that_kept_no_list_of_its_frames_goes_on_over_others_and_says_so(config, town, tmp_path, caplog):
    moving = tmp_path / "moving"
    shutil.copytree(town, moving)
    config = config.changed({"data.root": str(moving)})
    train(config)
    (tmp_path / "run" / "frames.jsonl").unlink()
    more = config.changed({"train.epochs": 2})
    for folder in ("train", "trainannot"):
        sorted((moving / folder).iterdir())[0].unlink()
    train(more)
    assert f"The frames or classes are not those of the best epoch so far in {tmp_path}/run" in caplog.text


def test_the_first_worker_of_ray_says_at_which_step_it_is_and_the_driver_hears_it(tmp_path, monkeypatch):
    worker = object.__new__(connect.RayWorker)  # as within a run of Ray
    worker.rank, worker.out, worker._told_s = 0, str(tmp_path), -1e9
    told = []
    poll = new_steps(str(tmp_path), lambda *step: told.append(step))
    worker.at("epoch 1 of 2", 3, 4)
    worker.at("epoch 1 of 2", 4, 4)  # too soon after the other
    poll()
    poll()
    assert told == [("epoch 1 of 2", 3, 4)]
    worker.rank = 1
    worker._told_s = -1e9
    worker.at("epoch 1 of 2", 2, 4)
    monkeypatch.setitem(connect.STEPS_EVERY_S, False, 0.0)
    new_steps(str(tmp_path), lambda *step: told.append(step))()
    assert told == [("epoch 1 of 2", 3, 4)]


@pytest.mark.parametrize(("new_poll", "name"), [(new_start, connect.STARTED), (new_steps, connect.STEPS)])
def test_what_workers_said_may_be_removed_while_it_is_read(tmp_path, monkeypatch, new_poll, name):
    """A run removes its folder of Ray when it ends, while its polls still run."""
    told = []
    poll = new_poll(str(tmp_path), lambda *said: told.append(said))
    place = tmp_path / connect.RUN / name
    place.parent.mkdir()
    place.write_text('["epoch 1 of 2", 3, 4]')
    exists = storage.exists
    monkeypatch.setattr(storage, "exists", lambda uri: exists(uri) and place.unlink() is None)
    poll()
    assert told == []
