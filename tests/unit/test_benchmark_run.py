"""Benchmark runs: what is recorded when a run ends well, fails, or passes a limit, and that it is not repeated."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from spikeinterface.core import NumpySorting, append_recordings, append_sortings, generate_ground_truth_recording

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

    sorters = ["--sorters", "limit", "no_such_sorter", "--seeds", "3", "4"]
    options = run.make_parser().parse_args([*options, "--cases", "tiny", *sorters])
    run.run_all(options)

    results = read_results(tmp_path / "results")
    assert set(results) == {"tiny__limit__seed3", "tiny__no_such_sorter__seed3"}  # one recording: the first seed
    limit, failed = results["tiny__limit__seed3"], results["tiny__no_such_sorter__seed3"]
    assert limit["seed"] == 3
    assert limit["counts"]["num_gt"] == 3
    assert min(limit["performance"]["accuracy"]) > 0.8
    assert len(limit["true_units"]["snr"]) == len(limit["performance"]["recall"]) == 3
    assert limit["seconds"] > 0 and limit["peak_memory_mb"] > 50
    assert {"commit", "machine", "versions", "limits", "load_average"} <= set(limit)
    assert "no_such_sorter" in failed["error"]

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    run.run_all(options)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}


def test_the_limit_is_found_in_every_segment(benchmarks, tiny_ground_truth, tmp_path):
    from sorters import match_true_templates

    recording, truth = tiny_ground_truth
    recording, truth = append_recordings([recording] * 2), append_sortings([truth] * 2)
    found = match_true_templates(recording, truth, drifts=False, folder=tmp_path)
    assert found.get_num_segments() == 2
    for unit_id in truth.unit_ids:
        trains = [found.get_unit_spike_train(unit_id, segment_index=index) for index in range(2)]
        np.testing.assert_array_equal(*trains)
        assert len(trains[0]) == pytest.approx(len(truth.get_unit_spike_train(unit_id, segment_index=0)), rel=0.2)


def test_units_too_far_away_to_be_seen_do_not_stop_the_limit(benchmarks, tiny_ground_truth, tmp_path):
    from sorters import match_true_templates

    recording, truth = tiny_ground_truth
    samples = np.arange(10_000, recording.get_num_samples() - 10_000, 50)  # of all times the mean is flat
    trains = {unit_id: truth.get_unit_spike_train(unit_id) for unit_id in truth.unit_ids} | {"far": samples}
    truth = NumpySorting.from_unit_dict([trains], truth.sampling_frequency)
    found = match_true_templates(recording, truth, drifts=False, folder=tmp_path)
    n_spikes = found.count_num_spikes_per_unit(outputs="dict")
    assert n_spikes.pop("far") == 0
    assert min(n_spikes.values()) > 0


@pytest.mark.parametrize("there", ["nothing", "facts.json", "unfinished"])
def test_a_prepared_case_takes_its_place_at_once_or_not_at_all(benchmarks, tmp_path, there):
    """So that runs of the same case side by side never read what another one is still writing."""
    import run

    prepared, case_folder = tmp_path / "tiny.1", tmp_path / "tiny"
    prepared.mkdir()
    (prepared / "facts.json").write_text("new")
    if there != "nothing":
        case_folder.mkdir()
        (case_folder / there).write_text("old")
    run.put_in_place(prepared, case_folder)
    assert not prepared.exists()
    assert [path.name for path in case_folder.iterdir()] == ["facts.json"]
    assert (case_folder / "facts.json").read_text() == ("old" if there == "facts.json" else "new")


def test_a_prepared_case_that_cannot_be_moved_is_an_error(benchmarks, tmp_path):
    import run

    (tmp_path / "tiny.1").mkdir()
    with pytest.raises(OSError):
        run.put_in_place(tmp_path / "tiny.1", tmp_path / "no_such_folder" / "tiny")
    assert (tmp_path / "tiny.1").exists()


def test_true_units_are_described_at_low_sampling_rates(benchmarks):
    from cases import describe_true_units

    recording, sorting = generate_ground_truth_recording(
        durations=[5.0], sampling_frequency=10_000.0, num_channels=2, num_units=2, seed=0
    )
    described = describe_true_units(recording, sorting)
    assert described["unit"] == [str(unit_id) for unit_id in sorting.unit_ids]
    assert min(described["snr"]) > 0


def test_unknown_case_is_named(benchmarks):
    import run

    with pytest.raises(SystemExit, match="unknown cases.*wrong_name.*native_static"):
        run.run_all(run.make_parser().parse_args(["--cases", "wrong_name"]))


def test_sets_are_found(benchmarks, tmp_path):
    from cases import find_cases

    make_sets(tmp_path, "a_static", "b_drift")
    (tmp_path / "no_set").mkdir()
    cases = find_cases(sets=tmp_path)
    assert "no_set" not in cases
    names = "a_static", "b_drift", "native_static", "native_drift"
    assert [cases[name].drifts for name in names] == [False, True, False, True]
    assert [cases[name].seeded for name in names] == [False, False, True, True]


def make_sets(folder, *names):
    for name in names:
        for part in ("recording", "sorting"):
            (folder / name / part).mkdir(parents=True)


def test_seeds_choose_the_recordings(benchmarks, tmp_path):
    import run

    make_sets(tmp_path / "seed0", "a_static")
    make_sets(tmp_path / "seed7", "a_static", "b_drift")
    options = ["--seeds", "0", "7", "--sets", str(tmp_path / "seed{seed}"), "--cases"]
    runs = run.list_runs(run.make_parser().parse_args([*options, "a_static", "native_static"]))
    assert [(case.name, seed) for case, _, seed in runs] == [
        ("a_static", 0),
        ("native_static", 0),
        ("a_static", 7),
        ("native_static", 7),
    ]
    assert [case.make.args[0].parts[-3] for case, _, _ in runs[::2]] == ["seed0", "seed7"]
    assert [case.make.keywords["seed"] for case, _, _ in runs[1::2]] == [0, 7]
    runs = run.list_runs(run.make_parser().parse_args([*options, "drifting"]))
    assert [(case.name, seed) for case, _, seed in runs] == [("native_drift", 0), ("native_drift", 7), ("b_drift", 7)]


def test_a_seed_without_a_folder_of_sets_has_none_and_says_so(benchmarks, tmp_path):
    from cases import find_cases

    make_sets(tmp_path / "seed7", "a_static")
    with pytest.warns(UserWarning, match="no sets of seed 3.*seed3"):
        cases = find_cases(sets=tmp_path / "seed{seed}", seed=3)
    assert "a_static" not in cases and "native_static" in cases
    with pytest.raises(FileNotFoundError, match="no_folder"):
        find_cases(sets=tmp_path / "no_folder")


@pytest.mark.parametrize(
    "name", ["native_one_channel", "native_tetrode_20khz", "native_rare", "native_384", "native_drift"]
)
def test_made_recordings_differ_by_seed(benchmarks, name):
    from cases import find_cases

    def make_start(seed):
        recording, sorting = find_cases(seed=seed)[name].make()
        return recording.get_traces(end_frame=500), sorting.to_spike_vector()["sample_index"]

    (traces, samples), (again, same_samples), (other, other_samples) = [make_start(seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(traces, again)
    np.testing.assert_array_equal(samples, same_samples)
    assert np.corrcoef(traces.ravel(), other.ravel())[0, 1] < 0.1
    assert not np.array_equal(samples[:50], other_samples[:50])


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

    assert get_sorter("huidurep_gmm") == ("huidurep", dict(assignment="gmm", seed=0))
    assert get_sorter("simple") == ("simple", dict(seed=0))
