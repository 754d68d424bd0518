"""Changes: the spikes of a unit are divided by what its waveform is at their times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeinterface_huidurep.changes import NO_CHANGES, Change, Changes, find_block

from .test_results import make_sorting


def make_vector(spikes, units=None):
    """Spike vector of (segment, sample) pairs in order."""
    units = np.zeros(len(spikes), dtype=int) if units is None else np.array(units)
    return make_sorting(
        np.array([sample for _, sample in spikes], dtype=int),
        units,
        np.array([segment for segment, _ in spikes], dtype=int),
        unit_ids=np.arange(units.max(initial=0) + 1),
    ).to_spike_vector()


@settings(max_examples=50, deadline=None)
@given(
    spikes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=30).map(sorted),
    segment=st.integers(0, 2),
    start=st.integers(0, 20),
    n_samples=st.integers(0, 10),
)
def test_spikes_of_a_block(spikes, segment, start, n_samples):
    vector = make_vector(spikes)
    found = find_block(vector, (segment, start, start + n_samples))
    rows = [row for row, spike in enumerate(spikes) if spike[0] == segment and start <= spike[1] < start + n_samples]
    assert list(range(len(vector))[found]) == rows


@pytest.fixture
def change():
    return Change(np.arange(2), np.ones((2, 5), dtype="float32"))


def test_spikes_are_divided_by_block(change):
    vector = make_vector([(0, 5), (0, 12), (0, 25), (1, 5), (1, 15)], units=[0, 1, 1, 1, 1])
    blocks = [(0, 0, 20), (0, 20, 30), (1, 0, 20)]
    changes = Changes(blocks, [{7: change}, {4: change}, {7: change}])
    parts = changes.divide(vector, np.flatnonzero(vector["unit_index"] == 1), 7)
    assert [rows.tolist() for rows, _ in parts] == [[1], [3, 4], [2]]
    assert [part is change for _, part in parts] == [True, True, False] and parts[2][1] is None
    assert changes.find_units() == {4, 7}


def test_parts_are_not_empty(change):
    vector = make_vector([(0, 5), (0, 12)])
    changes = Changes([(0, 0, 20), (0, 20, 30)], [{7: change}, {7: change}])
    parts = changes.divide(vector, np.arange(2), 7)
    assert len(parts) == 1 and parts[0][0].tolist() == [0, 1] and parts[0][1] is change


def test_nothing_changes():
    vector = make_vector([(0, 5), (0, 12)])
    (rows, change), *others = NO_CHANGES.divide(vector, np.arange(2), 7)
    assert rows.tolist() == [0, 1] and change is None and not others and NO_CHANGES.find_units() == set()


def test_blocks_of_spikes():
    vector = make_vector([(0, 5), (0, 20), (0, 29), (1, 5)])
    changes = Changes([(0, 0, 20), (0, 20, 30), (1, 0, 20)], [{}, {}, {}])
    assert changes.find_blocks(vector).tolist() == [0, 1, 1, 2]
    assert NO_CHANGES.find_blocks(vector).tolist() == [0, 0, 0, 0]
