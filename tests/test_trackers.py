"""Curves outside history.jsonl: one point an epoch, also for a run that was stopped and went on."""

import pytest

from segray.config import load
from segray.core.training.checkpoint import write_history
from segray.errors import ConfigError
from segray.stages.trackers import tracking


def row(epoch):
    return {"epoch": epoch, "loss": 1.0 / epoch, "miou": None if epoch == 1 else 0.1 * epoch}


def run_twice(config, out):
    out.mkdir()
    for epochs in ([1, 2], [3]):
        with tracking(config) as track:
            for epoch in epochs:
                write_history(str(out), [row(i) for i in range(1, epoch + 1)])
                track(row(epoch))


def test_a_place_that_mlflow_refuses_is_one_line(tmp_path):
    pytest.importorskip("mlflow")
    config = load(None, {"train.out": str(tmp_path / "run"), "train.mlflow": "s3://bucket/runs"})
    with pytest.raises(ConfigError, match=r"^train\.mlflow s3://bucket/runs cannot be used: .*leave it out\.$"):
        run_twice(config, tmp_path / "run")


def test_a_server_that_does_not_answer_is_one_line_in_seconds(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    config = load(None, {"train.out": str(tmp_path / "run"), "train.mlflow": "http://127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"^train\.mlflow http://127\.0\.0\.1:1 cannot be used: .*leave it out\.$"):
        run_twice(config, tmp_path / "run")


def test_an_epoch_that_mlflow_does_not_take_goes_out_with_the_next(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    config = load(None, {"train.out": str(tmp_path / "run"), "train.mlflow": uri, "train.epochs": 3})

    def refuse(*_, **__):
        raise mlflow.exceptions.MlflowException("502 Bad Gateway")

    with tracking(config) as track:
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "log_metric", refuse)
            track(row(1))
        track(row(2))
    assert [record.message for record in caplog.records if record.name == "segray"] == [
        f"{uri} does not take epoch 1, which is tried again: 502 Bad Gateway"
    ]
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("segray").experiment_id])
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2]


def test_tensorboard_has_each_epoch_once(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_twice(load(None, {"train.out": str(tmp_path / "run")}), tmp_path / "run")
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333)]
    assert [e.step for e in events.Scalars("miou")] == [2, 3]


def test_mlflow_has_each_epoch_once_and_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a store without a database, for a test
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    config = load(None, {"train.out": str(tmp_path / "run"), "train.mlflow": uri, "train.epochs": 3})
    run_twice(config, tmp_path / "run")
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("segray").experiment_id])
    assert found.data.params["train.epochs"] == "3"
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3]
