"""
The tests that SpikeInterface asks of every sorter, rewritten for pytest.

After `SorterCommonTestSuite` of spikeinterface 0.105 (`spikeinterface/sorters/tests/common_tests.py`, which is not in
its wheel), whose licence is:

    MIT License

    Copyright (c) 2019 SpikeInterface

    Permission is hereby granted, free of charge, to any person obtaining a copy
    of this software and associated documentation files (the "Software"), to deal
    in the Software without restriction, including without limitation the rights
    to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
    copies of the Software, and to permit persons to whom the Software is
    furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all
    copies or substantial portions of the Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
    IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
    FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
    AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
    LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
    OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
    SOFTWARE.
"""

import pytest
from spikeinterface.core import generate_ground_truth_recording
from spikeinterface.sorters import run_sorter


class SorterCommonTestSuite:
    """Subclass it as `class TestX(SorterCommonTestSuite): SorterClass = ...`."""

    SorterClass = None

    @pytest.fixture(scope="class")
    def recording(self, tmp_path_factory):
        """60 s of 4 channels at 25 kHz with 10 units, saved as binary: a tetrode must be sorted with the defaults."""
        recording, _ = generate_ground_truth_recording(num_channels=4, durations=[60], seed=0)
        return recording.save(folder=tmp_path_factory.mktemp("common") / "recording", format="binary", verbose=False)

    def test_with_run(self, recording, tmp_path):
        folder = tmp_path / self.SorterClass.sorter_name
        sorting = run_sorter(
            self.SorterClass.sorter_name,
            recording,
            folder=folder,
            remove_existing_folder=True,
            delete_output_folder=True,
            verbose=False,
            raise_error=True,
            **self.SorterClass.default_params(),
        )
        assert {"recording", "params", "log"} <= set(sorting.sorting_info)
        del sorting
        assert not (folder / "sorter_output").exists()
        for name in ("recording", "params", "log"):
            assert (folder / f"spikeinterface_{name}.json").is_file()

    def test_get_version(self):
        assert isinstance(self.SorterClass.get_sorter_version(), str)
