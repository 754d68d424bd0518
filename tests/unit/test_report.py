"""The README shows what the result files say."""

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def load_report():
    spec = importlib.util.spec_from_file_location("report", REPOSITORY / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_the_results():
    report = load_report()
    readme = (REPOSITORY / "README.md").read_text(encoding="utf8")
    assert report.replace_table(readme, report.make_table(report.read_results())) == readme


def test_failed_run_shows_its_error():
    row = load_report().make_table([dict(case="a", sorter="b", error="ValueError: wrong\nmore")]).splitlines()[-1]
    assert row == "| a | b | ValueError: wrong | | | |"
