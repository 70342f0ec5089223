"""U-Net on Cityscapes with a VGG19 and with a MobileNetV2 encoder: their mIoU.

Command:   python -m jobs.cityscapes_vgg19_vs_mobilenet --data cityscapes/
Data:      Cityscapes in its official layout, 19 classes; ImageNet encoders
Hardware:  one GPU with 24 GB; expected 90 minutes for both
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"vgg19": {"model.encoder": "vgg19_bn"}, "mobilenet_v2": {"model.encoder": "mobilenet_v2"}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
