"""The training loop without Ray, on frames of 32×32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segray.config import ModelSection, load
from segray.core import loop
from segray.core.datasets import MemorySamples, streets
from segray.core.models import build, bundle, forward
from segray.core.samples import Sample
from segray.errors import DataError, ModelError

SPACE = streets.LABEL_SPACE


def samples(count, first=0):
    drawn = [streets.draw(first + i, (32, 32)) for i in range(count)]
    return MemorySamples([Sample(image, SPACE.apply(mask, "")) for image, mask in drawn])


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)  # sums in one order: equal means equal
    return loop.TrainData(samples(6), samples(3, 100), SPACE, (32, 32))


@pytest.fixture
def settings(tmp_path):
    def make(**more):
        (tmp_path / "run").mkdir(exist_ok=True)
        values = {"train.out": str(tmp_path / "run"), "train.batch_size": 2, "model.encoder": "mobilenet_v2"}
        return load(None, values | {key.replace("__", "."): value for key, value in more.items()})

    return make


def weights(config):
    return torch.load(f"{config.train.out}/last.pt", weights_only=True)["model"]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(settings, data, tmp_path):
    whole = settings(train__epochs=3)
    loop.fit(loop.LocalWorker(), whole, data)

    class Killed(loop.LocalWorker):
        def report(self, row):
            raise KeyboardInterrupt

    (tmp_path / "other").mkdir()
    stopped = settings(train__epochs=3, train__out=str(tmp_path / "other"))
    for worker in (Killed(), Killed(), loop.LocalWorker()):
        try:
            loop.fit(worker, stopped, data)
        except KeyboardInterrupt:
            continue
    assert [row["epoch"] for row in loop.read_history(tmp_path / "other")] == [1, 2, 3]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(stopped)[name]), name


def test_it_learns_and_keeps_the_bundle_of_its_best_epoch(settings, data, tmp_path):
    loop.fit(loop.LocalWorker(), settings(train__epochs=12, train__learning_rate=3e-3), data)
    history = loop.read_history(tmp_path / "run")
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    best = max(history, key=lambda row: row["miou"])
    info = bundle.read_info(str(tmp_path / "run" / "best"))
    assert (info.epoch, info.scores["miou"]) == (best["epoch"], best["miou"])
    labelled = sum(int((sample.mask_hw != 255).sum()) for sample in data.val.samples)
    assert np.sum(info.confusion) == labelled


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluation_does_not_depend_on_the_batch(settings, data, batch_size):
    torch.manual_seed(0)
    model = build(ModelSection(encoder="mobilenet_v2"), 11)
    confusion, loss = loop.evaluate(loop.LocalWorker(), model, settings(train__batch_size=batch_size), data)
    torch.manual_seed(0)
    again, same = loop.evaluate(loop.LocalWorker(), build(ModelSection(encoder="mobilenet_v2"), 11), settings(), data)
    assert np.abs(confusion - again).sum() <= 4  # a tie may fall otherwise, as sums differ in their last bit
    assert loss == pytest.approx(same, rel=1e-4)


def test_the_workers_share_each_global_batch():
    config = load(None, {"train.batch_size": 6}).train
    for world in (1, 2, 3):
        shares = [
            loop.epoch_batches(20, config, 5, SimpleNamespace(rank=rank, world_size=world)) for rank in range(world)
        ]
        steps = [[i for share in shares for i in share[k]] for k in range(3)]
        assert steps == loop.epoch_batches(20, config, 5, SimpleNamespace(rank=0, world_size=1))
    assert len({i for step in steps for i in step}) == 18


def test_a_set_smaller_than_a_batch_is_gone_through_again():
    config = load(None, {"train.batch_size": 8}).train
    (step,) = loop.epoch_batches(3, config, 1, loop.LocalWorker())
    assert sorted(set(step)) == [0, 1, 2]
    assert len(step) == 8


def test_the_learning_rate_warms_up_and_ends_near_zero():
    config = load(None, {"train.learning_rate": 1.0, "train.warmup": 0.1}).train
    rates = [loop.learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert 0 < rates[99] < 0.03


def test_a_loss_that_is_not_finite_keeps_what_was_trained(settings, data):
    good = settings(train__epochs=1)
    loop.fit(loop.LocalWorker(), good, data)
    before = weights(good)
    with pytest.raises(DataError, match=r"^The loss is (nan|inf) in epoch 2; lower train.learning_rate"):
        loop.fit(loop.LocalWorker(), settings(train__epochs=2, train__learning_rate=1e38), data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(good).items())


def test_a_state_that_was_cut_is_refused(settings, data, tmp_path):
    config = settings(train__epochs=1)
    loop.fit(loop.LocalWorker(), config, data)
    state = tmp_path / "run" / "last.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=rf"^{state} cannot be continued from: "):
        loop.fit(loop.LocalWorker(), settings(train__epochs=2), data)


@pytest.mark.parametrize("arch", ["unet", "fpn", "deeplabv3plus"])
@pytest.mark.parametrize("size", [(33, 47), (64, 32), (1, 1)])
def test_every_size_goes_through_every_decoder(arch, size):
    model = build(ModelSection(arch=arch, encoder="mobilenet_v2"), 3).eval()
    with torch.inference_mode():
        assert forward(model, torch.zeros(1, 3, *size)).shape == (1, 3, *size)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ModelError, match=r"^model\.encoder 'resnet81' is unknown\. Did you mean resnet18"):
        build(ModelSection(encoder="resnet81"), 2)
