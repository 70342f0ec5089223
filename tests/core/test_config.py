import os
import re

import pytest

from segray.config import PLACES, Config, load, parse_override
from segray.core.io import storage
from segray.errors import ConfigError
from segray.sections.values import READY_MODELS


def message(file=None, **overrides):
    with pytest.raises(ConfigError) as error:
        load(file, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(error.value)


@pytest.mark.parametrize("wrong", ["many", "0", -1, 1.5, True])
def test_a_batch_size_is_a_number_or_auto(wrong):
    assert [load(None, {"train.batch_size": size}).train.batch_size for size in ("8", 8.0, "auto")] == [8, 8, "auto"]
    with pytest.raises(ConfigError) as error:
        load(None, {"train.batch_size": wrong})
    assert str(error.value) == f"settings: train.batch_size is {wrong!r}; give a number of images, 1 or more, or auto."


def test_a_file_of_settings_may_be_a_pipe_in_ones_home_or_in_a_bucket(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("train: {epochs: 3}")
    storage.replace(f"{s3}/c.yaml", b"train: {epochs: 4}")
    read, write = os.pipe()
    os.write(write, b"train: {epochs: 5}")
    os.close(write)
    assert [load(file).train.epochs for file in ("~/c.yaml", f"{s3}/c.yaml", f"/dev/fd/{read}")] == [3, 4, 5]
    os.close(read)


def test_objects_are_spilled_to_disks():
    line = "settings: cluster.spill_dir is 's3://b/spill'; give a folder on the disks of the machines."
    assert message(cluster__spill_dir="s3://b/spill") == line


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("augment.scale", [2.0, 1.0], "[2.0, 1.0]; give two numbers above 0, the smaller one first, such as [0.5, 2]."),
        ("augment.scale", [0, 1], "[0, 1]; give two numbers above 0, the smaller one first, such as [0.5, 2]."),
        ("model.std", [1, 0, 1], "[1, 0, 1]; give numbers above 0."),
        ("train.seed", -1, "-1; input should be greater than or equal to 0."),
        ("train.learning_rate", float("inf"), "inf; input should be a finite number."),
        ("label.fps", float("nan"), "nan; input should be a finite number."),
    ],
)
def test_numbers_with_which_nothing_can_be_computed_are_refused(key, value, rule):
    assert message(**{key.replace(".", "__"): value}) == f"settings: {key} is {rule}"


def test_what_is_saved_is_read_back_equal(tmp_path):
    config = load(None, {"data.size": "180x240", "train.learning_rate": 3e-4, "sweep.encoders": ["a", "b"]})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load(str(tmp_path / "c.yaml")) == config


def test_an_unknown_key_names_the_nearest_one_beside_it():
    assert message(train__lr_rate=1) == "settings: unknown key train.lr_rate. Did you mean train.learning_rate?"
    assert message(trian__epochs=1) == "settings: unknown key trian. Did you mean train?"


def test_a_wrong_value_is_shown_with_its_rule():
    assert message(data__size="big") == "settings: data.size is 'big'; give height x width, such as 180x240."
    assert message(train__epochs=0) == "settings: train.epochs is 0; input should be greater than or equal to 1."


def test_yaml_that_reads_as_something_else_is_refused_or_understood(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {learning_rate: 1e-3}\n")  # YAML 1.1 reads 1e-3 as text
    assert load(str(file)).train.learning_rate == 0.001
    file.write_text("train: {epochs: 1, epochs: 2}\n")
    assert message(str(file)) == f"{file}: not valid YAML in line 1: key 'epochs' is given twice."
    file.write_text("- train\n")
    assert message(str(file)) == f"{file}: the file holds list; it must hold sections such as train:."
    file.write_text("a: !!python/object/apply:os.system [ls]\n")
    assert "not valid YAML" in message(str(file))


def test_an_override_is_a_key_and_a_yaml_value():
    assert parse_override("sweep.encoders=[a, b]") == ("sweep.encoders", ["a", "b"])
    with pytest.raises(ConfigError, match=r"^--set epochs: give key=value, such as train.epochs=3\.$"):
        parse_override("epochs")


def test_a_file_without_end_is_no_config():
    assert message("/dev/zero") == "/dev/zero is larger than 1 MiB; a config is a page of YAML."


# Settings that hold text and are no path.
NO_PATH = {
    "data.format", "data.train_split", "data.val_split", "data.images", "data.masks", "data.classes",  # below data.root
    "data.mask_suffix", "data.exclude",
    "model.arch", "model.encoder", "sweep.encoders", "sweep.learning_rates", "sweep.objective", "evaluate.split",
    "cluster.address",
}  # fmt: skip


def test_a_setting_that_holds_text_says_whether_it_is_a_path():
    texts = {
        f"{section}.{key}"
        for section, outer in Config.model_fields.items()
        for key, field in outer.annotation.model_fields.items()
        if re.search(r"\bstr\b", str(field.annotation)) and "dict" not in str(field.annotation)
    }
    assert texts == NO_PATH | PLACES.keys()


@pytest.mark.parametrize("key", sorted(PLACES))
def test_a_path_means_the_same_in_every_folder_whichever_setting_it_is(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    end = ".pth" if key == "model.encoder_weights" else ""
    section, field = key.split(".")

    def absolute(place):
        several = isinstance(getattr(getattr(Config(), section), field), list)
        found = getattr(getattr(load(None, {key: [place] if several else place}).absolute(), section), field)
        return found[0] if several else found

    assert absolute(f"runs/a/../b{end}") == f"{tmp_path}/runs/b{end}"
    assert absolute(f"~/b{end}") == f"/home/ada/b{end}"
    if key != "cluster.spill_dir":
        assert absolute(f"s3://bucket/a b{end}") == f"s3://bucket/a b{end}"
    if not end:
        assert absolute("best") == f"{tmp_path}/best"
        assert absolute("runs/b/") == f"{tmp_path}/runs/b"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(("label.model", name) for name in (*READY_MODELS, "smp-hub/upernet-convnext-tiny")),
        ("evaluate.model", "smp-hub/upernet-convnext-tiny"),
        ("model.encoder_weights", "none"),
        ("model.encoder_weights", "imagenet"),
        ("train.mlflow", "http://10.0.0.1:5000/"),
        ("train.mlflow", "databricks"),
    ],
)
def test_a_name_is_no_path_though_it_has_a_slash(key, name):
    section, field = key.split(".")
    assert getattr(getattr(load(None, {key: name}).absolute(), section), field) == name


def test_an_empty_text_is_no_path():
    assert load(None, {"train.mlflow": "", "label.truth": ""}).absolute().label.truth == ""


def test_paths_that_a_sweep_tries_are_absolute_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {"model.encoder_weights": ["imagenet", "own.pth"], "train.loss": ["dice"], "augment.flip": "0.1..0.5"}
    tried = load(None, {"sweep.space": space}).absolute().sweep.space
    assert tried == space | {"model.encoder_weights": ["imagenet", f"{tmp_path}/own.pth"]}


@pytest.mark.parametrize("color", ["#fff", "#ff8000ff", "#gg0000"])
def test_a_colour_of_a_mask_has_six_digits(color):
    with pytest.raises(ConfigError, match=rf"{color}'; give a colour as #RRGGBB, such as #800040\.$"):
        load(None, {"data.id_map": {color: 1}})
    assert load(None, {"data.id_map": {"#800040": 1}}).data.id_map == {1 << 24 | 0x800040: 1}
