"""torchvision's DeepLabV3 from COCO on Cityscapes frames, untrained there: scores, segmentation maps, overlays.

Command:   python -m jobs.cityscapes_deeplab_coco --data cityscapes/
Data:      Cityscapes in its official layout; six classes are known to both: the others are not covered
Hardware:  any; 500 frames take about 2 minutes on a GPU, an hour on 8 cores (about 160 MB are fetched)
Scores:    not run with COCO's weights yet
"""

import torch

from jobs.common import job, score
from segray.config import Config
from segray.core.data import voc
from segray.core.io import storage
from segray.core.models import build, bundle
from segray.core.models.info import BundleInfo
from segray.sections.training import ModelSection


def run(config: Config, quick: bool) -> None:
    out = config.train.out
    model = untrained(storage.join(out, "untrained")) if quick else config.evaluate.model
    score(config, model, storage.join(out, "evaluation"))


def untrained(folder: str) -> str:
    """A bundle of the same kind with random weights: what a smoke test has without a network."""
    torch.manual_seed(0)
    section = ModelSection(arch="deeplabv3-torchvision", encoder="mobilenet_v3_large")
    info = BundleInfo(model=section, label_space=voc.LABEL_SPACE.to_dict(), input_size=(64, 96))
    bundle.save(folder, build(section, voc.LABEL_SPACE.num_classes), info)
    return folder


if __name__ == "__main__":
    job(__file__, __doc__, run)
