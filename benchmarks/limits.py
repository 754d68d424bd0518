"""Functions in processes of their own that are ended when they take too long or too much."""

import multiprocessing
import os
import time

import psutil

POLL_S = 0.2
MAX_OUTPUT = 100  # characters of the output in an error


def run_limited(function, arguments, log_path, time_limit_s, memory_limit_mb):
    """
    Call a function in a new process, and end the process when it takes too long or too much.

    Parameters
    ----------
    function : Callable
        Importable, returns nothing.
    arguments : tuple
    log_path : Path
        Gets all that the process prints.
    time_limit_s, memory_limit_mb : float
        The memory is the resident memory of the process and its children, looked at every 0.2 s.

    Returns
    -------
    peak_memory_mb : int
    error : None | str
        Why the process ended before its time.
    """
    process = multiprocessing.get_context("spawn").Process(target=_call_with_log, args=(function, arguments, log_path))
    start = time.monotonic()
    log_path.touch()
    process.start()
    peak_mb, error = 0.0, None
    while error is None and process.is_alive():
        process.join(POLL_S)
        peak_mb = max(peak_mb, measure_memory_mb(process.pid))
        if time.monotonic() - start > time_limit_s:
            error = f"stopped: over the time limit of {time_limit_s:g} s"
        elif peak_mb > memory_limit_mb:
            error = f"stopped: over the memory limit of {memory_limit_mb:g} MB"
    if error:
        end_process_tree(process.pid)
    process.join()
    if error is None and process.exitcode != 0:
        error = f"died with exit code {process.exitcode}"
    if error:
        lines = log_path.read_text(encoding="utf8", errors="replace").split()
        error += f"; last output: {' '.join(lines)[-MAX_OUTPUT:] or 'none'}"
    return round(peak_mb), error


def _call_with_log(function, arguments, log_path):
    with open(log_path, "w", encoding="utf8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        function(*arguments)


def measure_memory_mb(pid):
    """Resident memory of a process and its children; 0 if it is gone."""
    total = 0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def end_process_tree(pid):
    """Kill a process and its children."""
    try:
        process = psutil.Process(pid)
        members = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
