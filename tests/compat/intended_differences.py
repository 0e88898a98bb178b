"""Where we mean to differ from mle-logging 0.0.6, and how a user notices: one table, for the
differential test and for docs/migration.md.

    python tests/compat/intended_differences.py        prints it as that page has it

A number with B, C, R, M, L, A or I is that of a bug or limit of mle-logging's; one with D is of a
difference without a bug.  Whatever two sides show that no row has a pattern for fails the test, and
so does a pattern that nothing matches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One difference.

    Args:
        number: of the bug.
        theirs, ours: what mle-logging does, and what we do.
        why: we do not do the same.
        noticed: by whoever changes over.
        seen: patterns of the lines of `compare` that show it, of the whole line.
        elsewhere: path of what holds it, where the two sides cannot be compared.
    """

    number: str
    theirs: str
    ours: str
    why: str
    noticed: str
    seen: tuple[str, ...] = ()
    elsewhere: str = ""


def habit(number: str, change: str = ".*") -> str:
    """The lines about one of `programs/habits.py`."""
    return rf"seen habits {number}(/.*)?( =)?: {change}"


AREAS = {
    "B": "Writing",
    "C": "Checkpoints",
    "R": "Reload",
    "M": "Merging",
    "L": "Loading",
    "A": "Aggregating",
    "I": "TensorBoard, W&B, models",
    "D": "No bugs, but different",
}

TABLE = (
    Difference(
        "B1",
        "each `save()` writes every column anew: a run of n updates costs n²",
        "new rows are appended, by the daemon",
        "a save costs what is new",
        "chunked datasets while a run goes on",
        elsewhere="benchmarks/growth.py",
    ),
    Difference(
        "B2",
        "every number becomes float32: 16777217 is stored as 16777216",
        "float64; float32 only where float32 arrays were logged",
        "what was logged comes back",
        "types of columns; `0.1234` equals what was logged",
        seen=(
            r"hdf5 .*/(stats|time)/\w+: float32 (\[.*\]) → float64 \2",
            r"hdf5 .*/(stats/\w+|meta/top_k_performance) =: rounded to float32 → exact",
            r"hdf5 .*/meta/top_k_performance: float32 (\[.*\]) → float64 \1",
            r"seen .*/\w+: ndarray of float32 (\[.*\]) → ndarray of float64 \1",
            r"seen (continue|look) .* =: rounded to float32 → exact",
            habit("B2", "rounded to float32 → exact"),
        ),
    ),
    Difference(
        "B3",
        "whole numbers become float32, too",
        "int64, and bool for truths",
        "as B2",
        "`num_steps` prints as `10`, not `10.0`",
        seen=(
            r"hdf5 .*/(stats|time)/\w+: float32 (\[.*\]) → int64 \2",
            r"seen .*/\w+: ndarray of float32 (\[.*\]) → ndarray of int64 \1",
            r"seen train .*/samples: list of \d+ float → list of \d+ int64",
            habit("B3", "'float32' → 'int64'"),
            habit("B17 truth", "'float32' → 'bool'"),
        ),
    ),
    Difference(
        "B4",
        "times of checkpoints are int32: 3e9 becomes 2147483647, seconds become 0; "
        '`ckpt_time_to_track="time"` fails at the first save',
        'the type of the clock; `"time"` is refused by the constructor',
        "a checkpoint can be found again",
        "`every_k_storage_time`, `top_k_storage_time` are right",
        seen=(
            r"hdf5 .*/meta/(every|top)_k_storage_time: int32 (\[.*\]) → int64 \2",
            habit("B4", "2147483647 → 3000000000"),
            habit("B4 time", "'TypeError' → 'ValueError'"),
        ),
    ),
    Difference(
        "B5",
        "text is 5000 bytes of ASCII, the rest is dropped: `größe` is stored as `gre`",
        "UTF-8, as wide as it is",
        "no letter gets lost",
        "`größe` comes back; text takes a hundredth of the room",
        seen=(
            r"hdf5 (?!.*/time/time ).* bytes: 5000 → \d+",
            habit("B5", "'gre/' → 'größe/'"),
        ),
    ),
    Difference(
        "B6",
        "a configuration of more than 5000 characters, or with NaN, leaves all of `meta` undecoded",
        "any size and value, as a literal and, where that cannot say it, as JSON",
        "large configurations are common",
        "`meta.config_dict` is a dict",
        seen=(habit("B6", "1 → 1000"), habit("B6 nan", "'ndarray' → 'str'")),
    ),
    Difference(
        "B7",
        "`time` takes 5000 bytes a row",
        "14 bytes; the same text, `%y-%m-%d/%H:%M`",
        "500 MB for 100,000 rows",
        "`run.start_time` and `time_elapsed` give seconds",
        seen=(r"hdf5 .*/time/time bytes: 5000 → 14", habit("B7", "5000 → 14")),
    ),
    Difference(
        "B8",
        "`update()` writes `time`, `time_elapsed` and `num_updates` into the caller's dict",
        "it changes no argument",
        "the dict may be used again",
        "your dict holds what you put into it; on both sides, `num_updates` is the logger's",
        seen=(
            habit("B8", "list of 4 str → list of 1 str"),
            habit("B8", r"'num_steps', .* → 'num_steps'"),
        ),
    ),
    Difference(
        "B9",
        "`num_updates` in `time_to_track` is there twice",
        "once",
        "it is one column",
        "`stats_log.time_to_track` is shorter",
        seen=(habit("B9"),),
    ),
    Difference(
        "B10",
        "all loggers of a process share one default list, and add to the lists they are given",
        "lists are copied",
        "a logger's names are its own",
        "a second logger no longer names the first one's statistics",
        seen=(habit("B10"), habit("B10 caller")),
    ),
    Difference(
        "B11",
        'the default folder is `"/"`',
        "refused with a `ValueError`",
        "nobody wants to log there",
        "an error that says what to give",
        seen=(habit("B11", "'/' → 'ValueError'"),),
    ),
    Difference(
        "B12",
        "`HDF5_USE_FILE_LOCKING=FALSE` for the process and all that it starts",
        "the environment stays as it is",
        "other HDF5 files of the program need their locks",
        "two writers of a file of yours are told apart again",
        seen=(habit("B12", "'FALSE' → 'as it was'"),),
    ),
    Difference(
        "B13",
        "`lr_0.01.json` and `lr_0.1.json` share the folder `lr_0`",
        "the folders `lr_0.01` and `lr_0.1`",
        "runs of different configurations must not meet",
        "names of folders where the configuration's name has a dot",
        seen=(habit("B13"),),
    ),
    Difference(
        "B14",
        "`reload=True` takes the first folder whose name ends like the configuration's",
        "the folder of that name",
        "`a` is not `my_a`",
        "the right run goes on",
        seen=(habit("B14", "False → True"),),
    ),
    Difference(
        "B15",
        "a second run of a name mixes its columns with those of the first",
        "the first log is moved to `.mle/replaced/`; `overwrite=True` deletes it, as there",
        "a log is of one run",
        "a warning that says where the old log is",
        seen=(habit("B15"),),
    ),
    Difference(
        "B16",
        "a seed of numpy's (`np.int64(3)`) ends in a `TypeError`",
        "it is the number",
        "seeds come from numpy",
        "no error",
        seen=(habit("B16", "'TypeError' → 'exp/logs/log_seed_3.hdf5'"),),
    ),
    Difference(
        "B17",
        "`float()` is taken of what is no array: text and lists fail, digits become numbers",
        "text, lists, torch and jax values are taken for what they are",
        "it is what was logged",
        "text columns; a number in quotes stays text",
        seen=(
            habit("B17", "'ValueError' → 'größe'"),
            habit("B17 digits", "1.5 → '1.5'"),
            habit("B17 digits", "float → str"),
            habit("B17 list"),
        ),
    ),
    Difference(
        "B18",
        "a vector that changes its shape ends every later `save()` in an error",
        "that `update()` raises a `ValueError` and leaves nothing behind",
        "one wrong tick must not cost the run",
        "the error comes at once, and the rest is stored",
        seen=(habit("B18"),),
    ),
    Difference(
        "B19",
        "nobody knows to which updates the values of a metric belong that not every update has",
        "its row numbers are in `meta/stats_rows:<name>`; `run.aligned(name)` uses them",
        "curves of such metrics need their x-values",
        "more datasets in the file; `stats` is the same",
        seen=(r"hdf5 .*/meta/stats_rows:\w+( =)?: none → .*", habit("B19")),
    ),
    Difference(
        "B20",
        "`StatsLog(freeze_keys=True)` stores nothing",
        "a `StatsLog` is not for making by hand",
        "`log.stats_log` has one",
        "a `TypeError`",
        seen=(habit("B20"),),
    ),
    Difference(
        "B21",
        "`time_to_print` is ignored",
        "it chooses the clocks that are printed",
        "that is what it is for",
        "the columns you asked for",
        seen=(habit("B21"),),
    ),
    Difference(
        "B22",
        "`verbose=True` fails with numpy 2",
        "it works",
        "numpy 2 is what gets installed",
        "no error",
        elsewhere="tests/unit/client/test_console_lines.py",
    ),
    Difference(
        "B23",
        "`verbose=True` shows the last slot of the best checkpoints, whichever was written",
        "the one that was written",
        "the path should lead to the model",
        "another path in the terminal",
        elsewhere="tests/unit/client/test_console.py",
    ),
    Difference(
        "B25",
        "each figure or object writes the list of all paths anew",
        "paths are written when the log is published",
        "as B1",
        "the list is in the file with the next save",
        elsewhere="tests/unit/daemon/test_h5edit.py",
    ),
    Difference(
        "B26",
        "figures are drawn in the training process, some 250 ms each",
        "in another process, as they are at the call, also at 300 dpi",
        "training goes on",
        "the file is there a moment later; loading waits for it",
        elsewhere="tests/unit/client/test_rendering.py",
    ),
    Difference(
        "B27",
        "a name such as `../../escaped.pkl` leads out of the folder",
        "refused with a `ValueError`",
        "an experiment stays in its folder",
        "an error that says what to give",
        seen=(habit("B27", "True → False"),),
    ),
    Difference(
        "B28",
        "`import mle_logging` loads pandas, rich and commentjson, and wandb must be installed",
        "what is needed is imported when it is",
        "seconds for each process",
        "imports take 0.1 s; extras are `mle-daemon[plot,rich,wandb,tboard]`",
        seen=(habit("B28"),),
    ),
    Difference(
        "B29",
        "`load_config` changes `yaml.safe_load` for the whole process: `1e3` becomes a float",
        "only its own reading has that",
        "other libraries read YAML, too",
        "`yaml.safe_load` is what it was",
        seen=(habit("B29", "'float' → 'str'"),),
    ),
    Difference(
        "B30",
        "plots change the style of all later figures, and need seaborn",
        "the style is left alone; matplotlib is enough",
        "figures of your own keep their look",
        "other colours and fonts in plots of logs",
        elsewhere="tests/compat/test_upstream_suite.py",
    ),
    Difference(
        "C1",
        "a model is pickled up to three times a save",
        "once; further names are links",
        "a save costs one copy",
        "files that share their blocks: `ls -l` shows the links",
        seen=(habit("C1", "3 → 1"),),
    ),
    Difference(
        "C2",
        "checkpoints are overwritten in place: a kill leaves half a file",
        "written aside and renamed",
        "the last good one must survive",
        "a `final_…` that loads, always",
        elsewhere="tests/crash/test_artifact_kills.py",
    ),
    Difference(
        "C6",
        "a NaN keeps its place among the best for ever",
        "NaN is the worst",
        "it is no good model",
        "`top_k_performance` without NaN once there are k numbers",
        seen=(habit("C6", "nan, 5.0 → 1.0, 5.0"),),
    ),
    Difference(
        "C7",
        "a model whose tick lacks the metric is judged by an older value; before the first one, "
        "`IndexError`",
        "it is no candidate; before the first one, a `ValueError` that says so",
        "a value of another model says nothing",
        "fewer entries in `top_k_…` where metrics come now and then",
        seen=(
            habit("C7", "'IndexError' → 'ValueError'"),
            habit("C7 stale"),
        ),
    ),
    Difference(
        "C8",
        "after `reload=True` counting goes on from the last digit of a file name: after `…_k_12` "
        "comes `…_k_4`, over the old file",
        "it goes on from 12",
        "no checkpoint is overwritten",
        "numbers go on",
        seen=(habit("C8", r".*_k_4.pkl' → .*_k_14.pkl'"),),
    ),
    Difference(
        "C9",
        "`reload=True` fails while no k-th checkpoint is there",
        "the list is empty",
        "a run may have been killed early",
        "no `IndexError`",
        seen=(habit("C9"),),
    ),
    Difference(
        "C10",
        "`reload=True` with one best checkpoint makes letters of its path, and fails later",
        "a list of one",
        "as C9",
        "`top_k_…` are lists",
        seen=(habit("C10"),),
    ),
    Difference(
        "C11",
        "`reload=True` with best checkpoints alone counts saves from 0 again",
        "it goes on",
        "the count is the run's",
        "`model_log.model_save_counter`",
        seen=(habit("C11", "0 → 3"),),
    ),
    Difference(
        "C12",
        "which checkpoints are kept is on disk only after `save()`",
        "with each checkpoint",
        "a killed run goes on where it was",
        "nothing is forgotten",
        elsewhere="tests/crash/test_resume_equivalence.py",
    ),
    Difference(
        "R1",
        "after `reload=True` counters are floats and clocks are in alphabetical order",
        "types and order are what they were",
        "the first clock is TensorBoard's x-axis",
        "`stats_log.time_to_track`, `clock_tracked`",
        seen=(
            habit("R1"),
            r"seen continue .*/(steps|updates): list of 18 float( and int)? → list of 18 int64",
        ),
    ),
    Difference(
        "R2",
        "`time_elapsed` begins at 0 again",
        "it goes on",
        "it is the run's",
        "a clock that only grows",
        seen=(habit("R2", "False → True"),),
    ),
    Difference(
        "R3",
        "of several seeds in a folder, one can be continued",
        "each",
        "each has a log of its own",
        "no `KeyError`",
        seen=(habit("R3", "'KeyError', 'well' → 'well', 'well'"),),
    ),
    Difference(
        "R4",
        "after `reload=True` figures and objects with names of their own are off the list, and the "
        "next number is how many files there are",
        "the list goes on; the next number is the highest plus one",
        "no file is overwritten",
        "`fig_storage_paths`, `extra_storage_paths`, numbers of files",
        seen=(
            habit("R4", ".*extra_3.* → .*extra_4.*"),
            r"seen continue .*/(figures|extras): list of 2 str → list of 3 str",
            r"seen continue .*/(figures|extras) =: .*",
            r"hdf5 interrupted/.*/meta/(fig|extra)_storage_paths( =)?: .*",
        ),
    ),
    Difference(
        "M1",
        "the target is opened for writing at once, and each log removed before that is on disk",
        "written aside, compared, renamed; only then are logs removed",
        "a kill must cost nothing",
        "no loss",
        elsewhere="mle_client/merged_file.py",
    ),
    Difference(
        "M2",
        "merging twice deletes everything",
        "it changes nothing",
        "a merge may be repeated",
        "the data",
        seen=(habit("M2"),),
    ),
    Difference(
        "M3",
        "a seed that comes after a merge replaces the merged ones",
        "it is added",
        "seeds come late",
        "all seeds are there",
        seen=(habit("M3"),),
    ),
    Difference(
        "M4",
        "a damaged log, or any other file in `logs/`, ends a merge half way, with logs deleted",
        "it is left out, with a warning",
        "one bad file must not cost the others",
        "a warning that names the file",
        seen=(
            habit("M4"),
            habit("M4 stray", "'OSError' → 'merged'"),
        ),
    ),
    Difference(
        "M5",
        "`num_logs` is waited for exactly: with one file more, for ever",
        "at least so many seeds that have ended; `timeout=` ends the wait",
        "nothing may hang",
        "the call returns",
        seen=(habit("M5", "'TimeoutError' → 'merged'"),),
    ),
    Difference(
        "M6",
        "folders of configurations get names by their order on disk; a missing one is an "
        "`AssertionError`",
        "by name; `LogNotFound`",
        "a log belongs to its configuration",
        "another type of error, a right `meta_log.hdf5`",
        seen=(habit("M6", "'AssertionError' → 'LogNotFound'"),),
    ),
    Difference(
        "L1",
        "`aggregate_seeds=True` of a single seed fails",
        "a mean over one",
        "one is a number of seeds",
        "no `AttributeError`",
        seen=(habit("L1"),),
    ),
    Difference(
        "L2",
        "only what the first run has is loaded of the others",
        "everything",
        "nothing is left out in silence",
        "more statistics",
        seen=(habit("L2"),),
    ),
    Difference(
        "L3",
        "only seeds that the first configuration has are loaded of the others",
        "all",
        "as L2",
        "more seeds, other means",
        seen=(habit("L3"),),
    ),
    Difference(
        "L4",
        "the file stays open",
        "it is closed, or held on purpose while columns are still to be read",
        "open files run out",
        "nothing",
        elsewhere="tests/unit/client/test_reader.py",
    ),
    Difference(
        "L5",
        "a slash in a metric's name, or a log without statistics, cannot be loaded",
        "both can",
        "`train/loss` is a common name",
        '`log.stats["train/loss"]`',
        seen=(habit("L5"), habit("L5 empty")),
    ),
    Difference(
        "A1",
        "percentiles take memory that nobody has written to for values of seeds that have ended",
        "seeds that have ended do not count",
        "a median must be one",
        "`p10` … `p90` where seeds differ in length; `mean` and `std` are the same",
        seen=(habit("A1", "False → True"),),
    ),
    Difference(
        "A2",
        "the clock is that of the first seed, however short",
        "that of the seed with most updates",
        "each value has its x",
        "`time` is as long as the mean",
        seen=(habit("A2", "2 → 3000"),),
    ),
    Difference(
        "A3",
        "seeds of different configurations are aggregated in silence",
        "with a warning that says what differs",
        "their mean says nothing",
        "a `UserWarning`",
        seen=(habit("A3", "False → True"),),
    ),
    Difference(
        "A4",
        "seeds with names cannot be aggregated",
        "`meta.seeds` has the number of a `seed_3` and the name of any other",
        "names are allowed",
        "no error",
        seen=(habit("A4"),),
    ),
    Difference(
        "A6",
        "nobody sees how many seeds a mean rests on",
        "`n` says so, for each value",
        "seeds end early",
        "`stats.loss.n` beside `mean`, `std`, `p50`, …",
        seen=(habit("A6", "'KeyError' → 2, 1"), habit("A6", "str → list of 2 int")),
    ),
    Difference(
        "A7",
        "the i-th values of the seeds are averaged, also where they are of different updates",
        "the values of one update are, in logs of ours",
        "a seed may miss an evaluation",
        "a step for each update at which any seed has a value, `n` without those that have none",
        seen=(habit("A7", "0.0, 10.0, 25.0, 30.0 → 0.0, 10.0, 20.0, 30.0"),),
    ),
    Difference(
        "I1",
        "TensorBoard's x-axis is `time_elapsed`, and another clock after `reload=True`",
        "your first clock",
        "curves of runs can be laid over one another",
        "another x-axis",
        elsewhere="tests/unit/daemon/test_tboard.py",
    ),
    Difference(
        "I2",
        "vectors become their mean, and what fails in TensorBoard is hidden",
        "each entry has a curve; a failure is in `log.errors()`",
        "nothing goes wrong in silence",
        "more curves",
        elsewhere="tests/unit/daemon/test_tboard.py",
    ),
    Difference(
        "I3",
        "the README's own `wandb_config` ends in `KeyError: 'name'`",
        "it is taken",
        "what is documented works",
        "no error",
        elsewhere="tests/unit/client/test_wandb_settings.py",
    ),
    Difference(
        "I4",
        "a W&B that does not start is tried ten times, then left out in silence",
        "offline mode, in a process of its own; a failure is in `log.errors()`",
        "as I2",
        "`wandb sync` uploads when you want it",
        elsewhere="tests/unit/daemon/test_wandb_mirror.py",
    ),
    Difference(
        "I5",
        "the W&B key goes into the environment of the process and its children",
        "it goes nowhere",
        "a key is a secret",
        "log in with `wandb login`",
        elsewhere="tests/unit/client/test_wandb_settings.py",
    ),
    Difference(
        "I7",
        "loading a model runs whatever the file says",
        "`load_model` refuses that; `weights_only=False` allows it",
        "checkpoints are passed around",
        "`UnsafeModel` for models of your own classes",
        seen=(habit("I7", "True → False"),),
    ),
    Difference(
        "I8",
        "the README imports `load_meta_log` from the top: `ImportError`",
        "it is there",
        "what is documented works",
        "no error",
        seen=(habit("I8", "'ImportError' → 'load_meta_log'"),),
    ),
    Difference(
        "D1",
        "–",
        "`.mle/` in the folder that a daemon serves: its lock, journal, log",
        "a daemon needs a place",
        "a hidden folder",
        seen=(r"(file|folder) (.*/)?\.mle(/.*)?: none → there",),
    ),
    Difference(
        "D2",
        "–",
        "`meta/mle_kept` in the file, which loading does not show",
        "a run that goes on knows what it has kept",
        "one dataset more, for tools that list a file",
        seen=(r"hdf5 .*/meta/mle_kept( =| bytes)?: none → .*",),
    ),
    Difference(
        "D3",
        "runs and configurations are `DotMap`s: a name that is not there is an empty one",
        "`AttrDict`s, which are dicts: a name that is not there is an `AttributeError`",
        "a typing error must not pass for nothing",
        '`config.get("lr", 0.1)` for what may be missing; `toDict()` is there',
        seen=(
            r"seen .*: DotMap → \w+",
            habit("D5"),
        ),
    ),
    Difference(
        "D4",
        "text is bytes in places: `time.time`, and lists of aggregated seeds",
        "text",
        "`b'…'` is no path",
        "no `.decode()`",
        seen=(
            habit("D4", "'bytes_' → 'str_'"),
            r"seen look .*/time/time: ndarray of bytes (\[.*\]) → ndarray of text \1",
            r"seen look .*: list of \d+ bytes → list of \d+ str",
        ),
    ),
    Difference(
        "D6",
        "`meta.eval_id` without a configuration is an empty list",
        "an empty text",
        "it is a name",
        '`== ""`',
        seen=(r"seen look single/meta/eval_id( =)?: .*",),
    ),
    Difference(
        "D7",
        "`stats_log.stats_tracked` and `clock_tracked` hold Python's numbers",
        "numpy's, read back from the file",
        "the trainer keeps no copy of what it logged",
        "`np.float64(0.5)` when a list is printed",
        seen=(
            r"seen train .*/(steps|tracked/(?!samples)\w+): list of \d+ (?P<type>int|float)"
            r" → list of \d+ (?P=type)64",
        ),
    ),
    Difference(
        "D8",
        "aggregated values are masked arrays",
        "arrays, NaN where no seed has a value",
        "masks get lost in most of numpy",
        "`np.isnan` instead of `.mask`",
        seen=(r"seen look .*: MaskedArray of float64 (\[.*\]) → ndarray of float64 \1",),
    ),
    Difference(
        "D9",
        "percentiles of infinite values are NaN, and their mean is masked",
        "infinite",
        "it is the value",
        "`inf` where seeds diverge",
        seen=(habit("D9", "nan → inf"),),
    ),
    Difference(
        "D10",
        "TensorFlow's checkpoints are several files, which keras 3 no longer writes",
        "keras weights in one file, `final_<seed>.pt`",
        "a checkpoint has one name",
        "`load_model` reads both",
        elsewhere="tests/unit/client/test_serializers.py",
    ),
)


def area_of(difference: Difference) -> str:
    """The heading that a row stands under."""
    return AREAS[difference.number[0]]


def rendered() -> str:
    """The table as Markdown, a part for each area."""
    lines: list[str] = []
    for area in AREAS.values():
        lines += [f"### {area}", "", "| # | mle-logging 0.0.6 | here | why | how you notice |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {each.number} | {each.theirs} | {each.ours} | {each.why} | {each.noticed} |"
            for each in TABLE
            if area_of(each) == area
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(rendered())
