"""
Sort a real recording without ground truth by several sorters, describe their units, and count those they agree on.

    python benchmarks/real_recording.py locust_trial_01.raw

The default file layout is that of the locust tetrode of Pouzat and Laurent (https://doi.org/10.5281/zenodo.21589):
int16, 4 channels, 15 kHz. The recording is not part of this project.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import probeinterface
import spikeinterface.full as si
from run import describe_machine, write_json
from sorters import get_sorter
from summary import OURS, RESULTS

REFRACTORY_MS = 2.0
BANDPASS_HZ = (300.0, 6000.0)


def read_tetrode(file_path, sampling_frequency, n_channels):
    """A binary int16 file as a recording with a generic tetrode."""
    recording = si.read_binary(file_path, sampling_frequency, dtype="int16", num_channels=n_channels)
    probe = probeinterface.generate_tetrode()
    probe.set_device_channel_indices(np.arange(n_channels))
    recording.set_probe(probe)
    return recording


def describe_units(sorting, analyzer):
    """One dictionary a unit: spikes, rate, SNR and violations of the refractory period."""
    violations = si.compute_refrac_period_violations(analyzer, refractory_period_ms=REFRACTORY_MS)
    snr = si.compute_snrs(analyzer)
    duration_s = analyzer.get_total_duration()
    units = []
    for unit_id in sorting.unit_ids:
        train = sorting.get_unit_spike_train(unit_id)
        share = np.mean(np.diff(train) < REFRACTORY_MS * 1e-3 * sorting.sampling_frequency) if len(train) > 1 else 0.0
        units.append(
            dict(
                unit=str(unit_id),
                n_spikes=len(train),
                rate_hz=round(len(train) / duration_s, 2),
                snr=round(float(snr[unit_id]), 2),
                share_of_intervals_below_2_ms=round(float(share), 4),
                refractory_contamination=_rounded(violations.rp_contamination[unit_id]),
            )
        )
    return units


def _rounded(value):
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def plot_mean_waveforms(analyzer, file_path):
    """Mean waveform of every unit on every channel, in the units of the file after a band-pass."""
    templates = analyzer.get_extension("templates").get_data()  # (u, t, c)
    time_ms = (np.arange(templates.shape[1]) - analyzer.get_extension("templates").nbefore) / (
        analyzer.sampling_frequency / 1000
    )
    n_units, _, n_channels = templates.shape
    size = (1.8 * n_channels, 1.2 * n_units)
    figure, axes = plt.subplots(n_units, n_channels, figsize=size, sharex=True, sharey="row")
    for row, waveform in zip(np.atleast_2d(axes), templates, strict=True):
        for axis, values in zip(row, waveform.T, strict=True):
            axis.axhline(0, color="0.8", linewidth=0.8)
            axis.plot(time_ms, values, color="tab:blue")
            axis.spines[["top", "right"]].set_visible(False)
    for row, unit_id in zip(np.atleast_2d(axes), analyzer.unit_ids, strict=True):
        row[0].set_ylabel(f"unit {unit_id}")
    for channel, axis in enumerate(np.atleast_2d(axes)[0]):
        axis.set_title(f"channel {channel}")
    for axis in np.atleast_2d(axes)[-1]:
        axis.set_xlabel("ms")
    figure.tight_layout()
    figure.savefig(file_path, dpi=110)


def compare_sorters(sortings):
    """
    Units that sorters have in common, by `compare_multiple_sorters`.

    Parameters
    ----------
    sortings : dict of str -> BaseSorting

    Returns
    -------
    agreement : dict
        "n_units": found by each sorter; "n_agreed": by sorter, number of sorters that found a unit -> number of its
        units; "pairs": [sorter, sorter, units that match].
    """
    comparison = si.compare_multiple_sorters(list(sortings.values()), list(sortings), n_jobs=1)
    consensus = comparison.get_agreement_sorting()
    n_agreed = {name: {} for name in sortings}
    for n_sorters, members in zip(
        consensus.get_property("agreement_number"), consensus.get_property("unit_ids"), strict=True
    ):
        for name in members:
            n_agreed[name][str(n_sorters)] = n_agreed[name].get(str(n_sorters), 0) + 1
    pairs = [
        [*names, sum(str(unit) not in ("-1", "") for unit in pair.hungarian_match_12)]
        for names, pair in comparison.comparisons.items()
    ]
    return dict(
        n_units={name: len(sorting.unit_ids) for name, sorting in sortings.items()}, n_agreed=n_agreed, pairs=pairs
    )


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="binary int16 file")
    parser.add_argument("--sampling-frequency", type=float, default=15000.0)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--name", default="locust", help="of the recording, in the results")
    parser.add_argument("--sorters", nargs="+", default=["huidurep", "lupin", "tridesclous2", "spykingcircus2"])
    parser.add_argument("--work-folder", default="benchmark_work", type=Path)
    parser.add_argument("--results", default=RESULTS, type=Path)
    return parser


def main():
    options = make_parser().parse_args()
    recording = read_tetrode(options.file, options.sampling_frequency, options.channels)
    sortings = {}
    for name in options.sorters:
        sorter_name, params = get_sorter(name)
        folder = options.work_folder / f"{options.name}__{name}"
        sortings[name] = si.run_sorter(sorter_name, recording, folder=folder, remove_existing_folder=True, **params)
    filtered = si.bandpass_filter(recording, *BANDPASS_HZ)
    units = {}
    for name, sorting in sortings.items():
        analyzer = si.create_sorting_analyzer(sorting, filtered, sparse=False, return_in_uV=False)
        analyzer.compute(["random_spikes", "waveforms", "templates", "noise_levels"])
        units[name] = describe_units(sorting, analyzer)
        if name == OURS:
            plot_mean_waveforms(analyzer, options.results / f"{options.name}__units.png")
    result = dict(
        recording=options.name,
        duration_s=recording.get_total_duration(),
        **describe_machine(),
        **compare_sorters(sortings),
        units=units,
    )
    write_json(options.results / f"{options.name}__agreement.json", result)


if __name__ == "__main__":
    main()
