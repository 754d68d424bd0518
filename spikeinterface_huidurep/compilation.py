"""
Keep what numba compiles.

The functions of SpikeInterface that numba compiles are compiled anew in every process, which takes 10 s or more. Numba
keeps them on disk where it is told to: beside their source, or in the user's cache folder, or in NUMBA_CACHE_DIR.
"""

from contextlib import suppress

import numba
from numba.core.dispatcher import Dispatcher
from spikeinterface.sortingcomponents.clustering import isosplit_isocut
from spikeinterface.sortingcomponents.peak_detection import locally_exclusive, matched_filtering

MODULES = isosplit_isocut, locally_exclusive, matched_filtering  # those whose functions take seconds


def keep_compiled_functions():
    """Compile the functions that take long but once, for all processes to come, if there is a folder to write to."""
    for module in MODULES:
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                _keep(function)


def compile_function(**options):
    """`numba.njit` that keeps what it compiles, if there is a folder to write to."""

    def decorate(function):
        return _keep(numba.njit(**options)(function))

    return decorate


def _keep(dispatcher):
    with suppress(RuntimeError):  # no such folder
        dispatcher.enable_caching()
    return dispatcher
