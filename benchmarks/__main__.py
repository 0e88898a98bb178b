"""Run benchmarks, print what they find, and keep every figure.

python -m benchmarks [name ...] [--size full|quick|tiny] [--check] [--page | --page-only]
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import (
    ceiling,
    checkpoint,
    devices,
    disk,
    end_to_end,
    growth,
    harness,
    instructions,
    loading,
    memory,
    merge_beside,
    merging,
    page,
    peers,
    profiles,
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
        *(update_cost, instructions, training, peers, end_to_end, ceiling, profiles, startup),
        *(visible, memory, disk, growth, shapes, checkpoint, devices),
    )
}
BENCHMARKS: Final[dict[str, Any]] = {
    **LOGGING,
    **{each.NAME: each for each in (loading, merging, merge_beside)},
}
# Of an error's message, so many characters are on the page.
_SAID: Final = 200


def main(arguments: list[str] | None = None) -> int:
    """Run the program.

    Returns:
        The exit status: 0, or 1 where `--check` was given and a goal was missed, or where a
        benchmark of the page failed.
    """
    options = _parser().parse_args(arguments)
    size = options.size or ("quick" if options.page or options.page_only else "full")
    if options.page_only:
        _write_page(
            page.latest(LOGGING, size), {}, f"python -m benchmarks --page-only --size {size}"
        )
        return 0
    if options.page and not options.names:
        return _measure_for_page(size, options.check)
    missed = [name for name in options.names or BENCHMARKS if not _measure(name, size)[1]]
    return 1 if missed and options.check else 0


def _measure(name: str, size: str) -> tuple[Path, bool]:
    """Run a benchmark, print and keep what it found.  Returns: its file; whether goals are met."""
    module = BENCHMARKS[name]
    with harness.watching() as circumstances:
        result = module.run(module.SIZES[size])
    print(f"== {name} ==\n\n{harness.describe(result)}\n")
    print(
        f"took {circumstances['wall_s']:.0f} s, while other programs used "
        f"{circumstances['others_cores']:.1f} cores"
    )
    path = harness.save(result, size, circumstances)
    print(f"every figure: {path}\n", flush=True)
    return path, all(goal.met for goal in result.goals)


def _measure_for_page(size: str, check: bool) -> int:
    """Run all that is on the page, whatever becomes of one of them.  Returns: the exit status."""
    files: dict[str, Path] = {}
    failed: dict[str, str] = {}
    missed = False
    for name in LOGGING:
        try:
            files[name], met = _measure(name, size)
        except Exception as error:  # the others' figures are worth having
            traceback.print_exc()
            failed[name] = _in_a_line(error)
        else:
            missed |= not met
    _write_page(files, failed, f"python -m benchmarks --page --size {size}")
    for name, why in failed.items():
        print(f"FAILED  {name}: {why}", file=sys.stderr)
    return 1 if failed or (missed and check) else 0


def _in_a_line(error: Exception) -> str:
    """What went wrong, without folders of this machine: it is told on the page, too."""
    said = traceback.format_exception_only(error)[0].strip().partition("\n")[0]
    return harness.without_folders(said)[:_SAID]


def _write_page(files: Mapping[str, Path], failed: Mapping[str, str], command: str) -> None:
    """Write the page; what a benchmark measures, the first line of its module says."""
    whats = {name: str(each.__doc__).partition("\n")[0] for name, each in LOGGING.items()}
    print(f"the page: {page.write(whats, files, failed, command, page.DOCS)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what logging costs."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--size",
        choices=("full", "quick", "tiny"),
        help="how much is measured: full, or quick with --page",
    )
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="size", help="the same as --size quick"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument(
        "--page",
        action="store_true",
        help="without names: run what is on docs/performance.md, and write that",
    )
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="run nothing: write docs/performance.md of the latest results of this size",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
