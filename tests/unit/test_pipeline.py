"""What the steps hand on: the clusters, and how long the segments are."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording
from spikeinterface.core.base import base_peak_dtype

from spikeinterface_huidurep.pipeline import Clusters, segment_durations
from spikeinterface_huidurep.waveforms import Neighborhoods

SAMPLING_FREQUENCY = 30_000.0


def make_clusters(labels, samples, segments=None, share_selected=1.0):
    """Clusters whose posteriors are 0, 0.01, 0.02, ..."""
    n_peaks = len(labels)
    peaks = np.zeros(n_peaks, dtype=base_peak_dtype)
    peaks["sample_index"] = samples
    peaks["segment_index"] = np.zeros(n_peaks) if segments is None else segments
    return Clusters(
        peaks,
        waveforms=np.zeros((n_peaks, 1, 64), "float16"),
        features=np.zeros((n_peaks, 2), "float32"),
        labels=np.array(labels, dtype="int64"),
        posteriors=(np.arange(n_peaks) / 100).astype("float32"),
        neighborhoods=Neighborhoods(np.zeros((1, 2)), 100.0),
        share_selected=share_selected,
    )


@pytest.mark.parametrize("share, wanted", [(1.0, {0: 1, 4: 3}), (0.25, {0: 4, 4: 12})])
def test_spikes_are_counted_as_if_all_were_clustered(share, wanted):
    counts = make_clusters([4, -1, 4, 0, 4, -1], range(6), share_selected=share).count_spikes()
    assert counts == wanted
    assert all(type(label) is int for label in counts)


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_without_clusters_there_is_nothing_to_count(labels):
    assert make_clusters(labels, range(len(labels))).count_spikes() == {}


def test_sorting_of_some_clusters_by_hand():
    clusters = make_clusters([4, 0, -1, 4, 2, 0], [30, 10, 12, 10, 11, 5], segments=[0, 0, 0, 0, 0, 1])
    sorting, posteriors = clusters.make_sorting([4, 0], SAMPLING_FREQUENCY)
    assert sorting.unit_ids.tolist() == [0, 4] and sorting.sampling_frequency == SAMPLING_FREQUENCY
    spikes = sorting.to_spike_vector()
    assert spikes["sample_index"].tolist() == [10, 10, 30, 5]
    assert spikes["unit_index"].tolist() == [0, 1, 1, 0]
    assert spikes["segment_index"].tolist() == [0, 0, 0, 1]
    assert posteriors.dtype == np.float32
    np.testing.assert_allclose(posteriors, [0.01, 0.03, 0.0, 0.05])


def test_durations_of_segments():
    segments = [np.zeros((n_samples, 1), "float32") for n_samples in (30_000, 1500)]
    assert segment_durations(NumpyRecording(segments, SAMPLING_FREQUENCY)) == [1.0, 0.05]
