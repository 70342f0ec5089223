"""Ray Train around the loop: any number of workers, resumption, and errors that are ours."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from segray.cluster import object_store
from segray.core.data import open_dataset, read_sample, split_refs
from segray.core.io import storage
from segray.core.models import build, bundle, encoder_of
from segray.core.models.info import BundleInfo, read_info
from segray.core.samples import LabelSpace
from segray.core.training import checkpoint
from segray.core.training.checkpoint import EpochRow
from segray.errors import ClusterError, DataError, ModelError, OutputExists, SegrayError
from segray.sections.training import ModelSection
from segray.stages.train import train

pytestmark = pytest.mark.usefixtures("ray_session")


def test_two_workers_count_each_pixel_of_five_frames_once_and_resume_where_they_stopped(settings):
    config = settings(cluster__workers=2, train__epochs=1)
    seen, devices, steps = [], [], []
    first = train(config, on_row=seen.append, on_start=devices.append, on_step=lambda *step: steps.append(step))
    assert {phase for phase, _, _ in steps} <= {"epoch 1 of 1", "validating", "checking the saved model"}
    assert all(done <= of for _, done, of in steps)  # each second at most: a short run may end between two looks
    dataset = open_dataset(config.data)
    labelled = sum(
        int((read_sample(ref, dataset.label_space, (32, 48)).mask_hw != 255).sum())
        for ref in split_refs(dataset, "val")
    )
    assert np.sum(read_info(str(first.best)).confusion) == labelled

    second = train(config.changed({"train.epochs": 2}), on_row=seen.append)
    assert [row["epoch"] for row in seen] == [1, 2]
    assert second.history[0] == first.history[0]
    assert devices == [first.history[0]["device"]]
    assert devices[0].startswith("2 CPU workers × 1 thread, ")

    third = train(config.changed({"train.epochs": 3, "cluster.workers": 0}))  # on fewer, as when a node was lost
    assert third.history[:2] == second.history
    assert third.history[2]["device"].startswith("1 CPU worker × ")


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_one_worker_of_ray_learns_what_the_loop_learns_without_ray_and_writes_it_to_a_bucket(settings, gs, tmp_path):
    out = f"{gs}/{tmp_path.name}/Läufe 1"  # test_nodes.py has S3
    config = settings(cluster__workers=1, train__epochs=1)
    result = train(config.changed({"train.out": out}))
    assert read_info(result.best).epoch == 1
    assert storage.exists(f"{out}/best/segray.json")
    without = train(config.changed({"cluster.workers": 0})).history[0]
    assert result.history[0]["loss"] == pytest.approx(without["loss"], rel=0.01)


def test_a_finished_run_is_returned_and_not_trained_again(settings, tmp_path):
    config = settings(cluster__workers=0, train__epochs=1)
    train(config)
    before = (tmp_path / "run" / checkpoint.STATE).stat().st_mtime_ns
    assert len(train(config).history) == 1
    assert (tmp_path / "run" / checkpoint.STATE).stat().st_mtime_ns == before


def test_a_run_in_a_bucket_goes_on_there_and_is_the_run_on_a_disk(settings, bucket, tmp_path):
    out = f"{bucket}/{tmp_path.name}/run"
    there, disk = (settings(cluster__workers=0, train__epochs=1, **more) for more in ({"train__out": out}, {}))
    train(there)
    first = read_info(f"{out}/best")
    result = train(there.changed({"train.epochs": 2}))
    train(disk)
    here = train(disk.changed({"train.epochs": 2}))
    assert [row["loss"] for row in result.history] == [row["loss"] for row in here.history]
    model, info = bundle.load(result.best)
    assert info.weights_sha256 == read_info(here.best).weights_sha256
    assert first.epoch == 1
    assert bundle.count_parameters(result.best) == sum(tensor.numel() for tensor in model.state_dict().values())
    kept = {entry.uri.removeprefix(f"{out}/").partition("/")[0] for entry in storage.list_files(out)}
    assert kept == {"best", "config.yaml", "frames.jsonl", "history.jsonl", "last.pt", "tensorboard"}
    with pytest.raises(OutputExists, match=r"train.learning_rate was 0.\d+, is 0.5"):
        train(there.changed({"train.learning_rate": 0.5}))
    train(there, overwrite=True)
    assert len(checkpoint.read_history(out)) == 1


def test_other_settings_in_the_same_folder_are_refused_and_named(settings, tmp_path):
    config = settings(cluster__workers=0, train__epochs=1)
    train(config)
    with pytest.raises(OutputExists) as error:
        train(config.changed({"train.learning_rate": 0.01}))
    assert str(error.value) == (
        f"{tmp_path}/run holds a training run with other settings (train.learning_rate was 0.001, is 0.01). "
        "Give another --out, or --overwrite to begin anew."
    )
    (tmp_path / "run" / "notes.txt").write_text("mine")
    anew = train(config.changed({"train.learning_rate": 0.01}), overwrite=True)
    assert [row["epoch"] for row in anew.history] == [1]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_bad_mask_on_a_worker_is_one_line_and_names_the_file(settings, town, tmp_path):
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for suffix in ("", "annot"):
            (root / f"{split}{suffix}").mkdir(parents=True)
        Image.new("RGB", (48, 32)).save(root / split / "a.jpg")
        Image.new("L", (48, 32), 40).save(root / f"{split}annot" / "a.png")
    with pytest.raises(DataError) as error:
        train(settings(data__format="camvid", data__root=str(root)))
    assert str(error.value) == (
        f"{root}/trainannot/a.png has class id 40; the label space knows 0–11. "
        "Map it in data.id_map, to a class or to 255 for void."
    )


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_error_that_one_worker_alone_meets_ends_both_with_its_line(settings, town, tmp_path, monkeypatch):
    """The other one waits for its share of the evaluation, for half an hour if nobody ends it."""
    monkeypatch.setattr(object_store, "STORE_SHARE", 0.0)  # each frame is read by the worker that needs it
    root = tmp_path / "camvid"
    shutil.copytree(town / "train", root / "train")
    shutil.copytree(town / "trainannot", root / "trainannot")
    shutil.copytree(town / "val", root / "val")
    shutil.copytree(town / "valannot", root / "valannot")
    second = sorted((root / "valannot").iterdir())[1]
    Image.new("L", (96, 64), 40).save(second)
    config = settings(data__format="camvid", data__root=str(root), cluster__workers=2, train__epochs=1)
    with pytest.raises(DataError, match=rf"^{second} has class id 40; the label space knows 0–11\."):
        train(config)


def test_more_gpus_than_there_are_is_said_at_once(settings, ray_session):
    if ray_session.gpus >= 2:
        pytest.skip("this machine has the GPUs")
    with pytest.raises(ClusterError) as error:
        train(settings(cluster__workers=2, cluster__gpu=True))
    assert str(error.value) == (
        f"2 GPUs asked, {ray_session.gpus} in the cluster. Lower the number of workers, add a node to the cluster, or, "
        "where an autoscaler does, give it time: --set cluster.wait=20m. To do without GPUs: --set cluster.gpu=false."
    )


def test_the_history_is_json_lines_of_plain_numbers(settings, tmp_path):
    train(settings(cluster__workers=0, train__epochs=1))
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == EpochRow.__annotations__.keys()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_sigterm_leaves_the_last_whole_epoch_from_which_the_same_command_goes_on(workers, settings, tmp_path):
    config = settings(cluster__workers=workers, train__epochs=500)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    line = [sys.executable, "-m", "segray.cli", "train", "--config", str(tmp_path / "c.yaml")]
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "epoch 3/500" not in run.stdout.readline():
        assert run.poll() is None, run.stderr.read()
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    said = "segray: stopping …\nsegray: stopped. The same command resumes here.\n"
    assert (run.returncode, err) == (143, said)
    epochs = len(checkpoint.read_history(str(tmp_path / "run")))
    assert epochs >= 3
    seen = []
    train(config.changed({"train.epochs": epochs + 1}), on_row=seen.append)
    assert [row["epoch"] for row in seen] == [epochs + 1]


@pytest.mark.long
def test_the_driver_fetches_pretrained_weights_and_every_worker_starts_from_them(settings, ray_session, tmp_path):
    encoder = encoder_of(build(ModelSection(encoder="mobilenet_v2"), 2))
    for parameter in encoder.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    save_file(encoder.state_dict(), tmp_path / "mobilenet_v2.imagenet.safetensors")
    more = {"model.encoder_weights": "imagenet", "model.weights_dir": str(tmp_path), "train.freeze_encoder": True}
    result = train(settings(model__encoder="mobilenet_v2", cluster__workers=2, train__epochs=1).changed(more))
    model, _ = bundle.load(str(result.best))
    assert all((parameter == 0.01).all() for parameter in encoder_of(model).parameters())


def test_more_than_can_be_is_said_before_anything_starts(settings):
    for more, text in (
        (
            {"cluster__workers": 12, "train__batch_size": 12},
            "11 training frames for 12 workers; lower cluster.workers.",
        ),
        (
            {"cluster__workers": 5},
            "train.batch_size 4 leaves some of 5 workers without an image; take 5 or more, or lower cluster.workers.",
        ),
        (
            {"model__arch": "pspnet", "model__encoder": "resnet18", "model__options": {}, "train__batch_size": 1},
            "pspnet normalises pooled features, which takes 2 images a worker;",
        ),
        ({"data__val_split": "vall"}, "streets has no split 'vall'. Did you mean val?"),
    ):
        with pytest.raises(SegrayError) as error:
            train(settings(**more))
        assert str(error.value).startswith(text)


def test_a_teacher_of_other_classes_is_refused(settings, tmp_path):
    space = LabelSpace(("road", "car"), ((0, 0, 0),) * 2)
    section = ModelSection(encoder="mobilenet_v2")
    info = BundleInfo(model=section, label_space=space.to_dict(), input_size=(32, 32))
    bundle.save(tmp_path / "teacher", build(section, 2), info)
    with pytest.raises(ModelError) as error:
        train(settings(train__teacher=str(tmp_path / "teacher")))
    assert str(error.value) == (
        f"train.teacher {tmp_path}/teacher knows 2 classes (road, car, …), the data 11 "
        "(sky, building, pole, road, pavement, …); a teacher has the data's classes."
    )


def test_samples_of_the_object_store_are_those_of_the_files(settings):
    """More than two blocks of them, each at its own position."""
    dataset = open_dataset(settings().data)
    refs, space = dataset.splits["train"] * 4, dataset.label_space
    stored = object_store.store_samples(refs, space, (32, 48))
    assert len(stored) == len(refs) > 2 * object_store.BLOCK
    for i in (0, 15, 16, 17, 40, len(refs) - 1):
        image_hwc, mask_hw = read_sample(refs[i], space, (32, 48))
        assert np.array_equal(stored[i].image_hwc, image_hwc)
        assert np.array_equal(stored[i].mask_hw, mask_hw)
