"""jaxseg trains, fine-tunes and evaluates UNets for street-scene segmentation.

The package reads bottom up; a module imports only from lower layers, and `tests/test_layers.py`
holds it, and this list, to that:

    0   types, errors                         the data that everything passes around; what a user can cause
    1   models, losses, metrics, augment, optim           the science, pure
    1   best, broken, checksums, files, health, locks, meta, printing, process, stop, trace   small tools
    1   manager                               how orbax is set up
    1   arguments                             what stands on the command line
    1   distributed, supervise                one run in several processes
    2   step, data                            the train step, pure; sources -> records -> batches
    2   threads                               work beside a model
    2   compilations                          what XLA has compiled, kept for the next start
    3   parallel, checkpoints                 devices; what survives a crash
    3   inference                             a photo -> windows -> probabilities at the photo's size
    3   trackers                              W&B, MLflow, trackio
    4   evaluate, figures, logs, summary      what people look at
    4   transfer                              what a fine-tune takes from its parent
    4   preflight                             what a run takes against what there is
    4   stragglers                            what all others wait for
    5   experiment, incidents                 the only reader of a config; steps that were not finite
    5   predict                               label maps and overlays of anybody's photos
    6   score                                 a stored run on a split
    6   preview                               training data as the train step sees it
    7   occlusion                             how well what is covered in part is still found
    6   report                                what is known of runs, as one page
    7   trained                               what is done with stored runs
    7   loop, doctor                          one run from step to step; what is wrong with a machine
    8   train, verify                         a run to its end, parent first; interrupted runs end the same
    8   benchmark                             how fast this machine is, against PyTorch too
    9   replay                                a step of a run once more
    10  main                                  flags and commands
"""

__version__ = "0.1.0"
