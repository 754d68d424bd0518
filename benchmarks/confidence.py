"""
How far the confidence of a sorter can be trusted: that of its spikes and that of its units.

Only sorters that write `spike_posteriors.npy` (probability that each spike belongs to its unit) beside their sorting,
and set the unit property `quality`, are measured.
"""

import numpy as np
import spikeinterface.full as si

from spikeinterface_huidurep.matching import find_coincidences

POSTERIORS = "spike_posteriors.npy"
QUALITY = "quality"
N_TENTHS = 10


def measure_confidence(sorter_folder, comparison):
    """
    What the confidences of a sorting said, and what was true.

    Parameters
    ----------
    sorter_folder : Path
        That `run_sorter` wrote.
    comparison : GroundTruthComparison
        Of its sorting.

    Returns
    -------
    confidence : None | dict
        None if the sorter gives none. By tenth of the posterior: "n_spikes", their "mean_posterior" and the share
        "correct", a spike of the true unit that its unit was matched with. By unit: "quality" and whether it "is_true",
        not a false-positive unit.
    """
    path = sorter_folder / "sorter_output" / POSTERIORS
    if not path.exists():
        return None
    sorting = si.read_sorter_folder(sorter_folder)
    posteriors = np.load(path)
    correct = find_correct_spikes(sorting, comparison)
    tenths = np.minimum((posteriors * N_TENTHS).astype(int), N_TENTHS - 1)
    n_spikes = np.bincount(tenths, minlength=N_TENTHS)
    means = [np.bincount(tenths, values, N_TENTHS) / np.maximum(n_spikes, 1) for values in (posteriors, correct)]
    false_units = comparison.get_false_positive_units()
    return dict(
        n_spikes=n_spikes.tolist(),
        mean_posterior=means[0].round(4).tolist(),
        correct=means[1].round(4).tolist(),
        quality=np.asarray(sorting.get_property(QUALITY), dtype=float).round(4).tolist(),
        is_true=[unit_id not in false_units for unit_id in sorting.unit_ids],
    )


def find_correct_spikes(sorting, comparison):
    """Which spikes are at one of the true unit that their unit was matched with: bool, in the order of the vector."""
    truth, spikes = comparison.sorting1, sorting.to_spike_vector()
    tolerance = comparison.delta_frames
    correct = np.zeros(len(spikes), dtype=bool)
    for index, unit_id in enumerate(sorting.unit_ids):
        true_id = comparison.hungarian_match_21[unit_id]
        if true_id not in truth.unit_ids:  # -1 or "" without a match
            continue
        for segment_index in range(sorting.get_num_segments()):
            rows = np.flatnonzero((spikes["unit_index"] == index) & (spikes["segment_index"] == segment_index))
            true_samples = truth.get_unit_spike_train(true_id, segment_index)
            correct[rows] = find_coincidences(spikes["sample_index"][rows], true_samples, tolerance)
    return correct
