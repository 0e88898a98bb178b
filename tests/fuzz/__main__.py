"""A coverage-guided fuzzer's run: `python -m tests.fuzz TARGET [libFuzzer's options]`.

    python -m tests.fuzz core -max_total_time=600
    python -m tests.fuzz core CRASH_FILE            tries an input again

It needs atheris, which is in the dependency group `fuzz`.  Inputs that are worth keeping go into
`.fuzz/TARGET/`, which git ignores; one that has done harm is written there as `crash-…`.  Minimised
(`-minimize_crash=1 -runs=10000`), it becomes a test of what it has found.
"""

from __future__ import annotations

import os
import sys
from typing import Final

FOLDER: Final = ".fuzz"
_SEEDS: Final = 50  # of random bytes, where there is no corpus yet
_SEED_BYTES: Final = 600
_INPUT_BYTES: Final = 2000


def main(arguments: list[str]) -> int:
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install --group fuzz", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["mle_client", "mle_daemon"]):
        from tests.fuzz.targets import TARGETS
    if not arguments or arguments[0] not in TARGETS:
        print(f"give a target: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    name, *options = arguments
    folder = os.path.join(FOLDER, name)
    os.makedirs(folder, exist_ok=True)
    if not os.listdir(folder):
        for seed in range(_SEEDS):
            with open(os.path.join(folder, f"seed-{seed}"), "wb") as file:
                file.write(os.urandom(_SEED_BYTES))
    tries_again = any(not option.startswith("-") for option in options)
    command = [
        sys.argv[0], f"-artifact_prefix={folder}/", f"-max_len={_INPUT_BYTES}", *options,
        *([] if tries_again else [folder]),
    ]  # fmt: skip
    atheris.Setup(command, TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
