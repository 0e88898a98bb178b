"""What TensorBoard shows of a model: which arrays, under which names, at which step.

`weight_views` takes the arrays in the caller's thread, `histograms_of` looks at them in another,
later.  What the training loop may change in between, such as numpy arrays and torch tensors, is
copied at the call; a jax array cannot change, so that a reference is enough.  A jax array whose
buffer is given to a jitted function (`donate_argnums`) before it was looked at is gone:
`histograms_of` says so, and such a script passes a copy.

It imports no framework: it is given objects of one that is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from mle_client import messages as m
from mle_client import ticks
from mle_client.histograms import histogram, to_plain

View: TypeAlias = tuple[str, Any]  # a tag, and the array that is shown under it

_WEIGHTS, _GRADIENTS = "weights", "gradients"
_NUMBERS: Final = "biufV"  # kinds of numpy types; "V" are bfloat16 and its like
# Types of torch that numpy has; all others become float32.
_TORCH_TYPES: Final = frozenset(
    f"torch.{name}"
    for name in (
        "float16",
        "float32",
        "float64",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
    )
)


def weight_views(model: Any, model_type: str, grads: Any = None) -> list[View]:
    """Take the arrays of a model that get a histogram.

    The caller pays for a copy of every array that can change: `copied_bytes` of them, each a plain
    numpy array.  Tensors on a GPU are copied to the host, which waits for what computes them.

    Args:
        model: torch: a module.  jax and numpy: an array, or dicts, lists and tuples of arrays, of
            any depth.  Other types of model have no histograms.
        model_type: of mle-logging.
        grads: of jax and numpy: gradients, in the form of the model.  A torch module has its own.

    Returns:
        Tags "weights/<name>" and "gradients/<name>" and arrays, in the order of the model.

    Raises:
        TypeError: a model of type "torch" has no parameters by name.
        RuntimeError: a tensor cannot be copied.
    """
    if model is None:
        return []
    if model_type == "torch":
        return list(_torch_views(model))
    if model_type in ("jax", "numpy"):
        return [*_tree_views(_WEIGHTS, model), *_tree_views(_GRADIENTS, grads)]
    return []


def copied_bytes(views: Iterable[View]) -> int:
    """How much memory the copies among some views take; they are the numpy arrays."""
    return sum(array.nbytes for _, array in views if isinstance(array, np.ndarray))


def histograms_of(views: Iterable[View]) -> tuple[dict[str, Any], list[str]]:
    """Look at how the values of some arrays are spread.

    Returns:
        A plain `Histogram` for each tag, and for each array without one why.
    """
    found, problems = {}, []
    for tag, array in views:
        try:
            found[tag] = to_plain(histogram(array))
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"no histogram of {tag}: {error}")
    return found, problems


def step_of(clock_tick: Mapping[str, Any], updates: int) -> int:
    """Where a tick stands on TensorBoard's x-axis, as the daemon says it of a tick's scalars.

    Args:
        clock_tick: of the tick.
        updates: number of the tick in its run, from 1; of the last one, where there is no tick.

    Returns:
        The user's first clock that is a number, its fraction cut off; `updates` where there is none
        or it is no 64-bit integer.
    """
    described = ticks.describe(clock_tick, {})
    for field, value in zip(described.clock, described.values, strict=True):
        if field.kind in (m.INT, m.FLOAT):
            return int(value) if -(2.0**63) <= value < 2.0**63 else updates
    return updates


# --- torch ----------------------------------------------------------------------------------------
def _torch_views(model: Any) -> Iterator[View]:
    if not hasattr(model, "named_parameters"):
        raise TypeError(
            f"a {type(model).__name__} has no named_parameters(): for model_type='torch' pass the "
            "module, not its state_dict, to have histograms"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.is_complex() or hasattr(parameter, "cls_to_become"):
            continue  # no real values, or none yet: part of a lazy module that was not called
        yield f"{_WEIGHTS}/{name}", _copy_of_tensor(parameter)
        if parameter.grad is not None:
            yield f"{_GRADIENTS}/{name}", _copy_of_tensor(parameter.grad)


def _copy_of_tensor(tensor: Any) -> Any:
    """A tensor's values now, as a numpy array."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if str(tensor.dtype) not in _TORCH_TYPES:
        tensor = tensor.float()
    copy: Any = tensor.to("cpu", copy=True).numpy()
    return copy


# --- jax and numpy --------------------------------------------------------------------------------
def _tree_views(path: str, node: Any) -> Iterator[View]:
    """The arrays in a tree.  Args: path: of the node; the group alone for the root."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _tree_views(f"{path}/{key}", child)
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _tree_views(f"{path}/{index}", child)
    elif _holds_numbers(node):
        immutable = type(node).__module__.partition(".")[0] in ("jax", "jaxlib")
        yield (path if "/" in path else f"{path}/{path}"), node if immutable else np.array(node)


def _holds_numbers(leaf: Any) -> bool:
    """Whether a leaf of a tree is an array of real numbers; others are passed over."""
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "__array__") and isinstance(dtype, np.dtype) and dtype.kind in _NUMBERS
