"""A user's script without a main guard.  Arguments: EXPERIMENT_DIR SEED TICKS [DAEMON]."""

import sys

from mle_client import MLELogger

folder, seed, ticks, *daemon = sys.argv[1:]
log = MLELogger(
    folder,
    ["num_steps", "num_epochs"],
    ["loss", "accuracy", "count", "odd"],
    seed_id=int(seed),
    daemon=daemon[0] if daemon else None,
)
for i in range(int(ticks)):
    log.update(
        {"num_steps": 10 * i, "num_epochs": i // 100},
        {
            "loss": 1.0 / (i + 1),
            "accuracy": i * 1e-4 + int(seed),
            "count": i * int(seed),
            "odd": i % 2 == 1,
        },
    )
