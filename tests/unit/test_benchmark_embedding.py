"""The pure parts of the benchmark of the embedding."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

REPOSITORY = Path(__file__).parents[2]


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", REPOSITORY / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return load_script("embedding")


def make_group(benchmark, waveforms, units, at_centre=True):
    n_spikes, n_channels = waveforms.shape[:2]
    return benchmark.Group(
        centre=0,
        waveforms=waveforms.astype("float16"),
        units=np.asarray(units),
        at_centre=np.broadcast_to(at_centre, n_spikes),
        positions_um=np.zeros((n_channels, 2), "float32"),
        channel_mask=np.ones(n_channels, bool),
    )


def test_groups_hold_three_units_within_reach(benchmark):
    locations_um = np.array([[0.0, 0.0], [0.0, 40.0], [0.0, 80.0], [0.0, 500.0]])
    groups = benchmark.find_groups(np.array([0, 0, 1, 2, 3, 3]), locations_um)
    assert {centre: members.tolist() for centre, members in groups.items()} == {0: [0, 1, 2], 1: [0, 1, 2, 3]}


def test_denoiser_scores_are_energies_against_the_mean(benchmark):
    shape = np.zeros((1, 2, 64))
    shape[0, 0, 24] = -10.0
    waveforms = np.repeat(shape, 4, axis=0)
    group = make_group(benchmark, waveforms, np.zeros(4))
    signal, error = benchmark.sum_energies(group, np.zeros_like(waveforms))
    index = np.searchsorted(benchmark.SNR_EDGES, 10.0) - 1
    assert signal[index] == error[index] == 400.0 and signal.sum() == 400.0
    decibels = benchmark.score_denoiser([group], lambda group: 0.9 * waveforms)
    assert decibels[index] == pytest.approx(20.0) and decibels.count(None) == len(decibels) - 1


def test_units_with_their_peak_elsewhere_do_not_count(benchmark):
    waveforms = np.ones((4, 1, 64))
    group = make_group(benchmark, waveforms, [0, 0, 1, 1], at_centre=np.array([True, True, False, False]))
    signal, _ = benchmark.sum_energies(group, waveforms)
    assert signal.sum() == 2 * 64


def test_separated_units_score_one(benchmark):
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(3), 40)
    shapes = 10 * rng.normal(size=(3, 2, 64))
    group = make_group(benchmark, shapes[units] + rng.normal(size=(120, 2, 64)), units)
    assert benchmark.score_groups([group], benchmark.make_pca(6), 6) == dict(ari=[1.0], neighbours=[1.0])


def test_report_averages_groups_and_recordings():
    def make_result(case, ari, decibels):
        scores = dict(ari=ari, neighbours=[0.9] * len(ari))
        return dict(
            case=case, n_groups=len(ari), features={"a": scores}, snr_edges=[0.0, 4.0], denoisers={"b": decibels}
        )

    report = load_script("embedding_report")
    results = [make_result("x_static", [0.5, 0.7], [1.0, 2.0]), make_result("y", [0.8], [3.0, None])]
    text = report.make_tables(results)
    assert "| x_static (2) | 0.600 |" in text and "| **mean of static** | 0.700 |" in text
    assert "| b | 2.0 | 2.0 |" in text
