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
    OURS,
    RESULTS,
    compare_with_best_peers,
    compute_p_value,
    compute_ratios_to_fastest_peer,
    make_run_table,
    make_score_table,
    make_unit_table,
    order_cases,
    order_sorters,
    read_results,
    shorten_error,
)

TIMED, SHORT = "timed", "short"  # folders in that of the results, see benchmarks/README.md
README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- results: made by benchmarks/report.py -->", "<!-- end of results -->"
STYLE = (
    "body { font-family: sans-serif; max-width: 100em; margin: 2em auto; padding: 0 1em; } img { max-width: 100%; } "
    "table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85em; } "
    "td, th { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; white-space: nowrap; }"
)


@dataclass
class Section:
    """A part of the report: a title, paragraphs, a table and a figure, where there are any."""

    title: str
    paragraphs: tuple = ()
    table: pd.DataFrame | None = None
    figure: object = None


def make_accuracy_table(results):
    """
    The table of cases and sorters, and the reasons of its holes.

    Returns
    -------
    table : pd.DataFrame
        Strings: mean accuracy over the true units, plus or minus its SD over seeds where there are several, and in
        brackets the units at 0.8 or better. Index: case with the number of true units.
    reasons : list of str
        Why runs failed, in the order of the numbers in the table.
    """
    runs = make_run_table(results)
    failed = {}
    for result in results:
        if "error" in result:
            failed.setdefault((result["case"], result["sorter"]), shorten_error(result["error"]))
    names = order_sorters(runs)
    sorters = names + sorted({sorter for _, sorter in failed} - set(names))
    reasons = []
    table = {}
    for case in order_cases([*runs["case"], *(case for case, _ in failed)]):
        cells = {}
        for sorter in sorters:
            chosen = runs[(runs["case"] == case) & (runs["sorter"] == sorter)]
            if len(chosen):
                cells[sorter] = _format_runs(chosen)
            elif (case, sorter) in failed:
                reason = f"{sorter}: {failed[case, sorter]}"
                if reason not in reasons:
                    reasons.append(reason)
                cells[sorter] = f"failed ({reasons.index(reason) + 1})"
            else:
                cells[sorter] = "not run"
        n_true = runs.loc[runs["case"] == case, "n_true"]
        table[f"{case} ({n_true.iloc[0]})" if len(n_true) else case] = cells
    return pd.DataFrame.from_dict(table, orient="index", columns=sorters), reasons


def _format_runs(runs):
    spread = f" ± {runs['accuracy'].std():.2f}" if len(runs) > 1 else ""
    return f"{runs['accuracy'].mean():.2f}{spread} ({runs['well_detected'].mean():.3g})"


def describe_comparison(units):
    """Sentences about the paired tests of huidurep against the best peer of each case, and their table."""
    comparison = compare_with_best_peers(units)
    if comparison.empty:
        return [], None
    difference = comparison["ours"] - comparison["peer"]
    p_value = compute_p_value(difference)
    sentence = (
        f"Against the most accurate of the peers run on each case, {OURS} is better on {(difference > 0).sum()} of "
        f"{len(comparison)} cases; the mean difference in accuracy is {difference.mean():+.3f} "
        f"(Wilcoxon signed-rank test over cases, two-sided: p = {p_value:.2g})."
    )
    table = comparison.assign(
        ours=comparison["ours"].map("{:.3f}".format),
        peer=comparison["peer"].map("{:.3f}".format),
        p_value=comparison["p_value"].map("{:.2g}".format),
    )
    return [sentence], table


def make_cost_table(runs):
    """Median over cases of wall time and peak memory, as ratios to the fastest peer, and the real-time factor."""
    time, memory = (compute_ratios_to_fastest_peer(runs, column) for column in ("seconds", "peak_memory_mb"))
    factor = make_score_table(runs[runs["sorter"] != LIMIT], "real_time_factor")
    columns = {
        "cases": factor.notna().sum().astype(str),
        "wall time / fastest peer": time.median().map("{:.2f}".format),
        "peak memory / fastest peer": memory.median().map("{:.2f}".format),
        "wall time / duration": factor.median().map("{:.2f}".format),
    }
    return pd.DataFrame(columns).loc[factor.columns]


def make_short_table(results):
    """Accuracy and seconds of each run, or why it failed: one row a run."""
    rows = {}
    for result in sorted(results, key=lambda result: (result["case"], result["sorter"])):
        if "error" in result:
            cells = ["failed", "", shorten_error(result["error"])]
        else:
            run = make_run_table([result])
            cells = [f"{_format_runs(run)} of {run['n_true'].iloc[0]}", f"{result['seconds']:.0f}", ""]
        rows[f"{result['case']}: {result['sorter']}"] = cells
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy (units)", "wall time (s)", "reason"])


def make_readme_text(results, timed_results, short_results):
    """The tables of the README: accuracy, the paired test, the costs of the timed runs, and the short runs."""
    table, reasons = make_accuracy_table([result for result in results if not result["sorter"].startswith(f"{OURS}_")])
    sentences, _ = describe_comparison(make_unit_table(results))
    parts = [to_markdown(table, "recording (true units)"), *number_reasons(reasons), *sentences]
    if timed_results:
        parts.append(to_markdown(make_cost_table(make_run_table(timed_results)), "sorter"))
    if short_results:
        parts.append(to_markdown(make_short_table(short_results), "short recording: sorter"))
    return "\n\n".join(parts)


def number_reasons(reasons):
    """Foot notes of the accuracy table, one a paragraph."""
    return [f"({index}) {reason}" for index, reason in enumerate(reasons, 1)]


def make_sections(results, timed_results, short_results, agreements):
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
    agreements : list of dict
        Of sorters on real recordings, as `real_recording.py` writes them.

    Returns
    -------
    sections : list of Section
    """
    runs, units = make_run_table(results), make_unit_table(results)
    table, reasons = make_accuracy_table(results)
    sentences, comparison = describe_comparison(units)
    facts = {result["case"]: result.get("facts", "") for result in results}
    sections = [
        Section("Cases", table=pd.DataFrame({"what": {case: facts[case] for case in order_cases(facts)}})),
        Section(
            "Accuracy",
            (
                "Mean accuracy over all true units (a missed unit counts 0), ± SD over seeds of the sorter where there "
                "are several; in brackets the units at 0.8 or better.",
                *number_reasons(reasons),
            ),
            table,
        ),
        Section(
            "Against the best peer",
            (
                *sentences,
                "By case: Wilcoxon signed-rank test, two-sided, over the true units; accuracies are means over seeds.",
            ),
            comparison,
        ),
        Section("Accuracy, precision, recall", figure=figures.plot_scores(runs)),
        Section(
            "Accuracy against SNR",
            (f"Each point is a true unit of a case; the line joins the means of {figures.N_BANDS} equal parts.",),
            figure=figures.plot_accuracy_against(units, "snr", "SNR (300 to 6000 Hz)"),
        ),
        Section(
            "Accuracy against firing rate",
            figure=figures.plot_accuracy_against(units, "firing_rate_hz", "firing rate (Hz)"),
        ),
        Section(
            "Units found",
            ("Number of units of each kind, as SpikeInterface counts them; in brackets the true units.",),
            figure=figures.plot_counts(runs),
        ),
    ]
    if timed_results:
        timed = make_run_table(timed_results)
        sections.append(
            Section(
                "Time and memory",
                (
                    describe_machine(timed_results),
                    "Wall time of run_sorter in a new process, with compilation. Memory: largest resident memory of "
                    "the process and its children, which also loads the recording and compares with the truth. The "
                    "table shows medians over cases.",
                ),
                make_cost_table(timed),
                figures.plot_costs(timed),
            )
        )
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


def to_markdown(table, corner=""):
    """A table of values as Markdown."""
    rows = [[corner, *table.columns], ["---"] * (1 + len(table.columns))]
    rows += [[index, *values] for index, *values in table.itertuples()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


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
    """Results of a folder, of its timed runs (or those of another folder), and of its short ones."""
    return read_results(folder), read_results(timed_folder or folder / TIMED), read_results(folder / SHORT)


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
    results, timed_results, short_results = read_all_results(options.results, options.timed_results)
    if options.update_readme:
        text = make_readme_text(results, timed_results, short_results)
        README.write_text(replace_text(README.read_text(encoding="utf8"), text), encoding="utf8")
        return
    agreements = [
        json.loads(path.read_text(encoding="utf8")) for path in sorted(options.results.glob("*__agreement.json"))
    ]
    write_report(make_sections(results, timed_results, short_results, agreements), options.out)


if __name__ == "__main__":
    main()
