"""A real sweep through the daemon: two configurations, four seeds each, eight processes at once.

Each process trains a small network on scikit-learn's handwritten digits and logs four statistics a
tick, its model after every epoch, and at the end a figure and an object.  Meanwhile this program
shows how far they are; then it reads everything back, prints the results and the files, and draws
the learning curves with their spread over the seeds.

    make demo                             from a fresh clone
    python examples/digits_sweep.py       where mle-daemon[demo] is installed

Everything is written to exp/ in the current folder; logs of an earlier run of this sweep are
replaced.  The exit status is 1 if a run failed or a single tick is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mle_client import MLELogger, load_config, load_log, load_model

ROOT = Path("exp")
CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.yaml"))
SEEDS = (1, 2, 3, 4)
TICKS = 400  # steps of training, each logged
FIGURE = ROOT / "learning_curves.png"

TOP_K, EVERY_K = 3, 5  # which of the models that are saved every epoch are kept

REFRESH_S = 1.0  # between two looks at the daemon
LINE_EVERY_S = 2.0  # a line of progress where the output is no terminal


# --- the training program: all that is about logging is the `with` and the `update` ---------------
def train(config_fname: str, seed: int) -> None:
    """Train one network on mini-batches and log after each of them."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    config = load_config(config_fname)
    images, digits = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        images / 16, digits, test_size=0.25, stratify=digits, random_state=seed
    )
    model = MLPClassifier(
        (config["hidden_units"],),
        solver="sgd",
        learning_rate_init=config["learning_rate"],
        random_state=seed,
    )
    labels = np.arange(10)
    batches_per_epoch = len(x) // config["batch_size"]
    rng = np.random.default_rng(seed)

    with MLELogger(
        experiment_dir=f"{ROOT}/",
        config_fname=config_fname,
        seed_id=seed,
        num_seeds=len(SEEDS),
        time_to_track=["num_steps", "num_epochs"],
        what_to_track=["train_loss", "test_loss", "train_accuracy", "test_accuracy"],
        overwrite=True,
        use_tboard=True,
        model_type="sklearn",
        ckpt_time_to_track="num_epochs",
        save_every_k_ckpt=EVERY_K,
        save_top_k_ckpt=TOP_K,
        top_k_metric_name="test_loss",
        top_k_minimize_metric=True,
    ) as log:
        for step in range(TICKS):
            epoch, batch = divmod(step, batches_per_epoch)
            if batch == 0:
                order = rng.permutation(len(x))
            chosen = order[batch * config["batch_size"] : (batch + 1) * config["batch_size"]]
            model.partial_fit(x[chosen], y[chosen], classes=labels)

            train_p, test_p = model.predict_proba(x), model.predict_proba(x_test)
            log.update(
                {"num_steps": step + 1, "num_epochs": epoch},
                {
                    "train_loss": log_loss(y, train_p, labels=labels),
                    "test_loss": log_loss(y_test, test_p, labels=labels),
                    "train_accuracy": np.mean(train_p.argmax(1) == y),
                    "test_accuracy": np.mean(test_p.argmax(1) == y_test),
                },
                model=model if batch == batches_per_epoch - 1 else None,
            )
        confusion = np.histogram2d(y_test, test_p.argmax(1), bins=10)[0].astype(int)
        log.save_plot(draw_confusion(confusion))
        log.save_extra({"confusion": confusion, "labels": labels.tolist()})


def draw_confusion(confusion: npt.NDArray[Any]) -> Any:
    """Draw which digits were taken for which.  Args: confusion: shape (10, 10)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.log1p(confusion), cmap="Blues")
    axes.set(xlabel="predicted digit", ylabel="digit", xticks=range(10), yticks=range(10))
    return figure


# --- the sweep ------------------------------------------------------------------------------------
def daemon(verb: str, *options: str) -> str:
    """Run a command of mle-daemon on our root and return what it prints."""
    program = Path(sysconfig.get_path("scripts")) / "mle-daemon"
    command = [str(program), verb, "--root", f"{ROOT}/", *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def start_all() -> dict[str, BaseProcess]:
    """Start a process a run; the key is the run's name."""
    spawn = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited; many processes share few cores
    processes = {
        f"{config.stem}/seed_{seed}": spawn.Process(target=train, args=(str(config), seed))
        for config in CONFIGS
        for seed in SEEDS
    }
    for process in processes.values():
        process.start()
    return dict(processes)


def watch(processes: dict[str, BaseProcess]) -> None:
    """Show progress until every process has ended."""
    started = time.monotonic()
    terminal = sys.stdout.isatty()
    drawn = 0
    last_line = 0.0
    while True:
        running = any(process.is_alive() for process in processes.values())
        ticks = ticks_received()
        elapsed = time.monotonic() - started
        if terminal:
            if drawn:
                print(f"\x1b[{drawn}F", end="")  # back to the first line of the block
            drawn = draw_bars(processes, ticks)
        elif elapsed - last_line >= LINE_EVERY_S or not running:
            last_line = elapsed
            done = sum(ticks.get(name, 0) for name in processes)
            print(f"{elapsed:5.1f} s  {done:5d} of {TICKS * len(processes)} ticks", flush=True)
        if not running:
            return
        time.sleep(REFRESH_S)


def ticks_received() -> dict[str, int]:
    """How many ticks of each run have reached the daemon."""
    runs: list[dict[str, Any]] = json.loads(daemon("status", "--json"))["runs"]
    return {
        f"{Path(run['experiment_dir']).name}/{run['seed_id']}": run["ticks"]["received"]
        for run in runs
    }


def draw_bars(processes: dict[str, BaseProcess], ticks: dict[str, int]) -> int:
    """Draw a bar a run; returns the number of lines."""
    width = 40
    for name in processes:
        done = ticks.get(name, 0)
        filled = width * done // TICKS
        bar = "█" * filled + "·" * (width - filled)
        print(f"\x1b[2K  {name:<16} {bar} {done:4d}/{TICKS}")
    return len(processes)


# --- what came of it ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Curves:
    """One configuration, read back.  Args: loss, accuracy: test set, shape (seeds, ticks)."""

    name: str
    learning_rate: float
    steps: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]


def read_back(config: Path) -> Curves:
    """Load every seed of a configuration.

    Raises:
        ValueError: a tick is missing, doubled or out of order.
    """
    loss, accuracy = [], []
    expected = np.arange(1, TICKS + 1)
    log = load_log(ROOT / config.stem)
    for name in (f"seed_{seed}" for seed in SEEDS):
        run = log[name]
        columns = [*run.time.values(), *run.stats.values()]
        whole = all(len(column) == TICKS for column in columns)
        if not (whole and np.array_equal(run.time.num_steps, expected)):
            lengths = sorted({len(column) for column in columns})
            raise ValueError(f"{config.stem}/{name} has {lengths} ticks, not {TICKS} in order")
        loss.append(run.stats.test_loss)
        accuracy.append(run.stats.test_accuracy)
    rate = load_config(str(config))["learning_rate"]
    return Curves(config.stem, rate, expected, np.array(loss), np.array(accuracy))


def check_files(config: Path) -> list[str]:
    """Load what the runs of a configuration stored beside their logs.

    Returns:
        Every file, relative to the configuration's folder.

    Raises:
        ValueError: one is missing, or does not load.
    """
    folder = ROOT / config.stem
    log = load_log(folder)
    for name in (f"seed_{seed}" for seed in SEEDS):
        meta = log[name].meta
        # A list of one is loaded as its item, as mle-logging does.
        best, regular = np.atleast_1d(meta.top_k_ckpt_list), np.atleast_1d(meta.every_k_ckpt_list)
        if len(best) != TOP_K:
            raise ValueError(f"{folder}/{name} has {len(best)} best models, not {TOP_K}")
        try:
            for path in map(str, (meta.model_ckpt, *best, *regular)):
                if not hasattr(load_model(path, "sklearn"), "coefs_"):
                    raise ValueError(f"{path} holds no trained network")
            with open(meta.extra_storage_paths, "rb") as file:
                pickle.load(file)
            with open(meta.fig_storage_paths, "rb") as file:
                is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
        except OSError as error:
            raise ValueError(f"a file of {folder}/{name} is missing: {error}") from error
        if not is_png:
            raise ValueError(f"{meta.fig_storage_paths} is no PNG")
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def print_files(config: Path, names: list[str]) -> None:
    """Print the tree of a configuration's folder, one seed's files of each kind."""
    print(f"\n{ROOT / config.stem}: {len(names)} files, of which of seed 1:")
    for name in names:
        if f"seed_{SEEDS[0]}" in name or "/" not in name:
            print(f"  {name}")


def print_table(results: list[Curves]) -> None:
    """Print the results at the end of training, mean ± standard deviation over the seeds."""
    print("\nconfig     learning rate  seeds  ticks a seed  test accuracy      test loss")
    for curves in results:
        seeds, ticks = curves.loss.shape
        accuracy, loss = curves.accuracy[:, -1], curves.loss[:, -1]
        print(
            f"{curves.name:<10} {curves.learning_rate:>13}  {seeds:>5}  {ticks:>12}"
            f"  {accuracy.mean():.4f} ± {accuracy.std():.4f}"
            f"  {loss.mean():.4f} ± {loss.std():.4f}"
        )


def draw_curves(results: list[Curves]) -> None:
    """Save the test curves: a line for the mean over the seeds, a band from least to most."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for color, curves in zip(("#0072b2", "#d55e00"), results, strict=True):
        label = f"learning rate {curves.learning_rate}"
        for axes, values in ((left, curves.loss), (right, curves.accuracy)):
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(curves.steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(curves.steps, values.mean(axis=0), color=color, linewidth=1.8, label=label)
    left.set(title="Test loss", yscale="log")
    left.set_yticks((0.1, 0.2, 0.5, 1, 2), labels=("0.1", "0.2", "0.5", "1", "2"))
    left.minorticks_off()
    right.set(title="Test accuracy", ylim=(0, 1))
    for axes in (left, right):
        axes.set(xlabel="training steps", xlim=(0, TICKS))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="lower right")
    figure.suptitle(f"Digits: mean of {len(SEEDS)} seeds, band from the lowest to the highest")
    figure.savefig(FIGURE, dpi=150)
    plt.close(figure)


def sweep() -> int:
    """Train all runs and judge what came of it; returns the exit status."""
    print(daemon("start").strip())
    try:
        processes = start_all()
        print(f"{len(processes)} processes train; importing scikit-learn comes first", flush=True)
        watch(processes)
    finally:
        daemon("stop")  # returns when everything is on disk
    failed = [name for name, process in processes.items() if process.exitcode != 0]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    try:
        results = [read_back(config) for config in CONFIGS]
        stored = {config: check_files(config) for config in CONFIGS}
    except ValueError as error:
        print(f"something is missing: {error}", file=sys.stderr)
        return 1
    print_table(results)
    print_files(CONFIGS[0], stored[CONFIGS[0]])
    draw_curves(results)
    total = sum(curves.loss.size for curves in results)
    print(f"\nall {total} ticks are there; learning curves: {FIGURE}")
    return 0


def main() -> int:
    """Run the sweep; returns the exit status."""
    try:
        return sweep()
    except subprocess.CalledProcessError as error:
        print(f"{shlex.join(error.cmd)} failed, as it says above", file=sys.stderr)
        return 1


if __name__ == "__main__":  # `spawn` imports this file again in every child
    sys.exit(main())
