"""U-Net over a pretrained ResNet on all 34 Cityscapes labels, the decoder alone being trained.

Command:   python -m jobs.cityscapes_resnet_frozen --data cityscapes/
Data:      Cityscapes in its official layout, 34 classes (nothing is void); an ImageNet encoder
Hardware:  one GPU with 12 GB; expected 30 minutes
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"resnet50-frozen": {}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
