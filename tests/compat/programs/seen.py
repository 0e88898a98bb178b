"""What a program has seen, as JSON, in as much detail as two sides are to be compared in.

Beside the programs, so that they can import it on either side.
"""

import numpy as np


def described(value):
    """Values with what they are: an array with its type and shape, a dict whichever it is."""
    kind = type(value).__name__
    if hasattr(value, "toDict") or isinstance(value, dict):
        # How many seeds a mean rests on is for `habits`.
        keys = [key for key in value if not (key == "n" and "mean" in value)]
        return {"is": kind, "keys": {str(key): described(value[key]) for key in keys}}
    if hasattr(value, "detach"):
        return {"is": kind, **column(value.detach().numpy())}
    if isinstance(value, np.ndarray):
        return {"is": kind, **column(value)}
    if isinstance(value, list | tuple):
        return {"is": kind, "items": [described(item) for item in value]}
    return {"is": kind, "value": plain(value)}


def column(array):
    kinds = {"S": "bytes", "U": "text", "O": "text"}
    return {
        "dtype": kinds.get(array.dtype.kind, str(array.dtype)),
        "shape": list(array.shape),
        "values": [plain(item) for item in array.ravel().tolist()],
    }


def plain(value):
    """The value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    return value
