"""Figures take mle-logging's parameters, by position and by name.

Its source is read and not imported: its plots want seaborn.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mle_client import MetaLog, visualize_1D_lcurves


def parameters_in(source: Path, function: str) -> list[tuple[str, Any]]:
    """Names and defaults of a function's parameters, in order."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            names = [argument.arg for argument in node.args.args]
            defaults = [ast.literal_eval(default) for default in node.args.defaults]
            required = len(names) - len(defaults)
            return list(zip(names, [inspect.Parameter.empty] * required + defaults, strict=True))
    raise AssertionError(f"{source} has no function {function}")


@pytest.mark.parametrize(
    ("ours", "file", "function"),
    [
        (visualize_1D_lcurves, "utils/helpers.py", "visualize_1D_lcurves"),
        (MetaLog.plot, "meta_log.py", "plot"),
    ],
)
def test_names_order_and_defaults_are_mle_loggings(
    ours: Callable[..., Any], file: str, function: str
) -> None:
    spec = importlib.util.find_spec("mle_logging")
    assert spec is not None
    assert spec.submodule_search_locations
    expected = parameters_in(Path(spec.submodule_search_locations[0]) / file, function)
    found = [
        (parameter.name, list(parameter.default) if parameter.default == () else parameter.default)
        for parameter in inspect.signature(ours).parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]

    assert found == expected
