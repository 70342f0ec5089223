"""What a run's folder keeps of its settings; no Ray, and nothing is trained."""

import pytest

from segray.config import load
from segray.core.checkpoint import read_history, read_settings
from segray.core.datasets import streets
from segray.errors import ConfigError, OutputExists, SegrayError
from segray.train import begun, claim, is_empty, train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=4, val=2, size=(32, 48), video_s=0)


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


def test_what_fails_removes_what_it_made_and_no_results_of_another_run(tmp_path):
    out, failed = str(tmp_path / "run"), ConfigError("no GPU")
    for made in (("config.yaml",), ()):  # begun in an empty folder, and in one that holds a run
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text("train: {}")
        with pytest.raises(ConfigError), begun(out, made, lambda: False):
            raise failed
        assert is_empty(out) == bool(made)


def test_a_finished_run_whose_state_was_deleted_is_kept_when_the_next_command_fails(town, tmp_path):
    out = tmp_path / "run"
    config = load(None, {
        "data.format": "streets", "data.root": str(town), "data.size": "32x48", "train.out": str(out),
        "model.arch": "unet-plain", "model.options": {"channels": 4}, "train.epochs": 1, "train.batch_size": 2,
        "cluster.workers": 0, "cluster.gpu": False,
    })  # fmt: skip
    train(config)
    (out / "last.pt").unlink()
    with pytest.raises(SegrayError):
        train(config.changed({"train.epochs": 2, "cluster.gpu": True}))
    assert (out / "best" / "segray.json").exists()
    assert len(read_history(str(out))) == 1
