"""How weights move, on models of a few numbers."""

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from segray.config import load
from segray.core.models import build, encoder_of
from segray.core.training import optim
from segray.errors import ModelError
from segray.sections.training import ModelSection


def train(**values):
    return load(None, {f"train.{key}": value for key, value in values.items()}).train


@pytest.fixture(scope="module")
def model():
    return build(ModelSection(encoder="mobilenet_v2"), 3)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("poly", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.8535533, 0.5, 0.1464466]),
        ("step", [1, 0.1, 0.1, 0.01]),
    ],
)
def test_the_rate_follows_the_schedule(schedule, rates):
    config = train(schedule=schedule, learning_rate=1.0, warmup=0, poly_power=1.0, milestones=[0.25, 0.75])
    assert [optim.learning_rate(config, step, 4) for step in range(4)] == pytest.approx(rates)


def test_warm_up_rises_in_a_line_to_the_peak():
    config = train(schedule="constant", learning_rate=1.0, warmup=0.3)
    assert [optim.learning_rate(config, step, 10) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_one_cycle_is_torchs_rise_and_fall():
    config = train(schedule="onecycle", learning_rate=0.5, warmup=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = OneCycleLR(optimizer, 0.5, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=1e9)
    for step in range(100):
        # torch peaks a step earlier, at pct × total − 1
        assert optim.learning_rate(config, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.02)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")])
def test_norms_and_biases_are_not_decayed_and_the_encoder_has_a_rate_of_its_own(model, name, kind):
    optimizer = optim.make_optimizer(model, train(optimizer=name, weight_decay=0.1, encoder_lr=0.25))
    optim.set_rate(optimizer, 2.0)
    assert type(optimizer).__name__ == kind
    encoder = {id(p) for p in encoder_of(model).parameters()}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            assert group["lr"] == (0.5 if id(parameter) in encoder else 2.0)
            seen += 1
    assert seen == len(list(model.parameters()))


@pytest.mark.parametrize(("name", "rate", "decay"), [("adamw", 1e-3, 1e-2), ("adam", 1e-3, 0), ("sgd", 1e-2, 5e-4)])
def test_rate_and_decay_are_the_optimizers_where_none_are_given(model, name, rate, decay):
    config = train(optimizer=name, warmup=0)
    optimizer = optim.make_optimizer(model, config)
    assert optim.learning_rate(config, 0, 10) == optimizer.param_groups[0]["lr"] == rate
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0, decay}
    given = train(optimizer=name, learning_rate=0.5, weight_decay=0)
    assert (given.peak_rate, given.decay) == (0.5, 0)


def test_a_frozen_encoder_keeps_weights_and_statistics_until_it_thaws(model):
    config = train(freeze_encoder=True, unfreeze_after=2)
    assert [optim.is_frozen(config, epoch) for epoch in (1, 2, 3)] == [True, True, False]
    before = {name: tensor.clone() for name, tensor in encoder_of(model).state_dict().items()}
    decoder = model.segmentation_head[0].weight.detach().clone()
    optimizer = optim.make_optimizer(model, train(weight_decay=0.1))

    def step(frozen):
        optim.freeze(model, frozen)
        model(torch.randn(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(frozen=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder_of(model).state_dict().items())
    assert not torch.equal(model.segmentation_head[0].weight, decoder)
    step(frozen=False)
    after = encoder_of(model).state_dict()
    assert not torch.equal(after["features.0.0.weight"], before["features.0.0.weight"])
    assert not torch.equal(after["features.0.1.running_mean"], before["features.0.1.running_mean"])


def test_what_has_no_encoder_cannot_be_frozen():
    with pytest.raises(ModelError, match=r"^train\.freeze_encoder: this architecture has no encoder to freeze"):
        optim.freeze(build(ModelSection(arch="unet-plain", options={"channels": 4}), 2), True)


def test_averaged_weights_follow_with_a_decay_that_rises():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = optim.Average(model, 0.5)
    values = []
    for value in (1.0, 2.0, 2.0, 2.0):
        model.weight.data.fill_(value)
        ema.update(model)
        values.append(float(ema.module.weight))
    # first a copy; then the decay is (1 + n) / (10 + n): 2/11, 3/12, 4/13
    expected = [1.0]
    for n in (1, 2, 3):
        decay = min(0.5, (1 + n) / (10 + n))
        expected.append(decay * expected[-1] + (1 - decay) * 2.0)
    assert values == pytest.approx(expected)


def test_averages_take_in_the_norms_statistics_and_their_counts():
    model = torch.nn.BatchNorm1d(2)
    ema = optim.Average(model, 0.9)
    for _ in range(3):
        model(torch.randn(8, 2) + 5)
        ema.update(model)
    assert int(ema.module.num_batches_tracked) == 3
    assert (ema.module.running_mean > 0.3).all()


def test_positions_and_tokens_are_not_decayed():
    names = {
        "encoder.blocks.0.attn.qkv": True, "encoder.pos_embed": False, "encoder.cls_token": False, "reg_tokens": False,
        "layers.0.attn.relative_position_bias_table": False, "absolute_pos_embed": False, "blocks.1.attn.rel_pos_h": False,
        "encoder.pos_embed_proj.dense": True,
    }  # fmt: skip
    model = torch.nn.Module()
    for name in names:
        *folders, last = name.split(".")
        place = model
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, torch.nn.Module())
            place = getattr(place, folder)
        place.register_parameter(last, torch.nn.Parameter(torch.zeros(1, 2, 3)))
    decay = {
        id(p): g["weight_decay"]
        for g in optim.make_optimizer(model, train(weight_decay=0.1)).param_groups
        for p in g["params"]
    }
    assert {name: decay[id(parameter)] > 0 for name, parameter in model.named_parameters()} == names
