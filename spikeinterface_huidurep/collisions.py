"""
Spikes whose waveform holds the spikes of others, too.

The mean waveform of a weak unit of which few spikes were detected is as large as these others make it: a tenth of its
spikes that collide with large ones can outweigh all the rest.
"""

import numpy as np
from spikeinterface.core.node_pipeline import PeakRetriever, PipelineNode, run_node_pipeline, spike_peak_dtype

MAX_EXCESS = 4.0  # above the median misfit of the unit, in distances of its tenth percentile below


def find_single_spikes(traces, sorting, templates, job_kwargs):
    """
    Spikes that their template explains about as well as it does most of its spikes, at least half of those of a unit.

    Parameters
    ----------
    traces : BaseRecording
    sorting : NumpySorting
    templates : spikeinterface.core.Templates
        Of its units, on the channels that count.
    job_kwargs : dict

    Returns
    -------
    is_single : np.ndarray, bool, shape (n_spikes,)
        In the order of `sorting.to_spike_vector()`.
    """
    spikes = sorting.to_spike_vector()
    misfits = measure_misfits(traces, spikes, templates, job_kwargs)
    is_single = np.zeros(len(spikes), dtype=bool)
    for unit_index in range(len(sorting.unit_ids)):
        members = np.flatnonzero(spikes["unit_index"] == unit_index)
        least, median = np.quantile(misfits[members], (0.1, 0.5))
        is_single[members] = misfits[members] <= median + MAX_EXCESS * (median - least)
    return is_single


def measure_misfits(traces, spikes, templates, job_kwargs):
    """
    Mean square of what their template leaves of spikes, on its channels.

    Parameters
    ----------
    traces : BaseRecording
    spikes : np.ndarray, structured (sample_index, unit_index, segment_index), shape (n_spikes,)
    templates : spikeinterface.core.Templates
    job_kwargs : dict

    Returns
    -------
    misfits : np.ndarray, float32, shape (n_spikes,)
    """
    peaks = np.zeros(len(spikes), dtype=spike_peak_dtype)
    for field in spikes.dtype.names:
        peaks[field] = spikes[field]
    retriever = PeakRetriever(traces, peaks)
    nodes = [retriever, MeasureMisfits(traces, [retriever], templates)]
    return run_node_pipeline(traces, nodes, job_kwargs=job_kwargs, job_name="misfits")


class MeasureMisfits(PipelineNode):
    """See `measure_misfits`."""

    def __init__(self, recording, parents, templates):
        PipelineNode.__init__(self, recording, return_output=True, parents=parents)
        self.channels = [np.flatnonzero(mask) for mask in templates.sparsity_mask]
        dense = templates.get_dense_templates()
        self.waveforms = [waveform[:, channels] for waveform, channels in zip(dense, self.channels, strict=True)]
        self.n_before, self.n_after = templates.nbefore, templates.nafter

    def get_margin(self):
        return max(self.n_before, self.n_after)

    def compute(self, traces, peaks):
        misfits = np.zeros(len(peaks), dtype="float32")
        window = np.arange(-self.n_before, self.n_after)[:, None]
        for unit_index in np.unique(peaks["unit_index"]):
            rows = np.flatnonzero(peaks["unit_index"] == unit_index)
            cut = traces[peaks["sample_index"][rows][:, None, None] + window, self.channels[unit_index]]
            misfits[rows] = np.mean((cut - self.waveforms[unit_index]) ** 2, axis=(1, 2))
        return misfits
