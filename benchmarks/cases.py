"""
Recordings with known spikes: each case gives a recording, its true sorting and the facts that say what it is.

`find_cases` lists the cases, `prepare_case` puts one on disk as the sorters will see it.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.signal
import spikeinterface.full as si
from hybrid import make_hybrid, make_hybrid_bursts
from mearec import make_mearec
from probes import make_neuropixels_probe

from spikeinterface_huidurep.params import MAX_FREQ_FRACTION

MADE_DURATION_S = 150.0
LARGE_DURATION_S = 60.0  # 384 channels of float32 are 2.8 GB
SEED_FIELD = "{seed}"
SNR_BAND_HZ = (300.0, 6000.0)


@dataclass(frozen=True)
class Case:
    """
    A recording and its truth, not made yet.

    Parameters
    ----------
    name : str
    make : Callable
        Returns (recording, sorting). Can be pickled.
    facts : str
        What the recording is, in one sentence.
    drifts : bool, default: False
        Whether the neurons move along the probe.
    seeded : bool, default: True
        Whether another seed gives another recording.
    """

    name: str
    make: Callable
    facts: str
    drifts: bool = False
    seeded: bool = True


def find_cases(sets=None, recording=None, ground_truth=None, real_data=None, cache_folder="benchmark_work", seed=0):
    """
    Cases that can be run, by name.

    Parameters
    ----------
    sets : None | str | Path
        Folder of sets NAME/recording and NAME/sorting; "{seed}" in it stands for the seed. A set drifts if its name
        says so.
    recording, ground_truth : None | str | Path
        One more pair of anything that SpikeInterface reads; see `name_pair`.
    real_data : None | str | Path
        Folder with the data of `hybrid.py`, for the hybrid cases.
    cache_folder : str | Path, default: "benchmark_work"
        Where MEArec's templates are kept.
    seed : int, default: 0
        Of the recordings that are made: their neurons, places, spike times and noise.

    Returns
    -------
    cases : dict of str -> Case
    """
    made = list(MADE_CASES)
    for name, probe_name, n_excitatory, n_inhibitory in MEAREC_CASES:
        folder = Path(cache_folder).absolute() / "mearec"
        make = partial(make_mearec, probe_name, n_excitatory, n_inhibitory, folder, MADE_DURATION_S)
        facts = f"MEArec, probe {probe_name}, {n_excitatory + n_inhibitory} units, coloured noise of 10 uV"
        made.append(Case(name, make, facts))
    if real_data:
        facts = "30 mean waveforms of real neurons in noise with a real spectrum, 64 Neuropixels sites"
        made.append(Case("hybrid_static", partial(make_hybrid, real_data, MADE_DURATION_S), facts))
        facts += "; every second one fires in bursts in which spikes get smaller"
        made.append(Case("hybrid_bursts", partial(make_hybrid_bursts, real_data, MADE_DURATION_S), facts))
    cases = [replace(case, make=partial(case.make, seed=seed)) for case in made]
    if sets:
        cases += find_sets(str(sets), seed)
    if recording:
        make = partial(load_pair, recording, ground_truth)
        cases.append(Case(name_pair(recording), make, f"{recording} against {ground_truth}", seeded=False))
    return {case.name: case for case in cases}


def find_sets(sets, seed):
    """Cases of the folder of sets of a seed, see `find_cases`; none, with a warning, without a folder for this seed."""
    folder_of_seed = Path(sets.replace(SEED_FIELD, str(seed)))
    if SEED_FIELD in sets and not folder_of_seed.is_dir():
        warnings.warn(f"no sets of seed {seed}: there is no folder {folder_of_seed}", stacklevel=2)
        return []
    return [
        Case(
            name=folder.name,
            make=partial(load_pair, folder / "recording", folder / "sorting"),
            facts=f"set {folder.name}",
            drifts="drift" in folder.name,
            seeded=SEED_FIELD in sets,
        )
        for folder in sorted(folder_of_seed.iterdir())
        if (folder / "recording").exists() and (folder / "sorting").exists()
    ]


def name_pair(recording):
    """Name of the case of one recording: its parent folder."""
    return Path(recording).absolute().parent.name


def load_pair(recording, ground_truth):
    """Open a recording and its true sorting, see `load_object`."""
    return load_object(recording), load_object(ground_truth)


def load_object(path):
    """
    Open a recording or a sorting by `si.load`, or by the reader that is named before a colon.

    Parameters
    ----------
    path : str | Path
        A folder or file of SpikeInterface's own, or READER:PATH for `si.read_READER(PATH)`, for example
        "mda_recording:/data/hybrid_janelia/rec_32c_600s_11".
    """
    reader, colon, rest = str(path).partition(":")
    if colon and hasattr(si, f"read_{reader}"):
        return getattr(si, f"read_{reader}")(rest)
    return si.load(path)


def make_native(noise_level_uv, duration_s=MADE_DURATION_S, seed=0, sampling_frequency=30000.0, **generator):
    """SpikeInterface's own generator: amplitudes decay exponentially with distance, noise white in time and space."""
    return si.generate_ground_truth_recording(
        durations=[duration_s],
        sampling_frequency=sampling_frequency,
        noise_kwargs=dict(noise_levels=noise_level_uv, strategy="on_the_fly"),
        seed=seed,
        **generator,
    )


def make_native_restless(seed=0):
    """`native_static` with bouts of larger noise, as of muscles: 1 s each, most of it the same on all channels."""
    recording, sorting = make_native(**STATIC, seed=seed)
    rng = np.random.default_rng(seed)
    traces = recording.get_traces()
    n_samples, n_channels = int(recording.sampling_frequency), recording.get_num_channels()
    band = scipy.signal.butter(2, MUSCLE_BAND_HZ, "bandpass", fs=recording.sampling_frequency, output="sos")
    gains = rng.uniform(0.7, 1.3, n_channels)
    for start in rng.integers(0, len(traces) - n_samples, N_BOUTS):
        shared = scipy.signal.sosfilt(band, rng.standard_normal(n_samples))[:, None]
        noise = SHARED_UV * shared / shared.std() * gains + OWN_UV * rng.standard_normal((n_samples, n_channels))
        traces[start : start + n_samples] += scipy.signal.windows.tukey(n_samples)[:, None] * noise
    return replace_traces(recording, traces), sorting


def make_native_artifacts(seed=0):
    """`native_static` with artifacts, as of licking: deflections of all channels, of 5 to 30 ms and of many sizes."""
    recording, sorting = make_native(**STATIC, seed=seed)
    rng = np.random.default_rng(seed)
    traces = recording.get_traces()
    for start, size_uv in zip(
        rng.integers(0, len(traces) - int(recording.sampling_frequency), N_ARTIFACTS),
        ARTIFACT_UV * np.exp(rng.standard_normal(N_ARTIFACTS)),
        strict=True,
    ):
        times_s = np.arange(int(rng.uniform(*ARTIFACT_S) * recording.sampling_frequency)) / recording.sampling_frequency
        phases = 2 * np.pi * (np.outer(times_s, ARTIFACT_HZ) + rng.random(len(ARTIFACT_HZ)))
        wave = scipy.signal.windows.hann(len(times_s)) * (np.sin(phases) @ rng.standard_normal(len(ARTIFACT_HZ)))
        gains = rng.normal(1, 0.4, recording.get_num_channels())
        traces[start : start + len(times_s)] += size_uv * wave[:, None] * gains
    return replace_traces(recording, traces), sorting


def replace_traces(recording, traces):
    """Recording of one segment with other traces, in uV."""
    replaced = si.NumpyRecording(traces, recording.sampling_frequency, channel_ids=recording.channel_ids)
    replaced.set_probe(recording.get_probe())
    replaced.set_channel_gains(1.0)
    replaced.set_channel_offsets(0.0)
    return replaced


def make_native_in_turn(find_shares, noise_level_uv, num_units, rate_hz, seed=0, **generator):
    """
    SpikeInterface's generator with neurons that behaviour makes fire at different times.

    Parameters
    ----------
    find_shares : Callable
        Takes times in s and the indices of units in [0, 1), both of shape (n_spikes,), and returns the probability that
        each spike is kept.
    noise_level_uv : float
    num_units : int
    rate_hz : float
        Of a neuron that keeps all spikes.
    seed : int, default: 0
    **generator
        As for `generate_ground_truth_recording`.
    """
    sorting = si.generate_sorting(
        num_units=num_units, sampling_frequency=30000.0, durations=[MADE_DURATION_S], firing_rates=rate_hz, seed=seed
    )
    spikes = sorting.to_spike_vector()
    shares = find_shares(spikes["sample_index"] / sorting.sampling_frequency, spikes["unit_index"] / num_units)
    kept = np.random.default_rng(seed).random(len(spikes)) < shares
    sorting = si.NumpySorting(spikes[kept], sorting.sampling_frequency, sorting.unit_ids)
    return make_native(noise_level_uv, seed=seed, sorting=sorting, num_units=num_units, **generator)


def visit_places(times_s, units):
    """Place cells: an animal runs laps, and each neuron fires around its place."""
    distances = np.abs((times_s / LAP_S - units + 0.5) % 1 - 0.5)
    return np.exp(-0.5 * (distances / PLACE_WIDTH) ** 2)


def change_context(times_s, units):
    """A third of the neurons fire only in the first half of the recording, a third only in the second."""
    is_second = times_s >= MADE_DURATION_S / 2
    return np.select([units < 1 / 3, units < 2 / 3], [~is_second, is_second], True).astype(float)


def make_native_sizes(seed=0):
    """SpikeInterface's generator with pairs of neurons that differ in nothing but their size and when they fire."""
    spikes = dict(firing_rates=(2.0, 10.0), refractory_period_ms=4.0)
    recording, _ = make_native(5.0, seed=seed, num_channels=32, num_units=N_PAIRS)
    templates = np.repeat(recording.templates, 2, axis=0)
    templates[1::2] *= np.random.default_rng(seed).uniform(*SIZE_OF_SECOND, N_PAIRS)[:, None, None]
    return make_native(
        5.0,
        seed=seed,
        probe=recording.get_probe(),
        num_units=2 * N_PAIRS,
        templates=templates,
        generate_sorting_kwargs=spikes,
    )


def make_native_drift(seed=0):
    """SpikeInterface's drifting generator: 30 units beside 64 Neuropixels sites move up and down by 40 um."""
    zigzag = dict(drift_mode="zigzag", non_rigid_gradient=None, t_start_drift=10.0, t_end_drift=None, period_s=100)
    _, recording, sorting = si.generate_drifting_recording(
        num_units=30,
        duration=MADE_DURATION_S,
        probe=make_neuropixels_probe(64),
        generate_displacement_vector_kwargs=dict(
            displacement_sampling_frequency=5.0,
            drift_start_um=[0, 20],
            drift_stop_um=[0, -20],
            drift_step_um=1,
            motion_list=[zigzag],
        ),
        seed=seed,
    )
    return recording, sorting


# name, probe, excitatory and inhibitory neurons
MEAREC_CASES = (("mearec_tetrode", "tetrode", 5, 2), ("mearec_32", "Neuronexus-32", 14, 6))

# Amplitudes of about 25, 45 and 70 uV: on one channel they are most of what tells neurons apart.
ONE_CHANNEL = dict(
    num_channels=1,
    num_units=3,
    generate_unit_locations_kwargs=dict(margin_um=10.0, minimum_z=10.0, maximum_z=20.0, minimum_distance=10.0),
    generate_templates_kwargs=dict(unit_params=dict(alpha=[45.0, 75.0, 120.0], spatial_decay=40.0)),
)

STATIC = dict(noise_level_uv=5.0, num_channels=32, num_units=20)

N_BOUTS, SHARED_UV, OWN_UV, MUSCLE_BAND_HZ = 15, 15.0, 5.0, (100.0, 3000.0)

N_ARTIFACTS, ARTIFACT_UV, ARTIFACT_S, ARTIFACT_HZ = 300, 150.0, (0.005, 0.03), (60.0, 150.0, 300.0, 700.0)

LAP_S, PLACE_WIDTH = 20.0, 0.05  # the width as a share of a lap

N_PAIRS, SIZE_OF_SECOND = 8, (0.5, 0.85)

RARE_SPIKES = dict(firing_rates=(0.2, 2.0), refractory_period_ms=4.0)

MADE_CASES = (
    Case(
        "native_one_channel",
        partial(make_native, 10.0, **ONE_CHANNEL),
        "SpikeInterface's generator, 1 channel, 3 units, white noise of 10 uV",
    ),
    Case(
        "native_tetrode",
        partial(make_native, 10.0, num_channels=4, num_units=6),
        "SpikeInterface's generator, 4 channels, 6 units, white noise of 10 uV",
    ),
    Case(
        "native_tetrode_20khz",
        partial(make_native, 10.0, num_channels=4, num_units=6, sampling_frequency=20000.0),
        "SpikeInterface's generator, 4 channels at 20 kHz, 6 units, white noise of 10 uV",
    ),
    Case(
        "native_static",
        partial(make_native, **STATIC),
        "SpikeInterface's generator, 2 columns of 16 channels, 20 units, white noise of 5 uV",
    ),
    Case(
        "native_rare",
        partial(make_native, 10.0, num_channels=32, num_units=30, generate_sorting_kwargs=RARE_SPIKES),
        "SpikeInterface's generator, 2 columns of 16 channels, 30 units of 0.2 to 2 Hz, white noise of 10 uV",
    ),
    Case(
        "native_crowded",
        partial(make_native, 7.0, num_channels=32, num_units=60),
        "SpikeInterface's generator, 2 columns of 16 channels, 60 units, 900 spikes a second, white noise of 7 uV",
    ),
    Case(
        "native_restless",
        make_native_restless,
        "as native_static, with 15 bouts of 1 s in which the noise is larger, most of it common to all channels",
    ),
    Case(
        "native_artifacts",
        make_native_artifacts,
        "as native_static, with 300 artifacts of 5 to 30 ms on all channels, as of licking, of many sizes",
    ),
    Case(
        "native_places",
        partial(make_native_in_turn, visit_places, 10.0, num_channels=4, num_units=8, rate_hz=25.0),
        "SpikeInterface's generator, 4 channels, 8 place cells that fire in turn in laps of 20 s, white noise of 10 uV",
    ),
    Case(
        "native_contexts",
        partial(make_native_in_turn, change_context, 7.0, num_channels=32, num_units=30, rate_hz=8.0),
        "SpikeInterface's generator, 2 columns of 16 channels, 30 units of which 10 fire only in the first half of the "
        "time, 10 only in the second, white noise of 7 uV",
    ),
    Case(
        "native_sizes",
        make_native_sizes,
        "SpikeInterface's generator, 2 columns of 16 channels, 8 pairs of units: the second has the waveform of "
        "the first 0.5 to 0.85 times as large, white noise of 5 uV",
    ),
    Case(
        "native_384",
        partial(make_native, 5.0, LARGE_DURATION_S, probe=make_neuropixels_probe(384), num_units=150),
        "SpikeInterface's generator, 384 Neuropixels sites, 150 units, 60 s, white noise of 5 uV",
    ),
    Case(
        "native_drift",
        make_native_drift,
        "SpikeInterface's drifting generator, 64 Neuropixels sites, 30 units, all move by 40 um up and down in 100 s",
        drifts=True,
    ),
)


def prepare_case(case, folder, duration_s=None):
    """
    Write the analyzer (recording and true sorting) and the facts of a case.

    Parameters
    ----------
    case : Case
    folder : Path
        Gets `analyzer`, what a SorterStudy takes as a dataset, and last of all `facts.json`.
    duration_s : None | float
        Length to cut the recording to.
    """
    recording, sorting = case.make()
    if duration_s and duration_s < recording.get_total_duration():
        n_samples = int(duration_s * recording.sampling_frequency)
        recording, sorting = recording.frame_slice(0, n_samples), sorting.frame_slice(0, n_samples)
    sorting = sorting.remove_empty_units()
    recording = recording.save(folder=folder / "recording", overwrite=True)
    sorting = sorting.save(folder=folder / "sorting", overwrite=True)
    si.create_sorting_analyzer(
        sorting, recording, sparse=False, format="binary_folder", folder=folder / "analyzer", overwrite=True
    )
    facts = dict(
        facts=case.facts,
        drifts=case.drifts,
        duration_s=recording.get_total_duration(),
        n_channels=recording.get_num_channels(),
        sampling_frequency=recording.sampling_frequency,
        true_units=describe_true_units(recording, sorting),
    )
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf8")


def describe_true_units(recording, sorting):
    """SNR in the band of spikes and firing rate of each true unit: dict of lists, in the order of `unit_ids`."""
    freq_min, freq_max = SNR_BAND_HZ
    freq_max = min(freq_max, MAX_FREQ_FRACTION * recording.sampling_frequency)
    filtered = si.bandpass_filter(recording, freq_min, freq_max, dtype="float32")
    analyzer = si.create_sorting_analyzer(sorting, filtered, sparse=False)
    analyzer.compute(
        dict(random_spikes=dict(seed=0), templates={}, noise_levels=dict(random_slices_kwargs=dict(seed=0)))
    )
    analyzer.compute("quality_metrics", metric_names=["snr", "firing_rate"])
    metrics = analyzer.get_extension("quality_metrics").get_data().loc[sorting.unit_ids]
    return dict(
        unit=[str(unit_id) for unit_id in sorting.unit_ids],
        snr=metrics["snr"].astype(float).round(2).tolist(),
        firing_rate_hz=metrics["firing_rate"].astype(float).round(2).tolist(),
    )
