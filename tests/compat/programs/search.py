"""A random search with mle-hyperopt over jobs of mle-scheduler's queue, which runs on either side.

Arguments: the folder to do it in, and how many batches of configurations to try.  The queue starts
`train.py` for each configuration and seed as a program of its own, merges what they have logged,
and loads the means, which the search is told.
"""

import json
import os
import sys

from mle_hyperopt import RandomSearch
from mle_scheduler import MLEQueue

JOB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py")

if __name__ == "__main__":
    folder, batches = sys.argv[1:]
    os.chdir(folder)
    strategy = RandomSearch(
        real={"lrate": {"begin": 0.1, "end": 0.5, "prior": "log-uniform"}},
        integer={"batch_size": {"begin": 1, "end": 5, "prior": "uniform"}},
        seed_id=42,
    )
    results = []
    for batch in range(int(batches)):
        configs, config_fnames = strategy.ask(2, store=True)
        queue = MLEQueue(
            resource_to_run="local",
            job_filename=JOB,
            config_filenames=config_fnames,
            experiment_dir=f"search_{batch}",
            random_seeds=[1, 2],
            num_seeds=2,
            max_running_jobs=4,
            automerge_configs=True,
        )
        queue.run()
        losses = [float(queue.log[run_id].stats.test_loss.mean[-1]) for run_id in queue.mle_run_ids]
        strategy.tell(configs, losses, save=True)
        results.append({"runs": queue.mle_run_ids, "configs": configs, "losses": losses})
    best = strategy.get_best()
    with open("results.json", "w") as file:
        json.dump({"batches": results, "best": list(best[:3])}, file, default=float)
