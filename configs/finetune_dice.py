"""Stage 3: 0.3 weighted cross-entropy + 0.7 Dice over the batch, with stronger person occlusion.

The parent is scratch's best checkpoint, trained first where it is missing.

Source      the report's row "CE + Dice + occlusion"
Result      cityscapes, the report's (PyTorch): val mIoU .7810, person .5176, pixel accuracy .8999
            streets, ours (seed 0): val mIoU .7197, person .2414, pixel accuracy .8955
Hardware    the report's: an NVIDIA P100; ours: two CPU cores
Time        the report's: 53 min 52 s, scratch not included; ours: 7 min 28 s, all included
Command     python -m jaxseg.main --config=configs/finetune_dice.py[:DATASET]
"""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

BASE = Path(__file__).with_name("finetune_weighted_ce.py")


def get_config(dataset: str = "streets") -> ConfigDict:
    """The recipe with the sizes that fit `dataset`."""
    config = runpy.run_path(str(BASE))["get_config"](dataset)
    with config.unlocked():
        config.recipe = "finetune_dice"
        config.loss.cross_entropy.weight = 0.3
        config.loss.dice.weight = 0.7
        config.augment.occlusion.regions.probability = 0.8
        config.augment.occlusion.regions.grey = 0.9
        config.train.batch_size = 4
    return config
