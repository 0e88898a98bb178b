"""Configurations: YAML and JSON files with comments in, dicts out; and a dict as text for the log.

It reads the one file that it is told to read.  It neither copies nor writes any.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from mle_client.attrdict import AttrDict

# Deeper than any configuration, and well below the 200 brackets of Python's parser.
_MAX_DEPTH: Final = 64
# Python refuses to write longer integers in decimal digits (4300 of them); bits are safe to count.
_MAX_DECIMAL_BITS: Final = 14_000


def load_config(config_fname: str | os.PathLike[str], return_dotmap: bool = False) -> Any:
    """Load a configuration.

    Args:
        config_fname: path of a .yaml, .yml or .json file, UTF-8.  Numbers such as 1e-3 are floats
            in both.  JSON may have comments (`//`, `#`, `/* */`) and trailing commas.
        return_dotmap: whether keys are to be attributes too.

    Returns:
        What the file holds, a dict as a rule; {} if it is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of these kinds, or malformed: says in which line.
    """
    extension = os.path.splitext(os.fspath(config_fname))[1].lower()
    parse = {".yaml": _parse_yaml, ".yml": _parse_yaml, ".json": _parse_json}.get(extension)
    if parse is None:
        raise ValueError(
            f"{os.fspath(config_fname)}: only .yaml, .yml and .json configurations can be loaded"
        )
    return _load(config_fname, parse, return_dotmap)


def load_yaml_config(config_fname: str | os.PathLike[str], return_dotmap: bool = False) -> Any:
    """Load a configuration that is YAML, whatever the file is called.

    Arguments, result and errors are those of `load_config`.
    """
    return _load(config_fname, _parse_yaml, return_dotmap)


def load_json_config(config_fname: str | os.PathLike[str], return_dotmap: bool = False) -> Any:
    """Load a configuration that is JSON, whatever the file is called.

    Arguments, result and errors are those of `load_config`.
    """
    return _load(config_fname, _parse_json, return_dotmap)


def _load(
    config_fname: str | os.PathLike[str], parse: Callable[[str, str], Any], return_dotmap: bool
) -> Any:
    path = os.fspath(config_fname)
    with open(path, encoding="utf-8-sig") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8: {error}") from error
    config = parse(path, text) if text.strip() else {}
    return AttrDict.nested(config) if return_dotmap else config


# --- YAML -----------------------------------------------------------------------------------------
# YAML 1.1 takes numbers with an exponent for text unless they have a dot and a signed exponent.
_EXPONENT: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z"
)


def _parse_yaml(path: str, text: str) -> Any:
    import yaml  # here and below: 10 ms that only those pay who have such a file

    # A class of our own: a resolver added to yaml.SafeLoader would change yaml.safe_load for all.
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        config = yaml.load(text, Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{path}, line {line}: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}, line {line}: {error.problem or error.context}") from error
    except ValueError as error:  # of a date such as 2024-13-01
        raise ValueError(f"{path}: {error}") from error
    return {} if config is None else config


def config_yaml(config: Any) -> bytes:
    """Write a configuration as a YAML file that `load_config` reads.

    Returns:
        UTF-8.  Values are simplified as by `config_text`, and tuples are lists.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent_text(dumper: Any, text: str) -> Any:
        # The other styles change line ends, and invisible characters get lost in them.
        style = None if text.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    # So that the text "1e3" gets quotes.
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    text: str = yaml.dump(
        _yamlable(_plain(config, 0)),
        Dumper=Dumper,
        default_flow_style=False,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    return text.encode()


def _yamlable(plain: Any) -> Any:
    match plain:
        case dict():
            return {_yaml_key(key): _yamlable(value) for key, value in plain.items()}
        case list() | tuple():
            return [_yamlable(item) for item in plain]
        case set():
            return {_yaml_key(item) for item in plain}
    return _yaml_key(plain)


def _yaml_key(plain: Any) -> Any:
    """The value, or its literal where YAML does not know it or could not have it as a key."""
    if isinstance(plain, int) and plain.bit_length() > _MAX_DECIMAL_BITS:
        return _literal(plain)
    return _literal(plain) if isinstance(plain, tuple | complex) else plain


# --- JSON -----------------------------------------------------------------------------------------
_STRING: Final = r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
_COMMENT: Final = re.compile(_STRING + r"|(?P<blank>(?://|\#)[^\n]*|/\*.*?\*/)", re.DOTALL)
_TRAILING_COMMA: Final = re.compile(_STRING + r"|(?P<blank>,)(?=\s*[\]}])", re.DOTALL)


def _parse_json(path: str, text: str) -> Any:
    plain = _TRAILING_COMMA.sub(_blanked, _COMMENT.sub(_blanked, text))
    try:
        return json.loads(plain) if plain.strip() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # of an integer with thousands of digits
        raise ValueError(f"{path}: {error}") from error


def _blanked(match: re.Match[str]) -> str:
    """Spaces for what is no JSON, so that lines keep their numbers.  Strings stay as they are."""
    if match["blank"] is None:
        return match[0]
    return re.sub(r"[^\n]", " ", match[0])


# --- a configuration as text, and back ------------------------------------------------------------
def config_text(config: Any) -> tuple[str, str]:
    """Turn a configuration into text for the log file.

    numpy's scalars become Python numbers and its arrays lists; objects that are no Python literal
    (dates, paths, functions) become what `str` makes of them.

    Args:
        config: a dict, as a rule.

    Returns:
        A Python literal that `ast.literal_eval` accepts, in which NaN is the text 'nan'; and the
        same as JSON if there is a NaN in it, else "".  `config_from_text` takes both.
    """
    plain = _plain(config, 0)
    text = json.dumps(_jsonable(plain)) if _has_nan(plain) else ""
    return _literal(plain), text


def config_from_text(literal: str, json_text: str = "") -> Any:
    """The configuration of a `config_text`.

    Returns:
        `literal` itself where it is none: mle-logging cuts off long ones.
    """
    return copy.deepcopy(_config_from_text(literal, json_text))


# The seeds of a configuration have the same text, and parsing takes ten times as long as copying.
@functools.lru_cache(maxsize=16)
def _config_from_text(literal: str, json_text: str) -> Any:
    try:
        config = ast.literal_eval(literal)
        return _with_nans(config, json.loads(json_text)) if json_text else config
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return literal


def _plain(value: Any, depth: int) -> Any:
    """The value made of literals and NaN alone."""
    if depth > _MAX_DEPTH:
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(_without_numpy(value), depth + 1)
    match value:
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case complex() if math.isfinite(value.real) and math.isfinite(value.imag):
            return value
        case str():
            return str.__str__(value)
        case bytes():
            return bytes(value)
        case Mapping():
            return {_plain_key(k, depth): _plain(v, depth + 1) for k, v in value.items()}
        case list():
            return [_plain(item, depth + 1) for item in value]
        case tuple():
            return tuple(_plain(item, depth + 1) for item in value)
        case set():
            return {_plain_key(item, depth) for item in value}
    return str(value)


def _plain_key(key: Any, depth: int) -> Any:
    """The same for what must be hashable, and equal to itself."""
    plain = _plain(key, depth + 1)
    if isinstance(plain, float) and math.isnan(plain):
        return "nan"
    try:
        hash(plain)
    except TypeError:  # of a mapping that could be hashed before
        return str(key)
    return plain


def _without_numpy(value: np.ndarray[Any, Any] | np.generic) -> Any:
    if value.dtype.kind in "mM":  # dates: as integers they would mean nothing
        value = value.astype(str)
    plain = value.tolist()
    if isinstance(plain, np.floating):  # of extended precision
        return float(plain)
    return str(plain) if isinstance(plain, np.generic) else plain


def _has_nan(plain: Any) -> bool:
    match plain:
        case float():
            return math.isnan(plain)
        case dict():
            return any(map(_has_nan, plain.values()))
        case list() | tuple():
            return any(map(_has_nan, plain))
    return False


def _literal(plain: Any) -> str:
    match plain:
        case float() if math.isnan(plain):
            return "'nan'"
        case float() if math.isinf(plain):
            return "1e999" if plain > 0 else "-1e999"
        case int() if plain.bit_length() > _MAX_DECIMAL_BITS:
            return hex(plain)
        case dict():
            return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in plain.items())}}}"
        case list():
            return f"[{', '.join(map(_literal, plain))}]"
        case tuple():
            return f"({', '.join(map(_literal, plain))}{',' if len(plain) == 1 else ''})"
        case set():
            return f"{{{', '.join(map(_literal, plain))}}}" if plain else "set()"
    return repr(plain)


def _jsonable(plain: Any) -> Any:
    match plain:
        case dict():
            return {k if type(k) is str else _literal(k): _jsonable(v) for k, v in plain.items()}
        case list() | tuple():
            return [_jsonable(item) for item in plain]
        case set() | bytes() | complex():
            return _literal(plain)
        case int() if plain.bit_length() > _MAX_DECIMAL_BITS:
            return hex(plain)
    return plain


def _with_nans(plain: Any, rich: Any) -> Any:
    """The literal's value, with NaN put back where the JSON has it."""
    match plain, rich:
        case _, float() if math.isnan(rich):
            return rich
        case dict(), dict() if len(plain) == len(rich):
            pairs = zip(plain.items(), rich.values(), strict=True)
            return {key: _with_nans(value, other) for (key, value), other in pairs}
        case (list() | tuple(), list()) if len(plain) == len(rich):
            return type(plain)(map(_with_nans, plain, rich))
    return plain
