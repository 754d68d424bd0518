import numpy as np
import pytest
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import NumpySorting
from spikeinterface.core.base import minimum_spike_dtype

from spikeinterface_huidurep.demo import draw_picture, format_comparison


def make_found(sorting_true, num_found, num_false):
    """The first units of the truth under other names, and units of evenly spaced false spikes."""
    units = {
        f"found{i}": sorting_true.get_unit_spike_train(unit_id, segment_index=0) + 2
        for i, unit_id in enumerate(sorting_true.unit_ids[:num_found])
    }
    units |= {f"false{i}": np.arange(100 + 17 * i, 60_000, 3001) for i in range(num_false)}
    if not units:
        return NumpySorting(np.zeros(0, dtype=minimum_spike_dtype), sorting_true.sampling_frequency, np.zeros(0, int))
    return NumpySorting.from_unit_dict([units], sampling_frequency=sorting_true.sampling_frequency)


def compare(sorting_true, sorting):
    return compare_sorter_to_ground_truth(sorting_true, sorting, exhaustive_gt=True, delta_time=0.4)


def test_summary_counts(tiny_ground_truth):
    _, sorting_true = tiny_ground_truth
    text = format_comparison(compare(sorting_true, make_found(sorting_true, num_found=2, num_false=1)))
    assert "mean accuracy 0.667; 2 of 3 units >= 0.8; 3 units found, 1 false positive, 0 redundant" in text
    assert "found0" in text and "found1" in text


@pytest.mark.parametrize(("num_found", "num_false"), [(3, 0), (2, 1), (0, 0)])
def test_picture(tiny_ground_truth, tmp_path, num_found, num_false):
    recording, sorting_true = tiny_ground_truth
    sorting = make_found(sorting_true, num_found, num_false)
    comparison = compare(sorting_true, sorting)
    assert f"{num_found} of 3 units" in format_comparison(comparison)
    draw_picture(recording, sorting_true, sorting, comparison, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
