"""Cost of a model: counted by hand where it can be, there where it is measured."""

import sys

import pytest
import torch

from segray.config import Config, InferSection
from segray.core.cost import engine_speeds, labelling_cost, multiply_adds, training_step_s
from segray.core.models.bundle import count_parameters


def test_multiply_adds_of_a_convolution_are_those_of_its_definition():
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    assert multiply_adds(model, (64, 96)) == 64 * 96 * 4 * 3 * 9


def test_a_bundle_has_a_speed_a_peak_and_a_size(plain_bundle):
    threads = torch.get_num_threads()
    cost = labelling_cost(str(plain_bundle), "cpu", threads)
    assert cost.images_per_s > 0
    assert cost.peak_memory_mib is None or cost.peak_memory_mib >= 0
    assert 0.01 < cost.gmacs < 1
    assert cost.parameters == count_parameters(str(plain_bundle))


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_once")
def test_engines_are_timed_and_those_that_cannot_be_are_left_out(plain_bundle, monkeypatch):
    threads = torch.get_num_threads()
    speeds = engine_speeds(str(plain_bundle), InferSection(engine="auto"), threads)
    assert list(speeds) == ["torch", "onnx"]
    assert min(speeds.values()) > 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert list(engine_speeds(str(plain_bundle), InferSection(engine="auto"), threads)) == ["torch"]


def test_a_training_step_takes_time():
    assert training_step_s(Config(), 3, (32, 48), "cpu") > 0
