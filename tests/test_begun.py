"""What a run's folder keeps of its settings; no Ray, and nothing is trained."""

import pytest

from segray.config import load
from segray.core.checkpoint import read_settings
from segray.errors import OutputExists
from segray.train import claim


def kept(out):
    train = read_settings(str(out)).train
    return train.optimizer, train.learning_rate, train.weight_decay


def test_a_run_keeps_the_rate_and_decay_that_its_optimizer_was_given(tmp_path):
    claim(load(None, {"train.out": str(tmp_path), "train.optimizer": "sgd"}), overwrite=False)
    assert kept(tmp_path) == ("sgd", 1e-2, 5e-4)


def test_a_run_that_began_with_other_defaults_goes_on_with_them(tmp_path):
    older = {"train.optimizer": "sgd", "train.learning_rate": 1e-3, "train.weight_decay": 1e-2}
    claim(load(None, {"train.out": str(tmp_path), **older}), overwrite=False)
    same = load(None, {"train.out": str(tmp_path), "train.optimizer": "sgd"})
    assert claim(same, overwrite=False).train.peak_rate == 1e-3
    assert kept(tmp_path) == ("sgd", 1e-3, 1e-2)
    with pytest.raises(OutputExists, match=r"\(train.learning_rate was 0.001, is 0.5\)"):
        claim(same.changed({"train.learning_rate": 0.5}), overwrite=False)
    claim(same, overwrite=True)
    assert kept(tmp_path) == ("sgd", 1e-2, 5e-4)


def test_large_frames_are_cropped_in_new_runs_and_not_in_those_that_began_whole(tmp_path):
    new, old = ({"train.out": str(tmp_path / name)} for name in ("new", "old"))
    assert claim(load(None, new), False, (1024, 2048)).augment.crop == (512, 1024)
    assert claim(load(None, new), False, (1024, 2048)).augment.crop == (512, 1024)
    given = {"augment.crop": "768x768"}
    assert claim(load(None, new | given), True, (1024, 2048)).augment.crop == (768, 768)
    claim(load(None, old | {"augment.scale": [0.5, 2.0]}), overwrite=False)  # as it was before there was a rule
    whole = claim(load(None, old), False, (1024, 2048)).augment
    assert (whole.crop, whole.scale) == (None, (0.5, 2.0))
    assert claim(load(None, {"train.out": str(tmp_path / "small")}), False, (360, 480)).augment.crop is None
