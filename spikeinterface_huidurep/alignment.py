"""
Put the spikes of every unit where its band-pass filtered waveform has its trough.

Whitening changes the shape of spikes: the largest extremum of a whitened waveform may be another phase of the spike, by
up to a millisecond. Users look at filtered traces, and compare spike times with those of other sorters.
"""

import numpy as np
from spikeinterface.core import ms_to_samples, random_spikes_selection
from spikeinterface.core.waveform_tools import extract_waveforms_to_single_buffer

from spikeinterface_huidurep.matching import make_sorting, move_inside

MAX_SHIFT_MS = 1.0  # from where matching put the spikes to the trough
MIN_PEAK_TO_TROUGH = 1.5  # a positive peak that much larger than the trough is what others call the spike
MAX_SPIKES = 250  # of a unit; the median of more has its trough at the same sample


def align_spikes(sorting, posteriors, recording, sparsity_mask, params, folder, job_kwargs):
    """
    Move the spikes of every unit, all by the same number of samples, to the trough of the unit's median waveform.

    Elsewhere on the probe a larger neuron that fires with a weak one now and then has a deeper trough, and in the mean
    also one that fires near it.

    Parameters
    ----------
    sorting : NumpySorting
    posteriors : np.ndarray, float32, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`, as those returned.
    recording : BaseRecording
        Band-pass filtered.
    sparsity_mask : np.ndarray, bool, shape (n_units, n_channels)
        The channels around each unit.
    params : SorterParams
        With `peak_sign="pos"` the highest peak takes the place of the trough, with "both" only where it is
        MIN_PEAK_TO_TROUGH times as large.
    folder : Path
        For the file of waveforms; removed by the caller.
    job_kwargs : dict

    Returns
    -------
    sorting : NumpySorting
    posteriors : np.ndarray, float32, shape (n_spikes,)
    """
    spikes = sorting.to_spike_vector().copy()
    waveforms = estimate_waveforms(sorting, recording, sparsity_mask, params.seed, folder, job_kwargs)
    spikes["sample_index"] += find_shifts(waveforms, params.peak_sign)[spikes["unit_index"]]
    move_inside(spikes, recording)
    labels = sorting.unit_ids[spikes["unit_index"]]
    aligned, order = make_sorting(spikes["sample_index"], labels, spikes["segment_index"], sorting.sampling_frequency)
    return aligned, posteriors[order]


def estimate_waveforms(sorting, recording, sparsity_mask, seed, folder, job_kwargs):
    """
    Median of at most MAX_SPIKES waveforms of each unit, MAX_SHIFT_MS to both sides: (n_units, n_samples, n_of_mask).

    The waveforms are in a file: shared memory, where `estimate_templates` has them, is small in containers.
    """
    n_samples = [recording.get_num_samples(index) for index in range(sorting.get_num_segments())]
    half = ms_to_samples(MAX_SHIFT_MS, recording.sampling_frequency)
    chosen = random_spikes_selection(
        sorting, num_samples=n_samples, max_spikes_per_unit=MAX_SPIKES, margin_size=half + 1, seed=seed
    )
    spikes = sorting.to_spike_vector()[chosen]
    folder.mkdir(parents=True, exist_ok=True)
    waveforms = extract_waveforms_to_single_buffer(
        recording,
        spikes,
        half,
        half + 1,
        file_path=folder / "aligned.npy",
        return_in_uV=False,
        dtype="float32",
        sparsity_mask=sparsity_mask,
        **job_kwargs,
    )
    of_units = [waveforms[spikes["unit_index"] == index] for index in range(len(sorting.unit_ids))]
    nothing = np.zeros(waveforms.shape[1:])
    return np.stack([np.median(of_unit, axis=0) if len(of_unit) else nothing for of_unit in of_units])


def find_shifts(waveforms, peak_sign):
    """
    Samples from the middle of the waveforms to the trough, or the peak, of the channel where it is largest.

    Parameters
    ----------
    waveforms : np.ndarray, float, shape (n_units, 2 * n_half + 1, n_channels)
        A waveform of NaN or zeros is one of which nothing is known.
    peak_sign : "neg" | "pos" | "both"

    Returns
    -------
    shifts : np.ndarray, int64, shape (n_units,)
        0 where nothing is known.
    """
    waveforms = np.nan_to_num(waveforms)
    depth, height = -waveforms.min(axis=2), waveforms.max(axis=2)  # (u, t)
    size = {"neg": depth, "pos": height, "both": np.maximum(depth, height / MIN_PEAK_TO_TROUGH)}[peak_sign]
    return np.where(size.max(axis=1) > 0, size.argmax(axis=1) - waveforms.shape[1] // 2, 0)
