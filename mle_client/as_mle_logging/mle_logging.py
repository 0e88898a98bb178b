"""Stands in for mle-logging where this folder comes first in PYTHONPATH: see `mle_client.compat`.

It takes itself out of `sys.modules`, and the modules that `compat` makes take its place.
"""

import sys

try:
    from mle_client.compat import install_as_mle_logging
except ModuleNotFoundError as error:
    raise ImportError(
        f"{sys.executable} has no mle_client, on which PYTHONPATH says that programs for "
        "mle_logging are to run: install mle-daemon for that Python, or unset PYTHONPATH"
    ) from error

del sys.modules[__name__]
install_as_mle_logging()
