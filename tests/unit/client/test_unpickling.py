"""Restricted loading: data comes back, and nothing that a file chooses is run."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import subprocess
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mle_client.unpickling import UnsafeModel, load_restricted


class State(NamedTuple):
    """What optimisers keep."""

    step: int
    mean: Any


class Own:
    """A class of the user's."""


class Cunning(tuple[Any, ...]):
    """A tuple with fields that does as it likes when it is set."""

    _fields = ("x",)

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("it was run")


def load(content: bytes) -> Any:
    return load_restricted(io.BytesIO(content), "model.pkl")


DATA = [
    {"a": [1, 2.5, "x", b"y", None, True, ...], "b": ({1}, frozenset({2}), 3j, slice(1, 2))},
    collections.OrderedDict(a=1),
    collections.defaultdict(list, a=[1]),
    collections.Counter("abca"),
    collections.deque([1, 2], 5),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(seconds=5),
    decimal.Decimal("1.5"),
    fractions.Fraction(1, 3),
    pathlib.PurePosixPath("a/b"),
    types.SimpleNamespace(a=1),
    uuid.UUID(int=5),
    State(1, {"w": 2}),
    np.float32(1.5),
    np.dtype("f4"),
    np.int64,
    range(3),
    bytearray(b"abc"),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("obj", DATA, ids=range(len(DATA)))
def test_data_comes_back(obj: Any, protocol: int) -> None:
    assert load(pickle.dumps(obj, protocol)) == obj


ARRAYS: list[Callable[[], np.ndarray[Any, Any]]] = [
    lambda: np.arange(5.0),
    lambda: np.asfortranarray(np.ones((2, 3))),
    lambda: np.array([{"a": 1}, None], dtype=object),
    lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "S3")]),
    lambda: np.ma.masked_equal(np.arange(4), 2),
    lambda: np.arange(10)[::2],
    lambda: np.array(["x", "y"]),
    lambda: np.array(["2024-01-01"], dtype="M8[D]"),
]


@pytest.mark.parametrize("make", ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_come_back(make: Callable[[], np.ndarray[Any, Any]]) -> None:
    array = make()
    for protocol in (4, 5):
        found = load(pickle.dumps({"w": array}, protocol))["w"]
        assert type(found) is type(array)
        assert found.dtype == array.dtype
        assert found.tolist() == array.tolist()


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_random_generators_come_back(kind: str) -> None:
    generator = np.random.Generator(getattr(np.random, kind)(5))
    found = load(pickle.dumps(generator, 5))
    assert found.random() == generator.random()
    state = np.random.RandomState(5)
    assert load(pickle.dumps(state, 5)).rand() == state.rand()


def call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls a function when it is loaded."""
    parts = [pickle.dumps(argument, 4)[2:-1] for argument in arguments]
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + names + b"\x93(" + b"".join(parts) + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("builtins", "open"),
        ("builtins", "type"),
        ("builtins", "dict.__class__"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("importlib", "import_module"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("codecs", "open"),
        ("shutil", "rmtree"),
        ("pickle", "loads"),
        ("numpy", "memmap"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "save"),
        ("numpy", "os.system"),
        ("numpy", "vectorize"),
        ("numpy.testing", "measure"),
        ("mle_client.unpickling", "pickle.loads"),
        ("mle_client.unpickling", "sys"),
    ],
)
def test_what_can_run_code_is_refused_by_name(tmp_path: Path, module: str, name: str) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(UnsafeModel) as caught:
        load(call(module, name, f"touch {marker}"))
    assert caught.value.name == f"{module}.{name}"
    assert "weights_only=False" in str(caught.value)
    assert "model.pkl" in str(caught.value)
    assert isinstance(caught.value, pickle.UnpicklingError)
    assert not marker.exists()


def test_the_test_itself_would_run_it(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(call("os", "system", f"touch {marker}"))
    assert marker.exists()


@pytest.mark.parametrize("obj", [Own(), Own, os.getcwd, Cunning((1,))])
def test_the_users_own_classes_and_functions_need_a_word(obj: Any) -> None:
    with pytest.raises(UnsafeModel, match="weights_only=False"):
        load(pickle.dumps(obj, 5))


def test_a_foreign_module_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "foreign_model.py").write_text(
        "from typing import NamedTuple\n"
        "class State(NamedTuple):\n    x: int\n"
        "open(__file__ + '.ran', 'w').close()\n"
    )
    program = (
        "import io, sys\n"
        "from mle_client.unpickling import UnsafeModel, load_restricted\n"
        "try:\n"
        "    load_restricted(io.BytesIO(sys.stdin.buffer.read()), 'x')\n"
        "except UnsafeModel as error:\n"
        "    print(error.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=call("foreign_model", "State", 5),
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.stdout.decode().strip() == "foreign_model.State"
    assert not (tmp_path / "foreign_model.py.ran").exists()


@pytest.mark.filterwarnings("ignore")  # of estimators on random data
def test_estimators_come_back() -> None:
    pytest.importorskip("sklearn")
    from sklearn import (
        cluster,
        decomposition,
        ensemble,
        feature_selection,
        gaussian_process,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        svm,
        tree,
    )
    from sklearn import model_selection as sel
    from sklearn import preprocessing as pre

    inputs = np.random.default_rng(1).normal(size=(60, 4))
    target = inputs[:, 0] > 0
    for model in (
        pipeline.make_pipeline(pre.StandardScaler(), linear_model.LogisticRegression()),
        ensemble.RandomForestClassifier(3),
        ensemble.GradientBoostingClassifier(n_estimators=3),
        ensemble.HistGradientBoostingClassifier(max_iter=3),
        neighbors.KNeighborsClassifier(algorithm="kd_tree"),
        neighbors.KNeighborsClassifier(algorithm="ball_tree"),
        svm.SVC(),
        tree.DecisionTreeClassifier(),
        naive_bayes.GaussianNB(),
        neural_network.MLPClassifier((5,), max_iter=5),
        gaussian_process.GaussianProcessClassifier(),
        linear_model.SGDClassifier(),
        sel.GridSearchCV(tree.DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2),
        pipeline.make_pipeline(feature_selection.SelectKBest(k=2), svm.LinearSVC()),
        cluster.KMeans(2, n_init=1),
        decomposition.PCA(2),
    ):
        model.fit(inputs, target)
        found = load(pickle.dumps(model, 5))
        method = "predict" if hasattr(model, "predict") else "transform"
        assert np.array_equal(getattr(found, method)(inputs), getattr(model, method)(inputs))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sklearn.datasets", "clear_data_home"),
        ("sklearn.datasets._base", "clear_data_home"),
        ("sklearn.base", "clone"),
        ("sklearn.base", "warnings.warn"),
        ("sklearn.utils._testing", "TempMemmap"),
        ("sklearn.utils", "Path"),
        ("sklearn.externals", "_packaging"),
        ("sklearn", "os"),
        ("joblib", "load"),
    ],
)
def test_functions_of_scikit_learn_are_refused(module: str, name: str) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises((UnsafeModel, AttributeError)):
        load(call(module, name, "anything"))


@pytest.mark.jax
def test_jax_arrays_come_back() -> None:
    import jax

    jnp = jax.numpy
    model = {"a": jnp.arange(3.0), "b": jnp.ones(4, jnp.bfloat16), "c": jnp.asarray(2.0)}
    found = load(pickle.dumps(model, 5))
    for name, array in model.items():
        assert found[name].dtype == array.dtype
        assert (found[name] == array).all()


@pytest.mark.parametrize(
    "module", ["jax.numpy", "jax._src.numpy.array_constructors", "jax._src.numpy.lax_numpy"]
)
def test_jax_arrays_are_known_by_the_name_that_any_release_gives_them(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """`jax.numpy.asarray` is defined in another module in each."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        stand_in = types.ModuleType(".".join(parts[:depth]))
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(stand_in, "asarray", np.asarray, raising=False)
    assert load(f"c{module}\nasarray\n(](K\1etR.".encode()).tolist() == [1]
