"""Benchmark runs: what is recorded when a run ends well, fails, or passes a limit, and that it is not repeated."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of scripts on the path, also of the processes that they start."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def options(tiny_ground_truth, tmp_path):
    """Command line that names a recording and its truth in folders."""
    for part, name in zip(tiny_ground_truth, ("recording", "sorting"), strict=True):
        part.save(folder=tmp_path / "tiny" / name)
    folders = {"--recording": "tiny/recording", "--ground-truth": "tiny/sorting"}
    folders |= {"--results": "results", "--work-folder": "work"}
    return [word for option, folder in folders.items() for word in (option, str(tmp_path / folder))]


def read_results(folder):
    return {path.stem: json.loads(path.read_text(encoding="utf8")) for path in folder.glob("*.json")}


def test_runs_are_recorded_and_kept(benchmarks, options, tmp_path):
    import run

    options = run.make_parser().parse_args([*options, "--cases", "tiny", "--sorters", "limit", "no_such_sorter"])
    run.run_all(options)

    results = read_results(tmp_path / "results")
    limit, failed = results["tiny__limit__seed0"], results["tiny__no_such_sorter__seed0"]
    assert limit["counts"]["num_gt"] == 3
    assert min(limit["performance"]["accuracy"]) > 0.8
    assert len(limit["true_units"]["snr"]) == len(limit["performance"]["recall"]) == 3
    assert limit["seconds"] > 0 and limit["peak_memory_mb"] > 50
    assert {"commit", "machine", "versions", "limits", "load_average"} <= set(limit)
    assert "no_such_sorter" in failed["error"]

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    run.run_all(options)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}


def test_unknown_case_is_named(benchmarks):
    import run

    with pytest.raises(SystemExit, match="unknown cases.*wrong_name.*native_static"):
        run.run_all(run.make_parser().parse_args(["--cases", "wrong_name"]))


def test_sets_are_found(benchmarks, tmp_path):
    from cases import find_cases

    for name in ("a_static", "b_drift"):
        for part in ("recording", "sorting"):
            (tmp_path / name / part).mkdir(parents=True)
    (tmp_path / "no_set").mkdir()
    cases = find_cases(sets=tmp_path)
    assert "no_set" not in cases
    assert [cases[name].drifts for name in ("a_static", "b_drift", "native_static", "native_drift")] == [0, 1, 0, 1]


HOLD_MEMORY = [sys.executable, "-c", "import time; held = b'x' * 500_000_000; time.sleep(60)"]


@pytest.mark.parametrize(
    "function, arguments, limits, error",
    [
        (sys.exit, (3,), (60, 10_000), "exit code 3"),
        (int, ("seven",), (60, 10_000), "ValueError: invalid literal"),
        (time.sleep, (60,), (1, 10_000), "time limit of 1 s"),
        (subprocess.run, (HOLD_MEMORY,), (60, 300), "memory limit of 300 MB"),
    ],
)
def test_processes_that_end_badly(benchmarks, tmp_path, function, arguments, limits, error):
    from limits import run_limited

    start = time.monotonic()
    _, message = run_limited(function, arguments, tmp_path / "log", *limits)
    assert error in message
    assert time.monotonic() - start < 50


def test_results_are_valid_json(benchmarks, tmp_path):
    import run

    values = dict(name='a "quote"', numbers=[1, 2.5], nested=dict(x=None))
    run.write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf8")) == values


def test_sorter_parameters(benchmarks):
    from sorters import get_sorter

    assert get_sorter("huidurep_gmm", 3) == ("huidurep", dict(assignment="gmm", seed=3))
    assert get_sorter("simple", 1) == ("simple", dict(seed=1))
