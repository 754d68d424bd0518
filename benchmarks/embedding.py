"""
How well do features separate the units that share a place, and how clean is the denoiser? Spikes at true times.

    python benchmarks/embedding.py --sets GT_FOLDER --cases tetrode_static np32_drift
    python benchmarks/embedding.py --sets GT_FOLDER --cases tetrode_static --weights mine=my.safetensors
    python benchmarks/embedding.py --sets GT_FOLDER --cases np32_static --params '{"temporal_whitening": false}' \
        --label no_temporal_whitening
    python benchmarks/embedding_report.py

GT_FOLDER/CASE/recording and GT_FOLDER/CASE/sorting are opened by `spikeinterface.load`. The traces are preprocessed and
the spikes cut out as the sorter does it. A group is a centre channel, at which a unit has its peak, with the spikes of
all units whose peak lies within 45 um, cut around this channel; only groups of at least three units count. Scores are
means over groups:

- ARI: adjusted Rand index of a Gaussian mixture with full covariance and the true number of components, on the first
  10 principal components of the features (principal components of the waveforms: 6, 10 or 32 as they are), mean of 5
  seeds;
- neighbours: accuracy of 15-nearest-neighbour classification on all dimensions, 5-fold.

Results go to benchmarks/results/embedding_CASE.json; what is there already is kept. embedding_report.py makes table and
figure of them.
"""

import argparse
import copy
import functools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import spikeinterface.core as sc
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import PCA
from spikeinterface.core.job_tools import fix_job_kwargs
from spikeinterface.core.node_pipeline import base_peak_dtype

from spikeinterface_huidurep.embedding import denoise_waveforms, embed_waveforms
from spikeinterface_huidurep.model import load_encoder, weights_version
from spikeinterface_huidurep.params import SorterParams
from spikeinterface_huidurep.preprocessing import preprocess
from spikeinterface_huidurep.training.validation import N_COMPONENTS, score_mixture, score_neighbours
from spikeinterface_huidurep.waveforms import N_BEFORE, N_SAMPLES, Neighborhoods, extract_waveforms

RESULTS = Path(__file__).parent / "results"
GROUP_RADIUS_UM = 45.0
MIN_UNITS = 3
MIN_SPIKES = 50  # of a unit; those with fewer are left out
N_SEEDS = 5
PCA_SIZES = (6, 10, 32)
GAUSSIAN_SDS = (0.5, 1.0, 1.5, 2.0)  # samples
SNR_EDGES = (0.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, np.inf)  # largest deflection of the true waveform in noise SD


@dataclass
class Group:
    """Spikes of the units around one centre channel."""

    centre: int
    waveforms: np.ndarray
    """float16 (n_spikes, n_neighbors, n_samples): noise SD."""
    units: np.ndarray
    """int (n_spikes,)."""
    at_centre: np.ndarray
    """bool (n_spikes,): the unit has its peak on the centre channel."""
    positions_um: np.ndarray
    """float32 (n_neighbors, 2)."""
    channel_mask: np.ndarray
    """bool (n_neighbors,)."""

    def run(self, function, encoder):
        """`embed_waveforms` or `denoise_waveforms` on all spikes."""
        n_spikes = len(self.units)
        positions_um = np.broadcast_to(self.positions_um, (n_spikes, *self.positions_um.shape))
        channel_mask = np.broadcast_to(self.channel_mask, (n_spikes, len(self.channel_mask)))
        return function(self.waveforms.astype("float32"), positions_um, channel_mask, encoder)


def find_groups(main_channels, locations_um):
    """
    Units that share a place: dict of centre channel -> indices of the units.

    Parameters
    ----------
    main_channels : np.ndarray, int, shape (n_units,)
    locations_um : np.ndarray, shape (n_channels, 2)
    """
    groups = {}
    for centre in np.unique(main_channels).tolist():
        distances = np.linalg.norm(locations_um[main_channels] - locations_um[centre], axis=1)
        members = np.flatnonzero(distances <= GROUP_RADIUS_UM)
        if len(members) >= MIN_UNITS:
            groups[centre] = members
    return groups


def choose_spikes(sorting, margin, n_samples, max_spikes, seed):
    """At most `max_spikes` spikes of every unit away from the ends: `sorting.to_spike_vector()` with some left out."""
    spikes = sorting.to_spike_vector()
    spikes = spikes[(spikes["sample_index"] > margin) & (spikes["sample_index"] < n_samples - margin)]
    rng = np.random.default_rng(seed)
    chosen = []
    for unit in range(len(sorting.unit_ids)):
        members = np.flatnonzero(spikes["unit_index"] == unit)
        if len(members) >= MIN_SPIKES:
            chosen.append(rng.permutation(members)[:max_spikes])
    return spikes[np.sort(np.concatenate(chosen))]


def extract_groups(recording, sorting, params, max_spikes, max_groups, window):
    """
    Preprocess a recording and cut out the spikes of every group.

    Parameters
    ----------
    recording, sorting : BaseRecording, BaseSorting
    params : SorterParams
    max_spikes : int
        Of a unit.
    max_groups : int
    window : dict
        n_samples and n_before of the waveforms.

    Returns
    -------
    groups : list of Group
        At most `max_groups`, evenly spaced among all.
    """
    job_kwargs = fix_job_kwargs(dict(params.job_kwargs, progress_bar=False))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        traces, _ = preprocess(recording, params, folder, job_kwargs)
        margin = int(5e-3 * traces.sampling_frequency)
        spikes = choose_spikes(sorting, margin, traces.get_num_samples(), max_spikes, params.seed)
        n_before, n_after = (int(count * traces.sampling_frequency / 30e3) for count in (N_BEFORE, N_SAMPLES))
        templates = sc.estimate_templates(traces, spikes, sorting.unit_ids, n_before, n_after, **job_kwargs)
        main_channels = np.nan_to_num(templates).min(axis=1).argmin(axis=1)
        locations_um = traces.get_channel_locations()[:, :2]
        present = np.unique(spikes["unit_index"])
        found = find_groups(main_channels[present], locations_um)
        neighborhoods = Neighborhoods(locations_um, params.neighborhood_radius_um)
        if not found:
            raise ValueError(f"no place of the recording has {MIN_UNITS} units within {GROUP_RADIUS_UM:g} um")
        centres = np.array(list(found))[np.unique(np.linspace(0, len(found) - 1, max_groups).astype(int))]
        groups = []
        for centre in centres.tolist():
            of_group = spikes[np.isin(spikes["unit_index"], present[found[centre]])]
            units = of_group["unit_index"]
            groups.append(
                Group(
                    centre,
                    _cut_around(traces, of_group, main_channels, centre, neighborhoods, folder, job_kwargs, window),
                    units,
                    main_channels[units] == centre,
                    neighborhoods.positions_um[centre],
                    neighborhoods.channel_mask[centre],
                )
            )
    return groups


def _cut_around(traces, spikes, main_channels, centre, neighborhoods, folder, job_kwargs, window):
    """Waveforms of spikes aligned on the main channel of their unit, cut around the centre channel."""
    peaks = np.zeros(len(spikes), dtype=base_peak_dtype)
    peaks["sample_index"], peaks["segment_index"] = spikes["sample_index"], spikes["segment_index"]
    peaks["channel_index"] = main_channels[spikes["unit_index"]]
    around_centre = copy.copy(neighborhoods)
    around_centre.channel_indices, around_centre.channel_mask = (
        np.broadcast_to(values[centre], values.shape)
        for values in (neighborhoods.channel_indices, neighborhoods.channel_mask)
    )
    folder = folder / f"group_{centre}"
    return np.array(extract_waveforms(traces, peaks, around_centre, "neg", folder, job_kwargs, **window))


def score_groups(groups, compute_features, n_dims):
    """
    Separation of the units of every group.

    Returns
    -------
    result : dict
        ari and neighbours, one value a group.
    """
    result = dict(ari=[], neighbours=[])
    for group in groups:
        features = compute_features(group)
        scores = [score_mixture(features, group.units, n_dims, seed) for seed in range(N_SEEDS)]
        result["ari"].append(round(float(np.mean(scores)), 4))
        result["neighbours"].append(round(float(score_neighbours(features, group.units)), 4))
    return result


def make_pca(n_components):
    """Function of a group: principal components of its waveforms."""

    def compute_features(group):
        flat = group.waveforms.reshape(len(group.units), -1).astype("float32")
        return PCA(min(n_components, *flat.shape), random_state=0).fit_transform(flat)

    return compute_features


def make_denoisers():
    """Filters to compare the encoders' decoders with: dict of name -> function of a group."""

    def project(group, n_components):
        flat = group.waveforms.reshape(len(group.units), -1).astype("float32")
        pca = PCA(min(n_components, *flat.shape), random_state=0).fit(flat)
        return pca.inverse_transform(pca.transform(flat)).reshape(group.waveforms.shape)

    denoisers = {"none": lambda group: group.waveforms.astype("float32")}
    for n_components in PCA_SIZES:
        denoisers[f"pca {n_components}"] = lambda group, n=n_components: project(group, n)
    for sd in GAUSSIAN_SDS:
        denoisers[f"gaussian {sd:g}"] = lambda group, sd=sd: gaussian_filter1d(group.waveforms.astype("float32"), sd)
    return denoisers


def sum_energies(group, denoised):
    """
    Energy of the true waveforms and of the errors, summed in bins of the peak of the true waveform.

    The true waveform of a spike is the mean of the other spikes of its unit. Only units with their peak on the centre
    channel count.

    Returns
    -------
    signal, error : np.ndarray, float64, shape (n_bins,)
    """
    signal, error = np.zeros(len(SNR_EDGES) - 1), np.zeros(len(SNR_EDGES) - 1)
    waveforms = group.waveforms.astype("float64")
    for unit in np.unique(group.units[group.at_centre]):
        members = group.units == unit
        n_others = members.sum() - 1
        true = (waveforms[members].sum(axis=0) - waveforms[members]) / n_others
        index = np.searchsorted(SNR_EDGES, np.abs(true.mean(axis=0)).max(), side="right") - 1
        signal[index] += np.square(true).sum()
        error[index] += np.square(denoised[members] - true).sum()
    return signal, error


def score_denoiser(groups, denoise):
    """Signal-to-error ratio in dB by bins of the true peak (`SNR_EDGES`), None where there is no unit."""
    signal, error = np.sum([sum_energies(group, denoise(group)) for group in groups], axis=0)
    return [round(float(10 * np.log10(s / e)), 2) if s > 0 else None for s, e in zip(signal, error, strict=True)]


def measure_speed(groups, encoder):
    """Spikes embedded in a second of processor time, which a busy machine does not change much."""
    start = time.process_time()
    for group in groups:
        group.run(embed_waveforms, encoder)
    return round(sum(len(group.units) for group in groups) / (time.process_time() - start))


def run_case(arguments, case, encoders):
    """Score what has no result yet and write the file of the case."""
    path = RESULTS / f"embedding_{case}.json"
    result = dict(case=case, features={}, snr_edges=SNR_EDGES[:-1], denoisers={})
    if path.exists():
        result = json.loads(path.read_text(encoding="utf8"))
    suffix = f", {arguments.label}" if arguments.label else ""

    def is_wanted(name):
        return arguments.again or name + suffix not in result["features"]

    sizes = [size for size in PCA_SIZES if is_wanted(f"pca {size}")]
    encoders = {name: encoder for name, encoder in encoders.items() if is_wanted(name)}
    if not sizes and not encoders:
        return
    folder = Path(arguments.sets) / case
    defaults = dict(apply_motion_correction=False, job_kwargs=dict(n_jobs=1, chunk_duration="1s"))
    params = SorterParams.from_dict(defaults | json.loads(arguments.params))
    recording, sorting = sc.load(folder / "recording"), sc.load(folder / "sorting")

    @functools.cache
    def cut(n_samples, n_before):
        window = dict(n_samples=n_samples, n_before=n_before)
        return extract_groups(recording, sorting, params, arguments.max_spikes, arguments.max_groups, window)

    groups = cut(N_SAMPLES, N_BEFORE)
    if result.get("n_groups", len(groups)) != len(groups):
        raise ValueError(
            f"{path.name} has scores of {result['n_groups']} groups, not of {len(groups)} as here, and these cannot be "
            "compared: give the --max-groups of before, or remove the file to start anew"
        )
    result.update(n_groups=len(groups), n_units=[len(np.unique(group.units)) for group in groups])
    for size in sizes:
        result["features"][f"pca {size}{suffix}"] = score_groups(groups, make_pca(size), size)
    is_static = "drift" not in case  # else the mean of a unit's spikes is not their true waveform
    for name, denoise in make_denoisers().items() if is_static and sizes else ():
        result["denoisers"][name + suffix] = score_denoiser(groups, denoise)
    for name, encoder in encoders.items():
        groups = cut(encoder.config.n_samples, encoder.config.n_before)
        scores = score_groups(groups, lambda group, encoder=encoder: group.run(embed_waveforms, encoder), N_COMPONENTS)
        result["features"][name + suffix] = dict(scores, spikes_per_core_second=measure_speed(groups, encoder))
        if is_static:
            decibels = score_denoiser(groups, lambda group, encoder=encoder: group.run(denoise_waveforms, encoder))
            result["denoisers"][name + suffix] = decibels
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def load_encoders(weights):
    """Encoders by name from NAME=PATH strings; the shipped one if there are none."""
    if not weights:
        return {weights_version().split("-")[0]: load_encoder()}
    return {name: load_encoder(path) for name, path in (item.split("=", 1) for item in weights)}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", required=True, help="folder of ground-truth sets")
    parser.add_argument("--cases", nargs="+", required=True, help="names of sets")
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME=PATH", help="encoders; default: the shipped one"
    )
    parser.add_argument("--params", default="{}", help="sorter parameters of the preprocessing, as JSON")
    parser.add_argument("--label", default="", help="added to the names of features and denoisers")
    parser.add_argument("--max-spikes", type=int, default=300, help="of a unit")
    parser.add_argument("--max-groups", type=int, default=16, help="of a recording")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    return parser


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    encoders = load_encoders(arguments.weights)
    for case in arguments.cases:
        run_case(arguments, case, encoders)
        print(case, flush=True)
