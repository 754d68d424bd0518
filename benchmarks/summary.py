"""What the result files say together: tables of runs and units, accuracy of sorters, and whether they differ."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from sklearn.metrics import roc_auc_score

RESULTS = Path(__file__).parent / "results"
LIMIT = "limit"
OURS = "huidurep"
MAIN_VARIANTS = ("huidurep_gmm",)  # of huidurep, beside it in tables and figures
MOTION = "_motion"  # ends the name of a peer whose own motion correction is switched on
MOTION_PEERS = ("lupin", "tridesclous2")  # that have one, off by default
SCORES = ["accuracy", "precision", "recall"]
COUNTS = {
    "well_detected": "num_well_detected",
    "false_positive": "num_false_positive",
    "redundant": "num_redundant",
    "overmerged": "num_overmerged",
}
NOT_RUN = "not_run.json"
FIRST_CASES = ("tetrode", "np32", "np64", "mea", "native")


def read_results(folder=RESULTS):
    """
    Read the result of every run in a folder.

    Returns
    -------
    results : list of dict
    """
    return [json.loads(path.read_text(encoding="utf8")) for path in sorted(Path(folder).glob("*__seed*.json"))]


def read_not_run(folder=RESULTS):
    """Why sorters were not run: reason by pattern of CASE__SORTER, from an optional file beside the results."""
    path = Path(folder) / NOT_RUN
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def is_peer(sorter):
    """Whether a sorter is neither huidurep, nor a variant of it, nor the limit."""
    return not sorter.startswith(OURS) and sorter != LIMIT


def choose_main_results(results):
    """
    The results in which every sorter is run in one way.

    Variants of huidurep are left out, but those of `MAIN_VARIANTS`. On drifting recordings the runs of a peer with its
    own motion correction take the name and place of those without, unless only the latter ended well.

    Parameters
    ----------
    results : list of dict

    Returns
    -------
    chosen : list of dict
        A run without motion correction on a drifting recording, of a peer that has one, has "uncorrected": True.
    """
    run = {(result["case"], result["sorter"]) for result in results}
    finished = {(result["case"], result["sorter"]) for result in results if "error" not in result}
    chosen = []
    for result in results:
        case, sorter, drifts = result["case"], result["sorter"], result.get("drifts", False)
        plain = sorter.removesuffix(MOTION)
        if plain in MOTION_PEERS:
            corrected = (case, plain + MOTION)
            is_corrected = drifts and (corrected in finished or (corrected in run and (case, plain) not in finished))
            if is_corrected == sorter.endswith(MOTION):
                chosen.append(result | dict(sorter=plain, uncorrected=drifts and not is_corrected))
        elif is_peer(sorter) or sorter in (OURS, LIMIT, *MAIN_VARIANTS):
            chosen.append(result)
    return chosen


def shorten_error(error):
    """The line of an error that says what was wrong: the last that names an exception, otherwise the first."""
    named = re.findall(r"^\w*(?:Error|Exception|Interrupt)\b.*$", error, flags=re.MULTILINE)
    return named[-1] if named else error.splitlines()[0]


def make_run_table(results):
    """
    One row a run that ended well.

    Returns
    -------
    runs : pd.DataFrame
        Columns: case, sorter, seed, the mean scores over true units, n_true, the counts of `COUNTS`, seconds,
        real_time_factor (seconds per second of recording), peak_memory_mb.
    """
    rows = []
    for result in results:
        if "error" in result:
            continue
        scores = {name: float(np.mean(result["performance"][name])) for name in SCORES}
        counts = {name: result["counts"][key] for name, key in COUNTS.items()}
        rows.append(
            dict(case=result["case"], sorter=result["sorter"], seed=result["seed"])
            | scores
            | dict(n_true=result["counts"]["num_gt"])
            | counts
            | dict(
                seconds=result["seconds"],
                real_time_factor=result["seconds"] / result["duration_s"],
                peak_memory_mb=result["peak_memory_mb"],
            )
        )
    columns = ["case", "sorter", "seed", *SCORES, "n_true", *COUNTS, "seconds", "real_time_factor", "peak_memory_mb"]
    return pd.DataFrame(rows, columns=columns)


def make_unit_table(results):
    """
    One row a true unit and run that ended well.

    Returns
    -------
    units : pd.DataFrame
        Columns: case, sorter, seed, unit, snr, firing_rate_hz, accuracy, precision, recall.
    """
    tables = [
        pd.DataFrame(
            dict(case=result["case"], sorter=result["sorter"], seed=result["seed"])
            | result["true_units"]
            | result["performance"]
        )
        for result in results
        if "error" not in result
    ]
    columns = ["case", "sorter", "seed", "unit", "snr", "firing_rate_hz", *SCORES]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def order_cases(names):
    """Cases by probe, static before drifting, each followed by its copy with another noise."""

    def key(name):
        first = [index for index, start in enumerate(FIRST_CASES) if name.startswith(start)]
        return (first or [len(FIRST_CASES)])[0], "drift" in name, name

    return sorted(set(names), key=key)


def order_sorters(runs):
    """Sorters of a run table: ours first, the limit last, the others by their mean accuracy."""
    peers = runs.groupby("sorter")["accuracy"].mean().sort_values(ascending=False).index
    ours = sorted(name for name in peers if name.startswith(OURS))
    others = [name for name in peers if name not in ours and name != LIMIT]
    return [*ours, *others, *([LIMIT] if LIMIT in peers else [])]


def format_count(mean):
    """A mean number of units, with a decimal where it needs one."""
    return f"{mean:.1f}".removesuffix(".0")


def make_score_table(runs, score):
    """Mean over seeds of one column of the run table: one row a case, one column a sorter."""
    table = runs.pivot_table(index="case", columns="sorter", values=score, aggfunc="mean")
    return table.reindex(index=order_cases(runs["case"]), columns=order_sorters(runs))


def compute_ratios_to_fastest_peer(runs, column):
    """
    Seconds or memory of every sorter over those of the fastest peer on the same case.

    Parameters
    ----------
    runs : pd.DataFrame
        Run table, measured one after the other on the same machine.
    column : "seconds" | "peak_memory_mb"

    Returns
    -------
    ratios : pd.DataFrame
        One row a case that a peer finished, one column a sorter but the limit.
    """
    runs = runs[runs["sorter"] != LIMIT]
    seconds, values = make_score_table(runs, "seconds"), make_score_table(runs, column)
    peers = [name for name in seconds.columns if is_peer(name)]
    fastest = seconds[peers].dropna(how="all").idxmin(axis=1)
    reference = pd.Series({case: values.loc[case, sorter] for case, sorter in fastest.items()}, dtype=float)
    return values.loc[fastest.index].div(reference, axis=0)


def compare_with_best_peers(units):
    """
    Paired comparison of huidurep with the most accurate peer of each case, seed by seed and true unit by true unit.

    Only the seeds that both have count. The test of a case is Wilcoxon's signed-rank test, two-sided, on the
    differences of its units, whose accuracies are averaged over seeds first.

    Parameters
    ----------
    units : pd.DataFrame
        Unit table.

    Returns
    -------
    comparison : pd.DataFrame
        Index: case; columns: best_peer, ours, peer (mean accuracies), n_seeds, n_seeds_better, n_units, n_better,
        n_worse, p_value (nan where no unit differs).
    """
    rows = {}
    for case in order_cases(units["case"]):
        accuracy = units[units["case"] == case].pivot_table(index=["seed", "unit"], columns="sorter", values="accuracy")
        peers = [name for name in accuracy if is_peer(name)] if OURS in accuracy else []
        by_peer = {name: accuracy[[OURS, name]].dropna().set_axis(["ours", "peer"], axis=1) for name in peers}
        by_peer = {name: pairs for name, pairs in by_peer.items() if len(pairs)}
        if by_peer:
            best = max(by_peer, key=lambda name: by_peer[name].groupby("seed")["peer"].mean().mean())
            rows[case] = dict(best_peer=best) | _compare_pairs(by_peer[best])
    columns = ["best_peer", "ours", "peer", "n_seeds", "n_seeds_better", "n_units", "n_better", "n_worse", "p_value"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _compare_pairs(pairs):
    by_seed, by_unit = pairs.groupby("seed").mean(), pairs.groupby("unit").mean()
    difference = by_unit["ours"] - by_unit["peer"]
    return dict(
        **by_seed.mean(),
        n_seeds=len(by_seed),
        n_seeds_better=int((by_seed["ours"] > by_seed["peer"]).sum()),
        n_units=len(by_unit),
        n_better=int((difference > 0).sum()),
        n_worse=int((difference < 0).sum()),
        p_value=compute_p_value(difference),
    )


def compute_p_value(differences):
    """p-value of Wilcoxon's signed-rank test, two-sided; nan if all differences are 0."""
    differences = np.asarray(differences, dtype=float)
    return float(wilcoxon(differences).pvalue) if np.any(differences != 0) else np.nan


def pool_confidences(confidences):
    """
    Calibration and quality over several runs.

    Parameters
    ----------
    confidences : list of dict
        Of `confidence.measure_confidence`.

    Returns
    -------
    miscalibration : float
        Mean over the tenths of the difference between the mean posterior and the share of correct spikes; tenths
        without spikes are left out.
    area : float
        Under the ROC curve of `quality` for true units; not a number if all are true or all false.
    """
    n_spikes, posterior, correct = (
        np.array([confidence[name] for confidence in confidences]) for name in ("n_spikes", "mean_posterior", "correct")
    )
    totals = n_spikes.sum(axis=0)
    differences = np.sum(n_spikes * (posterior - correct), axis=0)[totals > 0] / totals[totals > 0]
    is_true, quality = (
        np.concatenate([confidence[name] for confidence in confidences]) for name in ("is_true", "quality")
    )
    area = roc_auc_score(is_true, quality) if 0 < np.sum(is_true) < len(is_true) else np.nan
    return float(np.mean(np.abs(differences))), float(area)
