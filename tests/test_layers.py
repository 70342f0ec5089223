"""The layers: imports run one way, core never imports ray or click, and the command line answers without torch or ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segray

ROOT = Path(segray.__file__).parent
CORE = sorted(
    "segray." + str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "core").rglob("*.py")
)

LAYERS = [  # from the ground up: what stands in a line imports from that line and the ones above it here
    "errors",
    "sections",
    "config recipes",
    "core",
    "core.io",
    "core.labels",
    "core.data",
    "core.models",
    "core.training",
    "core.search",
    "core.infer",
    "core.scoring",
    "core.formats",
    "core.annotations",
    "cluster",
    "stages.batch_size stages.run_data stages.resume stages.train stages.trackers stages.label stages.evaluate stages.compare stages.export stages.convert stages.select stages.show stages.verify",
    "trials",
    "stages.against",
    "stages.sweep",
    "pages",
    "stages.report stages.status settings_reference",
    "cli __main__",
    "api",
]
EXPLAINED = {
    ("segray.config", "segray.core.io.storage"),  # a file of settings may be on S3
    ("segray.sections.values", "segray.core.io.paths"),  # a setting that is a path knows how one is made absolute
}


def layer(module):
    """The index of the line with the longest name that the module is, or is below."""
    inside = module.removeprefix("segray.")
    names = {name: i for i, line in enumerate(LAYERS) for name in line.split()}
    found = [name for name in names if f"{inside}.".startswith(f"{name}.")]
    return names[max(found, key=len)] if found else 0


def imported(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segray"):
            for alias in node.names:
                inner = ROOT.parent / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_imports_run_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "__init__.py":  # tells type checkers what segray.api holds, and loads nothing
            continue
        module = "segray." + str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        wrong += [(module, other) for other in imported(path) if layer(other) > layer(module)]
    assert set(wrong) == EXPLAINED


def test_every_folder_of_modules_is_a_package():
    """One that is none is left out of the wheel."""
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def loaded_after(code, *suspects):
    script = f"import sys\n{code}\nprint(*[name for name in {suspects!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split("\n")[-2]


@pytest.mark.slow
def test_core_stands_below_ray_and_click():
    code = f"""
import importlib
for module in {CORE!r}:
    importlib.import_module(module)
    if found := {{"ray", "click"}} & set(sys.modules):
        sys.exit(f"{{module}} imports {{found}}")"""
    assert loaded_after(code, "ray", "click") == ""


def test_help_loads_nothing_heavy():
    code = "from segray.cli import cli\ncli.main(['--help'], standalone_mode=False)"
    assert loaded_after(code, "ray", "torch", "numpy", "pydantic", "rich") == ""


def test_help_of_a_command_loads_the_settings_alone():
    code = "from segray.cli import cli\ncli.main(['train', '--help'], standalone_mode=False)"
    assert loaded_after(code, "ray", "torch", "numpy", "botocore", "rich") == ""


@pytest.mark.parametrize("module", ["stages.report", "trials.leaderboard"])
def test_what_only_reads_needs_neither_ray_nor_torch(module):
    assert loaded_after(f"import segray.{module}", "ray", "torch", "click") == ""


FRAMES_ALONE = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("av", "botocore", "gcsfs", "adlfs", "azure", "google_crc32c"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Missing())
from functools import partial

from segray.config import load
from segray.core.data import streets
from segray.core.infer.label_rows import label_rows
from segray.core.infer.predictor import Predictor
from segray.core.labels import parts
from segray.core.labels.plan import PlanReader
from segray.core.labels.planning import make_plan
from segray.core.models.info import read_info
from segray.stages.evaluate import evaluate
from segray.stages.label import plan_settings, with_bundle
from segray.stages.train import train

here = Path(sys.argv[1])
town = streets.write(here / "town", train=2, val=1, size=(32, 48), video_s=0)
given = {
    "data.format": "streets", "data.root": str(town), "model.arch": "unet-plain", "model.options": {"channels": 4},
    "train.batch_size": 2, "train.epochs": 1, "train.out": str(here / "run"), "cluster.workers": 0,
    "label.model": str(here / "run/best"), "label.inputs": [str(town / "train")], "label.out": str(here / "labels"),
    "evaluate.model": str(here / "run/best"), "evaluate.out": str(here / "scores"),
}
config = load(None, given).absolute()
best = train(config).best
evaluate(config)
plan = make_plan(str(here / "labels"), plan_settings(with_bundle(config), config.infer, read_info(best)), read_info(best).space)
work = partial(label_rows, predictor=Predictor(best), batch_size=2)
print(parts.label_shard(plan, PlanReader(plan).shard(0), 0, work).rows, "labelled,", "av" in sys.modules)
"""


@pytest.mark.slow
def test_images_on_a_disk_need_neither_pyav_nor_botocore(tmp_path):
    done = subprocess.run([sys.executable, "-c", FRAMES_ALONE, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout == "2 labelled, False\n", done.stderr[-3000:]
