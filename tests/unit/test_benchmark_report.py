"""What the benchmark report makes of result files, and that the README shows what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder of scripts on the path."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def make_result(case, sorter, accuracy, seed=0, seconds=10.0, memory=1000, n_false=1):
    """A result file's content: all other scores are the accuracy."""
    n_units = len(accuracy)
    return dict(
        case=case,
        facts=f"about {case}",
        sorter=sorter,
        seed=seed,
        n_jobs=1,
        commit="abc",
        machine=dict(system="Linux", processor="x86", n_cores=2, memory_gb=24.0),
        versions=dict(python="3.11", kilosort=None),
        load_average=[0.5, 1.5],
        duration_s=20.0,
        n_channels=4,
        sampling_frequency=32000.0,
        drifts="drift" in case,
        true_units=dict(
            unit=[str(index) for index in range(n_units)],
            snr=np.linspace(2, 20, n_units).tolist(),
            firing_rate_hz=np.linspace(1, 9, n_units).tolist(),
        ),
        performance=dict(accuracy=accuracy, precision=accuracy, recall=accuracy),
        counts=dict(
            num_gt=n_units,
            num_sorter=n_units,
            num_well_detected=sum(value >= 0.8 for value in accuracy),
            num_false_positive=n_false,
            num_redundant=0,
            num_overmerged=0,
        ),
        seconds=seconds,
        peak_memory_mb=memory,
    )


@pytest.fixture
def results():
    """Two cases, three sorters and the limit; one run fails, one sorter has two seeds, one run is missing."""
    ours = [0.9, 0.95, 1.0, 0.7]
    failed = make_result("np32_drift", "slow", ours) | dict(error="stopped: over the time limit of 5 s\nmore")
    return [
        make_result("np32_drift", "huidurep", ours, seed=0, seconds=30.0, memory=500),
        make_result("np32_drift", "huidurep", [value - 0.1 for value in ours], seed=1, seconds=30.0, memory=500),
        make_result("np32_drift", "fast", [0.5, 0.6, 0.7, 0.9]),
        make_result("np32_drift", "limit", [1.0] * 4),
        failed,
        make_result("tetrode_static", "huidurep", [0.9, 0.9], seconds=40.0),
        make_result("tetrode_static", "slow", [0.9, 0.5], seconds=20.0, memory=2000),
    ]


def test_accuracy_table_has_no_hole_without_reason(results):
    from tables import make_accuracy_table

    table, notes = make_accuracy_table(results, {"tetrode*__limit": "no time"})
    assert list(table.index) == ["tetrode_static", "np32_drift"]
    assert list(table.columns) == ["units", "seeds", "huidurep", "slow", "fast", "limit"]
    drift = ["4", 2, "0.84 ± 0.07 (3)", "failed [2]", "0.68 (1) n=1", "1.00 (4) n=1"]
    assert table.loc["np32_drift"].tolist() == drift
    assert table.loc["tetrode_static"].tolist() == ["2", 1, "0.90 (2)", "0.70 (1)", "not run", "not run [1]"]
    assert notes == ["[1] no time", "[2] slow: stopped: over the time limit of 5 s"]


def test_a_seed_that_failed_is_marked(results):
    from tables import make_accuracy_table

    table, _ = make_accuracy_table([*results, make_result("np32_drift", "slow", [0.5] * 4, seed=1)])
    assert table.loc["np32_drift", "slow"] == "0.50 (0) n=1 [1]"


def test_runs_with_motion_correction_replace_those_without_where_neurons_drift():
    from summary import choose_main_results
    from tables import make_accuracy_table, make_variant_table

    fail = dict(error="ValueError: no motion")
    results = [
        make_result("np32_drift", "lupin", [0.5]),
        make_result("np32_drift", "lupin_motion", [0.6], seed=1),
        make_result("np32_drift", "lupin_motion", [0.8], seed=2),
        make_result("np32_drift", "huidurep_no_motion", [0.1]),
        make_result("np32_drift", "huidurep_gmm", [0.2]),
        make_result("tetrode_drift", "lupin", [0.4]),
        make_result("tetrode_drift", "lupin_motion", [0.0]) | fail,
        make_result("mea_drift", "lupin_motion", [0.0]) | fail,
        make_result("tetrode_static", "lupin", [0.3]),
        make_result("tetrode_static", "lupin_motion", [0.2]),
        make_result("np32_drift", "spykingcircus2", [0.7]),
    ]
    table, notes = make_accuracy_table(choose_main_results(results))
    assert list(table.columns) == ["units", "seeds", "huidurep_gmm", "spykingcircus2", "lupin"]
    assert table["lupin"].to_dict() == {
        "tetrode_static": "0.30 (0)",
        "tetrode_drift": "0.40 (0) †",
        "np32_drift": "0.70 ± 0.14 (0.5) n=2",
        "mea_drift": "failed [1]",
    }
    assert table.loc["np32_drift", "spykingcircus2"] == "0.70 (0) n=1"
    assert notes == ["† without the sorter's own motion correction", "[1] lupin: ValueError: no motion"]
    variants, _ = make_variant_table(results)
    assert list(variants.columns[2:]) == ["huidurep_gmm", "huidurep_no_motion", "lupin", "lupin_motion"]


def test_variants_can_be_run():
    from sorters import VARIANTS
    from summary import MAIN_VARIANTS, MOTION, MOTION_PEERS

    assert {name + MOTION for name in MOTION_PEERS} | set(MAIN_VARIANTS) < set(VARIANTS)


def test_ratios_are_to_the_fastest_peer_of_the_case(results):
    from summary import compute_ratios_to_fastest_peer, make_run_table

    runs = make_run_table(results)
    time = compute_ratios_to_fastest_peer(runs, "seconds")
    memory = compute_ratios_to_fastest_peer(runs, "peak_memory_mb")
    assert "limit" not in time
    assert time.loc["np32_drift", ["huidurep", "fast"]].tolist() == [3.0, 1.0]
    assert memory.loc["np32_drift", ["huidurep", "fast"]].tolist() == [0.5, 1.0]
    assert time.loc["tetrode_static", ["huidurep", "slow"]].tolist() == [2.0, 1.0]


def test_comparison_pairs_units_with_the_best_peer():
    from summary import compare_with_best_peers, make_unit_table

    ours = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    results = [
        make_result("a", "huidurep", ours),
        make_result("a", "weak", [0.1] * 6),
        make_result("a", "good", [value - 0.01 * index for index, value in enumerate(ours, 1)]),
        make_result("a", "limit", [1.0] * 6),
        make_result("alone", "huidurep", ours),
    ]
    comparison = compare_with_best_peers(make_unit_table(results))
    assert list(comparison.index) == ["a"]
    row = comparison.loc["a"]
    assert (row["best_peer"], row["n_units"], row["n_better"], row["n_worse"]) == ("good", 6, 6, 0)
    assert row["p_value"] == pytest.approx(2 / 2**6)  # all six differences have the same sign


def test_comparison_takes_the_seeds_that_both_have():
    from summary import compare_with_best_peers, make_run_table, make_unit_table
    from tables import describe_comparison, make_false_unit_table

    results = [
        make_result("a", "huidurep", [0.9, 0.7], seed=0, n_false=2),
        make_result("a", "huidurep", [0.5, 0.5], seed=1, n_false=3),
        make_result("a", "huidurep", [0.0, 0.0], seed=2, n_false=99),
        make_result("a", "good", [0.8, 0.7], seed=0, n_false=5),
        make_result("a", "good", [0.5, 0.7], seed=1, n_false=5),
        make_result("a", "good", [1.0, 1.0], seed=3, n_false=99),
        make_result("a", "weak", [0.6, 0.6], seed=2),
        make_result("a", "other", [1.0, 1.0], seed=4),
    ]
    units = make_unit_table(results)
    comparison = compare_with_best_peers(units)
    row = comparison.loc["a"]
    assert (row["best_peer"], row["n_seeds"], row["n_seeds_better"]) == ("good", 2, 1)
    assert (row["n_units"], row["n_better"], row["n_worse"]) == (2, 1, 1)
    assert (row["ours"], row["peer"]) == (pytest.approx(0.65), pytest.approx(0.675))
    table = make_false_unit_table(make_run_table(results), comparison)
    assert table.loc["a"].tolist() == ["2", "good", "2.5 / 5", "0 / 0", "0 / 0"]
    (sentence,), _ = describe_comparison(units)
    assert "better on 0 of 1 recordings" in sentence and "on 1 of 2 when each seed counts" in sentence


def test_short_table_has_times_and_reasons(results):
    from tables import make_short_table

    table = make_short_table(results[2:5])
    assert table.loc["np32_drift: fast"].tolist() == ["0.68 (1) of 4", "10", ""]
    assert table.loc["np32_drift: slow"].tolist() == ["failed", "", "stopped: over the time limit of 5 s"]


def test_p_value_of_equal_accuracies():
    from summary import compute_p_value

    assert np.isnan(compute_p_value([0.0, 0.0]))


def test_report_is_written(results, tmp_path):
    import report

    agreement = dict(
        recording="somewhere",
        n_units=dict(huidurep=2, fast=1),
        n_agreed=dict(huidurep={"1": 1, "2": 1}, fast={"2": 1}),
        pairs=[["huidurep", "fast", 1]],
    )
    report.write_report(report.make_sections(results, results, results[-2:], {}, [agreement]), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    text = (tmp_path / "report.md").read_text(encoding="utf8")
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(pictures) == 6
    for name in pictures:
        assert f'src="{name}"' in page and f"({name})" in text
    for part in ("about np32_drift", "over the time limit of 5 s", "load average of the machine 0.5 to 1.5"):
        assert part in page and part in text


@pytest.mark.parametrize(
    "error, short",
    [
        ("stopped: over the time limit of 5 s", "stopped: over the time limit of 5 s"),
        ("SpikeSortingError: trace:\n  File x\nTypeError: 'a' is wrong\n\nSorting failed.", "TypeError: 'a' is wrong"),
    ],
)
def test_errors_are_shortened_to_their_reason(error, short):
    from summary import shorten_error

    assert shorten_error(error) == short


def test_markdown_table():
    from tables import to_markdown

    table = pd.DataFrame({"x": ["1|2"]}, index=["row"])
    assert to_markdown(table, "corner") == "| corner | x |\n| --- | --- |\n| row | 1\\|2 |"


def test_results_are_read(results, tmp_path):
    from summary import make_run_table, read_not_run, read_results

    for index, result in enumerate(results):
        (tmp_path / f"{index}__seed0.json").write_text(json.dumps(result))
    (tmp_path / "locust__agreement.json").write_text("{}")
    runs = make_run_table(read_results(tmp_path))
    assert len(runs) == 6
    assert runs["real_time_factor"].tolist() == [1.5, 1.5, 0.5, 0.5, 2.0, 1.0]
    assert read_not_run(tmp_path) == {}
    (tmp_path / "not_run.json").write_text('{"a__b": "why"}')
    assert read_not_run(tmp_path) == {"a__b": "why"}


def test_readme_shows_the_results():
    import report

    readme = (REPOSITORY / "README.md").read_text(encoding="utf8")
    text = report.make_readme_text(*report.read_all_results(report.RESULTS))
    assert report.replace_text(readme, text) == readme
