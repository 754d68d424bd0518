"""
Print the table of all results in `benchmarks/results` as Markdown, or put it into the README between its markers.

    python benchmarks/report.py
    python benchmarks/report.py --update-readme
"""

import argparse
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- results: made by benchmarks/report.py -->", "<!-- end of results -->"
HEADER = (
    "| recording | sorter | mean accuracy | units at 0.8 or better | false-positive units | time / duration |\n"
    "|---|---|---|---|---|---|"
)


def read_results():
    """Results of all runs of a sorter against ground truth, sorted by case and accuracy."""
    results = [json.loads(path.read_text(encoding="utf8")) for path in sorted(RESULTS.glob("*_seed*.json"))]
    return sorted(results, key=lambda result: (result["case"], -result.get("mean_accuracy", -1), result["sorter"]))


def make_table(results):
    """Markdown table, one row a run; a run that failed shows its error."""
    return "\n".join([HEADER, *(_make_row(result) for result in results)])


def _make_row(result):
    start = f"| {result['case']} | {result['sorter']} |"
    if "error" in result:
        return f"{start} {result['error'].splitlines()[0]} | | | |"
    return (
        f"{start} {result['mean_accuracy']:.3f} | {result['n_well_detected']} of {result['n_true_units']} | "
        f"{result['n_false_positive_units']} | {result['seconds'] / result['duration_s']:.2f} |"
    )


def replace_table(text, table):
    """The text with the table between the markers."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table}\n{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update-readme", action="store_true")
    table = make_table(read_results())
    if parser.parse_args().update_readme:
        README.write_text(replace_table(README.read_text(encoding="utf8"), table), encoding="utf8")
    else:
        sys.stdout.write(table + "\n")
