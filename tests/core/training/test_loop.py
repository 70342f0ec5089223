"""The training loop without Ray, on frames of 32×32."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segray.config import load
from segray.core import precision
from segray.core.data import MemorySamples, streets
from segray.core.models import build, bundle, forward
from segray.core.models.info import read_info
from segray.core.samples import Sample, TrainData
from segray.core.training import checkpoint, loop, objective, optim
from segray.core.training.workers import LocalWorker
from segray.errors import ConfigError, DataError, ModelError, ModelTooLarge, StorageError, Terminated
from segray.sections.training import ModelSection, TrainSection

SPACE = streets.LABEL_SPACE
SMALL = {"model.arch": "unet-plain", "model.options": {"channels": 8}}
WITH_ENCODER = {
    "model__arch": "unet",
    "model__encoder": "mobilenet_v2",
    "model__options": {"decoder_channels": [32, 16, 16, 8, 8]},
}


def samples(count, first=0):
    drawn = [streets.draw(first + i, (32, 32)) for i in range(count)]
    return MemorySamples([Sample(image, SPACE.apply(mask, "")) for image, mask in drawn])


def place(rank, world_size):
    """A worker that stands alone for one of several."""
    worker = LocalWorker()
    worker.rank, worker.world_size = rank, world_size
    return worker


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)  # sums in one order: equal means equal
    return TrainData(samples(6), samples(3, 100), SPACE, (32, 32), train_ids=tuple("abcdef"))


@pytest.fixture
def settings(tmp_path):
    def make(**more):
        (tmp_path / "run").mkdir(exist_ok=True)
        values = {"train.out": str(tmp_path / "run"), "train.batch_size": 2, **SMALL}
        return load(None, values | {key.replace("__", "."): value for key, value in more.items()})

    return make


def weights(config):
    return torch.load(f"{config.train.out}/last.pt", weights_only=True)["model"]


def evaluate(worker, model, config, data):
    return loop.evaluate(worker, model, config, data, objective.make_objective(worker, config, data))


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(settings, data, tmp_path):
    whole = settings(train__epochs=3)
    loop.fit(LocalWorker(), whole, data)

    class Killed(LocalWorker):
        def report(self, row):
            raise KeyboardInterrupt

    (tmp_path / "other").mkdir()
    stopped = settings(train__epochs=3, train__out=str(tmp_path / "other"))
    for worker in (Killed(), Killed(), LocalWorker()):
        try:
            loop.fit(worker, stopped, data)
        except KeyboardInterrupt:
            continue
    assert [row["epoch"] for row in checkpoint.read_history(str(tmp_path / "other"))] == [1, 2, 3]
    resumed = weights(stopped)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed[name]), name


def test_an_epoch_is_written_as_it_was_while_the_next_one_is_trained(settings, data, tmp_path, monkeypatch):
    """A slow store: epoch 1 is written when epoch 2 has been trained, and is what a run that stops there has."""
    trained, written = threading.Event(), []
    train_epoch, save_state = loop.train_epoch, checkpoint.save_state

    def train(*args):
        row = train_epoch(*args)
        if row["epoch"] == 2:
            trained.set()
        return row

    def write(out, state, history):
        assert trained.wait(30)
        save_state(out, state, history)
        written.append(torch.load(f"{out}/last.pt", weights_only=True))

    class Killed(LocalWorker):
        def report(self, row):
            raise KeyboardInterrupt

    (tmp_path / "other").mkdir()
    other = settings(train__epochs=2, train__ema=0.9, train__out=str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        loop.fit(Killed(), other, data)
    monkeypatch.setattr(loop, "train_epoch", train)
    monkeypatch.setattr(loop, "save_state", write)
    loop.fit(LocalWorker(), settings(train__epochs=2, train__ema=0.9), data)
    stopped = torch.load(tmp_path / "other" / "last.pt", weights_only=True)
    assert [len(state["history"]) for state in written] == [1, 2]
    for part in ("model", "ema"):
        for name, tensor in stopped[part].items():
            assert torch.equal(tensor, written[0][part][name]), name
    moments = [state["optimizer"]["state"][0]["exp_avg"] for state in (stopped, *written)]
    assert torch.equal(moments[0], moments[1])
    assert not torch.equal(moments[0], moments[2])


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_line(settings, data, monkeypatch):
    def full(out, state, history):
        raise StorageError("last.pt cannot be written: No space left on device")

    reported, epochs = [], []
    worker = LocalWorker()
    worker.report = reported.append
    monkeypatch.setattr(loop, "save_state", full)
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *args: epochs.append(1) or evaluate(*args))
    with pytest.raises(StorageError, match=r"^last.pt cannot be written: No space left on device$"):
        loop.fit(worker, settings(train__epochs=9), data)
    assert reported == []
    assert len(epochs) <= 2  # in the second one at the latest


@pytest.mark.parametrize("epochs", [2, 3])
def test_an_epoch_whose_row_was_not_written_any_more_is_reported_by_the_next_start(settings, data, tmp_path, epochs):
    """Killed between last.pt and history.jsonl, after the last epoch or before it."""
    loop.fit(LocalWorker(), settings(train__epochs=2), data)
    rows = tmp_path / "run" / "history.jsonl"
    rows.write_text(rows.read_text().splitlines(keepends=True)[0])
    reported = []
    worker = LocalWorker()
    worker.report = reported.append
    loop.fit(worker, settings(train__epochs=epochs), data)
    assert [row["epoch"] for row in reported] == [2, 3][: epochs - 1]
    assert [row["epoch"] for row in checkpoint.read_history(str(tmp_path / "run"))] == [1, 2, 3][:epochs]


def test_a_stopped_run_waits_for_the_epoch_that_is_being_written(settings, data, tmp_path, monkeypatch):
    train_epoch, save_state, stopped = loop.train_epoch, checkpoint.save_state, threading.Event()

    def train(worker, learner, config, data, epoch, *more):
        if epoch == 2:
            stopped.set()
            raise Terminated
        return train_epoch(worker, learner, config, data, epoch, *more)

    def write(*args):
        assert stopped.wait(30)
        save_state(*args)

    monkeypatch.setattr(loop, "train_epoch", train)
    monkeypatch.setattr(loop, "save_state", write)
    with pytest.raises(Terminated):
        loop.fit(LocalWorker(), settings(train__epochs=2), data)
    assert len(torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"]) == 1
    assert [row["epoch"] for row in checkpoint.read_history(str(tmp_path / "run"))] == [1]


def test_training_pixels_are_counted_thinned_and_without_void():
    masks = torch.full((1, 8, 8), 1)
    masks[0, 0, 0], masks[0, 1] = 255, 0  # a void pixel that is looked at, and a row that is not
    logits = torch.zeros(1, 2, 8, 8)
    logits[0, 0, 4, 4] = 1
    confusion = torch.zeros(3, 2, dtype=torch.int64)
    logits[0, 1] += 0.5
    loop.tally(confusion, masks, logits)
    assert confusion.tolist() == [[0, 0], [1, 2], [0, 1]]


@pytest.mark.slow
def test_of_every_third_epoch_there_is_an_evaluation_and_a_checkpoint_and_of_the_last(settings, data, tmp_path):
    reported = []

    class Stopped(LocalWorker):
        def report(self, row):
            reported.append(row["epoch"])
            if len(reported) == stop_at:
                raise KeyboardInterrupt

    run, whole = settings(train__epochs=7, train__eval_every=3), tmp_path / "whole"
    stop_at = 5  # epochs 4 to 6 are kept by then
    with pytest.raises(KeyboardInterrupt):
        loop.fit(Stopped(), run, data)
    stop_at = 0
    loop.fit(Stopped(), run, data)
    assert reported == [1, 2, 3, 4, 5, 7]
    history = checkpoint.read_history(str(tmp_path / "run"))
    assert [row["epoch"] for row in history if checkpoint.is_evaluated(row)] == [3, 6, 7]
    assert history[0]["miou"] is history[0]["val_loss"] is None
    whole.mkdir()
    loop.fit(LocalWorker(), run.changed({"train.out": str(whole)}), data)
    same = ("epoch", "loss", "val_loss", "miou")
    assert [[row[key] for key in same] for row in history] == [
        [row[key] for key in same] for row in checkpoint.read_history(str(whole))
    ]


def test_a_validation_that_counts_no_pixel_leaves_a_bundle_of_an_evaluated_epoch(settings, data, tmp_path):
    void = MemorySamples([Sample(one.image_hwc, np.full_like(one.mask_hw, 255)) for one in data.val.samples])
    loop.fit(LocalWorker(), settings(train__epochs=3, train__eval_every=2), replace(data, val=void))
    assert read_info(str(tmp_path / "run" / "best")).epoch == 2


def test_patience_is_lost_at_an_evaluation_alone():
    nan, found = float("nan"), []
    for miou in (nan, nan, 0.5, nan, nan, 0.4):  # every third epoch is evaluated
        found.append({"miou": miou, "evaluated": miou == miou})
        assert checkpoint.is_finished(TrainSection(patience=2), found) == (len(found) == 6)


def test_it_learns_and_keeps_the_bundle_of_its_best_epoch(settings, data, tmp_path):
    loop.fit(LocalWorker(), settings(train__epochs=16, train__learning_rate=1e-2), data)
    history = checkpoint.read_history(str(tmp_path / "run"))
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert 0 < history[0]["train_miou"] < history[-1]["train_miou"] <= history[-1]["train_pixel_accuracy"] <= 1
    best = max(history, key=lambda row: row["miou"])
    info = read_info(str(tmp_path / "run" / "best"))
    assert (info.epoch, info.scores["miou"]) == (best["epoch"], best["miou"])
    labelled = sum(int((sample.mask_hw != 255).sum()) for sample in data.val.samples)
    assert np.sum(info.confusion) == labelled


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluation_does_not_depend_on_the_batch(settings, data, batch_size):
    torch.manual_seed(0)
    model = build(settings().model, 11)
    confusion, loss = evaluate(LocalWorker(), model, settings(train__batch_size=batch_size), data)
    torch.manual_seed(0)
    again, same = evaluate(LocalWorker(), build(settings().model, 11), settings(), data)
    assert np.abs(confusion - again).sum() <= 4  # a tie may fall otherwise, as sums differ in their last bit
    assert loss == pytest.approx(same, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_each_labelled_pixel_is_counted_once_whatever_the_batch(settings, data, batch_size):
    model = build(settings().model, 11)
    confusion, _ = evaluate(LocalWorker(), model, settings(train__batch_size=batch_size), data)
    truths = np.stack([sample.mask_hw for sample in data.val.samples])
    assert confusion.sum(1).tolist() == np.bincount(truths[truths != 255], minlength=11).tolist()


def test_two_workers_together_evaluate_each_sample_once(settings, data, monkeypatch):
    monkeypatch.setattr(loop, "all_reduce", lambda worker, tensor: tensor)  # each keeps its own share
    model = build(settings().model, 11)
    whole, _ = evaluate(LocalWorker(), model, settings(train__batch_size=1), data)
    shares = []
    for rank in (0, 1):
        worker = place(rank, 2)
        shares.append(evaluate(worker, model, settings(train__batch_size=2), data)[0])
    assert (shares[0] + shares[1]).tolist() == whole.tolist()
    assert all(share.any() for share in shares)


def test_the_workers_share_each_global_batch():
    config = load(None, {"train.batch_size": 6}).train
    for world in (1, 2, 3):
        shares = [
            loop.epoch_batches(20, config, 5, SimpleNamespace(rank=rank, world_size=world)) for rank in range(world)
        ]
        steps = [[i for share in shares for i in share[k]] for k in range(3)]
        assert steps == loop.epoch_batches(20, config, 5, SimpleNamespace(rank=0, world_size=1))
    assert len({i for step in steps for i in step}) == 18


def test_the_shares_of_a_batch_differ_by_one_frame_at_most():
    config = load(None, {"train.batch_size": 8}).train
    shares = [loop.epoch_batches(8, config, 1, SimpleNamespace(rank=rank, world_size=3))[0] for rank in range(3)]
    assert [len(share) for share in shares] == [2, 3, 3]
    assert [i for share in shares for i in share] == loop.epoch_batches(8, config, 1, LocalWorker())[0]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_frame_of_a_batch_weighs_the_same_in_the_gradient_whatever_the_number_of_workers(
    settings, data, monkeypatch, world
):
    """Five frames of equally many pixels; the workers' gradients are averaged as DDP does."""
    monkeypatch.setattr(loop, "all_reduce", lambda worker, tensor: tensor)
    config = settings(train__batch_size=5, model__batch_norm=False, augment__flip=0.0, augment__max_class_share=1.0)
    plain = MemorySamples([Sample(s.image_hwc, s.mask_hw.clip(max=10)) for s in data.train.samples])

    def gradients(rank, world_size):
        torch.manual_seed(0)
        model = build(config.model, 11)
        worker = place(rank, world_size)
        goal = objective.make_objective(worker, config, data)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        found = []
        monkeypatch.setattr(loop, "move", lambda learner, train: found.extend(p.grad for p in model.parameters()))
        learner = loop.Learner(model, optim.make_optimizer(model, config.train), scaler, goal)
        loss = loop.train_epoch(worker, learner, config, replace(data, train=plain), 1)["loss"]
        return found, loss * world_size  # check_finite() divides the workers' sum

    whole, loss = gradients(0, 1)
    shares = [gradients(rank, world) for rank in range(world)]
    assert sum(share for _, share in shares) / world == pytest.approx(loss, rel=1e-5)
    for wanted, *found in zip(whole, *(share for share, _ in shares), strict=True):
        torch.testing.assert_close(sum(found) / world, wanted, rtol=1e-3, atol=1e-6)


def test_a_set_smaller_than_a_batch_is_gone_through_again():
    config = load(None, {"train.batch_size": 8}).train
    (step,) = loop.epoch_batches(3, config, 1, LocalWorker())
    assert sorted(set(step)) == [0, 1, 2]
    assert len(step) == 8


def test_the_learning_rate_warms_up_and_ends_near_zero():
    config = load(None, {"train.learning_rate": 1.0, "train.warmup": 0.1}).train
    rates = [optim.learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert 0 < rates[99] < 0.03


def test_a_loss_that_is_not_finite_keeps_what_was_trained(settings, data):
    good = settings(train__epochs=1)
    loop.fit(LocalWorker(), good, data)
    before = weights(good)
    with pytest.raises(DataError) as error:
        loop.fit(LocalWorker(), settings(train__epochs=2, train__learning_rate=1e38), data)
    order = loop.epoch_order(6, good.train, 2)
    frames = ", ".join(data.train_ids[i] for i in order[2:4])  # the first step's weights make the second's loss
    assert str(error.value) in [
        f"The loss is {value} in epoch 2, step 2, frames {frames}; lower train.learning_rate (1e+38). "
        "Epochs that ended are kept."
        for value in ("nan", "inf")
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(good).items())


def test_weights_that_the_last_step_blew_up_are_not_kept(settings, data, tmp_path):
    """One step an epoch: its loss is of the weights before it, and still finite."""
    good = settings(train__epochs=1, train__batch_size=6)
    loop.fit(LocalWorker(), good, data)
    before, best = weights(good), read_info(str(tmp_path / "run" / "best"))
    with pytest.raises(
        DataError, match=r"^The validation loss is (nan|inf) in epoch 2; lower train.learning_rate \(1e\+38\)"
    ):
        loop.fit(LocalWorker(), settings(train__epochs=2, train__batch_size=6, train__learning_rate=1e38), data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(good).items())
    assert read_info(str(tmp_path / "run" / "best")) == best
    assert [row["epoch"] for row in checkpoint.read_history(str(tmp_path / "run"))] == [1]


def test_a_val_split_of_void_alone_ends_no_run(settings, data):
    void = MemorySamples([Sample(sample.image_hwc, np.full_like(sample.mask_hw, 255)) for sample in data.val.samples])
    config = settings(train__epochs=1)
    loop.fit(LocalWorker(), config, TrainData(data.train, void, SPACE, (32, 32)))
    (row,) = checkpoint.read_history(config.train.out)
    assert row["miou"] is None


def test_training_masks_of_void_alone_are_refused(settings, data):
    void = MemorySamples([Sample(sample.image_hwc, np.full_like(sample.mask_hw, 255)) for sample in data.train.samples])
    with pytest.raises(DataError, match=r"^No pixel of the 6 training masks is labelled: all are void\."):
        loop.fit(LocalWorker(), settings(train__epochs=1), TrainData(void, data.val, SPACE, (32, 32)))


RECIPES = {
    "sgd": {"train__optimizer": "sgd", "train__schedule": "onecycle", "train__gradient_clip": 1.0},
    "averaged": {"train__ema": 0.9, "train__gradient_clip": 1.0, "train__accumulate": 2, **WITH_ENCODER},
    "thawing": {"train__freeze_encoder": True, "train__unfreeze_after": 1, "train__encoder_lr": 0.1, **WITH_ENCODER},
    "mixed": {"augment__mix": "classmix", "train__loss": {"lovasz": 1.0, "focal": 0.5}, "augment__crop": "24x24"},
    "balanced": {"train__class_weights": "median", "train__loss": "ohem"},
    "attention": {"model__arch": "danet", "model__encoder": "mobilenet_v2", "model__options": {}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("attention", "averaged"))) for name in RECIPES]
)
def test_every_recipe_resumes_as_if_it_had_not_stopped(settings, data, tmp_path, name):
    loop.fit(LocalWorker(), settings(train__epochs=2, **RECIPES[name]), data)
    (tmp_path / "other").mkdir()
    stopped = settings(train__epochs=2, train__out=str(tmp_path / "other"), **RECIPES[name])

    class Killed(LocalWorker):
        def report(self, row):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(Killed(), stopped, data)
    loop.fit(LocalWorker(), stopped, data)
    files = [torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("run", "other")]
    for part in ("model", "ema"):
        for key, tensor in files[0].get(part, {}).items():
            assert torch.equal(tensor, files[1][part][key]), key


def test_averaged_weights_are_those_that_are_scored_and_kept(settings, data, tmp_path):
    config = settings(train__epochs=1, train__ema=0.9, **WITH_ENCODER)
    loop.fit(LocalWorker(), config, data)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    kept = bundle.load(str(tmp_path / "run" / "best"))[0].state_dict()
    key = "encoder.features.0.0.weight"
    assert torch.equal(kept[key], state["ema"][f"module.{key}"])
    assert not torch.equal(kept[key], state["model"][key])


def test_a_bundle_that_does_not_score_as_it_was_measured_ends_the_run_with_an_error(settings, data, monkeypatch):
    save = bundle.save

    def lossy(folder, model, info):
        torch.manual_seed(0)
        other = build(info.model, len(info.label_space["names"]))
        return save(folder, other, info)

    config = settings(train__epochs=4, train__learning_rate=1e-2)
    monkeypatch.setattr(bundle, "save", lossy)
    with pytest.raises(ModelError, match=r"/run/best is not the model that was measured: of the validation pixels \d+"):
        loop.fit(LocalWorker(), config, data)
    monkeypatch.setattr(bundle, "save", save)
    loop.fit(LocalWorker(), config.changed({"train.epochs": 8}), data)


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you …"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_is_one_line_with_what_to_try(settings, data, monkeypatch, raised):
    def full(model, images):
        raise raised

    monkeypatch.setattr(loop, "forward_all", full)
    with pytest.raises(ModelError) as error:
        loop.fit(LocalWorker(), settings(augment__crop="24x16"), data)
    assert str(error.value) == (
        "unet-plain does not fit into the memory of cpu with 2 frames of 24×16 (height × width) a worker. "
        "--batch-size auto halves train.batch_size (2) and doubles train.accumulate (1) until it fits; or set a smaller "
        "augment.crop. Epochs that ended are kept."
    )
    with pytest.raises(ModelError) as error:
        loop.fit(LocalWorker(), settings(augment__crop="24x16", train__batch_size=1), data)
    assert str(error.value) == (
        "unet-plain does not fit into the memory of cpu with 1 frame of 24×16 (height × width) a worker. "
        "Set a smaller augment.crop, or take a smaller encoder. Epochs that ended are kept."
    )


def test_memory_that_runs_out_while_validating_is_a_line_as_well(settings, data, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(loop.metrics, "confusion_matrix", full)
    with pytest.raises(ModelTooLarge, match="does not fit into the memory of cpu with 2 frames of 32×32"):
        loop.fit(LocalWorker(), settings(train__epochs=1), data)


def test_an_encoder_that_normalises_pooled_features_says_that_it_takes_two_images(settings, data):
    skresnet = {"model__arch": "unet", "model__encoder": "timm-skresnet18", "model__options": {}}
    with pytest.raises(ConfigError) as error:
        loop.fit(LocalWorker(), settings(**skresnet, train__batch_size=1), data)
    assert str(error.value) == (
        "unet over timm-skresnet18 normalises pooled features, which takes 2 images a worker; "
        "train.batch_size is 1 for 1: take 2 or more."
    )


def test_a_last_group_of_accumulated_steps_counts_as_much_as_the_others(settings, data, tmp_path):
    """Three steps of two frames in groups of two: the last one, alone, moves the weights as it would without groups."""
    scales = []

    class Scaler(torch.amp.GradScaler):
        def scale(self, loss):
            scales.append(float(loss.detach()))
            return super().scale(loss)

    for accumulate in (1, 2):
        torch.manual_seed(0)
        config = settings(train__accumulate=accumulate, train__learning_rate=1e-12, train__optimizer="sgd")
        model = build(config.model, 11)
        learner = loop.Learner(model, optim.make_optimizer(model, config.train), Scaler("cpu", enabled=False), None)
        learner.objective = objective.make_objective(LocalWorker(), config, data)
        loop.train_epoch(LocalWorker(), learner, config, data, 1)
    plain, grouped = scales[:3], scales[3:]
    assert grouped == pytest.approx([plain[0] / 2, plain[1] / 2, plain[2]], rel=1e-3)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: a number that is read, places that are looked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount")
        self.count += func.overloadpacket.__name__ in names
        self.count += func.overloadpacket.__name__ == "index" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice", "ohem"])
def test_the_host_does_not_wait_for_the_device_in_a_step(settings, data, loss):
    """By SGD, as AdamW reads the numbers of its steps, which are on the CPU."""
    counts = []
    for frames in (2, 6):
        config = settings(train__loss=loss, train__optimizer="sgd", augment__mix="classmix", train__gradient_clip=1.0)
        model = build(config.model, 11)
        goal = objective.make_objective(LocalWorker(), config, data)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        learner = loop.Learner(model, optim.make_optimizer(model, config.train), scaler, goal)
        part = TrainData(MemorySamples(data.train.samples[:frames]), data.val, SPACE, (32, 32))
        with Waits() as waits:
            loop.train_epoch(LocalWorker(), learner, config, part, 1)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_patience_ends_a_run_and_the_same_call_does_not_go_on(settings, data, tmp_path):
    still = {**WITH_ENCODER, "train__freeze_encoder": True, "model__options": {"decoder_use_norm": False}}
    config = settings(train__epochs=9, train__patience=2, train__learning_rate=1e-12, **still)
    for _ in range(2):
        loop.fit(LocalWorker(), config, data)
        assert len(checkpoint.read_history(str(tmp_path / "run"))) == 3


@pytest.mark.slow
def test_a_teacher_pulls_the_student_towards_its_labels(settings, data, tmp_path):
    """All masks void but a corner: what is learned is the teacher's opinion."""
    still = {"augment__scale": (1, 1), "augment__rotate_deg": 0, "train__learning_rate": 1e-2}
    teacher = settings(train__epochs=20, **still)
    loop.fit(LocalWorker(), teacher, data)
    masks = [np.full((32, 32), 255, np.uint8) for _ in range(6)]
    for mask in masks:
        mask[:4, :4] = 0
    unlabelled = MemorySamples([Sample(s.image_hwc, m) for s, m in zip(data.train.samples, masks, strict=True)])
    agreement = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"student{weight}"
        out.mkdir()
        config = settings(
            train__epochs=12, train__out=str(out), train__seed=1, **still,
            train__teacher=str(tmp_path / "run" / "best"), train__teacher_weight=weight,
        )  # fmt: skip
        loop.fit(LocalWorker(), config, TrainData(unlabelled, data.val, SPACE, (32, 32)))
        agreement[weight] = checkpoint.read_history(str(out))[-1]["pixel_accuracy"]
    assert agreement[5.0] > agreement[0.0] + 0.05


def test_settings_that_a_device_cannot_follow_are_one_line(settings, data, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has", lambda *names: False)
    for more, text in (
        ({"train__precision": "fp16"}, "train.precision fp16 needs a GPU"),
        ({"train__precision": "bf16"}, "train.precision bf16: this CPU lacks the instructions"),
        ({"train__sync_batch_norm": True}, "train.sync_batch_norm needs GPUs"),
        ({"train__class_weights": [1.0, 2.0]}, "train.class_weights holds 2 numbers for 11 classes"),
    ):
        with pytest.raises(ConfigError) as error:
            loop.fit(LocalWorker(), settings(**more), data)
        assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("asked", "amx", "given"), [("auto", True, True), ("auto", False, False), ("fp32", True, False)]
)
def test_bf16_by_itself_where_the_cpu_is_made_for_it(settings, monkeypatch, asked, amx, given):
    monkeypatch.setattr(precision, "cpu_has", lambda *names: amx and "amx_bf16" in names)
    with precision.autocast(settings(train__precision=asked).train, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == given


def test_median_weights_are_the_same_for_one_worker_and_by_hand(data):
    pixels = np.stack([np.bincount(s.mask_hw.ravel(), minlength=256)[:11] for s in data.train.samples])
    labelled = np.array([(s.mask_hw != 255).sum() for s in data.train.samples])
    frequency = pixels.sum(0) / np.maximum(1, ((pixels > 0) * labelled[:, None]).sum(0))
    seen = frequency > 0
    weights = objective.median_weights(LocalWorker(), data)
    expected = np.median(frequency[seen]) / frequency[seen]
    assert np.array(weights)[seen] == pytest.approx(expected, rel=1e-5)


def test_a_state_that_was_cut_is_refused(settings, data, tmp_path):
    config = settings(train__epochs=1)
    loop.fit(LocalWorker(), config, data)
    state = tmp_path / "run" / "last.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=rf"^{state} cannot be continued from: "):
        loop.fit(LocalWorker(), settings(train__epochs=2), data)


@pytest.mark.parametrize(
    ("data_on_disk", "why"),
    [
        (b"", "EOFError"),
        (b"<html>", "Weights only load failed. "),
        (bytes(100), "Weights only load failed. "),
    ],
)
def test_a_state_that_is_none_is_refused(settings, data, tmp_path, data_on_disk, why):
    config = settings(train__epochs=1)
    (tmp_path / "run" / "last.pt").write_bytes(data_on_disk)
    with pytest.raises(ModelError) as error:
        loop.fit(LocalWorker(), config, data)
    assert str(error.value).startswith(f"{tmp_path}/run/last.pt cannot be continued from: {why}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("state", [{}, [1], {"model": {}, "optimizer": {}, "history": []}, {"model": 3}])
def test_a_state_of_something_else_is_refused(settings, data, tmp_path, state):
    config = settings(train__epochs=1)
    torch.save(state, tmp_path / "run" / "last.pt")
    with pytest.raises(ModelError, match=rf"^{tmp_path}/run/last.pt cannot be continued from: "):
        loop.fit(LocalWorker(), config, data)


def test_a_run_in_bf16_goes_on_in_fp16_on_an_older_gpu(tmp_path):
    layer = torch.nn.Linear(1, 1)
    before = {"model": layer, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
    checkpoint.save_state(str(tmp_path), checkpoint.snapshot(before), [])
    fp16 = torch.amp.GradScaler("cpu", enabled=True)
    checkpoint.load_state(str(tmp_path), {"model": layer, "scaler": fp16}, torch.device("cpu"))
    assert fp16.get_scale() == torch.amp.GradScaler("cpu").get_scale()


def test_a_state_of_another_encoder_is_refused(settings, data, tmp_path):
    loop.fit(LocalWorker(), settings(train__epochs=1), data)
    with pytest.raises(ModelError, match=rf"^{tmp_path}/run/last.pt cannot be continued from: "):
        loop.fit(LocalWorker(), settings(train__epochs=2, **WITH_ENCODER), data)


def test_a_failing_read_ahead_is_told_and_not_swallowed(data):
    class Broken(MemorySamples):
        def __getitem__(self, index):
            if index == 2:
                raise DataError("frame 2 cannot be decoded")
            return super().__getitem__(index)

    batches = loop.read_batches(Broken(data.train.samples), (32, 32), [[0], [1], [2], [3]], torch.device("cpu"))
    assert next(batches)[0].shape == (1, 32, 32, 3)
    assert next(batches)[1].shape == (1, 32, 32)
    with pytest.raises(DataError, match=r"^frame 2 cannot be decoded$"):
        next(batches)


def test_batches_hold_the_samples_that_were_asked_for(data):
    steps = [[3, 0], [5], [1, 1]]
    for (images, masks), step in zip(
        loop.read_batches(data.train, (32, 32), steps, torch.device("cpu")), steps, strict=True
    ):
        assert images.tolist() == [data.train[i].image_hwc.tolist() for i in step]
        assert masks.tolist() == [data.train[i].mask_hw.tolist() for i in step]


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_is_one_order_of_all_samples_and_another_each_time(epoch):
    config = load(None, {"train.batch_size": 5}).train
    steps = loop.epoch_batches(20, config, epoch, LocalWorker())
    assert sorted(i for step in steps for i in step) == list(range(20))
    assert steps == loop.epoch_batches(20, config, epoch, LocalWorker())
    assert steps != loop.epoch_batches(20, config, epoch + 1, LocalWorker())


def test_the_best_epoch_is_the_first_of_the_highest():
    def best(*scores):
        return checkpoint.best_epoch([{"miou": score} for score in scores])

    nan = float("nan")
    assert [best(), best(0.1), best(nan), best(0.1, 0.2), best(0.2, 0.2), best(0.0, nan), best(None, 0.0)] == [
        0,
        1,
        1,
        2,
        1,
        1,
        2,
    ]


def test_padding_is_on_the_right_and_below_and_is_cut_off():
    class Seen(torch.nn.Module):
        def forward(self, images):
            self.shape = tuple(images.shape)
            return images

    model, images = Seen(), torch.randn(2, 3, 33, 47)
    assert torch.equal(forward(model, images), images)
    assert model.shape == (2, 3, 64, 64)
    forward(model, images[..., :32, :32])
    assert model.shape == (2, 3, 32, 32)


def test_unknown_names_come_with_the_nearest():
    for names, text in (
        (
            {"encoder": "resnet81"},
            "model.encoder 'resnet81' is unknown. Did you mean resnet18 or resnet152 or resnet101?",
        ),
        ({"arch": "unett"}, "model.arch 'unett' is unknown. Did you mean unet or upernet or manet?"),
        ({"encoder": "tu-nonexistent"}, "unet over tu-nonexistent cannot be built: Unknown model (nonexistent)"),
    ):
        with pytest.raises(ModelError) as error:
            build(ModelSection(**names), 2)
        assert str(error.value) == text
