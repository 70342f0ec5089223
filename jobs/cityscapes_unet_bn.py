"""U-Net on Cityscapes with and without batch normalisation between convolution and ReLU.

Command:   python -m jobs.cityscapes_unet_bn --data cityscapes/
Data:      Cityscapes in its official layout, 19 classes
Hardware:  one GPU with 16 GB; expected 80 minutes for both
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"with-batch-norm": {"model.batch_norm": True}, "without": {"model.batch_norm": False}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS), smoke={"model.options": {"channels": 8}})
