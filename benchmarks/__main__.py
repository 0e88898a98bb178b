"""Run benchmarks, print what they find, and keep every figure.

python -m benchmarks [name ...] [--size full|quick|tiny] [--check]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from benchmarks import (
    ceiling,
    checkpoint,
    disk,
    end_to_end,
    growth,
    harness,
    instructions,
    loading,
    memory,
    merge_beside,
    merging,
    peers,
    shapes,
    startup,
    training,
    update_cost,
    visible,
)

# A benchmark is a module with NAME, SIZES and run(size) -> Result.  These are on the page that
# `make bench` writes, in its order; the others have to be named.
LOGGING: Final[dict[str, Any]] = {
    each.NAME: each
    for each in (
        *(update_cost, instructions, training, peers, end_to_end, ceiling, startup, visible),
        *(memory, disk, growth, shapes, checkpoint),
    )
}
BENCHMARKS: Final[dict[str, Any]] = {
    **LOGGING,
    **{each.NAME: each for each in (loading, merging, merge_beside)},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the program.

    Returns:
        The exit status: 0, or 1 where `--check` was given and a goal was missed.
    """
    options = _parser().parse_args(arguments)
    size = "quick" if options.quick else options.size
    missed = False
    for name in options.names or BENCHMARKS:
        module = BENCHMARKS[name]
        with harness.watching() as circumstances:
            result = module.run(module.SIZES[size])
        print(f"== {name} ==\n\n{harness.describe(result)}\n")
        print(
            f"took {circumstances['wall_s']:.0f} s, while other programs used "
            f"{circumstances['others_cores']:.1f} cores"
        )
        print(f"every figure: {harness.save(result, size, circumstances)}\n", flush=True)
        missed |= not all(goal.met for goal in result.goals)
    return 1 if missed and options.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what logging costs."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--size", choices=("full", "quick", "tiny"), default="full")
    parser.add_argument("--quick", action="store_true", help="the same as --size quick")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
