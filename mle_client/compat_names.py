"""Which names mle-logging 0.0.6 has, and where ours are.

Pure: a table of strings, of which `compat` makes modules.  A module's name is that inside
mle_logging, "" for mle_logging itself.  A name that has no counterpart has advice in its place,
which whoever asks for it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PACKAGE: Final = "mle_logging"
VERSION: Final = "0.0.6"  # whose names these are; programs ask for it as __version__

_LOADING: Final = ("load_log", "load_meta_log")
_CONFIGS: Final = ("load_config", "load_yaml_config", "load_json_config")
_PICKLES: Final = ("save_pkl_object", "load_pkl_object")
_SUMMARISED: Final = (
    "load_log(..., aggregate_seeds=True) summarises the seeds; numpy.nanmean and "
    "numpy.nanpercentile do it for arrays of your own"
)
_PRINTED: Final = "MLELogger(..., verbose=True) prints the run; rich.print prints what you like"
_NO_WRITING: Final = (
    "a log that anyone can see is never written to: log the values with MLELogger.update(), or "
    "write a file of your own with h5py"
)


@dataclass(frozen=True, slots=True)
class Module:
    """One module of mle-logging's.

    Args:
        ours: {name: module of mle_client that has it under the same name, or "module:name"}.
        missing: {name: what to use instead}.
    """

    ours: dict[str, str]
    missing: dict[str, str]

    def home(self, name: str) -> tuple[str, str]:
        """Module of mle_client and name in it of one of `ours`."""
        module, _, renamed = self.ours[name].partition(":")
        return module, renamed or name


def _all_from(*homes: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: module for module, names in homes for name in names}


_MERGING: Final = _all_from(("merge", ("merge_seed_logs", "merge_config_logs")))
_HELPERS: Final = _all_from(
    ("configs", _CONFIGS), ("utils", _PICKLES), ("plot", ("visualize_1D_lcurves",))
)
_PRINTING: Final = dict.fromkeys(
    ("print_welcome", "print_startup", "print_update", "print_reload", "print_storage"), _PRINTED
)
_SAVERS: Final = {
    "stats_log": ({"StatsLog": "statslog"}, {}),
    "model_log": (
        {"ModelLog": "artifactlogs"},
        dict.fromkeys(
            ("save_model_ckpt", "save_torch_model", "save_tensorflow_model"),
            "MLELogger(..., model_type=...).save_model() saves a model; so do the functions of "
            "its own library",
        ),
    ),
    "figure_log": ({"FigureLog": "artifactlogs"}, {}),
    "extra_log": ({"ExtraLog": "artifactlogs"}, {}),
    "tboard_log": ({}, {"TboardLog": "MLELogger(..., use_tboard=True) writes TensorBoard's files"}),
    "wandb_log": (
        {},
        dict.fromkeys(
            ("WandbLog", "setup_wandb_env"),
            "MLELogger(..., use_wandb=True, wandb_config={...}) mirrors the run into W&B's "
            "offline mode",
        ),
    ),
}

MODULES: Final[dict[str, Module]] = {
    "": Module(
        _MERGING
        | _all_from(
            ("logger", ("MLELogger",)),
            ("load", _LOADING),
            ("models", ("load_model",)),
            ("configs", ("load_config",)),
        ),
        {},
    ),
    "_version": Module({}, {}),
    "mle_logger": Module({"MLELogger": "logger"}, {}),
    "meta_log": Module(
        {"MetaLog": "metalog", "subselect_meta_log": "older_calls"},
        {"decode_meta_strings": "what load_log returns is decoded"},
    ),
    "load": Module(_all_from(("load", _LOADING), ("models", ("load_model",))), {}),
    "load.load_log": Module(_all_from(("load", _LOADING)), {}),
    "load.load_model": Module({"load_model": "models"}, {}),
    "merge": Module(_MERGING | {"merge_hdf5_files": "older_calls"}, {}),
    "merge.merge_logs": Module(_MERGING, {}),
    "merge.merge_hdf5": Module(
        {"merge_hdf5_files": "older_calls"},
        dict.fromkeys(
            ("get_datasets", "write_data_to_file"),
            "merge_seed_logs() merges; h5py.File.copy copies",
        ),
    ),
    "merge.aggregate": Module(
        _all_from(("older_calls", ("aggregate_over_seeds", "tolerant_mean"))),
        dict.fromkeys(
            ("aggregate_single_eval", "aggregate_batch_evals", "tolerant_median"), _SUMMARISED
        ),
    ),
    "utils": Module(_HELPERS, {"write_to_hdf5": _NO_WRITING} | _PRINTING),
    "utils.helpers": Module(
        _HELPERS | {"tokenize": "seeds:natural_key", "moving_smooth_ts": "older_calls"},
        {"write_to_hdf5": _NO_WRITING},
    ),
    "utils.comms": Module({}, _PRINTING),
    "save": Module(
        {name: home for ours, _ in _SAVERS.values() for name, home in ours.items()},
        {
            name: advice
            for _, missing in _SAVERS.values()
            for name, advice in missing.items()
            if name in ("TboardLog", "WandbLog")
        },
    ),
    **{f"save.{name}": Module(ours, missing) for name, (ours, missing) in _SAVERS.items()},
}


def full_name(module: str) -> str:
    """The name under which a module is imported.  Args: module: a key of `MODULES`."""
    return f"{PACKAGE}.{module}" if module else PACKAGE


def inside(module: str) -> list[str]:
    """The names of the modules right inside one; none if it is no package."""
    prefix = f"{module}." if module else ""
    rest = [name.removeprefix(prefix) for name in MODULES if name and name.startswith(prefix)]
    return [name for name in rest if "." not in name]
