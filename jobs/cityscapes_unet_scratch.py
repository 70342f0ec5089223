"""The 2015 U-Net on Cityscapes from scratch, at 256×256, as many students' first project.

Command:   python -m jobs.cityscapes_unet_scratch --data cityscapes/
Data:      Cityscapes in its official layout (leftImg8bit/, gtFine/), 19 classes
Hardware:  one GPU with 16 GB; expected 60 minutes
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"unet-plain": {}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS), smoke={"model.options": {"channels": 8}})
