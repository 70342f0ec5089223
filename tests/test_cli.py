"""The command line from outside: its flags, its help, and one clear line for each kind of bad input."""

import runpy
import sys
from contextlib import contextmanager

import click
import pytest
import yaml
from PIL import Image
from running import run

from segray import __version__, cli
from segray.cli import app, flags, terminal
from segray.cli.cluster import submitted
from segray.cli.flags import FLAGS
from segray.cli.terminal import LabelProgress, say, table
from segray.cluster.submit import AT_ADDRESS
from segray.config import load
from segray.core.labels.parts import Receipt

STAGE = {"config", "set", "dry-run", "overwrite", "out", "help"}
FROZEN = {
    "demo": {"out", "small", "overwrite", "help"},
    "data check": {"format", "set", "help"},
    "data classes": {"set", "help"},
    "data convert": {"from", "images", "background", "link", "overwrite", "help"},
    "data draw": {"train", "val", "size", "seed", "help"},
    "data formats": {"help"},
    "data get": {"url", "help"},
    "models": {"help"},
    "import": {"out", "classes", "arch", "encoder", "size", "set", "overwrite", "help"},
    "recipes": {"help"},
    "train": STAGE | {
        *("format", "data", "size", "arch", "encoder", "epochs", "batch-size", "lr", "seed", "workers", "address"),
        *("weights", "weights-dir", "loss", "freeze-encoder", "teacher", "compile", "recipe"),
    },
    "sweep": STAGE | {
        *("format", "data", "size", "arch", "encoder", "epochs", "batch-size", "lr", "seed", "workers", "address"),
        *("estimate", "trials", "weights", "weights-dir", "vary", "search", "seeds", "time", "gpu-hours", "objective", "price"),
        "resume", "recipe", "against",
    },
    "sweep show": {"help"},
    "evaluate": STAGE | {
        *("format", "data", "split", "truth", "conditions", "window", "flip", "calibrate", "weights-dir"),
    },
    "compare": {"images", "seed", "out", "overwrite", "help"},
    "label": STAGE | {
        *("model", "input", "truth", "every", "fps", "limit", "sample", "extend", "retry-errors", "mask-format"),
        *("max-error-rate", "window", "flip", "engine", "weights-dir", "actors", "address"),
    },
    "verify": {"help", "sample", "address"},
    "select": {"by", "count", "apart", "out", "pictures", "overwrite", "help"},
    "show": {"model", "out", "set", "overwrite", "help"},
    "overlay": {"video", "input", "overwrite", "help"},
    "export": {"to", "out", "images", "grey", "min-area", "image-root", "repo", "address", "dry-run", "overwrite", "help"},
    "report": STAGE | {"labels"},
    "submit": {"address", "no-wait", "python", "pip", "help"},
    "jobs": {"address", "help"},
    "logs": {"address", "follow", "help"},
    "stop": {"address", "help"},
    "status": {"json", "help"},
}  # fmt: skip


def commands(group=cli.cli, prefix=""):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{prefix}{name}", command


def flags_of(command):
    context = click.Context(command)
    return {option[2:] for param in command.get_params(context) for option in param.opts if option.startswith("--")}


def test_the_flags_are_these_and_a_new_one_needs_a_reason():
    assert {name: flags_of(command) for name, command in commands()} == FROZEN


def test_the_version_is_the_packages_own(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"segray, version {__version__}\n", "")


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segray", "--version"])
    runpy.run_module("segray", run_name="__main__")
    assert capsys.readouterr().out.endswith(f", version {__version__}\n")


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_help_carries_an_example(name, command):
    text = command.get_help(click.Context(command))
    assert f"segray {name}" in text.split("Example:")[1]


def test_every_flag_gives_a_setting_that_exists():
    for key, _ in FLAGS.values():
        section, field = key.split(".")
        assert field in getattr(load(), section).__class__.model_fields


def test_a_name_that_is_no_utf8_can_be_said(capsys):
    say("a/\udcff.png [bold]")
    table("Files", ("name",), [("\udcff.png",)])
    assert capsys.readouterr().out.split("\n")[0] == "a/\\udcff.png [bold]"


def test_labelling_tells_its_speed_its_errors_and_the_bottleneck():
    told = []
    watch = LabelProgress(lambda more, total=None, note="": told.append((more, note.partition(", ")[2], total)))
    watch.planned(8)
    watch.done(Receipt(shard=0, rows=4, errors=1, created=True, seconds={"decode": 3.0, "model": 1.0, "wait": 1.0}))
    watch.done(Receipt(shard=1, rows=4, errors=0, created=True, seconds={"decode": 0.5, "model": 1.0, "wait": 2.0}))
    assert told[1:] == [(4, "1 error, bottleneck: decode", 8), (4, "1 error, bottleneck: model", 8)]


def test_the_start_of_processes_is_no_part_of_the_speed_of_labelling(monkeypatch, capsys):
    now_s = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now_s)
    with terminal.labelling() as watch:
        watch.planned(16)
        for shard, at_s in enumerate((40.0, 48.0, 56.0)):  # the first began after 32 s
            now_s = at_s
            watch.done(Receipt(shard, rows=4, errors=0, created=True, seconds={"decode": 1.0, "model": 7.0}))
    assert capsys.readouterr().out.splitlines() == [
        "16 rows are planned; what is not there is labelled once Ray has started.",
        "frames 4 of 16  0.5 frames/s, 0 errors, bottleneck: model",
        "frames 12 of 16  0.5 frames/s, 0 errors, bottleneck: model, 8 s left",
    ]


def test_the_steps_of_an_epoch_are_lines_of_a_log(monkeypatch, capsys):
    now_s = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now_s)
    with terminal.stepping() as step:
        for at_s, phase, done, of in [
            (4.0, "epoch 1 of 2", 3, 90),
            (11.0, "epoch 1 of 2", 10, 90),
            (20.0, "epoch 1 of 2", 19, 90),
            (30.0, "validating", 1, 9),
            (40.0, "epoch 2 of 2", 1, 1),
        ]:
            now_s = at_s
            step(phase, done, of)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1 of 2: step 10 of 90, about 2 min 50 s left",
        "validating: step 1 of 9",
        "epoch 2 of 2: step 1 of 1",
    ]


def test_sizes_have_three_digits():
    said = [terminal.size(count) for count in (0, 812, 1010 * 1024, 1_400_000, 7 << 40)]
    assert said == ["0 bytes", "812 bytes", "0.986 MiB", "1.34 MiB", "7,168 GiB"]


def test_numbers_of_tables_have_no_exponents():
    said = [terminal.text(cell) for cell in (5.48e-05, 0.4123, 0.0, 12345.6, None, float("nan"), 12345)]
    assert said == ["0.000", "0.412", "0.000", "12,346", "–", "–", "12,345"]


def test_dry_run_prints_settings_that_can_be_read_back(monkeypatch, capsys, tmp_path):
    args = ("train", "--size", "180x240", "--lr", "0.01", "--set", "augment.flip=0", "--dry-run")
    code, out, _ = run(monkeypatch, capsys, *args)
    (tmp_path / "c.yaml").write_text(out)
    config = load(str(tmp_path / "c.yaml"))
    assert (code, config.data.size, config.train.learning_rate, config.augment.flip) == (0, (180, 240), 0.01, 0)


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (("train", "--data", "nowhere", "--weights", "imagenet"), ["data.root: nowhere"]),
        (
            ("label", "--model", "m", "--input", "{there}", "--input", "v.mp4"),
            ["label.model: m", "label.inputs: v.mp4"],
        ),
        (("label", "--model", "deeplabv3-coco", "--input", "s3://b/a", "--truth", "t"), ["label.truth: t"]),
        (
            ("label", "--model", "deeplabv3-coco", "--input", "{there}/**/a*.jpg", "--input", "v/*.jpg"),
            ["label.inputs: v/*.jpg"],
        ),
        (("evaluate", "hf:o/n", "--data", "{there}", "--out", "new"), []),
    ],
)
def test_a_dry_run_names_what_is_to_be_read_and_does_not_exist(monkeypatch, capsys, caplog, tmp_path, args, missing):
    monkeypatch.chdir(tmp_path)
    code, _, _ = run(monkeypatch, capsys, *(arg.format(there=tmp_path) for arg in args), "--dry-run")
    assert (code, caplog.messages) == (0, [f"{one} does not exist here." for one in missing])


@pytest.mark.parametrize("args", [("--lr", "1e-3,1e-2"), ("--lr", "1e-3", "--lr", "1e-2")])
def test_rates_of_a_sweep_are_a_list_or_a_flag_each(monkeypatch, capsys, args):
    _, out, _ = run(monkeypatch, capsys, "sweep", *args, "--dry-run")
    assert yaml.safe_load(out)["sweep"]["learning_rates"] == [1e-3, 1e-2]


def test_a_comma_at_the_end_of_a_list_names_nothing(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "sweep", "--encoder", "resnet18, ", "--lr", "1e-3,", "--dry-run")
    assert yaml.safe_load(out)["sweep"]["encoders"] == ["resnet18"]
    assert out.endswith("# 1 trial:\n#   unet-resnet18-lr1.0e-03\n")


@pytest.mark.parametrize(("word", "command"), [("predict", "label"), ("val", "evaluate"), ("tune", "sweep")])
def test_commands_of_other_tools_are_known(monkeypatch, capsys, word, command):
    code, _, err = run(monkeypatch, capsys, word, "source=a.mp4")
    assert (code, err.splitlines()[-1]) == (2, f"Error: No such command '{word}'. Did you mean '{command}'?")


def test_flags_win_over_the_file_and_set_over_flags(monkeypatch, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 1, seed: 1, batch_size: 1}\n")
    args = (
        "train",
        "--config",
        tmp_path / "c.yaml",
        "--epochs",
        "2",
        "--seed",
        "2",
        "--set",
        "train.seed=3",
        "--dry-run",
    )
    _, out, _ = run(monkeypatch, capsys, *args)
    assert ("epochs: 2" in out, "seed: 3" in out, "batch_size: 1" in out) == (True, True, True)


@pytest.fixture
def places(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    Image.new("RGB", (8, 8)).save(tmp_path / "frame.png")
    for folder in ("train", "trainannot", "val", "valannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "camvid" / folder / "a.png")
    return tmp_path


CAMVID = ("--format", "camvid", "--data")
SUBMIT = ("submit", "--address", "http://127.0.0.1:1")
BAD = [
    (("sweep", "show", "{}/full"), "{}/full holds no sweep (no trials.json); give the --out of segray sweep."),
    (("train", *CAMVID, "{}/none"), "{}/none does not exist; give the folder that holds train/ and trainannot/."),
    (
        ("train", *CAMVID, "{}/empty"),
        "{}/empty holds no frames in train/ and trainannot/, val/ and valannot/, test/ and testannot/.",
    ),
    (("train", *CAMVID, "{}/camvid", "--out", "{}/full"), "{}/full holds files that are no training run; give another --out."),
    (
        ("label", "--model", "{}/empty", "--input", "{}/frame.png"),
        "{}/empty is not a model bundle: it has no segray.json. Give the folder best/ of a finished run.",
    ),
    (
        ("evaluate", "empty", "--format", "camvid", "--data", "camvid"),
        "empty is not a model bundle: it has no segray.json. Give the folder best/ of a finished run.",
    ),
    (("verify", "{}/empty"), "{}/empty holds no labels; give the --out of segray label."),
    (("status", "{}/empty"), "{}/empty holds no run, neither config.yaml nor _segray/; give an --out of train, sweep or label."),
    (("train", "--format", "streets", "--data", "{}/typo"),
     "{}/typo does not exist; give the folder that holds streets.json, train/ and trainannot/."),
    (("train", "--format", "streets", "--data", "{}/camvid"),
     "{}/camvid holds no drawn streets (no streets.json). segray data draw draws some. "
     "It looks like camvid: --format camvid."),
    (("data", "check", "--format", "voc", "{}/camvid"),
     "{}/camvid holds no frames in JPEGImages/ and SegmentationClass/. It looks like camvid: --format camvid."),
    (("data", "draw", "{}/camvid"),
     "{}/camvid exists and holds no drawn streets; nothing is overwritten. Choose another folder."),
    (("report", "{}/none", "--out", "{}/r.html"), None),
    (("jobs",), "No cluster is given in --address or RAY_ADDRESS. " + AT_ADDRESS),
    ((*SUBMIT, "train"), "No Ray answers at http://127.0.0.1:1: Connection refused. " + AT_ADDRESS),
]  # fmt: skip
NO_DATA = (
    "No data is given; name the folder of the labelled frames: --data FOLDER. Or draw some: segray data draw streets/, "
    "then --data streets/. segray demo does it all."
)
USAGE = [
    (("report", "{}/full", "--out", "{}/full", "--overwrite"),
     "{0}/full is a folder; name the page's file, such as {0}/full/report.html."),
    (("train",), NO_DATA),
    (("sweep",), NO_DATA),
    (("train", "--format", "camvid"), NO_DATA),
    (("train", "--data", "{}/typo"), "{}/typo does not exist; give the folder that holds the labelled frames."),
    (("sweep", "--data", "{}/full"),
     "{}/full is of no known layout; it holds thesis.txt. The simplest one is images/ masks/ classes.csv, or others like them; "
     "masks of ids or colours. segray data formats lists all."),
    (("train", "--format", "camvit"), "--format is 'camvit'. Did you mean camvid or camvid-color or uavid?"),
    (("train", "--set", "train.lr_rate=1"), "settings: unknown key train.lr_rate. Did you mean train.learning_rate?"),
    (("train", "--set", "epochs=3"), "settings: unknown key epochs. Did you mean train.epochs?"),
    (("train", "--set", "lr=1"), "settings: unknown key lr. Did you mean train.learning_rate?"),
    (("train", "--set", "train.batch=1"), "settings: unknown key train.batch. Did you mean train.batch_size?"),
    (("train", "--set", "pretrained=1"), "settings: unknown key pretrained. Did you mean model.encoder_weights?"),
    (("train", "--set", "xyz=1"),
     "settings: unknown key xyz. Valid: augment, cluster, data, evaluate, infer, label, model, report, sweep, train."),
    (("train", "--config", "{}/none.yaml"), "{}/none.yaml cannot be read: No such file or directory."),
    (("sweep", "--lr", "1..", "--dry-run"), "--lr is '1..'; give a range such as 1e-4..1e-2, or a list."),
    (("sweep", "--lr", "1e-2..1e-4"), "--lr is '1e-2..1e-4'; give a range such as 1e-4..1e-2, or a list."),
    (("sweep", "--lr", "abc"),
     "--lr is 'abc'; give rates such as 1e-3,1e-2, or a range such as 1e-4..1e-2."),
    (("sweep", "--vary", "data.size=1,2"), "--vary data.size cannot be swept; settings of model, augment, train can."),
    (("sweep", "--vary", "train.loss=dice", "--vary", "train.loss=ohem"),
     "--vary names train.loss twice; give all its values in one: --vary train.loss=A,B,C."),
    (("sweep", "--vary", "train.loss=dicee"),
     "settings: train.loss.dicee is 'dicee'; input should be 'cross_entropy', 'focal', 'dice', 'lovasz' or 'ohem'."),
    (("sweep", "--vary", "train.weight_decay=1e-3..1e-1", "--lr", "1e-4..1e-2"),
     "A grid takes one range, not --lr, train.weight_decay; give lists, or sweep.search=random."),
    (("sweep", "--encoder", "resnet18", "--encoder", "vgg11", "--trials", "1"),
     "--trials is 1, and there are 2 combinations to share them."),
    (("sweep", "--objective", "pareto"),
     "--objective is 'pareto'; give miou, or pareto: and a share of the best mIoU, such as pareto:0.9."),
    (("sweep", "--resume", "--out", "{}/none"),
     "{}/none holds nothing to resume (no config.yaml); leave --resume out to begin."),
    (("sweep", "--resume", "--config", "{}/c.yaml"),
     "--resume reads the settings that runs/sweep has saved; leave --config out."),
    (("sweep", "--workers", "2", "--set", "sweep.trials_per_gpu=2"),
     "sweep.trials_per_gpu is 2, and a trial has 2 workers, each of which needs a GPU of its own (NCCL); "
     "set one of them to 1."),
    (("sweep", "--search", "random", "--vary", "train.batch_size=4..16"),
     "settings: train.batch_size is 6.68; give a number of images, 1 or more, or auto."),
    (("train", "--encoder", "resnet81"), "--encoder 'resnet81' is unknown. Did you mean resnet18 or resnet152 or resnet101?"),
    (("train", "--arch", "unett"), "--arch 'unett' is unknown. Did you mean unet or upernet or manet?"),
    (("sweep", "--encoder", "resnet81"), "--encoder 'resnet81' is unknown. Did you mean resnet18 or resnet152 or resnet101?"),
    (("sweep", "--encoder", "resnet81", "--dry-run"),
     "--encoder 'resnet81' is unknown. Did you mean resnet18 or resnet152 or resnet101?"),
    (("sweep", "--workers", "2", "--set", "sweep.trials_per_gpu=2", "--dry-run"),
     "sweep.trials_per_gpu is 2, and a trial has 2 workers, each of which needs a GPU of its own (NCCL); "
     "set one of them to 1."),
    (("train", "--arch", "unett", "--dry-run"), "--arch 'unett' is unknown. Did you mean unet or upernet or manet?"),
    (("label", "--model", "m", "--dry-run"), "label.inputs is empty; name images, videos or folders: --input FOLDER."),
    (("sweep", "--time", "soon"), "--time is 'soon'; give a number and s, m or h, such as 2h."),
    (("label",), "label.model is not given; name the bundle: --model runs/train/best."),
    (("label", "--model", "m"), "label.inputs is empty; name images, videos or folders: --input FOLDER."),
    ((*SUBMIT, "train", "--set", "train.lr_rate=1"),
     "settings: unknown key train.lr_rate. Did you mean train.learning_rate?"),
    ((*SUBMIT, "labell"), "labell cannot be sent as a job. Did you mean label?"),
    ((*SUBMIT, "train", "--address", "10.0.0.1:6379"),
     "cluster.address is 10.0.0.1:6379, and a job runs on the cluster that it is sent to; leave it out, and give "
     "--address before the command."),
    ((*SUBMIT, "jobs.best"), "jobs/best.py is not here; run this in the folder that holds jobs/."),
]  # fmt: skip
HINTS = [
    (("train", "--gpus", "1"), "No such option '--gpus'. Did you mean --workers?"),
    (("train", "--learning-rate", "1e-3"), "No such option '--learning-rate'. Did you mean --lr?"),
    (("train", "--device", "cpu"), "No such option '--device'. Use --set cluster.gpu=VALUE: "),
    (("train", "--resume"), "No such option '--resume'. The same command again resumes."),
    (("label", "--weights", "x"), "No such option '--weights'. Did you mean --model?"),
    (("show", "a.jpg", "--weights", "x"), "No such option '--weights'. Did you mean --model?"),
    (("evaluate", "--weights", "x"), "No such option '--weights'. Give it without a flag, as MODEL|LABELS."),
    (("label", "--epochs", "3"), "No such option '--epochs'."),
    (("train", "camvid/"), "Got unexpected extra argument (camvid/). Did you mean --data before it?"),
    (("label", "a.jpg"), "Got unexpected extra argument (a.jpg). Did you mean --input before it?"),
    (("label", "--imput", "x"), "No such option '--imput'. (Did you mean one of: '--input', "),
    (("status", "--xyz"), "No such option '--xyz'."),
]


@pytest.mark.parametrize(("args", "hint"), HINTS, ids=[" ".join(args) for args, _ in HINTS])
def test_what_other_tools_call_a_flag_is_understood(monkeypatch, capsys, args, hint):
    code, _, err = run(monkeypatch, capsys, *args)
    assert code == 2
    assert f"Error: {hint}" in err


def stopped(*args, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("args", "stage", "line"),
    [
        (
            ("train", "--out", "{}/begun"),
            "segray.stages.train.train",
            "segray: stopped. The same command resumes here.\n",
        ),
        (
            ("train", "--out", "{}/new"),
            "segray.stages.train.train",
            "segray: stopped. The same command begins anew: there is nothing to resume.\n",
        ),
        (
            ("label", "--model", "m", "--input", "x", "--out", "{}/new"),
            "segray.stages.label.label",
            "segray: stopped. The same command begins anew: there is nothing to resume.\n",
        ),
        (
            ("data", "convert", "task.zip", "{}/begun"),
            "segray.stages.convert.convert",
            "segray: stopped. The same command resumes here.\n",
        ),
        (("overlay", "labels", "--video", "new.mp4"), "segray.stages.show.overlay_video", "segray: stopped.\n"),
        (("evaluate", "m"), "segray.stages.evaluate.evaluate", "segray: stopped.\n"),
    ],
)
def test_only_of_what_resumes_is_said_that_it_does(monkeypatch, capsys, tmp_path, args, stage, line):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "history.jsonl").touch()
    (tmp_path / "begun" / "_convert").mkdir()
    (tmp_path / "begun" / "_convert" / "00000.json").touch()
    monkeypatch.setattr(stage, stopped)
    code, _, err = run(monkeypatch, capsys, *(arg.format(tmp_path) for arg in args))
    assert (code, err.lstrip()) == (130, line)


@pytest.mark.parametrize("args", [("train",), ("label", "--model", "m", "--input", "x"), ("show", "x", "--model", "m")])
def test_a_command_says_that_it_starts_while_it_loads_what_takes_seconds(monkeypatch, capsys, tmp_path, args):
    told = []

    @contextmanager
    def waiting(what):
        told.append(what)
        yield

    monkeypatch.setattr(terminal, "waiting", waiting)
    assert run(monkeypatch, capsys, *args, "--out", tmp_path / "out")[0] > 0
    assert told == ["Starting"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{}/town is read as streets, '{}/a b' (data.root={}/x).", "town is read as streets, 'a b' (data.root=x)."),
        ("scp me@host:{}/page.html .", "scp me@host:{}/page.html ."),
        ("/mnt{}/town and {} and {}/ end", "/mnt{}/town and {} and {}/ end"),
    ],
)
def test_paths_below_the_working_directory_are_relative(monkeypatch, tmp_path, text, shown):
    monkeypatch.chdir(tmp_path)
    assert app.as_typed(text.replace("{}", str(tmp_path))) == shown.replace("{}", str(tmp_path))


def test_notes_and_errors_name_a_path_as_it_was_typed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = "does not exist; give the folder that holds the labelled frames.\n"
    assert run(monkeypatch, capsys, "train", "--data", "town") == (2, "", f"segray: town {line}")
    assert run(monkeypatch, capsys, "train", "--data", f"{tmp_path}/town") == (2, "", f"segray: {tmp_path}/town {line}")


def test_labels_are_followed_by_what_to_do_with_them(monkeypatch, capsys, tmp_path):
    labelled = {"rows": 2, "ok": 2, "errors": {}, "scores": None}
    monkeypatch.setattr("segray.stages.label.label", lambda config, **_: labelled)
    args = ("label", "--model", "m", "--input", "x", "--out", "a drive")
    assert run(monkeypatch, capsys, *args)[1].splitlines()[-1] == (
        "Next: segray report 'a drive' --out 'a drive'.html, or segray export 'a drive' --to png --out 'a drive'-masks"
    )


def test_every_command_is_listed_by_its_stage():
    assert sorted(name for names in app.STAGES.values() for name in names) == sorted(cli.cli.commands)


def test_encoders_may_be_separated_by_commas():
    config = flags.settings(None, (), sweep__encoders=("resnet18,vgg19", "mit_b0"))
    assert config.sweep.encoders == ["resnet18", "vgg19", "mit_b0"]


CODES = [(*row, 1) for row in BAD] + [(*row, 2) for row in USAGE]


@pytest.mark.parametrize(("args", "line", "exit_code"), CODES, ids=[" ".join(row[0]) for row in CODES])
def test_bad_input_is_one_line_and_a_code(monkeypatch, capsys, places, args, line, exit_code):
    monkeypatch.chdir(places)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, _, err = run(monkeypatch, capsys, *(arg.format(places) for arg in args))
    if line is None:
        assert (code, err.count("\n"), err.startswith("segray: ")) == (exit_code, 1, True)
    else:
        assert (code, err) == (exit_code, f"segray: {line.format(places)}\n")
    assert (places / "full" / "thesis.txt").read_text() == "years of work"


def test_a_bucket_that_may_not_be_used_is_one_line(monkeypatch, capsys, places, tiny_bundle, s3, s3_proxy):
    s3_proxy.set(http_403=1)
    label = ("label", "--model", tiny_bundle, "--input")
    for args in ((*label, places / "frame.png", "--out", s3), (*label, s3, "--out", places / "new"), ("status", s3)):
        code, _, err = run(monkeypatch, capsys, *args)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith(f"segray: {s3}")
        assert err.endswith(" Check the credentials (AWS_PROFILE, a role) and the bucket's policy.\n")


def test_a_job_gets_a_ready_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _, _ = submitted("label", ["--model", "smp-hub/upernet-convnext-tiny", "--input", "drives/"])
    assert (config.label.model, config.label.inputs) == ("smp-hub/upernet-convnext-tiny", [f"{tmp_path}/drives"])


def test_a_job_is_a_sweep_also_one_that_only_estimates_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--data", "streets/", "--lr", "1e-3"]
    config, sent, dry_run = submitted("sweep", args)
    assert (config.sweep.learning_rates, config.data.root, sent, dry_run) == ([1e-3], f"{tmp_path}/streets", [], False)
    assert submitted("sweep", [*args, "--estimate"])[1] == ["--estimate"]


@pytest.mark.parametrize(
    "args",
    [
        ("select", "labels", "--count", "-1"),
        ("export", "labels", "--to", "coco", "--out", "x", "--min-area", "-1"),
        ("compare", "a", "b", "--images", "-1"),
        ("compare", "a", "b", "--seed", "-1"),
    ],
)
def test_a_number_below_its_range_is_a_usage_error(monkeypatch, capsys, args):
    code, _, err = run(monkeypatch, capsys, *args)
    assert (code, f"Invalid value for '{args[-2]}': -1 is not in the range" in err) == (2, True)


def test_data_is_checked_without_a_flag(monkeypatch, capsys):
    for args, said in ((("--data", "mine/"), "Give it without a flag, as ROOT."), ((), "Missing argument 'ROOT'.")):
        code, _, err = run(monkeypatch, capsys, "data", "check", *args)
        assert (code, err.rstrip().endswith(said)) == (2, True)


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("", 160), ("wide", 160), ("0", 160)])
def test_a_log_is_as_wide_as_the_variable_says_where_it_is_a_number(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert runpy.run_path(terminal.__file__)["WIDTH"] == width


def test_a_flag_that_does_not_exist_is_a_usage_error_also_behind_submit(monkeypatch, capsys):
    for before in ((), SUBMIT):
        code, _, err = run(monkeypatch, capsys, *before, "train", "--learning-rate", "1")
        assert (code, "No such option '--learning-rate'" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--input", "{}/none"), "{}/none does not exist; give an image, a video, a folder or glob of them, or a list."),
        (("--input", "{}/empty"), "No image, video or Parquet file of images found in {}/empty."),
        (("--input", "{}/frame.png", "--truth", "{}/empty"), "{}/empty holds no mask; give the folder that holds the masks."),
        (("--input", "{}/frame.png", "--truth", "{}/none"), "{}/none does not exist; give the folder that holds the masks."),
        (("--input", "{}/frame.png", "--truth", "{}/camvid"), "No mask in {}/camvid has the file name of an image; masks pair by path or by file name."),
        (("--input", "http://host/a.png"), "'http://host/a.png': only local paths, s3://, gs:// and az:// are read. Copy the data to one of them."),
        (("--input", "{}/frame.png", "--out", "{}/full"), "{}/full holds files that are no labels; give another --out."),
        (("--input", "{}/frame.png", "--out", "{}/full", "--overwrite"), "{}/full holds files that are no labels; give another --out."),
    ],
)  # fmt: skip
def test_bad_labelling_input_is_one_line_and_nothing_is_written(monkeypatch, capsys, places, tiny_bundle, args, line):
    monkeypatch.chdir(places)
    before = sorted(places.rglob("*"))
    code, _, err = run(monkeypatch, capsys, "label", "--model", tiny_bundle, *(arg.format(places) for arg in args))
    assert (code, err) == (1, f"segray: {line.format(places)}\n")
    assert sorted(places.rglob("*")) == before


def test_data_check_says_what_is_wrong_and_where(monkeypatch, capsys, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / split / "a.png")
        Image.new("L", (6, 4), 3).save(tmp_path / f"{split}annot" / "a.png")
    assert run(monkeypatch, capsys, "data", "check", "--format", "camvid", tmp_path)[0] == 0
    Image.new("L", (6, 4), 40).save(tmp_path / "valannot" / "a.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "train" / "lonely.png")
    code, out, _ = run(monkeypatch, capsys, "data", "check", "--format", "camvid", tmp_path)
    assert code == 1
    assert f"id 40 is unknown; the label space knows 0–11. In {tmp_path}/valannot/a.png." in out
    assert f"Problem: {tmp_path}/train/lonely.png has no partner." in out
    assert "Training cannot start: 2 problems." in out


def test_memory_that_is_exhausted_anywhere_is_a_line(monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("segray.core.data.open_dataset", full)
    code, out, err = run(monkeypatch, capsys, "data", "check", "--format", "camvid", "x")
    assert (code, out) == (1, "")
    assert err == (
        "segray: The machine's memory is exhausted. Lower the stage's batch_size, or end what else uses the memory. "
        "(RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory)\n"
    )
