"""A virtual environment with the built wheel, made once. Everything else it takes from the running environment."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT_FOLDER = Path(__file__).parents[2]
TIMEOUT_S = 300


class Environment:
    """A virtual environment that sees the packages of the running one, but not its start-up files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        venv.create(self.folder, with_pip=False, symlinks=os.name != "nt")
        self.python = str(self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        self.site_packages = Path(self.run_code("import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
        # A folder on sys.path is no site folder: the start-up files in it are not read.
        outer = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
        (self.site_packages / "_a_outer_environment.pth").write_text("\n".join(outer) + "\n")

    def run(self, *arguments, check=True, **variables):
        """Run Python with these arguments and environment variables; returns the finished process."""
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPIKEINTERFACE"))
        }
        environ["NUMBA_NUM_THREADS"] = environ["OMP_NUM_THREADS"] = "1"
        environ.update(variables)
        process = subprocess.run(
            [self.python, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environ,
            cwd=self.folder,  # not the project: its package must not be found there
        )
        if check and process.returncode != 0:
            raise AssertionError(f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}")
        return process

    def run_code(self, code, *options, **variables):
        """Run a piece of code in a new process; returns what it printed."""
        return self.run(*options, "-c", code, **variables).stdout

    def pip(self, *arguments):
        """Run the running environment's pip on this one."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--quiet", *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert process.returncode == 0, process.stdout + process.stderr

    def list_own_files(self):
        """Files of this package, as paths relative to site-packages, without compiled ones."""
        paths = (path.relative_to(self.site_packages) for path in self.site_packages.rglob("*huidurep*"))
        return sorted(str(path) for path in paths if path.suffix != ".pyc")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT_FOLDER)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel installed."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "installed")
    environment.pip("install", "--no-deps", wheel)
    return environment
