"""Alignment: spikes go to the trough of the filtered waveform, whatever whitening made the largest extremum."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep.alignment import MIN_PEAK_TO_TROUGH, align_spikes, find_shifts
from spikeinterface_huidurep.matching import make_sorting
from spikeinterface_huidurep.params import SorterParams

SAMPLING_FREQUENCY = 30_000.0
JOB_KWARGS = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}


def make_waveform(trough, peak, n_half=30):
    """One unit on two channels: a trough on the first, a peak on the second, each (sample, size)."""
    waveform = np.zeros((1, 2 * n_half + 1, 2))
    waveform[0, n_half + trough[0], 0] = -trough[1]
    waveform[0, n_half + peak[0], 1] = peak[1]
    return waveform


@pytest.mark.parametrize(
    ("peak_sign", "peak", "wanted"),
    [
        ("neg", 1.0, -7),
        ("neg", 100.0, -7),
        ("pos", 1.0, 11),
        ("pos", 100.0, 11),
        ("both", 1.0, -7),
        ("both", 9.9 * MIN_PEAK_TO_TROUGH, -7),
        ("both", 10.1 * MIN_PEAK_TO_TROUGH, 11),
    ],
)
def test_shift_goes_to_the_extremum_of_the_sign(peak_sign, peak, wanted):
    assert find_shifts(make_waveform((-7, 10.0), (11, peak)), peak_sign).tolist() == [wanted]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_what_is_not_known_stays(value):
    assert find_shifts(np.full((2, 61, 3), value), "both").tolist() == [0, 0]


def test_every_unit_moves_to_its_trough_and_keeps_its_posteriors(tmp_path):
    samples, labels = np.array([1000, 1010, 5000, 9000, 9004, 12]), np.array([3, 8, 3, 3, 8, 3])
    segments = np.array([0, 0, 0, 0, 0, 1])
    traces = [np.zeros((10_000, 2), dtype="float32"), np.zeros((500, 2), dtype="float32")]
    for sample, label, segment in zip(samples, labels, segments, strict=True):
        traces[segment][sample + (9 if label == 3 else -2), label % 2] -= 5.0
    sorting, order = make_sorting(samples, labels, segments, SAMPLING_FREQUENCY)
    posteriors = np.arange(6, dtype="float32")[order]
    recording = NumpyRecording(traces, SAMPLING_FREQUENCY)
    aligned, found = align_spikes(
        sorting, posteriors, recording, np.ones((2, 2), bool), SorterParams(), tmp_path, JOB_KWARGS
    )
    assert aligned.unit_ids.tolist() == [3, 8]
    spikes = aligned.to_spike_vector()
    assert spikes["sample_index"].tolist() == [1008, 1009, 5009, 9002, 9009, 21]
    assert spikes["unit_index"].tolist() == [1, 0, 0, 1, 0, 0]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 0, 0, 1]
    assert found.tolist() == [1, 0, 2, 4, 3, 5]


def test_spikes_stay_inside_their_segment(tmp_path):
    traces = np.zeros((2000, 1), dtype="float32")
    traces[[510, 1010, 1510]] = -5.0
    sorting, _ = make_sorting(np.array([500, 1000, 1500, 1995]), np.zeros(4, int), np.zeros(4, int), SAMPLING_FREQUENCY)
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    mask = np.ones((1, 1), dtype=bool)
    aligned, _ = align_spikes(
        sorting, np.ones(4, dtype="float32"), recording, mask, SorterParams(), tmp_path, JOB_KWARGS
    )
    assert aligned.to_spike_vector()["sample_index"].tolist() == [510, 1010, 1510, 1999]


def test_a_larger_neuron_elsewhere_on_the_probe_does_not_move_a_unit(tmp_path):
    traces = np.zeros((2000, 3), dtype="float32")
    traces[[505, 1005], 0] = -5.0
    traces[490, 2] = -100.0
    sorting, _ = make_sorting(np.array([500, 1000]), np.zeros(2, int), np.zeros(2, int), SAMPLING_FREQUENCY)
    recording = NumpyRecording([traces], SAMPLING_FREQUENCY)
    posteriors = np.ones(2, dtype="float32")
    for mask, wanted in (([[True, True, False]], [505, 1005]), ([[True, True, True]], [490, 990])):
        aligned, _ = align_spikes(sorting, posteriors, recording, np.array(mask), SorterParams(), tmp_path, JOB_KWARGS)
        assert aligned.to_spike_vector()["sample_index"].tolist() == wanted


@pytest.mark.parametrize("n_near, wanted", [(4, 3), (6, -20)])
def test_a_larger_neuron_that_fires_near_some_of_its_spikes_does_not_move_a_unit(tmp_path, n_near, wanted):
    samples = np.arange(500, 10_500, 1000)
    traces = np.zeros((11_000, 1), dtype="float32")
    traces[samples + 3] = -5.0
    traces[samples[:n_near] - 20] = -100.0
    sorting, _ = make_sorting(samples, np.zeros(10, int), np.zeros(10, int), SAMPLING_FREQUENCY)
    recording, mask = NumpyRecording([traces], SAMPLING_FREQUENCY), np.ones((1, 1), dtype=bool)
    aligned, _ = align_spikes(sorting, np.ones(10), recording, mask, SorterParams(), tmp_path, JOB_KWARGS)
    assert np.all(aligned.to_spike_vector()["sample_index"] == samples + wanted)


def test_a_unit_of_which_no_waveform_is_inside_stays(tmp_path):
    sorting, _ = make_sorting(np.array([10]), np.zeros(1, int), np.zeros(1, int), SAMPLING_FREQUENCY)
    recording, mask = NumpyRecording([np.ones((2000, 1), "float32")], SAMPLING_FREQUENCY), np.ones((1, 1), dtype=bool)
    aligned, _ = align_spikes(sorting, np.ones(1), recording, mask, SorterParams(), tmp_path, JOB_KWARGS)
    assert aligned.to_spike_vector()["sample_index"].tolist() == [10]
