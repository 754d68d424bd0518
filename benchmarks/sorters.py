"""The sorters that are compared, by the name that results use, and the limit that no sorter is expected to beat."""

import numpy as np
import spikeinterface.full as si
from spikeinterface.sortingcomponents.matching import find_spikes_from_templates
from summary import MOTION, MOTION_PEERS

from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import preprocess

LIMIT_BLOCK_S = 30.0  # drifting neurons get new true templates after this time
LIMIT_RADIUS_UM = 200.0
LIMIT_MS = (2.0, 3.0)
LIMIT_PTP = 1.0  # noise SD; matching fails on templates that are no larger on any channel, and would find no spike

# name -> SpikeInterface's name and the parameters that differ from the defaults; other names are SpikeInterface's.
VARIANTS = {
    "huidurep_gmm": ("huidurep", dict(assignment="gmm")),
    "huidurep_pca": ("huidurep", dict(features="pca")),
    "huidurep_no_temporal_whitening": ("huidurep", dict(temporal_whitening=False)),
    "huidurep_no_motion": ("huidurep", dict(apply_motion_correction=False)),
    **{name + MOTION: (name, dict(apply_motion_correction=True)) for name in MOTION_PEERS},
    "kilosort4_tetrode": ("kilosort4", dict(do_CAR=False, nblocks=0, Th_single_ch=4)),
}
SEED_PARAMETERS = ("seed", "cluster_init_seed", "whitening_seed")
SORTER_SEED = 0


def get_sorter(name):
    """
    SpikeInterface's name of a sorter and the parameters to run it with: its random numbers are the same in every run.

    Parameters
    ----------
    name : str
        A key of `VARIANTS`, or a sorter of SpikeInterface.

    Returns
    -------
    sorter_name : str
    params : dict
    """
    sorter_name, params = VARIANTS.get(name, (name, {}))
    defaults = si.get_default_sorter_params(sorter_name)
    return sorter_name, params | {key: SORTER_SEED for key in SEED_PARAMETERS if key in defaults}


def match_true_templates(recording, sorting, drifts, folder):
    """
    The limit: spikes found by template matching when the mean waveforms of the true units are known.

    The traces are preprocessed as huidurep does, but for its motion correction; the matching is SpikeInterface's
    "wobble". The means are taken anew in each segment, and where neurons drift in blocks of 30 s, so that what moves
    within a block is still lost.

    Parameters
    ----------
    recording : BaseRecording
    sorting : BaseSorting
        The truth.
    drifts : bool
    folder : Path
        For temporary files.

    Returns
    -------
    found : NumpySorting
        With the true unit ids.
    """
    params = SorterParams.from_dict(dict(apply_motion_correction=False))
    traces, _ = preprocess(recording, params, folder, si.get_global_job_kwargs())
    found = [
        _match_segment(traces.select_segments(index), si.select_segment_sorting(sorting, index), drifts)
        for index in range(traces.get_num_segments())
    ]
    samples, labels = zip(*found, strict=True)
    return si.NumpySorting.from_samples_and_labels(samples, labels, sorting.sampling_frequency, sorting.unit_ids)


def _match_segment(traces, sorting, drifts):
    n_blocks = max(1, round(traces.get_total_duration() / LIMIT_BLOCK_S)) if drifts else 1
    edges = np.linspace(0, traces.get_num_samples(), n_blocks + 1).astype(int)
    blocks = [
        _match_block(traces.frame_slice(start, stop), sorting.frame_slice(start, stop))
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]
    samples = np.concatenate([found[0] + start for found, start in zip(blocks, edges[:-1], strict=True)])
    return samples, np.concatenate([found[1] for found in blocks])


def _match_block(traces, sorting):
    analyzer = si.create_sorting_analyzer(
        sorting.remove_empty_units(),
        traces,
        sparse=True,
        sparsity_kwargs=dict(method="radius", radius_um=LIMIT_RADIUS_UM),
        return_in_uV=False,
    )
    analyzer.compute("random_spikes", method="all")
    analyzer.compute("templates", ms_before=LIMIT_MS[0], ms_after=LIMIT_MS[1])
    templates = analyzer.get_extension("templates").get_data(outputs="Templates")
    is_visible = np.ptp(templates.get_dense_templates(), axis=1).max(axis=1) > LIMIT_PTP
    templates = templates.select_units(templates.unit_ids[is_visible])
    spikes = find_spikes_from_templates(traces, templates, method="wobble")
    return spikes["sample_index"], templates.unit_ids[spikes["cluster_index"]]
