"""A sweep as programs for mle-logging write one, which runs on either side, unchanged.

Arguments: what to do, "train", "continue" or "look"; and the folder to do it in.  Each is a process
of its own, as it is when somebody looks at the results the next day.  What each has seen goes to
seen-<what to do>.json.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from mle_logging import (
    MLELogger,
    load_config,
    load_log,
    load_model,
    merge_config_logs,
    merge_seed_logs,
)
from mle_logging.load import load_meta_log
from mle_logging.utils import load_pkl_object, save_pkl_object
from seen import described

CONFIGS = {
    "config_1.json": '{"lr": 0.1, "model": {"type": "numpy", "layers": [32, 16]}, "steps": 12}',
    "config_2.yaml": "lr: 1e-2\nmodel:\n  type: sklearn\n  layers: [8]\nsteps: 12\n",
    "config_3.json": '{"lr": 0.5, "model": {"type": "torch", "layers": []}, "steps": 12}',
}
SEEDS = (1, 2)


def model_of(model_type, step):
    """A model that is another one at each step."""
    if model_type == "numpy":
        return {"weights": np.arange(4.0) * step, "bias": np.float32(step)}
    if model_type == "sklearn":
        from sklearn.svm import SVC

        points = np.arange(8.0).reshape(4, 2) + step
        return SVC(gamma="auto").fit(points, [0, 0, 1, 1])
    import torch

    model = torch.nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.full((1, 2), float(step)), "bias": torch.zeros(1)})
    return model


def figure_of(step):
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, step])
    return fig


def logger(config_fname, seed, folder="sweep/", **further):
    config = load_config(config_fname, True)
    return config, MLELogger(
        experiment_dir=folder,
        config_fname=config_fname,
        seed_id=seed,
        time_to_track=["num_steps", "num_epochs"],
        what_to_track=["train_loss", "test_loss", "gradient"],
        model_type=config.model.type,
        ckpt_time_to_track="num_steps",
        save_every_k_ckpt=2,
        save_top_k_ckpt=2,
        top_k_metric_name="test_loss",
        top_k_minimize_metric=True,
        **further,
    )


def update(log, config, seed, step, **further):
    loss = config.lr / step + seed / 10
    clock = {"num_steps": step, "num_epochs": step // 4}
    stats = {"train_loss": loss, "gradient": np.arange(3) * loss, "accuracy": np.float32(1 - loss)}
    stats["samples"] = 32 * step
    if step % 3 == 0:
        # Worse again in the end, so that the best are not the last.
        stats["test_loss"] = abs(loss - 0.2) + step / 100
        further["model"] = model_of(config.model.type, step)
    log.update(clock, stats, **further)


def train(config_fname, seed, folder="sweep/"):
    config, log = logger(config_fname, seed, folder)
    log.save_init_model(model_of(config.model.type, 0))
    for step in range(1, config.steps + 1):
        extra = {"step": step} if step == 6 else None
        update(log, config, seed, step, extra_obj=extra, save=step % 4 == 0)
    if folder != "sweep/" and config_fname == "config_1.json":  # drawing takes a while, anywhere
        log.save_plot(figure_of(seed))
        log.save_plot(figure_of(seed), f"last_{seed}.png")
    log.save_extra([seed, "done"], f"summary_{seed}.pkl")
    log.save()
    return {
        name: getattr(log.model_log, name)
        for name in (
            *("every_k_ckpt_list", "every_k_storage_time", "top_k_ckpt_list"),
            *("top_k_storage_time", "top_k_performance", "final_model_save_fname"),
            *("init_model_save_fname", "model_save_counter", "init_model_saved"),
        )
    } | {
        "figures": log.figure_log.fig_storage_paths,
        "extras": log.extra_log.extra_storage_paths,
        "clocks": log.stats_log.time_to_track,
        "stats": log.stats_log.what_to_track,
        "tracked": log.stats_log.stats_tracked,
        "steps": log.stats_log.clock_tracked["num_steps"],
        "experiment_dir": log.experiment_dir,
        "log_save_fname": log.log_save_fname,
        "seed_id": log.seed_id,
        "config_dict": log.config_dict,
    }


def train_all():
    for name, text in CONFIGS.items():
        with open(name, "w") as file:
            file.write(text)
    seen = {f"{name}/{seed}": train(name, seed) for name in CONFIGS for seed in SEEDS}
    for name in CONFIGS:
        train(name, 2, "interrupted/")  # one seed a folder: mle-logging finds no other (R3)
    # One without a configuration file and without a seed, as in the README.
    log = MLELogger(
        time_to_track=["num_steps"],
        what_to_track=["loss"],
        experiment_dir="single/",
        config_dict={"lr": 0.1, "optimizer": {"name": "adam", "betas": (0.9, 0.99)}},
    )
    for step in range(5):
        log.update({"num_steps": step}, {"loss": 1 / (step + 1)})
    log.save()
    return seen


def go_on():
    """Continue what was interrupted."""
    seen = {}
    for name in CONFIGS:
        config, log = logger(name, 2, "interrupted/", reload=True)
        first = config.steps + 1
        for step in range(first, first + 6):
            update(log, config, 2, step, save=True)
        if name == "config_1.json":
            log.save_plot(figure_of(3))
        log.save_extra("continued")
        seen[name] = {
            "steps": log.stats_log.clock_tracked["num_steps"],
            "updates": log.stats_log.clock_tracked["num_updates"],
            "every_k": log.model_log.every_k_ckpt_list,
            "every_k_times": log.model_log.every_k_storage_time,
            "top_k": log.model_log.top_k_performance,
            "top_k_times": log.model_log.top_k_storage_time,
            "figures": sorted(log.figure_log.fig_storage_paths),
            "extras": sorted(log.extra_log.extra_storage_paths),
        }
    return seen


def look():
    """Merge, load, aggregate, filter, load models and objects."""
    names = [os.path.splitext(name)[0] for name in CONFIGS]
    seen = {"single": load_log("single/"), "single by name": load_log("single/", reload_log=True)}
    seen["single by name"] = seen["single by name"].no_seed_provided.stats
    for name in names:
        folder = f"sweep/{name}"
        merge_seed_logs(f"{folder}/logs/log.hdf5", folder)
        log = load_log(folder)
        seen[name] = {
            "eval_ids": sorted(log.eval_ids),
            "len": len(log),
            "stats_vars": sorted(log.stats_vars),
            "time_vars": sorted(log.time_vars),
            "meta_vars": sorted(log.meta_vars),
            "seed_1": log.seed_1,
            "seed_2": log["seed_2"],
        }
        aggregated = load_log(f"{folder}/logs/log.hdf5", aggregate_seeds=True)
        seen[name]["aggregated"] = {run: aggregated[run] for run in aggregated.eval_ids}
        best = log.seed_1.meta.top_k_ckpt_list
        model = load_model(best[0], log.seed_1.meta.model_type)
        seen[name]["model"] = model if isinstance(model, dict) else repr(model)
    merge_config_logs("sweep/", names)
    meta = load_meta_log("sweep/meta_log.hdf5")
    seen["meta log"] = {
        "eval_ids": sorted(meta.eval_ids),
        "num_configs": meta.num_configs,
        **{run: meta[run] for run in sorted(meta.eval_ids)},
        "filtered": meta.filter(["config_1", "config_3"]).eval_ids,
    }
    seeds = load_log("sweep/meta_log.hdf5", aggregate_seeds=False)
    seen["meta log of seeds"] = {run: sorted(seeds[run].keys()) for run in sorted(seeds.eval_ids)}
    seen["config"] = load_config("config_2.yaml")
    seen["object"] = load_pkl_object("sweep/config_1/extra/summary_1.pkl")
    save_pkl_object({"a": np.arange(2)}, "of_mine.pkl")
    seen["of mine"] = load_pkl_object("of_mine.pkl")
    return seen


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    os.chdir(folder)
    result = {"train": train_all, "continue": go_on, "look": look}[what]()
    with open(f"seen-{what}.json", "w") as file:
        json.dump(described(result), file, indent=1)
