"""
Templates of refined units, without those of the spikes that overlap theirs.

The mean of the traces at the spikes of a weak unit holds what larger neurons leave there: they may fire with it, or
have spikes of their own taken for its. All templates are known by now. So they are taken away, and only the one that
found a spike is put back.

What is left has a mean where many neurons fire: templates are cut at their ends, and all of them together take away too
much or too little. It is there at all times, no part of a spike, and would grow with each renewal.
"""

from dataclasses import replace

import numpy as np
from spikeinterface.core.sparsity import ChannelSparsity
from spikeinterface.preprocessing import center

from spikeinterface_huidurep.detection import choose_noise_chunks
from spikeinterface_huidurep.matching import average_peaks, keep_large_templates
from spikeinterface_huidurep.merging import shift_waveforms
from spikeinterface_huidurep.residuals import take_away


def renew_templates(traces, sorting, templates, changes, refined, params, job_kwargs):
    """
    Templates of the units that stay, as they are, and of the new ones.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    sorting : NumpySorting
        What was found in them.
    templates : spikeinterface.core.Templates
        Of its units.
    changes : Changes
        That it was found with.
    refined : RefinedUnits
        Of these units. Peaks are inside the recording.
    params : SorterParams
    job_kwargs : dict

    Returns
    -------
    templates : None | spikeinterface.core.Templates
        Sparse; None if no unit is left.
    """
    kept = templates.select_units(np.setdiff1d(templates.unit_ids, refined.replaced))
    if len(refined.peaks) == 0:
        return join_templates(kept, None)
    rest = center(
        take_away(traces, sorting, templates, changes), mode="median", **choose_noise_chunks(traces, params.seed)
    )
    means = average_peaks(rest, refined.peaks, refined.labels, params, job_kwargs)
    own = average_own_templates(templates, refined) * means.sparsity_mask[:, None, :]
    whole = replace(means, templates_array=means.get_dense_templates() + own, sparsity_mask=None)
    return join_templates(kept, keep_large_templates(whole, params))


def average_own_templates(templates, refined):
    """
    Mean of the templates by which the spikes of new units were found, each moved as the spike is.

    Parameters
    ----------
    templates : spikeinterface.core.Templates
        Of the old units.
    refined : RefinedUnits

    Returns
    -------
    waveforms : np.ndarray, float32, shape (n_new_units, n_samples, n_channels)
        In the order of their ids. 0 where an old unit had none.
    """
    old = dict(zip(templates.unit_ids.tolist(), templates.get_dense_templates().transpose(0, 2, 1), strict=True))
    new_ids, counts = np.unique(refined.labels, return_counts=True)
    sums = np.zeros((len(new_ids), templates.num_channels, templates.num_samples), dtype="float32")
    had_unit = refined.origins >= 0
    columns = np.stack([np.searchsorted(new_ids, refined.labels), refined.origins, refined.lags])[:, had_unit]
    kinds, sizes = np.unique(columns, axis=1, return_counts=True)
    for (index, origin, lag), size in zip(kinds.T.tolist(), sizes.tolist(), strict=True):
        sums[index] += size * shift_waveforms(old[origin], lag)
    return (sums / counts.astype("float32")[:, None, None]).transpose(0, 2, 1)


def join_templates(first, second):
    """Sparse templates of the units of two, one after the other; either may have none, or be None."""
    parts = [part for part in (first, second) if part is not None and len(part.unit_ids) > 0]
    if len(parts) < 2:
        return parts[0] if parts else None
    unit_ids = np.concatenate([part.unit_ids for part in parts])
    joined = replace(
        first,
        templates_array=np.concatenate([part.get_dense_templates() for part in parts]),
        unit_ids=unit_ids,
        sparsity_mask=None,
    )
    mask = np.concatenate([part.sparsity_mask for part in parts])
    return joined.to_sparse(ChannelSparsity(mask, unit_ids, first.channel_ids))
