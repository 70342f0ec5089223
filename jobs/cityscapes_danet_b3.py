"""DANet over EfficientNet-B3 on Cityscapes: SGD at 0.2, focal loss, IoU of pixels decided at a probability of 0.5.

Command:   python -m jobs.cityscapes_danet_b3 --data cityscapes/
Data:      Cityscapes in its official layout, 19 classes; an ImageNet encoder
Hardware:  one GPU with 24 GB; expected 40 minutes
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"danet-b3": {}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
