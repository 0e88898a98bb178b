"""Logs the seeds of a configuration, on either side: columns of every shape, checkpoints, objects.

Arguments: the folder, and the numbers of the seeds; behind "reload", seeds that are continued.
"""

import sys

import numpy as np
from mle_logging import MLELogger

STEPS = 5


def log_seed(folder, seed, **arguments):
    log = MLELogger(
        experiment_dir=folder,
        time_to_track=["num_steps"],
        what_to_track=["loss", "vector"],
        seed_id=seed,
        config_dict={"lr": 0.1, "layers": [1, 2]},
        model_type="numpy",
        ckpt_time_to_track="num_steps",
        save_every_k_ckpt=2,
        save_top_k_ckpt=2,
        top_k_metric_name="loss",
        top_k_minimize_metric=True,
        **arguments,
    )
    first = STEPS if arguments else 0
    for step in range(first + 1, first + STEPS + 1):
        stats = {"loss": seed / step, "vector": np.arange(3.0) * step}
        if step % 2:
            stats["rare"] = step / 10
        log.update({"num_steps": step}, stats, model=np.full(2, step))
    log.save_extra({"seed": seed})
    log.save()


if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    again = {}
    for word in words:
        if word == "reload":
            again = {"reload": True}
        else:
            log_seed(folder, int(word), **again)
