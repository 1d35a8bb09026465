"""jaxseg trains, fine-tunes, evaluates and ships UNets for street-scene segmentation.

The package reads bottom up; a module imports only from lower layers, and `tests/test_layers.py`
holds it to that:

    0  types, errors          the data that everything passes around; the errors a user can cause
    1  models, losses, metrics, augment, optim    the science, pure
    2  step, data/            the train step, pure; sources -> records -> batches
    3  parallel, checkpoints  devices; what survives a crash
    4  evaluate, figures, summary, logs    what people look at
    5  experiment             the only reader of a config
    6  train, doctor          the loop and the other commands
    7  main                   flags
"""

__version__ = "0.1.0"
