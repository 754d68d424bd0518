"""Figures of the benchmark report. Each function returns a matplotlib figure."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter
from summary import COUNTS, LIMIT, SCORES, compute_ratios_to_fastest_peer, format_count, make_score_table, order_sorters

MAX_COLUMNS = 5  # of panels
N_BANDS = 5  # of SNR or firing rate, with the same number of units each
TITLES = dict(
    well_detected="well-detected units (accuracy ≥ 0.8)",
    false_positive="false-positive units",
    redundant="redundant units",
    overmerged="over-merged units",
)


def plot_scores(runs):
    """Mean accuracy, precision and recall over the true units: one row a case, one column a sorter."""
    tables = {score: make_score_table(runs, score) for score in SCORES}
    figure, axes = _make_grid_of_maps(tables[SCORES[0]].shape, 1, len(SCORES))
    for axis, (score, table) in zip(axes.ravel(), tables.items(), strict=True):
        _draw_map(axis, table, table.map("{:.2f}".format), score, vmax=1.0)
    return figure


def plot_counts(runs):
    """Units of each kind: one row a case, one column a sorter; the colour is the count over the true units."""
    tables = {name: make_score_table(runs, name) for name in COUNTS}
    shape = tables["well_detected"].shape
    n_true = runs.groupby("case")["n_true"].mean().reindex(tables["well_detected"].index)
    figure, axes = _make_grid_of_maps(shape, 2, 2)
    for axis, (name, table) in zip(axes.ravel(), tables.items(), strict=True):
        cmap, vmax = ("viridis", 1.0) if name == "well_detected" else ("Reds", 0.5)
        _draw_map(axis, table.div(n_true, axis=0), table.map(format_count), TITLES[name], vmax, cmap)
    for axis in axes[:, 0]:
        axis.set_yticks(range(shape[0]), [f"{case} ({format_count(number)})" for case, number in n_true.items()])
    return figure


def _make_grid_of_maps(shape, n_rows, n_columns):
    n_cases, n_sorters = shape
    size = (2.2 + n_columns * (0.55 * n_sorters + 0.3), n_rows * (0.6 + 0.32 * n_cases) + 1.2)
    return plt.subplots(n_rows, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")


def _draw_map(axis, table, labels, title, vmax, cmap="viridis"):
    axis.imshow(table.to_numpy(dtype=float), vmin=0.0, vmax=vmax, cmap=cmap, aspect="auto")
    light_when_high = plt.get_cmap(cmap)(1.0)[1] > 0.5
    for row, column in np.ndindex(table.shape):
        value = table.iat[row, column]
        if np.isnan(value):
            text, color = "–", "black"
        else:
            text, color = labels.iat[row, column], "black" if (value > 0.6 * vmax) == light_when_high else "white"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(table.shape[0]), table.index)
    axis.set_title(title, fontsize=10)


def plot_accuracy_against(units, column, label):
    """
    Accuracy of every true unit against one of its properties: one panel a sorter, all cases and seeds together.

    Parameters
    ----------
    units : pd.DataFrame
        Unit table.
    column : "snr" | "firing_rate_hz"
    label : str
        Of the horizontal axis.
    """
    names = order_sorters(units)
    n_rows = -(-len(names) // MAX_COLUMNS)
    n_columns = -(-len(names) // n_rows)
    size = (2.7 * n_columns, 2.3 * n_rows + 0.3)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    edges = np.quantile(units[column], np.linspace(0, 1, N_BANDS + 1))
    for axis, name in zip(axes.ravel(), names, strict=False):
        chosen = units[units["sorter"] == name]
        axis.plot(chosen[column], chosen["accuracy"], ".", color="0.6", markersize=4, alpha=0.5)
        bands = np.clip(np.searchsorted(edges, chosen[column], side="right") - 1, 0, N_BANDS - 1)
        means = chosen.groupby(bands)[[column, "accuracy"]].mean()
        axis.plot(means[column], means["accuracy"], "o-", color="tab:red", markersize=4)
        axis.set_xscale("log")
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{name} ({len(chosen)} units)", fontsize=9)
        axis.grid(color="0.9")
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    for axis in axes.ravel():
        axis.tick_params(axis="x", labelbottom=True)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel(label, fontsize=10)
    figure.tight_layout()
    return figure


def plot_costs(runs):
    """Wall time and peak memory over those of the fastest peer, and the real-time factor: one point a case."""
    panels = {
        "wall time / fastest peer": compute_ratios_to_fastest_peer(runs, "seconds"),
        "peak memory / fastest peer": compute_ratios_to_fastest_peer(runs, "peak_memory_mb"),
        "wall time / duration of the recording": make_score_table(runs[runs["sorter"] != LIMIT], "real_time_factor"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4), layout="constrained")
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        spread = np.linspace(-0.2, 0.2, len(table))
        for index, name in enumerate(table.columns):
            axis.plot(index + spread, table[name], "o", color="0.6", markersize=4)
            axis.plot(index, table[name].median(), "_", color="tab:red", markersize=24, markeredgewidth=2)
        axis.set_xticks(range(table.shape[1]), table.columns, rotation=60, ha="right", rotation_mode="anchor")
        axis.axhline(1.0, color="0.5", linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", color="0.9")
    return figure


def plot_agreement(agreement):
    """
    Units of a real recording that several sorters found.

    Parameters
    ----------
    agreement : dict
        As `real_recording.py` writes it: "n_units" and "n_agreed" by sorter, "pairs" as [sorter, sorter, n_units].
    """
    names = list(agreement["n_units"])
    matched = pd.DataFrame(np.nan, index=names, columns=names)
    for first, second, n_units in agreement["pairs"]:
        matched.loc[first, second] = matched.loc[second, first] = n_units
    for name in names:
        matched.loc[name, name] = agreement["n_units"][name]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    title = "units that match (diagonal: units found)"
    _draw_map(axes[0], matched, matched.map("{:.0f}".format), title, vmax=matched.max(axis=None))
    bottom = np.zeros(len(names))
    colors = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(names)))
    for n_sorters in range(len(names), 0, -1):
        height = np.array([agreement["n_agreed"][name].get(str(n_sorters), 0) for name in names])
        axes[1].bar(names, height, bottom=bottom, color=colors[n_sorters - 1], label=str(n_sorters))
        bottom += height
    axes[1].tick_params(axis="x", rotation=60)
    axes[1].set_ylabel("units")
    axes[1].set_title("found by how many sorters", fontsize=10)
    axes[1].legend(title="sorters", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure
