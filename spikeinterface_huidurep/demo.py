"""The demo: sort a simulated recording, compare with the truth, draw a picture."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLING_FREQUENCY_HZ = 30_000.0
DELTA_TIME_MS = 0.4  # spikes this close are the same spike
WELL_DETECTED_ACCURACY = 0.8
# Distances in um from the probe and from each other; the generator's own 50 um lets units vanish in the noise.
UNIT_LOCATIONS = {"margin_um": 10.0, "minimum_z": 5.0, "maximum_z": 30.0, "minimum_distance": 20.0}
RASTER_DURATION_S = 2.0
TEMPLATE_MS_BEFORE, TEMPLATE_MS_AFTER = 1.0, 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: recording, both sortings, the comparison and the path of the picture (None if not drawn)."""

    recording: object
    sorting_true: object
    sorting: object
    comparison: object
    picture_path: Path | None


def run_demo(folder, *, duration_s=60.0, num_channels=16, num_units=10, seed=0, verbose=True):
    """
    Sort a simulated recording whose units are known.

    Parameters
    ----------
    folder : str | Path
        Gets `recording/`, `sorting/` (the folder of `run_sorter`) and `demo.png`; older ones are replaced.
    duration_s : float, default: 60.0
    num_channels : int, default: 16
    num_units : int, default: 10
    seed : int, default: 0
        Of the simulation.
    verbose : bool, default: True
        Show the log of the sorter.

    Returns
    -------
    result : DemoResult
    """
    from spikeinterface.comparison import compare_sorter_to_ground_truth
    from spikeinterface.core import generate_ground_truth_recording
    from spikeinterface.sorters import run_sorter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recording, sorting_true = generate_ground_truth_recording(
        durations=[duration_s],
        sampling_frequency=SAMPLING_FREQUENCY_HZ,
        num_channels=num_channels,
        num_units=num_units,
        generate_unit_locations_kwargs=UNIT_LOCATIONS,
        seed=seed,
    )
    recording = recording.save(folder=folder / "recording", overwrite=True, verbose=False)
    sorting = run_sorter("huidurep", recording, folder=folder / "sorting", remove_existing_folder=True, verbose=verbose)
    comparison = compare_sorter_to_ground_truth(
        sorting_true, sorting, exhaustive_gt=True, delta_time=DELTA_TIME_MS, well_detected_score=WELL_DETECTED_ACCURACY
    )
    picture_path = folder / "demo.png"
    try:
        draw_picture(recording, sorting_true, sorting, comparison, picture_path)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        logger.warning("no picture: matplotlib is not installed (pip install 'spikeinterface_huidurep[demo]')")
        picture_path = None
    return DemoResult(recording, sorting_true, sorting, comparison, picture_path)


def format_comparison(comparison):
    """
    Write a comparison with the truth as text: one line a true unit, then a summary.

    Parameters
    ----------
    comparison : GroundTruthComparison
        With `exhaustive_gt=True`.

    Returns
    -------
    text : str
    """
    performance = comparison.get_performance()[["accuracy", "recall", "precision"]].astype(float)
    performance.insert(0, "found as", [_name_match(comparison, unit_id) for unit_id in performance.index])
    performance.index.name = "true unit"
    accuracy = performance["accuracy"]
    summary = (
        f"mean accuracy {accuracy.mean():.3f}; "
        f"{int((accuracy >= WELL_DETECTED_ACCURACY).sum())} of {len(accuracy)} units >= {WELL_DETECTED_ACCURACY}; "
        f"{comparison.sorting2.get_num_units()} units found, "
        f"{len(comparison.get_false_positive_units())} false positive, "
        f"{len(comparison.get_redundant_units())} redundant"
    )
    return performance.round(3).to_string() + "\n\n" + summary


def _find_match(comparison, unit_id):
    """Return the found unit matched to a true one, or None."""
    match = comparison.hungarian_match_12[unit_id]
    return None if match in (-1, "") else match


def _name_match(comparison, unit_id):
    match = _find_match(comparison, unit_id)
    return "-" if match is None else str(match)


def draw_picture(recording, sorting_true, sorting, comparison, file_path):
    """
    Draw the raster of true and found spikes, the templates and the accuracy of each true unit.

    Parameters
    ----------
    recording : BaseRecording
    sorting_true, sorting : BaseSorting
    comparison : GroundTruthComparison
    file_path : str | Path
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display and leaves the user's backend alone
    panels = figure.subplot_mosaic([["raster", "raster", "accuracy"], ["templates"] * 3], height_ratios=[1.2, 1])
    _draw_raster(panels["raster"], sorting_true, sorting, comparison)
    _draw_accuracy(panels["accuracy"], comparison)
    _draw_templates(panels["templates"], recording, sorting_true, sorting, comparison)
    figure.savefig(file_path, dpi=110)


def _draw_raster(axes, sorting_true, sorting, comparison):
    end_frame = int(RASTER_DURATION_S * sorting.sampling_frequency)
    for row, unit_id in enumerate(sorting_true.unit_ids):
        pairs = [(sorting_true, unit_id, row - 0.2, "black")]
        match = _find_match(comparison, unit_id)
        if match is not None:
            pairs.append((sorting, match, row + 0.2, "tab:red"))
        for source, source_unit_id, height, color in pairs:
            frames = source.get_unit_spike_train(source_unit_id, segment_index=0, end_frame=end_frame)
            axes.plot(frames / source.sampling_frequency, np.full(len(frames), height), "|", color=color, markersize=8)
    num_units = sorting_true.get_num_units()
    axes.set_yticks(range(num_units), sorting_true.unit_ids)
    axes.set(xlim=(0, RASTER_DURATION_S), ylim=(num_units - 0.5, -0.5), xlabel="time (s)", ylabel="true unit")
    axes.set_title("spikes: true (black), found (red)")


def _draw_accuracy(axes, comparison):
    accuracy = comparison.get_performance()["accuracy"].astype(float)
    colors = ["tab:green" if value >= WELL_DETECTED_ACCURACY else "tab:orange" for value in accuracy]
    axes.barh(range(len(accuracy)), accuracy, color=colors)
    axes.axvline(WELL_DETECTED_ACCURACY, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(accuracy)), accuracy.index)
    axes.set(xlim=(0, 1), ylim=(len(accuracy) - 0.5, -0.5), xlabel="accuracy")
    axes.set_title(f"accuracy, mean {accuracy.mean():.2f}")


def _draw_templates(axes, recording, sorting_true, sorting, comparison):
    templates_true = _compute_templates(recording, sorting_true)
    templates_found = _compute_templates(recording, sorting)
    num_samples = next(iter(templates_true.values())).shape[0]
    times = np.linspace(0, 0.8, num_samples)  # each unit has a slot of width 1
    for slot, (unit_id, template) in enumerate(templates_true.items()):
        channel = np.argmax(np.ptp(template, axis=0))
        axes.plot(slot + times, template[:, channel], color="black", linewidth=2.5)
        match = _find_match(comparison, unit_id)
        if match is not None:
            axes.plot(slot + times, templates_found[match][:, channel], color="tab:red", linewidth=1.2)
    axes.set_xticks(np.arange(len(templates_true)) + 0.4, templates_true)
    axes.set(xlabel="true unit", ylabel="largest channel (uV)")
    axes.set_title("mean waveforms of the raw traces: at true spikes (black), at found spikes (red)")


def _compute_templates(recording, sorting):
    """Return {unit_id: array (samples, channels)} of mean raw waveforms in uV."""
    from spikeinterface.core import create_sorting_analyzer

    if sorting.get_num_units() == 0:
        return {}
    analyzer = create_sorting_analyzer(sorting, recording, sparse=False, return_in_uV=True)
    analyzer.compute("random_spikes", seed=0)
    analyzer.compute("templates", ms_before=TEMPLATE_MS_BEFORE, ms_after=TEMPLATE_MS_AFTER)
    templates = analyzer.get_extension("templates").get_templates()
    return dict(zip(sorting.unit_ids, templates, strict=True))
