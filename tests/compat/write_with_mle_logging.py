"""Writes logs with mle-logging's own MLELogger, one of each kind, below a folder.

Argument: the folder.  A program of its own: mle-logging changes settings of the process that
imports it.  A log "killed_<n>" is that of a process which died in its second save, before it wrote
the n-th dataset.
"""

import os
import sys
import warnings

warnings.simplefilter("ignore")  # what its dependencies have to say is not our business

import numpy as np  # noqa: E402
from mle_logging import MLELogger, mle_logger  # noqa: E402

KILLED = range(1, 7)  # of the six datasets of a second save
MODELS = {
    "model_type": "numpy", "ckpt_time_to_track": "num_steps", "save_every_k_ckpt": 2,
    "save_top_k_ckpt": 2, "top_k_metric_name": "loss", "top_k_minimize_metric": True,
}  # fmt: skip


def logger(folder, **arguments):
    return MLELogger(
        experiment_dir=f"{sys.argv[1]}/{folder}/", time_to_track=["num_steps"],
        what_to_track=["loss"], seed_id=1, **arguments,
    )  # fmt: skip


def update(log, step, **stats):
    log.update({"num_steps": step}, {"loss": 1 / step, **stats})


def plain():
    log = logger("plain", config_dict={"lr": 0.1})
    for step in range(1, 7):
        update(log, step, vector=np.arange(3.0) * step)
    log.save()


def sparse():
    log = logger("sparse")
    for step in range(1, 7):
        update(log, step, **({"rare": float(step)} if step % 2 else {}))
    log.save()


def sparse_clock():
    """A clock of every third tick, and a statistic as rare as it."""
    log = logger("sparse_clock")
    for step in range(1, 7):
        epoch, acc = ({"epoch": step // 3}, {"acc": step / 10}) if step % 3 == 0 else ({}, {})
        log.update({"num_steps": step, **epoch}, {"loss": 1 / step, **acc})
    log.save()


def odd_names():
    log = logger("odd_names")
    for step in range(1, 4):
        stats = {"train/loss": 1.0 * step, "train/acc%": 2.0 * step, "größe": 3.0 * step}
        update(log, step, **stats)
    log.save()


def clocks_only():
    log = MLELogger(experiment_dir=f"{sys.argv[1]}/clocks_only/", time_to_track=["n"], seed_id=1)
    log.update({"n": 1}, {})
    log.save()


def models(folder, count):
    log = logger(folder, **MODELS)
    log.save_init_model([0])
    for step in range(1, count + 1):
        update(log, step)
        log.save_model([step])
        log.save()
    log.save_extra({"a": 1})
    log.save_extra({"b": 2}, "named.pkl")


def killed(number):
    """Die before one of the writes of a second save."""
    log = logger(f"killed_{number}")
    for step in range(1, 5):
        update(log, step, acc=1.0)
    log.save()
    for step in range(5, 8):
        update(log, step, acc=1.0)
    write, left = mle_logger.write_to_hdf5, number

    def write_or_die(path, name, *arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            import h5py

            with h5py.File(path, "a") as file:  # it deletes before it writes
                if name in file:
                    del file[name]
            os._exit(0)
        write(path, name, *arguments, **options)

    mle_logger.write_to_hdf5 = write_or_die
    log.save()
    os._exit(0)


plain()
sparse()
sparse_clock()
odd_names()
clocks_only()
models("models", 5)
models("one_model", 2)
models("no_model", 0)
for number in KILLED:
    if os.fork() == 0:
        killed(number)
    os.wait()
