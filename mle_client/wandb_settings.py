"""What `use_wandb=True` sends to the daemon: `wandb_config`, checked and completed.

Pure.  The daemon mirrors the run into W&B's offline mode, which asks for no account: it writes
`<experiment_dir>/wandb/offline-run-…`, and nothing goes over the network.  So the API key, which
mle-logging puts into the environment of the process and of all its children, is dropped here, and
neither sent nor stored.  To upload runs, log in once yourself and call

    wandb login
    wandb sync <experiment_dir>/wandb/offline-run-*
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_KEYS: Final = ("key", "entity", "project", "group", "name", "job_type")
_DEFAULT_PROJECT: Final = "prototyping"  # as mle-logging's
_NO_CONFIG_NAME: Final = "pholder_config"  # mle-logging's job type where there is no file
_NAME_OF_SEED: Final = "seed0"  # stands for the seed's own name in mle-logging's configurations
_MAX_CHARACTERS: Final = 128  # of any name; W&B's limit
_MAX_TAG_CHARACTERS: Final = 64  # W&B's limit, too
_NOT_IN_A_PROJECT: Final = "/\\#?%:"  # W&B refuses these when the run is uploaded


def checked_wandb_config(
    config: Mapping[str, Any] | None, seed_id: str, config_name: str
) -> dict[str, Any]:
    """Check a `wandb_config` and fill in what it leaves out.

    Args:
        config: mle-logging's keys, each optional: "project", "entity", "group", "name", "job_type",
            strings; None for none of them.  "key" is accepted and dropped: see above.
        seed_id: of the logger, such as "seed_0".
        config_name: the configuration file's name without its extension, or "".

    Returns:
        "project", "entity", "group", "name", "job_type", each a string or None, and "tags", a list
        of strings.  The name is the seed's where none is given.  The job type, too, is the seed's,
        or, in a group, the configuration's.

    Raises:
        TypeError: `config` is no dict, or a value no string.
        ValueError: a key or value is not W&B's; says what to give instead.
    """
    given = {} if config is None else config
    if not isinstance(given, Mapping):
        raise TypeError(f"wandb_config is a {type(given).__name__}: give a dict")
    for key, value in given.items():
        if key not in _KEYS:
            raise ValueError(f"wandb_config has the key {key!r}: it may have {', '.join(_KEYS)}")
        _check(key, value)
    group = given.get("group") or None
    name = given.get("name")
    if not name or name == _NAME_OF_SEED:
        name = seed_id[:_MAX_CHARACTERS]
    configuration = (config_name or _NO_CONFIG_NAME)[:_MAX_CHARACTERS]
    job_type = given.get("job_type") or (configuration if group else seed_id[:_MAX_CHARACTERS])
    return {
        "project": given.get("project") or _DEFAULT_PROJECT,
        "entity": given.get("entity") or None,
        "group": group,
        "name": name,
        "job_type": job_type,
        "tags": [tag for tag in dict.fromkeys((name, job_type)) if len(tag) <= _MAX_TAG_CHARACTERS],
    }


def _check(key: str, value: object) -> None:
    """Raise for a value that W&B would refuse.  The API key is not looked at, nor shown."""
    if key == "key" or value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"wandb_config[{key!r}] is a {type(value).__name__}: give a string or None")
    if len(value) > _MAX_CHARACTERS or not value.isprintable():
        raise ValueError(
            f"wandb_config[{key!r}] is {value!r}: W&B takes {_MAX_CHARACTERS} printable characters"
        )
    if key == "project" and (bad := [mark for mark in _NOT_IN_A_PROJECT if mark in value]):
        raise ValueError(
            f"wandb_config['project'] is {value!r}: W&B allows no {' '.join(bad)} in it"
        )
