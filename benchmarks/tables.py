"""Tables of the benchmark report and of the README: data frames of strings, and sentences about them."""

from fnmatch import fnmatch

import numpy as np
import pandas as pd
from summary import (
    LIMIT,
    MAIN_VARIANTS,
    MOTION,
    OURS,
    compare_with_best_peers,
    compute_p_value,
    compute_ratios_to_fastest_peer,
    format_count,
    is_peer,
    make_run_table,
    make_score_table,
    order_cases,
    order_sorters,
    pool_confidences,
    shorten_error,
)

UNCORRECTED = "†"
KINDS = dict(false_positive="false-positive", redundant="redundant", overmerged="over-merged")


def make_case_table(results):
    """What the recordings are: one row a case."""
    facts = {result["case"]: result for result in results if "true_units" in result}
    rows = {
        case: {
            "what": facts[case]["facts"],
            "channels": facts[case]["n_channels"],
            "rate (kHz)": f"{facts[case]['sampling_frequency'] / 1000:g}",
            "duration (s)": f"{facts[case]['duration_s']:g}",
            "drifts": "yes" if facts[case]["drifts"] else "no",
        }
        for case in order_cases(facts)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def make_accuracy_table(results, not_run=None):
    """
    The table of cases and sorters, and what its marks mean.

    Parameters
    ----------
    results : list of dict
        As read, or of `choose_main_results`.
    not_run : None | dict of str -> str
        Reasons for missing runs, see `read_not_run`.

    Returns
    -------
    table : pd.DataFrame
        Strings: mean accuracy over the true units, plus or minus its SD over seeds where there are several, and in
        brackets the units at 0.8 or better. Index: case; the first two columns are the true units and the seeds.
    notes : list of str
        One for each mark.
    """
    runs = make_run_table(results)
    cells = {}
    for result in results:
        cells.setdefault((result["case"], result["sorter"]), []).append(result)
    names = order_sorters(runs)
    sorters = names + sorted({sorter for _, sorter in cells} - set(names))
    table, reasons = {}, []
    for case in order_cases(case for case, _ in cells):
        chosen = runs[runs["case"] == case]
        n_seeds = len({result["seed"] for result in results if result["case"] == case})
        row = dict(units=_format_mean(chosen.groupby("seed")["n_true"].first()), seeds=n_seeds)
        for sorter in sorters:
            if (case, sorter) in cells:
                row[sorter] = _format_cell(cells[case, sorter], n_seeds, reasons)
            else:
                row[sorter] = "not run" + _cite(_find_reason(case, sorter, not_run or {}), reasons)
        table[case] = row
    notes = [f"[{index}] {reason}" for index, reason in enumerate(reasons, 1)]
    if any(result.get("uncorrected") for result in results):
        notes.insert(0, f"{UNCORRECTED} without the sorter's own motion correction")
    return pd.DataFrame.from_dict(table, orient="index", columns=["units", "seeds", *sorters]), notes


def _format_cell(results, n_seeds, reasons):
    runs = make_run_table(results)
    text = _format_runs(runs) if len(runs) else "failed"
    if 0 < len(runs) < n_seeds:
        text += f" n={len(runs)}"
    if any(result.get("uncorrected") for result in results):
        text += f" {UNCORRECTED}"
    errors = [f"{result['sorter']}: {shorten_error(result['error'])}" for result in results if "error" in result]
    return text + "".join(_cite(error, reasons) for error in dict.fromkeys(errors))


def _format_runs(runs):
    spread = f" ± {runs['accuracy'].std():.2f}" if len(runs) > 1 else ""
    return f"{runs['accuracy'].mean():.2f}{spread} ({_format_mean(runs['well_detected'])})"


def _format_mean(counts):
    return format_count(np.mean(counts)) if len(counts) else "?"


def _cite(reason, reasons):
    """Mark of a reason, which is added to the list; nothing where there is none."""
    if not reason:
        return ""
    if reason not in reasons:
        reasons.append(reason)
    return f" [{reasons.index(reason) + 1}]"


def _find_reason(case, sorter, not_run):
    return next((reason for pattern, reason in not_run.items() if fnmatch(f"{case}__{sorter}", pattern)), None)


def make_variant_table(results):
    """The accuracy table of huidurep and its variants, and of peers with and without their own motion correction."""

    def get_family(sorter):
        return sorter.removesuffix(MOTION) if is_peer(sorter) else sorter.split("_")[0]

    variants = {(result["case"], get_family(result["sorter"])) for result in results if _is_variant(result["sorter"])}
    table, notes = make_accuracy_table(
        [result for result in results if (result["case"], get_family(result["sorter"])) in variants]
    )
    return table[["units", "seeds", *sorted(table.columns[2:])]], notes


def _is_variant(sorter):
    return sorter.endswith(MOTION) if is_peer(sorter) else sorter not in (OURS, LIMIT, *MAIN_VARIANTS)


def make_false_unit_table(runs, comparison):
    """
    Mean numbers of units that are not one neuron each, of huidurep and of the best peer, over the seeds both have.

    Parameters
    ----------
    runs : pd.DataFrame
        Run table.
    comparison : pd.DataFrame
        Of `compare_with_best_peers`.
    """
    rows = {}
    for case, best in comparison["best_peer"].items():
        chosen = runs[(runs["case"] == case) & runs["sorter"].isin([OURS, best])]
        chosen = chosen[chosen.groupby("seed")["sorter"].transform("nunique") == 2].set_index("sorter")
        rows[case] = {"true units": _format_mean(chosen["n_true"]), "best peer": best}
        for kind, name in KINDS.items():
            rows[case][name] = " / ".join(_format_mean(chosen.loc[[sorter], kind]) for sorter in (OURS, best))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["true units", "best peer", *KINDS.values()])


def describe_comparison(units):
    """
    What the paired tests of huidurep against the best peer of each case say.

    Returns
    -------
    sentences : list of str
    comparison : pd.DataFrame
        Of `compare_with_best_peers`.
    """
    comparison = compare_with_best_peers(units)
    if comparison.empty:
        return [], comparison
    difference = comparison["ours"] - comparison["peer"]
    sentence = (
        f"Against the most accurate of the peers run on each recording, with or without motion correction, {OURS} is "
        f"better on {(difference > 0).sum()} of {len(comparison)} recordings (means over seeds), and on "
        f"{comparison['n_seeds_better'].sum()} of {comparison['n_seeds'].sum()} when each seed counts; the mean "
        f"difference in accuracy is {difference.mean():+.3f} (Wilcoxon signed-rank test over recordings, two-sided: "
        f"p = {compute_p_value(difference):.2g})."
    )
    return [sentence], comparison


def format_comparison(comparison):
    """The comparison with rounded numbers and words as titles."""
    formats = dict(ours="{:.3f}", peer="{:.3f}", p_value="{:.2g}")
    table = comparison.assign(**{name: comparison[name].map(text.format) for name, text in formats.items()})
    return table.rename(columns=lambda name: name.replace("_", " "))


def make_confidence_table(results):
    """How far the confidence of huidurep can be trusted: one row a case, over its seeds, and one over all."""
    measured = [result for result in results if result["sorter"] == OURS and "confidence" in result]
    groups = {
        case: [result["confidence"] for result in measured if result["case"] == case]
        for case in order_cases({result["case"] for result in measured})
    }
    if measured:
        groups["all"] = [result["confidence"] for result in measured]
    return pd.DataFrame.from_dict({name: _describe_pool(group) for name, group in groups.items()}, orient="index")


def _describe_pool(confidences):
    """A row of `make_confidence_table`."""
    miscalibration, area = pool_confidences(confidences)
    is_true = np.concatenate([confidence["is_true"] for confidence in confidences])
    return {
        "spikes": sum(sum(confidence["n_spikes"]) for confidence in confidences),
        "miscalibration": f"{miscalibration:.3f}",
        "units": len(is_true),
        "false-positive": np.sum(~is_true),
        "area of quality": "" if np.isnan(area) else f"{area:.3f}",
    }


def describe_confidence(table):
    """The last row of `make_confidence_table` in a sentence; a list without it if nothing was measured."""
    if table.empty:
        return []
    values = table.loc["all"]
    n_false, area = values["false-positive"], values["area of quality"] or "none"
    of_quality = "no unit is false-positive, so that there is none for the property `quality` to tell from the others"
    if n_false > 0:
        of_quality = (
            f"the property `quality` tells the {n_false} false-positive units from the others with an area under the "
            f"curve of {area}"
        )
    sentence = (
        f"Confidence, over all {values['units']} units and {values['spikes']} spikes found: among spikes with a "
        f"probability in each tenth, the share at a true spike of their unit differs from it by "
        f"{values['miscalibration']} in the mean; {of_quality}."
    )
    return [sentence]


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


def to_markdown(table, corner=""):
    """A table of values as Markdown."""
    rows = [[corner, *table.columns], ["---"] * (1 + len(table.columns))]
    rows += [[index, *values] for index, *values in table.itertuples()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
