"""
Write a report about all results, as Markdown and as HTML with figures, or put the tables into the README.

    python benchmarks/report.py --out benchmark_report
    python benchmarks/report.py --update-readme
"""

import argparse
import html
import json
from dataclasses import dataclass
from pathlib import Path

import figures
import numpy as np
import pandas as pd
from summary import (
    LIMIT,
    MAIN_VARIANTS,
    OURS,
    RESULTS,
    choose_main_results,
    make_run_table,
    make_unit_table,
    read_not_run,
    read_results,
)
from tables import (
    describe_comparison,
    describe_confidence,
    format_comparison,
    make_accuracy_table,
    make_case_table,
    make_confidence_table,
    make_cost_table,
    make_false_unit_table,
    make_short_table,
    make_variant_table,
    to_markdown,
)

TIMED, SHORT = "timed", "short"  # folders in that of the results, see benchmarks/README.md
README = Path(__file__).parents[1] / "README.md"
README_SORTERS = (OURS, *MAIN_VARIANTS, "lupin", "tridesclous2", "spykingcircus2", "mountainsort5", LIMIT)
START, END = "<!-- results: made by benchmarks/report.py -->", "<!-- end of results -->"
STYLE = (
    "body { font-family: sans-serif; max-width: 100em; margin: 2em auto; padding: 0 1em; } img { max-width: 100%; } "
    "table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85em; } "
    "td, th { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; white-space: nowrap; }"
)
ACCURACY = (
    "Mean accuracy over all true units (a missed unit counts 0), ± SD over seeds of the recording where there are "
    "several; in brackets the units at 0.8 or better; n: seeds, if fewer than in the row. Peers that have a motion "
    "correction run with it on drifting recordings, where not marked otherwise. The figures below show the same runs."
)
COMPARISON = (
    "By recording: accuracies are means over the seeds that both have; Wilcoxon signed-rank test over the true units, "
    "two-sided."
)
COSTS = (
    "Wall time of run_sorter in a new process, with compilation. Memory: largest resident memory of the process and "
    "its children, which also loads the recording and compares with the truth. The table shows medians over cases; in "
    "the figure a grey point is a case and a red line the median."
)
TIMED_RUNS = (
    "Costs on an idle machine (the runs of `make bench`: 60 s recordings, one job, what peers compile included; "
    "huidurep compiles in its first run only, which takes 10 to 20 s longer), medians over the recordings of each "
    "sorter; the fastest peer is that of the same recording."
)
CONFIDENCE = (
    "Of huidurep. Miscalibration: difference between the probability of spikes and the share that is at a true spike "
    "of the true unit that their unit was matched with, mean over the tenths of the probability. Area of quality: "
    "under the ROC curve of the unit property `quality`, for units that are not false-positive."
)
FALSE_UNITS = (
    "Units found that are not one true unit each, as SpikeInterface counts them: huidurep / best peer, means over the "
    "seeds both have."
)


@dataclass
class Section:
    """A part of the report: a title, paragraphs, a table and a figure, where there are any."""

    title: str
    paragraphs: tuple = ()
    table: pd.DataFrame | None = None
    figure: object = None


def make_readme_text(results, timed_results, short_results, not_run):
    """The tables of the README: accuracy, the paired test, false units, costs of the timed runs, and the short runs."""
    shown = [result for result in choose_main_results(results) if result["sorter"] in README_SORTERS]
    table, notes = make_accuracy_table(shown, not_run)
    table = table[[name for name in ("units", "seeds", *README_SORTERS) if name in table]]
    sentences, comparison = describe_comparison(make_unit_table(results))
    parts = [to_markdown(table, "recording"), *notes, *sentences]
    if len(comparison):
        false_units = make_false_unit_table(make_run_table(results), comparison)
        parts += [FALSE_UNITS, to_markdown(false_units, "recording")]
    parts += describe_confidence(make_confidence_table(results))
    if timed_results:
        parts += [TIMED_RUNS, to_markdown(make_cost_table(make_run_table(timed_results)), "sorter")]
    if short_results:
        parts.append(to_markdown(make_short_table(short_results), "short recording: sorter"))
    return "\n\n".join(parts)


def make_sections(results, timed_results, short_results, not_run, agreements):
    """
    The parts of the report.

    Parameters
    ----------
    results : list of dict
        Of all runs.
    timed_results : list of dict
        Of the runs whose times can be compared.
    short_results : list of dict
        Of sorters that are too slow or too fragile for the other cases.
    not_run : dict
        See `read_not_run`.
    agreements : list of dict
        Of sorters on real recordings, as `real_recording.py` writes them.

    Returns
    -------
    sections : list of Section
    """
    sections = make_accuracy_sections(results, not_run) + make_figure_sections(choose_main_results(results))
    if timed_results:
        sections.append(make_cost_section(timed_results))
    if short_results:
        sections.append(
            Section("Short recordings", (describe_machine(short_results),), make_short_table(short_results))
        )
    for agreement in agreements:
        sections.append(
            Section(
                f"Agreement on a real recording: {agreement['recording']}",
                ("Units match when at least half of their spikes agree (compare_multiple_sorters).",),
                figure=figures.plot_agreement(agreement),
            )
        )
    return sections


def make_accuracy_sections(results, not_run):
    """The cases, and the tables about all runs."""
    table, notes = make_accuracy_table(choose_main_results(results), not_run)
    variants, variant_notes = make_variant_table(results)
    sentences, comparison = describe_comparison(make_unit_table(results))
    confidence = make_confidence_table(results)
    sections = [
        Section("Cases", table=make_case_table(results)),
        Section("Accuracy", (ACCURACY, *notes), table),
        Section("Against the best peer", (*sentences, COMPARISON), format_comparison(comparison)),
        Section(
            "False, redundant and over-merged units",
            (FALSE_UNITS,),
            make_false_unit_table(make_run_table(results), comparison),
        ),
        Section("Confidence", (CONFIDENCE, *describe_confidence(confidence)), confidence),
        Section("Variants", ("The table of accuracies, where variants were run.", *variant_notes), variants),
    ]
    return [section for section in sections if len(section.table)]


def make_figure_sections(results):
    """Figures of runs that were chosen by `choose_main_results`."""
    runs, units = make_run_table(results), make_unit_table(results)
    return [
        Section("Accuracy, precision, recall", ("Means over seeds.",), figure=figures.plot_scores(runs)),
        Section(
            "Accuracy against SNR",
            (
                "Each point is a true unit in a recording of one seed; the line joins the means of "
                f"{figures.N_BANDS} bands with the same number of units of all sorters together.",
            ),
            figure=figures.plot_accuracy_against(units, "snr", "SNR (300 to 6000 Hz)"),
        ),
        Section(
            "Accuracy against firing rate",
            figure=figures.plot_accuracy_against(units, "firing_rate_hz", "firing rate (Hz)"),
        ),
        Section(
            "Units found",
            ("Units of each kind, as SpikeInterface counts them, means over seeds; in brackets the true units.",),
            figure=figures.plot_counts(runs),
        ),
    ]


def make_cost_section(timed_results):
    """Time and memory of runs that can be compared."""
    runs = make_run_table(timed_results)
    return Section(
        "Time and memory", (describe_machine(timed_results), COSTS), make_cost_table(runs), figures.plot_costs(runs)
    )


def describe_machine(results):
    """One sentence: machine, versions and load."""
    first = results[0]
    machine, versions = first["machine"], first["versions"]
    loads = [value for result in results for value in result.get("load_average", [])]
    named = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return (
        f"{machine['n_cores']} cores ({machine['processor']}), {machine['memory_gb']} GB, {machine['system']}; "
        f"{named}; commit {first['commit']}; n_jobs={first['n_jobs']}; load average of the machine "
        f"{np.min(loads):.1f} to {np.max(loads):.1f}."
    )


def write_report(sections, folder):
    """Write `report.md`, `report.html` and the figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, page = ["# Benchmark report"], ["<h1>Benchmark report</h1>"]
    for section in sections:
        markdown.append(f"## {section.title}")
        page.append(f"<h2>{html.escape(section.title)}</h2>")
        for paragraph in section.paragraphs:
            markdown.append(paragraph)
            page.append(f"<p>{html.escape(paragraph)}</p>")
        if section.table is not None:
            markdown.append(to_markdown(section.table))
            page.append(section.table.to_html(border=0))
        if section.figure is not None:
            name = "".join(letter if letter.isalnum() else "_" for letter in section.title.lower()) + ".png"
            section.figure.savefig(folder / name, dpi=120)
            markdown.append(f"![{section.title}]({name})")
            page.append(f'<img src="{name}" alt="{html.escape(section.title)}">')
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Benchmark report</title><style>{STYLE}'
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf8")
    (folder / "report.html").write_text(
        head + "</style></head><body>\n" + "\n".join(page) + "\n</body></html>\n", encoding="utf8"
    )


def read_all_results(folder, timed_folder=None):
    """Results of a folder, of its timed runs (or those of another folder), of its short ones, and what is missing."""
    folders = folder, timed_folder or folder / TIMED, folder / SHORT
    return *map(read_results, folders), read_not_run(folder)


def replace_text(readme, text):
    """The README with the text between the markers."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=RESULTS, type=Path, help="folder of results")
    parser.add_argument("--timed-results", type=Path, help="folder of results whose times count, default: timed in it")
    parser.add_argument("--out", default="benchmark_report", type=Path, help="folder of the report")
    parser.add_argument("--update-readme", action="store_true", help="only put the tables into the README")
    options = parser.parse_args()
    results = read_all_results(options.results, options.timed_results)
    if options.update_readme:
        readme = README.read_text(encoding="utf8")
        README.write_text(replace_text(readme, make_readme_text(*results)), encoding="utf8")
        return
    agreements = [
        json.loads(path.read_text(encoding="utf8")) for path in sorted(options.results.glob("*__agreement.json"))
    ]
    write_report(make_sections(*results, agreements), options.out)


if __name__ == "__main__":
    main()
