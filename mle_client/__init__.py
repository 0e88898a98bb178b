"""The logger that a training script imports, and what reads its files back.

    from mle_client import MLELogger, load_log, load_meta_log, load_config, load_model

The names are loaded when they are first used: logging does not load what only reading needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mle_client.compat import install_as_mle_logging as install_as_mle_logging
    from mle_client.configs import load_config as load_config
    from mle_client.load import load_log as load_log
    from mle_client.load import load_meta_log as load_meta_log
    from mle_client.logger import MLELogger as MLELogger
    from mle_client.logger import Report as Report
    from mle_client.merge import merge_config_logs as merge_config_logs
    from mle_client.merge import merge_seed_logs as merge_seed_logs
    from mle_client.metalog import MetaLog as MetaLog
    from mle_client.models import load_model as load_model
    from mle_client.plot import visualize_1D_lcurves as visualize_1D_lcurves
    from mle_client.rules import EveryK as EveryK
    from mle_client.rules import KeepPeriod as KeepPeriod
    from mle_client.rules import LatestN as LatestN
    from mle_client.rules import TopK as TopK

__version__ = "0.1.0"

_HOME = {
    "EveryK": "rules",
    "KeepPeriod": "rules",
    "LatestN": "rules",
    "MLELogger": "logger",
    "MetaLog": "metalog",
    "Report": "logger",
    "TopK": "rules",
    "install_as_mle_logging": "compat",
    "load_config": "configs",
    "load_log": "load",
    "load_meta_log": "load",
    "load_model": "models",
    "merge_config_logs": "merge",
    "merge_seed_logs": "merge",
    "visualize_1D_lcurves": "plot",
}

__all__ = [
    "EveryK",
    "KeepPeriod",
    "LatestN",
    "MLELogger",
    "MetaLog",
    "Report",
    "TopK",
    "install_as_mle_logging",
    "load_config",
    "load_log",
    "load_meta_log",
    "load_model",
    "merge_config_logs",
    "merge_seed_logs",
    "visualize_1D_lcurves",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
