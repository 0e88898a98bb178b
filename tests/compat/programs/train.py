"""A job of `search.py`: trains one seed of one configuration, and logs it as mle-logging is used.

Its arguments are those that mle-scheduler gives.
"""

import argparse

import numpy as np
from mle_logging import MLELogger
from mle_logging.utils import load_config


def main(experiment_dir, config_fname, seed):
    config = load_config(config_fname, return_dotmap=True)
    generator = np.random.default_rng(seed)
    log = MLELogger(
        experiment_dir=experiment_dir,
        config_fname=config_fname,
        seed_id=seed,
        time_to_track=["num_epochs"],
        what_to_track=["train_loss", "test_loss"],
        model_type="numpy",
        ckpt_time_to_track="num_epochs",
        save_top_k_ckpt=2,
        top_k_metric_name="test_loss",
        top_k_minimize_metric=True,
    )
    for epoch in range(1, 11):
        loss = ((config.lrate - 0.2) ** 2 + config.batch_size / 10) / epoch
        test_loss = loss + generator.uniform(0, 0.01)
        log.update(
            {"num_epochs": epoch},
            {"train_loss": loss, "test_loss": test_loss},
            model=np.full(3, loss),
            save=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-exp_dir", "--experiment_dir", default="experiments/")
    parser.add_argument("-config", "--config_fname", default="base_config.yaml")
    parser.add_argument("-seed", "--seed_id", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.experiment_dir, arguments.config_fname, arguments.seed_id)
