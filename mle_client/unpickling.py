"""Pickles read without running code that the file chooses.

A pickle names functions to be called, so to load a foreign one is to run it.  `load_restricted`
calls none but those that rebuild data: builtin containers, numpy arrays and random generators, jax
arrays, named tuples, scikit-learn estimators and what these consist of.  Anything else it refuses
by name.  It is a guard against surprises: scikit-learn's own code does run, and a model can be
wrong in other ways than by its loading.
"""

from __future__ import annotations

import pickle
import sys
from typing import IO, Any, Final

from mle_client.errors import MLEError

_TYPES: Final = {
    *(
        "Ellipsis",
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
    ),
    *("object", "range", "set", "slice", "str", "tuple"),
}
# Names that are data, or make nothing but data of what they are given.
_BUILTINS: Final = {
    "builtins": _TYPES,
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"PosixPath", "PurePosixPath", "PureWindowsPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}
# Not by package: `numpy.memmap`, for one, makes files.
_NUMPY: Final = {
    "numpy": {"dtype", "mean", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy.ma": {"MaskedArray"},
    "numpy.ma.core": {"MaskedArray", "_mareconstruct"},
    "numpy.random._pickle": {"__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"},
    "numpy.random.bit_generator": {"SeedSequence", "__pyx_unpickle_SeedSequence"},
    "numpy.random._mt19937": {"MT19937"},
    "numpy.random._pcg64": {"PCG64", "PCG64DXSM"},
    "numpy.random._philox": {"Philox"},
    "numpy.random._sfc64": {"SFC64"},
}
_JAX: Final = {
    # One function; pickle names it by where it is defined, which is another module in each release.
    "jax.numpy": {"asarray"},
    "jax._src.numpy.array_constructors": {"asarray"},
    "jax._src.numpy.lax_numpy": {"asarray"},
    "jax._src.array": {"_reconstruct_array"},  # calls what it is given, and that came through here
    "flax.core.frozen_dict": {"FrozenDict"},
}
_SCIPY: Final = {
    "scipy.interpolate._bsplines": {"BSpline"},
    **{f"scipy.sparse._{x}": {f"{x}_matrix", f"{x}_array"} for x in ("bsr", "coo", "csc", "csr")},
    **{f"scipy.sparse._{x}": {f"{x}_matrix", f"{x}_array"} for x in ("dia", "dok", "lil")},
}
_NAMES: Final[dict[str, set[str]]] = {**_BUILTINS, **_NUMPY, **_JAX, **_SCIPY}
# Imported to look whether a name in them is harmless.
_LIBRARIES: Final = {"chex", "flax", "jax", "ml_dtypes", "numpy", "optax", "sklearn"}
# Whose functions compute and do nothing else; others read files, fetch data, or remove folders.
_SKLEARN_FUNCTIONS: Final = {
    "sklearn.cluster._kmeans",
    "sklearn.feature_selection._mutual_info",
    "sklearn.feature_selection._univariate_selection",
    "sklearn.metrics._dist_metrics",
    "sklearn.metrics.pairwise",
    "sklearn.neighbors._ball_tree",
    "sklearn.neighbors._kd_tree",
}
_SKLEARN_OTHERS: Final = {"conftest", "datasets", "externals", "tests", "_testing"}


class UnsafeModel(MLEError, pickle.UnpicklingError):
    """A model file that would run code of its own choice; `name` is what it asks for."""

    def __init__(self, path: str, name: str) -> None:
        MLEError.__init__(self, path, name)
        self.path = path
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.path} asks for {self.name}, which may run any code. If you trust whoever wrote "
            "this file, pass weights_only=False"
        )


def load_restricted(file: IO[bytes], path: str) -> Any:
    """Load a pickle that consists of known data.

    Args:
        file: open for reading.
        path: of the file, for the error.

    Raises:
        UnsafeModel: it names something else.
        Exception: as `pickle.load`, where it is no pickle.
    """
    return _Unpickler(file, path).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: str) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The object of a name, if it is harmless."""
        if name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        library = module.partition(".")[0]
        # A dotted name leads anywhere, such as from a module to what that has imported.
        if "." not in name and (library in _LIBRARIES or module in sys.modules):
            found = super().find_class(module, name)
            if _is_harmless(found, module, name):
                return found
        raise UnsafeModel(self._path, f"{module}.{name}")


def _is_harmless(found: Any, module: str, name: str) -> bool:
    """Whether to call it makes data of what it is given and no more."""
    import numpy as np

    if isinstance(found, type) and issubclass(found, np.generic | np.dtype):
        return True  # types of elements, of ml_dtypes too
    if module.startswith("sklearn."):
        return _is_sklearn_data(found, module, name)
    # Made by `NamedTuple`, which lets nobody change how one is made.
    is_named_tuple = isinstance(found, type) and found.__bases__ == (tuple,)
    return is_named_tuple and hasattr(found, "_fields") and not hasattr(found, "__setstate__")


def _is_sklearn_data(found: Any, module: str, name: str) -> bool:
    if not _SKLEARN_OTHERS.isdisjoint(module.split(".")):
        return False
    if not str(getattr(found, "__module__", "")).startswith("sklearn."):
        return False  # something that sklearn imported
    is_rebuilder = name.startswith("__pyx_unpickle_") or module in _SKLEARN_FUNCTIONS
    return isinstance(found, type) or is_rebuilder
