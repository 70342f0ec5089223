"""The pinned jobs: each runs its own model, loss and schedule on drawn streets, as a user starts it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from segray.config import load
from segray.core.io import storage

ROOT = Path(__file__).parent.parent
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml"))


SMALL = ("cityscapes_unet_scratch", "cityscapes_unet_bn")  # the others take up to 10 s of processor time each


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(job, marks=[pytest.mark.long] * (job not in SMALL)) for job in JOBS])
def test_a_job_runs_in_smoke_form(name, tmp_path, monkeypatch):
    out = tmp_path / name
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(out)])
    runpy.run_module(f"jobs.{name}", run_name="__main__")
    assert len(list(out.rglob("frames.png"))) == len(list(out.rglob("scores.json"))) > 0
    if name != "cityscapes_deeplab_coco":
        rows = json.loads((out / "results.json").read_text())
        assert all(0 <= row[key] <= 1 for row in rows for key in ("miou", "pixel_accuracy", "mean_f1"))
        assert {"curves.png", "report.html"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_dry_run_shows_its_settings_and_makes_nothing(name, tmp_path, monkeypatch, capsys):
    """As `python -m jobs.NAME --config jobs/NAME.yaml --set …` has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    file = str(ROOT / "jobs" / f"{name}.yaml")
    monkeypatch.setattr(
        sys, "argv", [name, "--config", file, "--data", "frames", "--set", "train.seed=7", "--smoke", "--dry-run"]
    )
    runpy.run_module(f"jobs.{name}", run_name="__main__")
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown = load(str(tmp_path / "shown.yaml"))
    assert (shown.train.out, shown.train.seed) == (f"runs/{name}", 7)
    assert shown.model.arch == load(file).model.arch
    assert [path.name for path in tmp_path.iterdir()] == ["shown.yaml"]


def test_a_jobs_results_go_to_a_bucket(s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    from jobs import common

    row = {"epoch": 1, "loss": 0.5, "val_loss": 0.6, "pixel_accuracy": 0.7, "miou": 0.4}
    asked = {}

    def train(config, on_row, on_start):
        storage.replace(f"{config.train.out}/history.jsonl", json.dumps(row).encode())

    def score(config, model, out):
        asked[model] = out
        return dict.fromkeys(common.COLUMNS.values(), 0.5)

    monkeypatch.setattr(common, "train", train)
    monkeypatch.setattr(common, "score", score)
    monkeypatch.setattr(common, "report", lambda folders, out, overwrite: asked.setdefault(out, folders) and out)
    out = f"{s3}/job"
    common.compare(load(None, {"train.out": out}), {"a": {"train.seed": 1}})
    assert asked == {f"{out}/a/best": f"{out}/a-evaluation", f"{out}/report.html": [f"{out}/a", f"{out}/a-evaluation"]}
    assert storage.read_json(f"{out}/results.json")[0]["run"] == "a"
    assert storage.read_bytes(f"{out}/curves.png").startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_header_says_what_a_user_must_know(name):
    header = (ROOT / "jobs" / f"{name}.py").read_text().split('"""')[1]
    for fact in ("Command:", "Data:", "Hardware:", "Scores:"):
        assert f"\n{fact}" in header
    assert f"python -m jobs.{name}" in header
    assert yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text())
