"""Adds HuiduRepSorter to SpikeInterface's tables, and tells whether and how it got there."""

import importlib
import logging
import site
from pathlib import Path

from spikeinterface_huidurep import _startup

logger = logging.getLogger(__name__)

SORTER_NAME = "huidurep"
HOOK_FILES = ("spikeinterface_huidurep.pth", "spikeinterface_huidurep.start")


def register():
    """
    Make `run_sorter("huidurep", ...)` known to SpikeInterface in this process. Safe to call any number of times.

    A sorter of that name which SpikeInterface brings itself is left in place. The two tables are changed in place
    because other SpikeInterface modules hold references to them.
    """
    sorterlist = importlib.import_module(_startup.TARGET)
    sorter = importlib.import_module("spikeinterface_huidurep.sorter")  # registers at its end, if it is not loaded yet
    if SORTER_NAME in sorterlist.sorter_dict:
        logger.debug("sorter %r is registered already: %r", SORTER_NAME, sorterlist.sorter_dict[SORTER_NAME])
    elif hasattr(sorter, "HuiduRepSorter"):  # if not, sorter.py is what imports SpikeInterface now, see its end
        sorterlist.sorter_full_list.append(sorter.HuiduRepSorter)
        sorterlist.sorter_dict[SORTER_NAME] = sorter.HuiduRepSorter


def is_registered():
    """Tell whether SpikeInterface knows the sorter in this process (imports SpikeInterface's sorter list)."""
    return SORTER_NAME in importlib.import_module(_startup.TARGET).sorter_dict


def find_hook_files():
    """
    List the start-up files of this package in the folders where Python reads such files.

    Returns
    -------
    hook_files : list of Path
        Empty when the package was put on `sys.path` without being installed; then only processes that import
        `spikeinterface_huidurep` know the sorter.
    """
    folders = site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
    candidates = (Path(folder) / name for folder in folders for name in HOOK_FILES)
    return [file_path for file_path in candidates if file_path.is_file()]
