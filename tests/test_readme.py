"""The commands on the README and the pages: each parses, and its settings are valid. So do messages and columns exist."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
from labelled import label_all, settings_of

from segray import cli
from segray.cli import demo
from segray.cli.cluster import submitted
from segray.core.data import streets
from segray.core.data.streets import LABEL_SPACE
from segray.core.infer.predictor import Predictor
from segray.core.labels.planning import make_plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = "\n".join([README, *(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))])
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", PAGES, flags=re.DOTALL)).replace("\\\n", " ")
LINES = [line.split("  #")[0].strip() for line in BLOCKS.splitlines()]
COMMANDS = [
    line for line in dict.fromkeys(LINES) if line.startswith("segray ") and "--config" not in line
]  # no file to read


def test_the_readme_shows_every_command():
    shown = {" ".join(command.split()[1:3]) for command in COMMANDS}
    for name in cli.cli.commands:
        assert any(line.split()[0] == name for line in shown), name


# What sends a pinned job has the job print its settings, in a process of its own.
@pytest.mark.parametrize("line", [pytest.param(one, marks=[pytest.mark.slow] * (" jobs." in one)) for one in COMMANDS])
def test_a_readme_command_parses(line, monkeypatch):
    args, command = shlex.split(line)[1:], cli.cli
    place = 0
    while isinstance(command, click.Group) and args[place] in command.commands:
        command, place = command.commands[args[place]], place + 1
    if "--resume" not in args and any("--config" in param.opts for param in command.params):
        cli.cli.main([*args, "--dry-run"], standalone_mode=False)
        return
    given = command.make_context(args[place - 1], args[place:]).params
    if command.name == "submit":
        monkeypatch.chdir(ROOT)
        submitted(given["command"], list(given["args"]))


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, plain_bundle):
    """After the demo and the line that labels its video, which are stood in for."""
    predictor = Predictor(str(plain_bundle))
    (tmp_path / "runs/demo/sweep").mkdir(parents=True)
    (tmp_path / "runs/demo/sweep/best").symlink_to(plain_bundle)
    streets.write(tmp_path / "runs/demo/held-out", train=0, val=1, seed=1, video_s=0, size=demo.SIZE, bold=demo.BOLD)
    monkeypatch.chdir(tmp_path)
    label_all(
        make_plan("labels/drive", settings_of([Path("runs/demo/held-out/val").absolute()]), LABEL_SPACE), predictor
    )
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    known = {}
    exec(block, known)
    assert known["result"].mask.shape == demo.SIZE
    assert len(known["labels"]) == 1


def test_every_layout_loss_architecture_and_job_is_on_a_page():
    from segray.core.data import LAYOUTS
    from segray.core.models import ARCHITECTURES
    from segray.core.training.losses import LOSSES

    jobs = [path.stem for path in (ROOT / "jobs").glob("*.yaml")]
    for name in (*LAYOUTS, *LOSSES, *ARCHITECTURES, *jobs):
        assert re.search(rf"\b{name}\b", PAGES), name


def test_make_knows_the_targets_that_the_readme_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)`?", README)):
        assert f"\n{target}:" in makefile, target


def test_every_setting_that_a_page_names_exists():
    from segray.config import Config, fields_of

    others = {"model.onnx", "model.safetensors", "report.html", "report.render", "report.report"}
    others |= {"cluster.yaml", "data.yaml", "train.txt"}
    sections = "|".join(Config.model_fields)
    named = set(re.findall(rf"[` ]((?:{sections})\.[a-z_]+)(?=[`=.:, ])", PAGES))
    assert named - others <= set(fields_of())


def test_troubleshooting_has_messages_in_the_words_of_the_code():
    code = {
        _text(node) or "" for path in (ROOT / "segray").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    }
    for message in re.findall(r"^### `+(.*?)`+$", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE):
        assert any(message in text for text in code), message


def _text(node):
    """Give the text of a string in the code; what differs is …"""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_the_parquet_schema_has_every_column():
    from segray.core.labels.schema import ROW_SCHEMA

    first = [
        line.split("|")[1] for line in (ROOT / "docs/schema.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert sorted(re.findall(r"`(\w+)`", "".join(first))) == sorted(ROW_SCHEMA.names)
