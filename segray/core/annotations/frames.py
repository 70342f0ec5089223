"""What a reader gives: classes, and frames whose masks are drawn when the size of their image is known."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from segray.core.annotations.files import Files
from segray.core.io import storage
from segray.core.samples import IGNORE_INDEX
from segray.errors import DataError

Color = tuple[int, int, int]
BACKGROUND = "background"
BACKGROUNDS = frozenset({BACKGROUND, "_background_"})  # the second is Labelme's
SPLITS = {  # as tools and data sets write them → as the settings have them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
STRUCTURE = frozenset({"images", "image", "img", "imgs", "jpegimages", "data", "default"})  # folders that say nothing


class Class(NamedTuple):
    name: str
    color: Color | None = None


class Drawn(NamedTuple):
    """mask_hw: positions of classes, uint8 [H, W]; 255 where nothing is drawn; None where it cannot be read.

    problems: (what, which). void_hw: bool [H, W], which pixels without a class are void, and of no background.
    """

    mask_hw: np.ndarray | None
    problems: list[tuple[str, str]]
    void_hw: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """image: its path below the images' folder. draw: (height, width) → its mask.

    size: (height, width) that the annotations were drawn on; None where they do not say. split: None for no split.
    picture: reads the image, encoded, where it is in the annotations themselves.
    """

    image: str
    draw: Callable[[int, int], Drawn]
    size: tuple[int, int] | None = None
    split: str | None = None
    picture: Callable[[], bytes] | None = None


class Problems:
    """What could not be taken as it stands: each kind with its number and an example."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, which: str, count: int = 1) -> None:
        before, example = self.found.get(what, (0, which))
        self.found[what] = (before + count, example)

    def lines(self) -> list[str]:
        """Write a line for each kind.

        >>> problems = Problems()
        >>> problems.add("Boxes, which are left out", "a.jpg")
        >>> problems.lines()
        ['Boxes, which are left out: 1, such as a.jpg']
        """
        return [f"{what}: {count}, such as {which}" for what, (count, which) in self.found.items()]


@dataclass(frozen=True)
class Annotations:
    """total: number of frames. background: position of the class of all that is not drawn; None: such pixels are void.

    problems: those that were met before any frame is drawn.
    """

    classes: tuple[Class, ...]
    frames: Iterable[Frame]
    total: int
    problems: Problems
    notes: tuple[str, ...] = ()

    @property
    def background(self) -> int | None:
        return next((i for i, one in enumerate(self.classes) if one.name.lower() in BACKGROUNDS), None)


class Images:
    """Images by the names that annotations have for them."""

    def __init__(self, files: Files, names: Iterable[str] | None = None) -> None:
        self.files = files
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for name in files.images if names is None else names:
            last = _steps(name)[-1]
            self.by_name[last].append(name)
            self.by_stem[last.rpartition(".")[0]].append(name)

    def find(self, name: str, problems: Problems, split: str | None = None, folder: str | None = None) -> str | None:
        """Return the path of an image whose end is `name`, or that is the end of `name`; None is said in `problems`.

        day1/a.jpg is frames/day1/a.jpg, or a.jpg alone, and never day2/a.jpg. split: it lies in no folder of another
        one. folder: of several images the one that lies there.
        """
        steps = _steps(name)
        return _only(
            name, steps, [(one, _steps(one)) for one in self.by_name.get(steps[-1], ())], problems, split, folder
        )

    def find_stem(self, name: str, problems: Problems, split: str | None = None) -> str | None:
        """Return the image of a name without suffix, as find() does."""
        steps = _steps(name)
        found = [(one, _steps(one.rpartition(".")[0])) for one in self.by_stem.get(steps[-1], ())]
        return _only(name, steps, found, problems, split, None)


def _steps(path: str) -> list[str]:
    """Split a path; accents are composed, as macOS writes them apart."""
    path = unicodedata.normalize("NFC", path).replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".")] or [""]


def _only(
    name: str,
    steps: list[str],
    candidates: list[tuple[str, list[str]]],
    problems: Problems,
    split: str | None,
    folder: str | None,
) -> str | None:
    """Return the candidate that shares all steps of the shorter path, and most of them."""
    if split:
        candidates = [one for one in candidates if split_of("/".join(one[1][:-1])) in (None, split)]
    ends = [(min(len(steps), len(other)), one, other) for one, other in candidates]
    whole = [(shared, one) for shared, one, other in ends if steps[-shared:] == other[-shared:]]
    best = [one for shared, one in whole if shared == max(whole)[0]]
    if len(best) > 1:
        best = [one for one in best if storage.folder_of(one) == folder] or best
    if len(best) == 1:
        return best[0]
    what = "Images of which several have the annotated name" if best else "Annotated images that are not there"
    problems.add(f"{what}, left out", name)
    return None


@dataclass(frozen=True)
class Source:
    """What a reader reads: its files, the one that was given ('' for a folder or zip), and where images are."""

    files: Files
    given: str
    images: Images
    problems: Problems = field(default_factory=Problems)

    def named(self, *suffixes: str) -> list[str]:
        """List the file that was given, or all that end so."""
        return [self.given] if self.given else self.files.named(*suffixes)

    def documents(
        self, is_it: Callable[[Any], bool], what: str, names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Give every JSON that is of a kind. DataError where the given one is not, or none is; others are counted."""
        found = False
        for name in self.named(".json") if names is None else names:
            data = self.files.json(name)
            if is_it(data):
                found = True
                yield name, data
            elif self.given:
                raise DataError(f"{self.files.place(name)} is not {what}.")
            else:
                self.problems.add("JSON files of another kind, left out", self.files.place(name))
        if not found:
            raise DataError(f"{self.files.uri} holds no JSON that is {what}.")


def classes_of(names: Iterable[str]) -> tuple[Class, ...]:
    return tuple(Class(name) for name in dict.fromkeys(names))


def check_count(classes: tuple[Class, ...], place: str) -> tuple[Class, ...]:
    """Return the classes. DataError where there are none, or more than a mask holds."""
    if not 1 <= len(classes) <= IGNORE_INDEX:
        raise DataError(f"{place} has {len(classes)} classes; 1 to {IGNORE_INDEX} are read.")
    return classes


def split_of(name: str) -> str | None:
    """Return the split that a path tells of.

    >>> split_of("annotations/instances_val2017.json"), split_of("valid/_annotations.coco.json"), split_of("values/a")
    ('val', 'val', None)
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def color_of(text: object) -> Color | None:
    """Read a colour: "#8040ff" or [128, 64, 255]; None for anything else.

    >>> color_of("#8040ff"), color_of([1, 2, 3]), color_of("red")
    ((128, 64, 255), (1, 2, 3), None)
    """
    if isinstance(text, str) and re.fullmatch("#[0-9a-fA-F]{6}", text):
        text = list(bytes.fromhex(text[1:]))
    if isinstance(text, list | tuple) and len(text) == 3 and all(type(one) is int and 0 <= one < 256 for one in text):
        return (text[0], text[1], text[2])
    return None
