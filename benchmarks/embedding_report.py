"""
Write table and figure of the results of `embedding.py`: benchmarks/results/embedding.md and embedding.png.

    python benchmarks/embedding_report.py
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def read_results():
    """Results of all cases, static ones first."""
    results = [json.loads(path.read_text(encoding="utf8")) for path in sorted(RESULTS.glob("embedding_*.json"))]
    return sorted(results, key=lambda result: ("drift" in result["case"], result["case"]))


def make_tables(results):
    """Markdown: adjusted Rand index, neighbour accuracy, and signal-to-error ratio of the denoisers."""
    names = list(dict.fromkeys(name for result in results for name in result["features"]))
    parts = []
    for score, title in (("ari", "Adjusted Rand index"), ("neighbours", "15-nearest-neighbour accuracy")):
        lines = [f"| recording (groups) | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for result in results:
            lines.append(_make_row(f"{result['case']} ({result['n_groups']})", _mean_scores(result, names, score)))
        for kind in ("static", "drift"):
            of_kind = [result for result in results if ("drift" in result["case"]) == (kind == "drift")]
            if of_kind:
                rows = np.array([_mean_scores(result, names, score) for result in of_kind])
                lines.append(_make_row(f"**mean of {kind}**", rows.mean(axis=0)))
        parts.append(f"## {title}\n\n" + "\n".join(lines))
    parts.append(_make_denoiser_table(average_denoisers(results), results[0]["snr_edges"]))
    return "\n\n".join(parts) + "\n"


def _mean_scores(result, names, score):
    return [np.mean(result["features"][name][score]) if name in result["features"] else np.nan for name in names]


def _make_row(start, values, decimals=3):
    cells = ["" if value is None or np.isnan(value) else f"{value:.{decimals}f}" for value in values]
    return f"| {start} | {' | '.join(cells)} |"


def average_denoisers(results):
    """
    Mean over recordings of the signal-to-error ratio: dict of name -> one value (dB) or NaN a bin.

    Only denoisers that were run on all recordings with denoisers.
    """
    collected = defaultdict(list)
    results = [result for result in results if result["denoisers"]]
    for result in results:
        for name, values in result["denoisers"].items():
            collected[name].append([np.nan if value is None else value for value in values])
    means = {}
    for name, rows in collected.items():
        if len(rows) < len(results):
            continue
        rows = np.array(rows, dtype=float)
        counts = np.isfinite(rows).sum(axis=0)
        means[name] = np.where(counts, np.nansum(rows, axis=0) / np.maximum(counts, 1), np.nan)
    return means


def _make_denoiser_table(means, edges):
    bins = [f"> {edge:g}" for edge in edges]
    lines = [f"| true peak (noise SD) | {' | '.join(bins)} |", "|---" * (len(bins) + 1) + "|"]
    lines += [_make_row(name, values, decimals=1) for name, values in means.items()]
    return "## Denoisers: signal-to-error ratio (dB)\n\n" + "\n".join(lines)


def draw_figure(results, path):
    """Bars of both scores for every recording, and the denoisers; only what was run on all recordings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11), layout="constrained")
    axes = figure.subplots(3, 1)
    names = [name for name in results[0]["features"] if all(name in result["features"] for result in results)]
    width = 0.8 / len(names)
    for axis, score in zip(axes, ("ari", "neighbours"), strict=False):
        values = np.array([_mean_scores(result, names, score) for result in results])
        for index, name in enumerate(names):
            axis.bar(np.arange(len(results)) + index * width, values[:, index], width, label=name)
        axis.set_xticks(np.arange(len(results)) + 0.4, [result["case"] for result in results], rotation=20)
        axis.set_ylim(max(0, np.nanmin(values) - 0.05), 1)
        axis.set_ylabel({"ari": "adjusted Rand index", "neighbours": "neighbour accuracy"}[score])
    axes[0].legend(ncols=4, fontsize=8)
    for name, values in average_denoisers(results).items():
        axes[2].plot(np.arange(len(values)), values, marker="o", label=name)
    edges = results[0]["snr_edges"]
    axes[2].set_xticks(np.arange(len(edges)), [f"> {edge:g}" for edge in edges])
    axes[2].set_xlabel("largest deflection of the true waveform (noise SD)")
    axes[2].set_ylabel("signal-to-error ratio (dB)")
    axes[2].legend(ncols=3, fontsize=8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    results = read_results()
    if not results:
        sys.exit(f"no results in {RESULTS}: run benchmarks/embedding.py first")
    (RESULTS / "embedding.md").write_text(make_tables(results), encoding="utf8")
    draw_figure(results, RESULTS / "embedding.png")
