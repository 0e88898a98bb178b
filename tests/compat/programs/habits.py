"""Habits of mle-logging, bugs and limits most of them, as short programs that run on either side.

Argument: the folder to do it in.  Each has the number that `intended_differences` gives it, works
in a folder of its own, and returns what a user would notice, or the name of the error that ends it.
What both sides must do alike has a number that begins with "same".
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import time
import warnings

import h5py
import numpy as np
import yaml

BEFORE = set(sys.modules)
from mle_logging import (  # noqa: E402
    MLELogger,
    load_config,
    load_log,
    load_model,
    merge_config_logs,
    merge_seed_logs,
)
from seen import described  # noqa: E402

warnings.simplefilter("ignore")
LOADED = {name.partition(".")[0] for name in set(sys.modules) - BEFORE}
HABITS = {}


def habit(number):
    def register(program):
        HABITS[number] = program
        return program

    return register


def run(program):
    """What a program returns, or the error that ends it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return program()
    except Exception as error:
        return f"{type(error).__name__}"


def logger(folder="exp/", **arguments):
    return MLELogger(experiment_dir=folder, **{"time_to_track": ["num_steps"], **arguments})


def logged(*stats, folder="exp/", clock=lambda step: {"num_steps": step}, **arguments):
    """A logger that has logged and saved."""
    log = logger(folder, **{"what_to_track": [*stats[0]], **arguments})
    for step, values in enumerate(stats):
        log.update(clock(step), values)
    log.save()
    return log


def seeds(*numbers, folder="exp", length=2):
    for number in numbers:
        logged(*[{"loss": float(number + i)} for i in range(length)], folder=folder, seed_id=number)


def stored(path="exp/logs/log_no_seed_provided.hdf5", seed="no_seed_provided"):
    load_log(path)  # so that it is there, whoever writes it, and when
    with h5py.File(path, "r") as file:
        group = file[seed]
        return {name: group[name][()] for name in _columns(group)}


def _columns(group):
    names = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            names.append(name)

    group.visititems(visit)
    return names


def value_of(name, *stats, **arguments):
    logged(*stats, **arguments)
    return stored()[name]


# --- writing --------------------------------------------------------------------------------------
@habit("B2")
def exact_values():
    found = value_of("stats/x", {"x": 0.1234}, clock=lambda step: {"num_steps": 16_777_217})
    return [float(found[0]), int(stored()["time/num_steps"][0])]


@habit("B3")
def whole_numbers():
    return str(value_of("stats/count", {"count": np.int64(3)}).dtype)


@habit("B4")
def times_of_checkpoints():
    log = logger(model_type="numpy", ckpt_time_to_track="num_steps", save_every_k_ckpt=1)
    log.update({"num_steps": 3_000_000_000}, {"x": 1.0}, model=np.ones(1), save=True)
    return int(stored()["meta/every_k_storage_time"][0])


@habit("B4 time")
def a_time_that_is_a_text():
    log = logger(model_type="numpy", ckpt_time_to_track="time", save_every_k_ckpt=1)
    log.update({"num_steps": 3}, {"x": 1.0}, model=np.ones(1), save=True)
    return "saved"


@habit("B5")
def letters():
    logged({"x": 1.0}, folder="größe/")
    return load_log("größe/").meta.experiment_dir


@habit("B6")
def long_configurations():
    logged({"x": 1.0}, config_dict={f"name_{i}": i for i in range(1000)})
    return len(load_log("exp/").meta.config_dict)


@habit("B6 nan")
def configurations_that_are_no_literal():
    logged({"x": 1.0}, config_dict={"nan": float("nan"), "lr": 0.1})
    return type(load_log("exp/").meta.model_type).__name__


@habit("B7")
def bytes_of_a_time():
    return value_of("time/time", {"x": 1.0}).dtype.itemsize


@habit("B8")
def the_dict_of_the_caller():
    clock = {"num_steps": 1}
    logger().update(clock, {"x": 1.0})
    return sorted(clock)


@habit("same B8")
def num_updates_is_the_logger_s_own():
    return int(value_of("time/num_updates", {"x": 1.0}, clock=lambda step: {"num_updates": 10})[0])


@habit("B9")
def a_clock_that_is_named_twice():
    return logger(time_to_track=["num_updates", "num_steps"]).stats_log.time_to_track


@habit("B10")
def names_of_another_logger():
    MLELogger(experiment_dir="one/").update({}, {"of_one": 1.0})
    return MLELogger(experiment_dir="two/").stats_log.what_to_track


@habit("B10 caller")
def the_list_of_the_caller():
    names = ["x"]
    log = logger(what_to_track=names)
    log.update({"num_steps": 1}, {"x": 1.0, "y": 1.0})
    return names


@habit("B11")
def no_folder():
    return MLELogger().experiment_dir


@habit("B12")
def locks_of_hdf5():
    os.environ.pop("HDF5_USE_FILE_LOCKING", None)
    logger()
    return os.environ.get("HDF5_USE_FILE_LOCKING", "as it was")


@habit("B13")
def dots_in_the_name_of_a_configuration():
    for name in ("lr_0.01.json", "lr_0.1.json"):
        with open(name, "w") as file:
            file.write("{}")
    return [logger(config_fname=name).experiment_dir for name in ("lr_0.01.json", "lr_0.1.json")]


@habit("B14")
def reload_of_one_configuration_of_two():
    for name in ("my_a", "a"):
        with open(f"{name}.json", "w") as file:
            file.write("{}")
        logged({"x": 1.0}, config_fname=f"{name}.json")
    # Which one it takes depends on the file system; one of the two is wrong.
    folders = [logger(config_fname=f"{n}.json", reload=True).experiment_dir for n in ("a", "my_a")]
    return folders == ["exp/a", "exp/my_a"]


@habit("B15")
def another_run_of_a_name():
    logged({"x": 1.0}, {"x": 2.0}, {"x": 3.0})
    logged({"y": 1.0})
    return sorted(name for name in stored() if name.startswith("stats"))


@habit("same B15")
def overwriting_a_log():
    logged({"x": 1.0}, {"x": 2.0})
    return value_of("stats/x", {"x": 5.0}, overwrite=True).tolist()


@habit("B16")
def a_seed_of_numpy_s():
    return logger(seed_id=np.int64(3)).log_save_fname


@habit("B17")
def text_as_a_statistic():
    return load_log_of({"note": "größe"}).note[0]


def load_log_of(*stats):
    logged(*stats)
    return load_log("exp/").stats


@habit("B17 none")
def nothing_as_a_statistic():
    logger().update({"num_steps": 1}, {"x": None})
    return "taken"


@habit("B17 digits")
def digits_as_a_statistic():
    return load_log_of({"x": "1.5"}).x.tolist()[0]


@habit("B17 list")
def a_list_as_a_statistic():
    return load_log_of({"x": [1.0, 2.0]}).x.shape


@habit("B17 truth")
def truth_as_a_statistic():
    return str(load_log_of({"done": True}).done.dtype)


@habit("B18")
def a_vector_that_changes_its_shape():
    log = logger(what_to_track=["v"])
    log.update({"num_steps": 1}, {"v": np.ones(2)})
    with contextlib.suppress(ValueError):
        log.update({"num_steps": 2}, {"v": np.ones(3)})
    log.update({"num_steps": 3}, {"v": np.ones(2)})
    log.save()
    return load_log("exp/").stats.v.shape


@habit("B19")
def a_metric_that_comes_now_and_then():
    logged({"x": 1.0, "rare": 1.0}, {"x": 2.0}, {"x": 3.0, "rare": 3.0})
    return stored().get("meta/stats_rows:rare", "nobody knows when")


@habit("same B19")
def values_of_a_metric_that_comes_now_and_then():
    stats = load_log_of({"x": 1.0, "rare": 1.0}, {"x": 2.0}, {"x": 3.0, "rare": 3.0})
    return stats.rare.tolist()


@habit("same B24")
def reload_with_another_configuration():
    logged({"x": 1.0}, config_dict={"lr": 0.1})
    logged({"x": 2.0}, config_dict={"lr": 0.2}, reload=True)
    return load_log("exp/").meta.config_dict["lr"]


@habit("B27")
def a_name_that_leads_upwards():
    log = logger()
    with contextlib.suppress(ValueError):
        log.save_extra({}, "../../escaped.pkl")
    return os.path.exists("escaped.pkl")


@habit("B28")
def what_an_import_loads():
    return sorted(LOADED & {"h5py", "pandas", "rich", "commentjson", "yaml"})


@habit("B29")
def yaml_of_other_programs():
    with open("a.yaml", "w") as file:
        file.write("lr: 1e3\n")
    load_config("a.yaml")
    return type(yaml.safe_load("1e3")).__name__


@habit("same B29")
def numbers_of_a_configuration():
    with open("a.yaml", "w") as file:
        file.write("lr: 1e3\n")
    return load_config("a.yaml")


@habit("B20")
def frozen_names():
    from mle_logging.save import StatsLog

    log = StatsLog("exp/", "seed_1", ["num_steps"], ["x"], freeze_keys=True)
    log.update({"num_steps": 1}, {"x": 1.0})
    return log.stats_tracked["x"]


@habit("B21")
def columns_to_print():
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        log = logger(time_to_print=["num_steps"], what_to_print=["x"], verbose=True)
        log.update({"num_steps": 7}, {"x": 1.0, "y": 2.0})
        for _ in range(100):
            if " 7 " in shown.getvalue():
                break
            time.sleep(0.05)
    table = shown.getvalue()[-800:]
    return [name for name in ("time_elapsed", "num_updates", "num_steps") if name in table]


@habit("same ticks")
def arguments_by_position():
    """As mle-toolbox calls it: its `save` is where `grads` is."""
    log = logger(what_to_track=[])
    log.update({"num_steps": 1}, {"x": 1.0}, None, None, {"a": 1}, False)
    log.update({"num_steps": 2}, {"x": 2.0}, None, None, None, None, True)
    log.extend_tracking(["y"])
    ready = [logger("two/", log_every_j_steps=3).ready_to_log(i) for i in range(7)]
    return [load_log("exp/").stats.x.tolist(), sorted(log.stats_log.what_to_track), ready]


# --- checkpoints ----------------------------------------------------------------------------------
class Counted:
    """A model that counts how often it is pickled."""

    pickled = 0

    def __reduce__(self):
        type(self).pickled += 1
        return dict, ()


def keeping(folder="exp/", **arguments):
    return logger(
        folder,
        **{
            "what_to_track": ["loss"], "model_type": "numpy", "ckpt_time_to_track": "num_steps",
            "save_top_k_ckpt": 2, "top_k_metric_name": "loss", "top_k_minimize_metric": True,
            **arguments,
        },
    )  # fmt: skip


EVERY = {"save_top_k_ckpt": None, "save_every_k_ckpt": 2}


def save_models(log, *losses, first=1):
    for step, loss in enumerate(losses, first):
        log.update({"num_steps": step}, {"loss": loss}, model=np.full(2, step))
    log.save()
    return log


@habit("C1")
def how_often_a_model_is_pickled():
    Counted.pickled = 0
    keeping(save_every_k_ckpt=1).update({"num_steps": 1}, {"loss": 1.0}, model=Counted())
    return Counted.pickled


@habit("same C3")
def every_second_save():
    log = save_models(keeping(**EVERY), *[1.0] * 5)
    return [log.model_log.every_k_ckpt_list, log.model_log.every_k_storage_time]


@habit("same C4")
def slots_of_the_best():
    log = save_models(keeping(), 3.0, 1.0, 2.0)
    return [log.model_log.top_k_ckpt_list, log.model_log.top_k_performance]


@habit("same C5")
def ties():
    return save_models(keeping(), 1.0, 1.0, 1.0).model_log.top_k_storage_time


@habit("C6")
def a_loss_that_is_no_number():
    return save_models(keeping(), float("nan"), 5.0, 1.0).model_log.top_k_performance


@habit("C7")
def a_model_before_the_metric():
    log = keeping()
    log.save_model(np.ones(2))
    return log.model_log.top_k_performance


@habit("C7 stale")
def a_model_whose_tick_lacks_the_metric():
    log = save_models(keeping(), 1.0)
    log.update({"num_steps": 9}, {"other": 1.0}, model=np.ones(2))
    return log.model_log.top_k_storage_time


@habit("C8")
def numbers_of_checkpoints_after_reload():
    save_models(keeping(**EVERY), *[1.0] * 12)
    log = save_models(keeping(**EVERY, reload=True), 1.0, 1.0, first=13)
    return log.model_log.every_k_ckpt_list[-1]


@habit("C9")
def reload_before_the_first_of_every_k():
    save_models(keeping(**EVERY), 1.0)
    return keeping(**EVERY, reload=True).model_log.every_k_ckpt_list


@habit("C10")
def reload_of_one_best():
    save_models(keeping(), 1.0)
    return keeping(reload=True).model_log.top_k_performance


@habit("C11")
def number_of_saves_after_reload():
    save_models(keeping(), 3.0, 2.0, 1.0)
    return keeping(reload=True).model_log.model_save_counter


@habit("same C13")
def names_of_tensorflow():
    return logger(model_type="tensorflow").model_log.final_model_save_fname


# --- reload ---------------------------------------------------------------------------------------
@habit("R1")
def clocks_after_reload():
    logged({"x": 1.0}, time_to_track=["z"], clock=lambda step: {"z": step})
    return logger(time_to_track=["z"], reload=True).stats_log.time_to_track


@habit("R2")
def seconds_after_reload():
    log = logged({"x": 1.0})
    time.sleep(0.2)
    log.update({"num_steps": 2}, {"x": 1.5})
    log.save()
    path = "exp/logs/log_no_seed_provided.hdf5"
    before = stored(path)["time/time_elapsed"][-1]
    logged({"x": 2.0}, reload=True)
    return bool((stored(path)["time/time_elapsed"][2:] >= before).all())


@habit("R3")
def reload_of_each_of_two_seeds():
    seeds(1, 2)
    outcomes = [run(lambda n=n: logger("exp", seed_id=n, reload=True) and "well") for n in (1, 2)]
    return sorted(outcomes)


@habit("R4")
def number_of_a_figure_after_one_was_removed():
    log = logged({"x": 1.0})
    for i in range(3):
        log.save_extra(i)
    log.save()
    load_log("exp/")
    os.remove("exp/extra/extra_1_no_seed_provided.pkl")
    again = logger(reload=True)
    again.save_extra("new")
    return again.extra_log.extra_storage_paths[-1]


# --- merging and loading --------------------------------------------------------------------------
def logs():
    return sorted(os.listdir("exp/logs"))


@habit("M2")
def merging_twice():
    seeds(1, 2)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    run(lambda: merge_seed_logs("exp/logs/log.hdf5", "exp"))
    return logs()


@habit("M3")
def a_seed_that_comes_late():
    seeds(1, 2)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    seeds(3)
    run(lambda: merge_seed_logs("exp/logs/log.hdf5", "exp"))
    return run(lambda: sorted(load_log("exp/logs/log.hdf5").eval_ids))


@habit("M4")
def a_damaged_log_among_good_ones():
    seeds(1, 2)
    load_log("exp")
    with open("exp/logs/log_seed_0.hdf5", "wb") as file:
        file.write(b"no hdf5")
    run(lambda: merge_seed_logs("exp/logs/log.hdf5", "exp"))
    return run(lambda: sorted(load_log("exp/logs/log.hdf5").eval_ids))


@habit("M4 stray")
def a_file_that_is_no_log():
    seeds(1, 2)
    load_log("exp")
    open("exp/logs/.DS_Store", "w").close()
    return run(lambda: merge_seed_logs("exp/logs/log.hdf5", "exp") and None) or "merged"


@habit("M5")
def one_log_more_than_is_waited_for():
    def too_long(*_):
        raise TimeoutError

    seeds(1, 2, 3)
    load_log("exp")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(3)
    try:
        return run(lambda: merge_seed_logs("exp/logs/log.hdf5", "exp", 2) and None) or "merged"
    finally:
        signal.alarm(0)


@habit("M6")
def a_configuration_that_is_not_there():
    logged({"x": 1.0}, folder="all/config_1")
    merge_seed_logs("all/config_1/logs/log.hdf5", "all/config_1")
    return run(lambda: merge_config_logs("all", ["config_1", "config_2"]))


@habit("L1")
def aggregating_a_single_run():
    seeds(1)
    return sorted(load_log("exp", aggregate_seeds=True).eval_ids)


@habit("L2")
def a_metric_that_the_first_seed_lacks():
    logged({"x": 1.0}, folder="exp", seed_id=1)
    logged({"x": 2.0, "more": 3.0}, folder="exp", seed_id=2)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return sorted(load_log("exp").seed_2.stats.keys())


@habit("L3")
def seeds_that_one_configuration_alone_has():
    for config, numbers in (("config_1", (1, 2)), ("config_2", (1, 2, 3))):
        seeds(*numbers, folder=f"all/{config}")
        merge_seed_logs(f"all/{config}/logs/log.hdf5", f"all/{config}")
    merge_config_logs("all", ["config_1", "config_2"])
    return sorted(load_log("all/meta_log.hdf5", aggregate_seeds=False).config_2.keys())


@habit("L5")
def a_slash_in_a_name():
    return sorted(load_log_of({"train/loss": 1.0}).keys())


@habit("L5 empty")
def a_log_without_a_statistic():
    logged({}, {}, what_to_track=[])
    return load_log("exp/").time.num_steps.tolist()


def different_lengths():
    seeds(1, length=LENGTHS[0])
    seeds(3, length=LENGTHS[1])
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return load_log("exp", aggregate_seeds=True).eval


LENGTHS = 2, 3000  # so long that memory which nobody has written to holds no values of ours


@habit("A1")
def median_of_seeds_of_different_lengths():
    found = different_lengths().stats.loss
    return bool(np.allclose(np.asarray(found["p50"]), [2, 3, *(3 + np.arange(2, LENGTHS[1]))]))


@habit("same A1")
def mean_of_seeds_of_different_lengths():
    found = different_lengths().stats.loss
    return [np.asarray(found[name])[[0, 1, 2, -1]].tolist() for name in ("mean", "std")]


@habit("A2")
def clock_of_seeds_of_different_lengths():
    return len(different_lengths().time.num_steps)


@habit("A3")
def seeds_of_different_configurations():
    for seed in (1, 2):
        logged({"x": 1.0}, folder="exp", seed_id=seed, config_dict={"lr": seed / 10})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merge_seed_logs("exp/logs/log.hdf5", "exp")
        load_log("exp", aggregate_seeds=True)
    return any("lr" in str(each.message) for each in caught)


@habit("A4")
def seeds_with_names():
    for name in ("alpha", "beta"):
        logged({"x": 1.0}, folder="exp", seed_id=name)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return list(load_log("exp", aggregate_seeds=True).eval.meta.seeds)


@habit("same A5")
def deviation_of_seeds():
    seeds(1, 2)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return float(load_log("exp", aggregate_seeds=True).eval.stats.loss["std"][0])


@habit("A6")
def how_many_seeds_a_mean_rests_on():
    return np.asarray(different_lengths().stats.loss["n"])[[0, -1]].tolist()


@habit("A7")
def mean_of_a_metric_that_a_seed_missed_once():
    for seed, missed in ((1, ()), (2, (2,))):
        ticks = [
            {"x": 0.0} if step in missed else {"x": 0.0, "acc": 10.0 * step} for step in range(4)
        ]
        logged(*ticks, what_to_track=["x", "acc"], folder="exp", seed_id=seed)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return np.asarray(load_log("exp", aggregate_seeds=True).eval.stats.acc["mean"]).tolist()


# --- the rest -------------------------------------------------------------------------------------
class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@habit("I7")
def a_model_that_runs_code():
    with open("model.pkl", "wb") as file:
        pickle.dump(Harmful(), file)
    run(lambda: load_model("model.pkl", "jax"))
    return os.path.exists("made-by-a-pickle")


@habit("I8")
def what_the_readme_imports():
    from mle_logging import load_meta_log

    return load_meta_log.__name__


@habit("D4")
def type_of_a_text():
    logged({"x": 1.0})
    return type(load_log("exp/").time.time[0]).__name__


@habit("D5")
def a_name_that_is_not_there():
    logged({"x": 1.0})
    return run(lambda: len(load_config_as_attributes().missing))


def load_config_as_attributes():
    with open("a.json", "w") as file:
        file.write("{}")
    return load_config("a.json", True)


@habit("D9")
def median_of_infinite_values():
    for seed in (1, 2):
        logged({"loss": float("inf")}, folder="exp", seed_id=seed)
    merge_seed_logs("exp/logs/log.hdf5", "exp")
    return float(np.asarray(load_log("exp", aggregate_seeds=True).eval.stats.loss["p50"])[0])


@habit("same D6")
def a_folder_without_a_log():
    try:
        load_log("nothing/")
    except FileNotFoundError:
        return "not found"


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    results = {}
    home = os.getcwd()
    for number, program in HABITS.items():
        folder = os.path.join("habits", number.replace(" ", "-"))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        os.chdir(folder)
        results[number] = run(program)
        os.chdir(home)
    with open("seen-habits.json", "w") as file:
        json.dump(described(results), file, indent=1)
