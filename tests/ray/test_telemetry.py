"""What Prometheus, Grafana and a collector of logs get to see of real runs."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from segray.cluster.telemetry import COUNTERS, GAUGES, Gauges, tag
from segray.config import load
from segray.stages.label import label
from segray.stages.train import train

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


class Prometheus(threading.Thread):
    """Scrapes this node as a Prometheus would, without a token: the latest value of each name and labels."""

    def __init__(self):
        super().__init__(daemon=True)
        node = ray.nodes()[0]
        self.url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        self.seen, self.now, self.over = {}, set(), threading.Event()

    def run(self):
        while not self.over.wait(0.5):
            with urlopen(self.url, timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
            ours = [sample for sample in samples if sample.name.startswith("ray_segray_")]
            values = {(one.name, one.labels["run"], one.labels.get("stage")): one for one in ours}
            self.seen, self.now = self.seen | values, set(values)

    def wait_for(self, reached):
        deadline = time.monotonic() + 60
        while not reached() and time.monotonic() < deadline:
            time.sleep(0.2)

    def value(self, name, run, stage=None):
        sample = self.seen.get((name, str(run), stage))
        return sample.value if sample else None


@pytest.fixture
def prometheus(ray_session):
    scraper = Prometheus()
    scraper.start()
    yield scraper
    scraper.over.set()
    scraper.join()


def with_an_error(bundle, town, folder):
    """Settings of a labelling run over 5 frames, of which one is none; its --out is not ASCII."""
    (folder / "in").mkdir()
    for frame in sorted((town / "val").iterdir()):
        (folder / "in" / frame.name).write_bytes(frame.read_bytes())
    (folder / "in" / frame.name).write_text("no picture")
    values = {"label.model": str(bundle), "label.inputs": [str(folder / "in")], "label.out": str(folder / "Straße")}
    return load(None, {**values, "label.shard_size": 2})


@pytest.mark.long
def test_what_the_dashboard_draws_is_what_real_runs_export(prometheus, plain_bundle, town, tmp_path, settings):
    config = with_an_error(plain_bundle, town, tmp_path)
    kept = Gauges("kept")
    kept.set("segray_frames_left", 3)
    label(config)
    best = train(settings(train__out=str(tmp_path / "Läufe"), train__epochs=1)).history[-1]
    out, run = tag(config.label.out), tag(str(tmp_path / "Läufe"))
    prometheus.wait_for(lambda: prometheus.value("ray_segray_train_epoch", run) == best["epoch"])
    assert (prometheus.value("ray_segray_frames_total", out), prometheus.value("ray_segray_errors_total", out)) == (
        5,
        1,
    )
    assert prometheus.value("ray_segray_frames_left", out) == 0
    assert ("ray_segray_frames_left", "kept", None) in prometheus.now  # Ray forgets what was set 20 s ago
    kept.close()
    for stage in ("fetch", "decode", "model", "encode", "write"):
        assert prometheus.value("ray_segray_stage_seconds_total", out, stage) > 0
    for key in ("epoch", "loss", "val_loss", "miou", "images_per_s", "wait_share"):
        assert prometheus.value(f"ray_segray_train_{key}", run) == pytest.approx(best[key])

    assert {name for name, *_ in prometheus.seen} == EXPORTED
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert set(re.findall(r"ray_\w+", " ".join(expressions))) == EXPORTED
    labels = set.union(*(set(sample.labels) for sample in prometheus.seen.values()))
    drawn = re.findall(r"(?:by|ignoring) \(([\w, ]+)\)", " ".join(expressions))
    assert set(", ".join(drawn).split(", ")) <= labels


def test_the_dashboards_panels_are_whole():
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert all(panel[key] for key in ("title", "description", "targets"))
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in {"none", "s", "percentunit"} or unit.startswith("suffix: ")
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23


@pytest.mark.long
def test_log_lines_are_json_with_run_and_shard(plain_bundle, town, tmp_path):
    config = with_an_error(plain_bundle, town, tmp_path)
    (tmp_path / "label.yaml").write_text(config.to_yaml())
    with tempfile.TemporaryDirectory(dir="/tmp") as session:  # Ray's sockets have names of 107 characters at most
        env = os.environ | {"RAY_LOGGING_CONFIG_ENCODING": "JSON", "RAY_TMPDIR": session}
        command = [sys.executable, "-m", "segray.cli", "label", "--config", tmp_path / "label.yaml"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        files = Path(session).glob("ray/session_latest/logs/worker-*.err")
        lines = [line for file in files for line in file.read_text().splitlines()]
    own = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["message"], line["run"]) for line in own if "run" in line] == [
        ("labelling", config.label.out),
        ("labelled", config.label.out),
    ]
    said = [json.loads(line) for line in lines if '"shard"' in line]
    labelled = [line for line in said if line["message"] == "shard labelled"]
    assert sorted(line["shard"] for line in labelled) == [0, 1, 2]
    assert sum(line["errors"] for line in labelled) == 1
    assert len(said) == 2 * len(labelled)
    for line in said:
        assert (line["run"], len(line["plan"])) == (config.label.out, 8)
        assert line["node_id"]
        assert line["actor_id"]
