"""What numba compiles is kept for the next process."""

import os
import subprocess
import sys

from spikeinterface.sortingcomponents.clustering import isosplit_isocut

from spikeinterface_huidurep.compilation import compile_function, keep_compiled_functions

CALL_ONE = """
import numpy as np
from spikeinterface.sortingcomponents.clustering.isosplit_isocut import compute_ks4
from spikeinterface_huidurep.compilation import keep_compiled_functions
keep_compiled_functions()
compute_ks4(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
print(sum(compute_ks4.stats.cache_hits.values()), sum(compute_ks4.stats.cache_misses.values()))
"""


def test_a_function_is_compiled_by_the_first_process_only(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", CALL_ONE], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]]


def test_without_a_folder_to_write_to_functions_are_compiled_as_ever(monkeypatch):
    asked = []

    def refuse(function):
        asked.append(function)
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(type(isosplit_isocut.isocut), "enable_caching", refuse)
    keep_compiled_functions()
    assert isosplit_isocut.isocut in asked
    assert compile_function(fastmath=True)(lambda value: value + 1)(2) == 3
