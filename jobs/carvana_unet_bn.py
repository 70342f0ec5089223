"""Binary U-Net with batch normalisation on Carvana: one logit, cross-entropy and Dice, as PyTorch-UNet.

Command:   python -m jobs.carvana_unet_bn --data carvana/
Data:      Carvana's train/ and train_masks/ (.gif); a fifth of the cars is validated on
Hardware:  one GPU with 16 GB; expected 60 minutes
Scores:    not run on a GPU yet
"""

from jobs.common import compare, job

VARIANTS = {"unet-plain": {}}
OTHERS = ("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "pedestrian", "bicyclist")
SMOKE = {"data.class_map": dict.fromkeys(OTHERS, "background"), "model.options": {"channels": 8}}

if __name__ == "__main__":
    job(__file__, __doc__, lambda config, quick: compare(config, VARIANTS), smoke=SMOKE)
