"""The labelling promise through Ray Data: every row once, whatever stops the run."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
import ray
from crashing import CRASH, HOLD
from hanging import leased
from ray.util.state import list_actors

from segray import cli
from segray.cluster.labeller import Labeller
from segray.config import load
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import read_summary
from segray.core.labels.plan import load_plans
from segray.errors import ClusterError, OutputExists, StorageError, TooManyErrors
from segray.stages.label import Watch, _check_store, label


def options(bundle, town, out, **more):
    values = {"label.model": str(bundle), "label.inputs": [str(town / "train"), str(town / "video.mp4")]}
    return load(None, values | {"label.out": str(out), "label.shard_size": 4} | more)


class Seen(Watch):
    def __init__(self):
        self.receipts, self.notes = [], []

    def planned(self, rows):
        self.rows = rows

    def done(self, receipt):
        self.receipts.append(receipt)

    def note(self, text):
        self.notes.append(text)


def with_one_more(town, folder, data):
    """The town's frames in a folder, and one more of these bytes among them."""
    folder.mkdir()
    for frame in sorted((town / "train").iterdir()):
        (folder / frame.name).write_bytes(frame.read_bytes())
    more = folder / f"{frame.stem}-5.jpg"
    more.write_bytes(data)
    return more


def problems(out):
    return parts.verify(load_plans(str(out)))


@pytest.mark.usefixtures("ray_session")
def test_images_and_video_frames_become_one_row_each(tiny_bundle, town, tmp_path):
    watch = Seen()
    summary = label(options(tiny_bundle, town, tmp_path / "out"), watch=watch)
    assert (summary["rows"], summary["ok"], summary["errors"]) == (21, 21, {})
    assert sum(receipt.rows for receipt in watch.receipts) == watch.rows == 21
    assert {"fetch", "decode", "model", "encode", "write"} <= set(watch.receipts[0].seconds)
    assert problems(tmp_path / "out") == []
    rows = pq.read_table(tmp_path / "out" / "labels").to_pylist()
    assert len({row["input_id"] for row in rows}) == 21
    assert [row["frame_index"] for row in rows if row["video_uri"]] == list(range(10))

    assert summary["new_rows"] == 21
    assert summary["stage_seconds"].keys() >= {"decode", "wait", "model", "encode", "write"}
    assert label(options(tiny_bundle, town, tmp_path / "out")) == summary  # a second run does nothing
    here = ray.get_runtime_context().gcs_address  # other tests have a Ray of their own meanwhile
    assert list_actors(here, filters=[("class_name", "=", "Register"), ("state", "=", "ALIVE")]) == []
    with pytest.raises(OutputExists, match=r"\(every was 1, is 2\)"):
        label(options(tiny_bundle, town, tmp_path / "out", **{"label.every": 2}))


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_an_engine_is_picked_once_and_kept_by_the_output(plain_bundle, town, tmp_path, monkeypatch):
    watch, config = Seen(), options(plain_bundle, town, tmp_path / "out", **{"infer.engine": "auto"})
    label(config, watch=watch)
    (said,) = watch.notes
    picked = load_plans(str(tmp_path / "out"))[0].settings["engine"]
    assert re.fullmatch(rf"Engine: {picked} \(torch [\d.,]+, onnx [\d.,]+ images/s here\)\.", said)
    monkeypatch.setattr("segray.stages.label.engine_speeds", None)  # nobody asks again
    assert label(config)["ok"] == 21
    other = "torch" if picked == "onnx" else "onnx"
    with pytest.raises(OutputExists, match=rf"\(engine was {picked}, is {other}\)"):
        label(config.changed({"infer.engine": other}))


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_what_an_actor_refuses_is_one_line_and_its_exit_code(plain_bundle, town, tmp_path, monkeypatch, capsys):
    command = ["segray", "label", "--model", str(plain_bundle), "--input", str(town / "train")]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out"), "--set", "infer.precision=fp16"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said) == (2, "segray: infer.precision fp16 needs a GPU; take fp32, or auto.\n")


@pytest.mark.usefixtures("ray_session")
def test_errors_are_rows_and_too_many_of_them_fail_the_run(plain_bundle, town, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "good.jpg").write_bytes(next((town / "train").iterdir()).read_bytes())
    (tmp_path / "in" / "text.mp4").write_text("no video")
    more = {"label.inputs": [str(tmp_path / "in")], "label.max_error_rate": 0.5, "label.shard_size": 1}
    strict = options(plain_bundle, town, tmp_path / "out", **more)
    too_many = pytest.raises(TooManyErrors, match=r"^2 of 3 rows are errors, more than 50%")
    with too_many:
        label(strict)  # while it runs
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    summary = label(strict.changed({"label.max_error_rate": 1.0}))
    assert (summary["ok"], summary["errors"]) == (1, {"decode_error": 2})
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 2
    with too_many:
        label(strict)  # of what is finished

    again = strict.changed({"label.max_error_rate": 0.7, "label.retry_errors": True})
    summary = label(again)  # of the 2 errors, 2 are left, and not 4
    assert (summary["rows"], summary["ok"], len(summary["plans"])) == (3, 1, 2)
    assert problems(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_a_run_that_is_stopped_goes_on_with_the_same_command(plain_bundle, town, tmp_path, sent, code):
    command = [
        *(sys.executable, "-m", "segray.cli", "label", "--model", plain_bundle, "--input", town / "train"),
        *("--out", tmp_path / "out", "--set", "label.shard_size=1"),
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while run.poll() is None and not list(tmp_path.glob("out/labels/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(sent)
    assert run.wait(60) == code
    if sent != signal.SIGKILL:
        said = "segray: stopping …\nsegray: stopped. The same command resumes here.\n"
        assert run.stderr.read() == said
    there = {path: path.read_bytes() for path in tmp_path.glob("out/labels/*.parquet")}
    assert len(there) >= 1
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    config = load(
        None, {"label.model": str(plain_bundle), "label.inputs": [str(town / "train")], "label.shard_size": 1}
    )
    summary = label(config.changed({"label.out": str(tmp_path / "out")}))
    assert (summary["rows"], summary["ok"]) == (11, 11)
    assert problems(tmp_path / "out") == []
    assert {path: path.read_bytes() for path in there} == there


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_one_sick_actor_of_two_takes_no_shard_from_the_other_for_good(plain_bundle, town, tmp_path, monkeypatch):
    """One never is up. Another's device fails from the third frame on, and again whenever Ray has started it anew."""
    marker = tmp_path / "sick"

    class Sick(Labeller):
        def __init__(self, *given):
            from segray.cluster import labeller

            with suppress(FileExistsError), (tmp_path / "first").open("x"):
                raise RuntimeError("This node has no disk left.")
            labeller.REST_S = 1.0
            super().__init__(*given)

        def _load(self):
            super()._load()
            with suppress(FileExistsError), marker.open("x") as file:
                file.write(self.actor)
            if marker.read_text() == self.actor:
                self.left, self.plain, self.predictor.predict = 3, self.predictor.predict, self.predict

        def predict(self, *given, **named):
            self.left -= 1
            if self.left <= 0:
                raise RuntimeError("CUDA error: device-side assert triggered\nFor debugging consider …")
            return self.plain(*given, **named)

    monkeypatch.setattr("segray.stages.label.Labeller", Sick)
    watch = Seen()
    config = options(plain_bundle, town, tmp_path / "out", **{"label.actors": 2, "label.shard_size": 1})
    assert label(config, watch=watch)["ok"] == 21
    assert problems(tmp_path / "out") == []
    (said,) = watch.notes  # and no word of shards that are labelled input by input
    assert re.fullmatch(
        r"A labelling process failed on \S+ \(RuntimeError: CUDA error: device-side assert triggered\)\. "
        "It is started again; its shards go to others\\.",
        said,
    )


def test_a_store_that_overwrites_is_told_or_refused_before_anything_is_written(plain_bundle, town, s3, s3_proxy):
    s3_proxy.set(ignore_if_none_match=1)
    config = options(plain_bundle, town, f"{s3}/careless").changed({"label.strict": True})
    with pytest.raises(StorageError, match=r"careless overwrites files that must be created once; write to another"):
        label(config)
    assert storage.list_files(f"{s3}/careless") == []
    watch = Seen()
    _check_store(config.changed({"label.strict": False}).label, watch)
    assert watch.notes[0].startswith(f"The store of {s3}/careless overwrites files that must be created once: of two")


def test_an_environment_in_which_parquet_runs_code_is_refused(plain_bundle, town, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", "1")
    with pytest.raises(ClusterError, match=r"^RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA is set, which lets"):
        label(options(plain_bundle, town, tmp_path / "out"))


@pytest.mark.parametrize(
    "bucket", ["s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gs", "az"))], indirect=True
)
@pytest.mark.usefixtures("ray_session")
def test_labels_go_from_a_bucket_to_it_and_come_back_whole(plain_bundle, town, bucket):
    out = f"{bucket}/Straße 1/labels"
    for path in (town / "val").iterdir():
        storage.replace(f"{bucket}/Straße 1/frames/{path.name}", path.read_bytes())
    label(options(plain_bundle, town, out, **{"label.inputs": [f"{bucket}/Straße 1/frames"]}))
    assert parts.verify(load_plans(out)) == []
    assert read_summary(load_plans(out))["ok"] == 5


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_inputs_that_end_or_hang_their_process_are_one_row_each_and_their_neighbours_are_fine(
    plain_bundle, town, tmp_path, capfd
):
    """As decoders do: one by a fault of its own, one that holds Python's lock."""
    with_one_more(town, tmp_path / "in", CRASH)
    (tmp_path / "in" / "first.jpg").write_bytes(HOLD)
    more = {"label.inputs": [str(tmp_path / "in")], "label.shard_size": 3, "label.input_timeout": "8s"}
    watch = Seen()
    summary = label(options(plain_bundle, town, tmp_path / "out", **more), watch=watch)
    assert any("labelled input by input now" in note for note in watch.notes)
    assert "(raylet)" not in "".join(capfd.readouterr())
    assert (summary["ok"], summary["errors"]) == (11, {"worker_crash": 1, "worker_timeout": 1})
    assert problems(tmp_path / "out") == []


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_an_input_that_hangs_is_one_row_and_its_neighbours_are_fine(plain_bundle, town, tmp_path):
    watch, hanging = Seen(), with_one_more(town, tmp_path / "in", b"whatever")
    more = {"label.inputs": [str(tmp_path / "in")], "label.shard_size": 3, "label.input_timeout": "3s"}
    with leased(hanging):
        summary = label(options(plain_bundle, town, tmp_path / "out", **more), watch=watch)
    assert (summary["ok"], summary["errors"]) == (11, {"worker_timeout": 1})
    (row,) = pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist()
    assert row["error_message"] == (
        f"{hanging} made no progress in 3 s; look at the file, and at the machine's memory."
    )
    given_up, one_by_one = watch.notes
    assert re.fullmatch(
        r"Shard 3 failed on \S+ \(no progress in 3 s of fetch\)\. Its inputs are labelled one by one later\.", given_up
    )
    assert one_by_one == "1 shard that failed or was lost with its process is labelled input by input now."
    assert problems(tmp_path / "out") == []
