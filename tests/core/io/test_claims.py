"""Whose a folder is: free, a run's of the same kind with results or without, another's; and who is at work there."""

import os
import signal
from pathlib import Path

import pytest

from segray.core.io.claims import Kind, alone, claim, held, is_live
from segray.errors import DataError, OutputExists, StorageError

KIND = Kind("album", "album.txt", ("album.txt", "photos"), lambda out: Path(out, "photos").exists())


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("years of work")
    return str(root)


def test_a_free_folder_and_a_run_without_results_are_anybodys(tmp_path):
    claim(str(tmp_path / "new"), KIND, False, lambda: ["size was 1, is 2"])
    claim(folder(tmp_path, "album.txt"), KIND, False, lambda: ["size was 1, is 2"])


def test_a_run_with_results_refuses_other_settings_by_name(tmp_path):
    out = folder(tmp_path, "album.txt", "photos/a.jpg", "mine.txt")
    claim(out, KIND, False)
    with pytest.raises(OutputExists) as error:
        claim(out, KIND, False, lambda: ["size was 1, is 2", "paper was matt, is glossy"])
    assert str(error.value) == (
        f"{out} holds an album with other settings (size was 1, is 2; paper was matt, is glossy). "
        "Give another --out, or --overwrite to begin anew."
    )
    claim(out, KIND, True, lambda: ["size was 1, is 2"])
    assert names_in(out) == ["mine.txt"]


def names_in(out):
    return sorted(path.name for path in Path(out).iterdir())


@pytest.mark.parametrize("names", [("mine.txt",), ("album.txt", "mine.txt")])
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path, names):
    out = folder(tmp_path, *names)
    kind = KIND if len(names) == 1 else Kind(*("album", "album.txt", KIND.made, KIND.has_results), lambda out: False)
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match=rf"^{out} holds files that are no album; give another --out\.$"):
            claim(out, kind, overwrite)
    assert names_in(out) == sorted(names)


@pytest.mark.parametrize(
    ("before", "made", "after"),
    [
        ([], ["album.txt"], []),
        ([], ["album.txt", "photos/a.jpg"], ["album.txt", "photos"]),
        (["album.txt"], ["album.txt"], ["album.txt"]),
        (["mine.txt"], [], ["mine.txt"]),
    ],
)
def test_what_fails_without_results_leaves_the_folder_as_it_was(tmp_path, before, made, after):
    out = folder(tmp_path, *before)

    def fail():
        with held(out, KIND):
            folder(tmp_path, *made)
            raise DataError("no light")

    with pytest.raises(DataError, match="no light"):
        fail()
    assert names_in(out) == after


def test_what_fails_without_results_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "runs").mkdir()
    for out in ("runs/a/b", "runs"):
        with pytest.raises(DataError), held(str(tmp_path / out), KIND):
            raise DataError("no light")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_second_run_is_told_which_process_is_at_work(tmp_path):
    out = str(tmp_path / "new")
    with held(out, KIND), pytest.raises(OutputExists) as error, held(out, KIND):
        pass
    assert str(error.value) == (
        f"An album is running in {out} (process {os.getpid()}); wait for its end, or give another --out."
    )
    with alone(out, "album"):
        assert is_live(out)
    assert not is_live(out)


def test_a_killed_run_holds_nothing(tmp_path):
    ready, said = os.pipe()
    if not (child := os.fork()):
        with alone(str(tmp_path), "album"):
            os.write(said, b"held")
            signal.pause()
    assert os.read(ready, 4) == b"held"
    with pytest.raises(OutputExists, match=rf"\(process {child}\)"), alone(str(tmp_path), "album"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with alone(str(tmp_path), "album"):
        pass


def test_a_file_is_no_folder_and_nothing_is_made_below_one(tmp_path):
    file = folder(tmp_path, "mine.txt") + "/mine.txt"
    with held(file, KIND), pytest.raises(OutputExists, match=r"mine.txt holds files that are no album"):
        claim(file, KIND, False)
    with (
        pytest.raises(StorageError, match=r"mine.txt/new cannot be made: Not a directory\. Give another --out\."),
        held(f"{file}/new", KIND),
    ):
        pass
