"""Reads logs with mle-logging's own load_log and prints the runs that it sees as JSON.

Arguments: the logs' folders or files.
A program of its own: mle-logging changes settings of the process that imports it.
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")  # what its dependencies have to say is not our business

from mle_logging import load_log  # noqa: E402


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


seen = {}
for path in sys.argv[1:]:
    log = load_log(path)
    runs = {name: log[name] for name in log.eval_ids} if hasattr(log, "eval_ids") else {"": log}
    seen.update((name, plain(run)) for name, run in runs.items())
json.dump(seen, sys.stdout)
