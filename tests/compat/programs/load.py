"""Loads logs on either side, in every way, and prints what it sees as JSON.

Arguments: paths.  For each: its runs, its runs by `load_meta_log`, and these aggregated; in place
of what cannot be loaded, the name of the error.
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")  # what dependencies of mle-logging have to say is not our business

from mle_logging import load_log  # noqa: E402
from mle_logging.load import load_meta_log  # noqa: E402


def plain(value):
    """The value made of what JSON has, floats in full."""
    if hasattr(value, "toDict"):
        value = value.toDict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def runs(load, path, **options):
    try:
        log = load(path, **options)
    except Exception as error:
        return type(error).__name__
    names = getattr(log, "eval_ids", None)
    return plain({name: log[name] for name in names} if isinstance(names, list) else log)


seen = {
    path: {
        "load_log": runs(load_log, path),
        "load_meta_log": runs(load_meta_log, path, aggregate_seeds=False),
        "aggregated": runs(load_meta_log, path),
    }
    for path in sys.argv[1:]
}
json.dump(seen, sys.stdout)
