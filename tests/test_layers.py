"""The floors: core never imports ray or click, and the command line answers without torch or ray."""

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


@pytest.mark.parametrize("module", ["report", "leaderboard"])
def test_what_only_reads_needs_neither_ray_nor_torch(module):
    assert loaded_after(f"import segray.{module}", "ray", "torch", "click") == ""
