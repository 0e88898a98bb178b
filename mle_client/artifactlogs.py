"""`log.model_log`, `log.figure_log`, `log.extra_log`: what was saved, as mle-logging shows it.

Right at once after the call that saved it.  They read what `saving` keeps and hold nothing of their
own; whether a file is on disk yet, `flush()` says.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import Any

from mle_client import layout
from mle_client.kept import Kept, meta_lists
from mle_client.retention import Portfolio, Saved
from mle_client.saving import Saver


class ModelLog:
    """The checkpoints of one logger.

    Args:
        saver: that saves them.
        experiment_dir: as the user wrote it; paths begin with it.
        seed_id: gives the seed's name as it is now.
        model_type: of the logger.
    """

    def __init__(
        self, saver: Saver, experiment_dir: str, seed_id: Callable[[], str], model_type: str
    ) -> None:
        self._saver = saver
        self._seed_id = seed_id
        self.experiment_dir = experiment_dir
        self.ckpt_dir = self._path(layout.MODELS_DIR + "/")
        self.every_k_dir = self._path(f"{layout.MODELS_DIR}/every_k/")
        self.top_k_dir = self._path(f"{layout.MODELS_DIR}/top_k/")
        self.model_type = model_type
        self.model_fname_ext = layout.model_extension(model_type)
        policy = saver.policy
        self.ckpt_time_to_track = policy.time_name
        self.save_every_k_ckpt = policy.every_k
        self.save_top_k_ckpt = policy.top_k
        self.top_k_metric_name = policy.top_k_metric
        self.top_k_minimize_metric = policy.minimize if policy.top_k else None

    @property
    def portfolio(self) -> Portfolio:
        """All checkpoints that are kept."""
        return self._saver.kept.portfolio

    @property
    def seed_id(self) -> str:
        """The seed's name in the names of files."""
        return self._seed_id()

    @property
    def model_save_counter(self) -> int:
        """How many checkpoints were saved, a continued run's earlier ones included."""
        return self._saver.kept.portfolio.saves

    @property
    def init_model_saved(self) -> bool:
        """Whether an initial checkpoint was saved."""
        return self._saver.kept.portfolio.init_saved

    @property
    def final_model_save_fname(self) -> str:
        """Path of the latest checkpoint."""
        return self._path(layout.final_path(self._seed_id(), self.model_fname_ext))

    @property
    def init_model_save_fname(self) -> str:
        """Path of the initial checkpoint."""
        return self._path(layout.init_path(self._seed_id(), self.model_fname_ext))

    @property
    def every_k_model_save_fname(self) -> str:
        """How the paths of every k-th checkpoint begin; a number and the extension follow."""
        return self._path(layout.every_k_path(self._seed_id(), 0, "")).removesuffix("0")

    @property
    def top_k_model_save_fname(self) -> str:
        """How the paths of the best checkpoints begin; a slot and the extension follow."""
        return self._path(layout.top_k_path(self._seed_id(), 0, "")).removesuffix("0")

    @property
    def stored_every_k(self) -> bool:
        """Whether the latest checkpoint is kept as a k-th one."""
        return self._is_latest_in(self.portfolio.every_k)

    @property
    def stored_top_k(self) -> bool:
        """Whether the latest checkpoint is kept as one of the best."""
        return self._is_latest_in(self.portfolio.top_k)

    @property
    def every_k_ckpt_list(self) -> list[str]:
        """Paths of every k-th checkpoint, oldest first."""
        return self._list("every_k_ckpt_list")

    @property
    def every_k_storage_time(self) -> list[int | float]:
        """Their values of `ckpt_time_to_track`."""
        return self._list("every_k_storage_time")

    @property
    def top_k_ckpt_list(self) -> list[str]:
        """Paths of the best checkpoints, by slot; not sorted by performance."""
        return self._list("top_k_ckpt_list")

    @property
    def top_k_storage_time(self) -> list[int | float]:
        """Their values of `ckpt_time_to_track`."""
        return self._list("top_k_storage_time")

    @property
    def top_k_performance(self) -> list[float]:
        """Their values of the metric."""
        return self._list("top_k_performance")

    @property
    def retained_ckpt_list(self) -> list[str]:
        """Paths of the checkpoints that the rules of `retention` keep, oldest first."""
        seed_id, extension = self._seed_id(), self.model_fname_ext
        return [
            self._path(layout.retained_path(seed_id, saved.number, extension))
            for saved in self._saver.kept.portfolio.retained
        ]

    def _is_latest_in(self, kept: Iterable[Saved]) -> bool:
        return any(saved.number == self.model_save_counter for saved in kept)

    def _path(self, name: str) -> str:
        return posixpath.join(self.experiment_dir, name)

    def _list(self, name: str) -> list[Any]:
        saver = self._saver
        lists = meta_lists(
            saver.kept, saver.policy, self.experiment_dir, self._seed_id(), self.model_fname_ext
        )
        return list(lists.get(name, ()))


class FigureLog:
    """The figures of one logger.

    Args:
        as_stored: what is kept, under the names that it gets on disk; the rest as of `ModelLog`.
    """

    def __init__(
        self, saver: Saver, experiment_dir: str, as_stored: Callable[[Kept], Kept] = lambda k: k
    ) -> None:
        self._saver = saver
        self._as_stored = as_stored
        self.experiment_dir = experiment_dir
        self.figures_dir = posixpath.join(experiment_dir, "figures/")

    @property
    def seed_id(self) -> str:
        """The seed's name, as the logger has it."""
        return self._saver.seed_id

    @property
    def fig_storage_paths(self) -> list[str]:
        """Paths of the figures, in the order in which they were saved."""
        names = self._as_stored(self._saver.kept).figures
        return [posixpath.join(self.experiment_dir, name) for name in names]

    @property
    def fig_save_counter(self) -> int:
        """How many there are."""
        return len(self._saver.kept.figures)


class ExtraLog:
    """The objects of one logger.  Args: as of `FigureLog`."""

    def __init__(
        self, saver: Saver, experiment_dir: str, as_stored: Callable[[Kept], Kept] = lambda k: k
    ) -> None:
        self._saver = saver
        self._as_stored = as_stored
        self.experiment_dir = experiment_dir
        self.extra_dir = posixpath.join(experiment_dir, "extra/")

    @property
    def seed_id(self) -> str:
        """The seed's name, as the logger has it."""
        return self._saver.seed_id

    @property
    def extra_storage_paths(self) -> list[str]:
        """Paths of the objects, in the order in which they were saved."""
        names = self._as_stored(self._saver.kept).extras
        return [posixpath.join(self.experiment_dir, name) for name in names]

    @property
    def extra_save_counter(self) -> int:
        """How many there are."""
        return len(self._saver.kept.extras)
