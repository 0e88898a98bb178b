"""Names of artifacts: those of mle-logging, numbers found in them again, and names to refuse."""

from __future__ import annotations

import pytest

from mle_client import layout


def test_artifacts_are_named_as_mle_logging_names_them() -> None:
    assert layout.final_path("seed_0", ".pt") == "models/final/final_seed_0.pt"
    assert layout.init_path("seed_0", ".pkl") == "models/init/init_seed_0.pkl"
    assert layout.every_k_path("seed_0", 12, ".pt") == "models/every_k/every_k_seed_0_k_12.pt"
    assert layout.top_k_path("seed_0", 2, ".pt") == "models/top_k/top_k_seed_0_top_2.pt"
    assert layout.retained_path("seed_0", 7, ".pt") == "models/retained/retained_seed_0_7.pt"
    assert layout.figure_path("seed_0", 1) == "figures/fig_1_seed_0.png"
    assert layout.extra_path("seed_0", 1) == "extra/extra_1_seed_0.pkl"


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (layout.every_k_path("seed_0", 12, ".pt"), 12),
        ("/x.pt/models/every_k/every_k_a_k_3_k_1200.pkl", 1200),
        ("every_k_seed_0_k_7", 7),
        ("every_k_seed_0_k_.pt", None),
        ("every_k_seed_0_k_x.pt", None),
        ("every_k_seed_0_k_1/final.pt", None),
        ("every_k_seed_0_k_1.pt\n", None),
        ("every_k_seed_0_k_" + "9" * 5_000, None),
        ("", None),
    ],
)
def test_the_number_of_a_save_is_found_in_its_name(path: str, number: int | None) -> None:
    assert layout.every_k_number(path) == number


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (layout.figure_path("seed_0", 31), 31),
        (layout.extra_path("seed_0", 2), 2),
        ("fig_1_seed_0.png", None),
        ("figures/fig_1_seed_00.png", None),
        ("figures/fig_1_2_seed_0.png", None),
        ("figures/fig_1_seed_0xpng", None),
        ("figures/extra_1_seed_0.pkl", None),
        ("figures/fig_loss.png", None),
    ],
)
def test_the_number_of_a_figure_or_object_is_found_in_its_name(
    path: str, number: int | None
) -> None:
    assert layout.file_number(path, "seed_0") == number


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (layout.retained_path("s.0", 31, ".pt"), 31),
        ("retained_s.0_31.pt", None),
        ("models/retained/retained_sx0_31.pt", None),
        ("models/retained/retained_s.0_1_31.pt", None),
        ("models/retained/retained_s.0_031.pt", None),
        ("models/retained/retained_s.0_31.pkl", None),
        ("models/retained/retained_s.0_0.pt", None),
    ],
)
def test_only_names_that_the_daemon_gave_are_those_of_retained_checkpoints(
    path: str, number: int | None
) -> None:
    assert layout.retained_number(path, "s.0", ".pt") == number


@pytest.mark.parametrize(
    "name", ["loss.png", "a/b/c.png", "./loss.png", "größe.png", "a..b", "\udcff.png", "x" * 255]
)
def test_names_of_files_inside_are_taken(name: str) -> None:
    assert layout.artifact_path_problem("figures", name) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "names no file"),
        ("a/", "names no file"),
        (".", "names no file"),
        ("a/.", "names no file"),
        ("/etc/passwd", "absolute"),
        ("../x", "upwards"),
        ("a/../../x", "upwards"),
        ("a/..", "upwards"),
        ("a\0b", "NUL"),
        ("x" * 256, "too long"),
        ("ö" * 128, "too long"),
        ("a/" * 1_030 + "x", "too long"),
        ("\ud800", "surrogates"),
        (layout.temporary_name("0"), "unfinished"),
        (layout.temporary_name("0\n") + "/x", "unfinished"),
    ],
)
def test_names_that_cannot_be_used_are_refused_with_the_reason(name: str, said: str) -> None:
    assert said in layout.artifact_path_problem("figures", name)
