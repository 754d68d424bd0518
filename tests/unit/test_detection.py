"""Detection: one peak a spike, at the trough, or at the positive peak of a spike that has hardly a trough."""

import numpy as np
import pytest
from probeinterface import generate_linear_probe
from spikeinterface.core import NumpyRecording, generate_recording, get_random_data_chunks
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep.detection import (
    MIN_POSITIVE_RATIO,
    choose_noise_chunks,
    detect_spikes,
    find_pairs,
    join_signs,
    select_spikes,
    weigh_peaks,
)
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.restlessness import find_restless_stretches

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
LOCATIONS_UM = np.array([[0.0, 0.0], [0.0, 50.0], [0.0, 200.0]])


def make_peaks(*rows):
    """Peaks (sample, channel, amplitude, segment)."""
    return np.array([*rows], dtype=base_peak_dtype)


def join(troughs, positive):
    joined = join_signs(make_peaks(*troughs), make_peaks(*positive), LOCATIONS_UM, 100.0, SAMPLING_FREQUENCY)
    return joined.tolist()


@pytest.mark.parametrize(
    ("positive", "wanted"),
    [
        ((1000, 0, 8.0, 0), "trough"),
        ((1020, 1, 8.0, 0), "trough"),
        ((1020, 1, 6.0 * MIN_POSITIVE_RATIO, 0), "trough"),
        ((1020, 1, 6.1 * MIN_POSITIVE_RATIO, 0), "positive"),
        ((964, 0, 90.0, 0), "positive"),
        ((1037, 0, 8.0, 0), "both"),
        ((963, 0, 90.0, 0), "both"),
        ((1000, 2, 90.0, 0), "both"),
        ((1000, 0, 90.0, 1), "both"),
    ],
)
def test_a_spike_has_one_peak(positive, wanted):
    trough = (1000, 0, -6.0, 0)
    kept = {"trough": [trough], "positive": [positive], "both": sorted([trough, positive], key=lambda p: (p[3], p[0]))}
    assert join([trough], [positive]) == kept[wanted]


def test_a_positive_peak_that_goes_takes_no_trough_with_it():
    troughs = [(990, 0, -2.0, 0), (1010, 1, -6.0, 0)]  # larger than the first, not much larger than the second
    assert join(troughs, [(1000, 0, 8.0, 0)]) == troughs


@pytest.mark.parametrize("n_troughs, n_positive", [(0, 0), (0, 2), (2, 0)])
def test_nothing_of_one_sign(n_troughs, n_positive):
    troughs = [(100 * k, 0, -6.0, 0) for k in range(n_troughs)]
    positive = [(100 * k, 0, 6.0, 0) for k in range(n_positive)]
    assert join(troughs, positive) == troughs + positive


def test_pairs_are_those_of_a_loop():
    rng = np.random.default_rng(6)
    times, others = rng.integers(0, 500, 60), np.sort(rng.integers(0, 500, 40))
    found = zip(*find_pairs(times, others, 7), strict=True)
    wanted = [(i, j) for i, t in enumerate(times) for j, other in enumerate(others) if abs(t - other) <= 7]
    assert list(found) == wanted


@pytest.fixture(scope="module")
def two_signs():
    """White noise, a unit with a trough on channel 1, and one with a positive peak on channel 6."""
    rng = np.random.default_rng(0)
    traces = rng.normal(size=(300_000, 8)).astype("float32")
    pulse = np.exp(-0.5 * (np.arange(-15, 16) / 4) ** 2)
    samples = np.arange(1000, 299_000, 700)
    for sample in samples:
        traces[sample - 15 : sample + 16, 1] -= 14 * pulse
        traces[sample + 5 : sample + 36, 1] += 6 * pulse  # after the trough
        traces[sample + 335 : sample + 366, 6] += 12 * pulse
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    probe = generate_linear_probe(num_elec=8, ypitch=40.0)
    probe.set_device_channel_indices(np.arange(8))
    recording.set_probe(probe)
    return recording, samples


@pytest.mark.parametrize("peak_sign, n_found", [("neg", (1, 0)), ("pos", (1, 1)), ("both", (1, 1))])
def test_units_of_both_signs_are_found(two_signs, peak_sign, n_found):
    recording, samples = two_signs
    peaks = detect_spikes(recording, SorterParams(peak_sign=peak_sign), JOB_KWARGS)
    assert (np.diff(peaks["sample_index"]) >= 0).all()
    for channel, offset, wanted in ((1, 0 if peak_sign != "pos" else 20, n_found[0]), (6, 350, n_found[1])):
        times = peaks["sample_index"][peaks["channel_index"] == channel]
        n_near = [np.sum(np.abs(times - sample - offset) <= 15) for sample in samples]
        assert np.mean(n_near) == pytest.approx(wanted, abs=0.03)
        signs = np.sign(peaks["amplitude"][peaks["channel_index"] == channel])
        if wanted:
            assert np.mean(signs == (1 if channel == 6 or peak_sign == "pos" else -1)) > 0.98


def test_noise_of_many_channels_is_measured_on_no_more_values_than_that_of_few():
    n_values = {}
    for n_channels, durations in ((4, [20.0]), (160, [20.0]), (384, [20.0]), (160, [2.0] * 8), (160, [0.3] * 40)):
        recording = generate_recording(n_channels, SAMPLING_FREQUENCY, durations, set_probe=False)
        chunks = get_random_data_chunks(recording, **choose_noise_chunks(recording, seed=0))
        n_values[n_channels, len(durations)] = chunks.size
    assert n_values[4, 1] == 4 * 4 * SAMPLING_FREQUENCY
    assert n_values[160, 1] == 160 * 4 * SAMPLING_FREQUENCY
    assert n_values[384, 1] == n_values[160, 1]
    assert n_values[160, 8] <= n_values[160, 1]
    assert n_values[160, 40] <= n_values[160, 1]


def test_a_short_segment_takes_nothing_from_what_the_noise_is_measured_on():
    n_values = []
    for durations in ([20.0, 20.0], [20.0, 0.05]):
        recording = generate_recording(4, SAMPLING_FREQUENCY, durations, set_probe=False)
        n_values.append(get_random_data_chunks(recording, **choose_noise_chunks(recording, seed=0)).size)
    assert n_values[1] == n_values[0]


@pytest.mark.parametrize("peak_sign", ["neg", "both"])
def test_noise_that_is_larger_for_a_while_has_hardly_any_peaks(peak_sign):
    noise = np.random.default_rng(0).standard_normal((300_000, 3)).astype("float32")
    noise[150_000:180_000] *= 3
    noise[165_000:165_010] -= 60
    recording = NumpyRecording([noise], SAMPLING_FREQUENCY)
    recording.set_dummy_probe_from_locations(LOCATIONS_UM)
    params = SorterParams.from_dict(dict(peak_sign=peak_sign))
    peaks = detect_spikes(recording, params, JOB_KWARGS)
    assert np.sum((peaks["sample_index"] > 150_000) & (peaks["sample_index"] < 180_000)) > 500
    find_restless_stretches(recording)
    peaks = detect_spikes(recording, params, JOB_KWARGS)
    assert len(peaks) < 20
    assert np.any(np.abs(peaks["sample_index"] - 165_005) <= 10)


@pytest.mark.parametrize("n_peaks, weights", [(1000, [1.0, 1.0, 1.0]), (200, [1.0, 2.0, 4.0])])
def test_peaks_stand_for_those_of_their_channel(n_peaks, weights):
    """A channel with few peaks keeps them all, however many others have."""
    counts = np.array([150, 400, 800])
    all_peaks = make_peaks(*[(sample, channel, -9.0, 0) for channel, n in enumerate(counts) for sample in range(n)])
    peaks = select_spikes(all_peaks, SorterParams(n_peaks_per_channel=n_peaks))
    found = weigh_peaks(peaks, all_peaks)
    assert np.array_equal(found, np.array(weights)[peaks["channel_index"]])
    assert np.bincount(peaks["channel_index"], weights=found).tolist() == counts.tolist()


def test_no_peaks_weigh_nothing():
    assert len(weigh_peaks(make_peaks(), make_peaks())) == 0
