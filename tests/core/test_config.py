import pytest

from segray.config import load, parse_override
from segray.errors import ConfigError


def message(file=None, **overrides):
    with pytest.raises(ConfigError) as error:
        load(file, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(error.value)


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
