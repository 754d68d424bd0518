"""How far the confidence of a sorting can be trusted, from spikes whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
import spikeinterface.full as si

FOLDER = Path(__file__).parents[2] / "benchmarks"
SAMPLING_FREQUENCY = 10_000.0  # 0.4 ms are 4 samples


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder of scripts on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))


def make_sorting(*segments):
    """Sorting from the samples of each unit, dict of id -> list, by segment."""
    return si.NumpySorting.from_unit_dict(
        [{unit_id: np.array(samples) for unit_id, samples in segment.items()} for segment in segments],
        SAMPLING_FREQUENCY,
    )


@pytest.fixture
def found():
    """Two segments; unit 7 has spikes 4 and 5 samples late and one too many, unit 9 is nobody's."""
    truth = make_sorting({"a": [1000, 2000, 3000, 4000, 5000, 6000]}, {"a": [1000, 2000, 3000]})
    sorting = make_sorting(
        {7: [1000, 2000, 3004, 4005, 5000, 6000, 6500], 9: [1500, 2500, 3500]}, {7: [996, 2000, 3000, 9000], 9: [5000]}
    )
    return sorting, si.compare_sorter_to_ground_truth(truth, sorting, exhaustive_gt=True, delta_time=0.4)


def test_correct_spikes_by_hand(found):
    from confidence import find_correct_spikes

    sorting, comparison = found
    spikes = sorting.to_spike_vector()
    correct = find_correct_spikes(sorting, comparison)
    of_unit = spikes["unit_index"] == 0
    assert correct[of_unit].tolist() == [True, True, True, False, True, True, False, True, True, True, False]
    assert not correct[~of_unit].any()


def test_what_is_recorded(found, tmp_path, monkeypatch):
    import confidence

    sorting, comparison = found
    assert confidence.measure_confidence(tmp_path, comparison) is None  # no posteriors
    sorting.set_property("quality", [0.9, 0.12348])
    monkeypatch.setattr(confidence.si, "read_sorter_folder", {tmp_path: sorting}.get)
    posteriors = np.where(sorting.to_spike_vector()["unit_index"] == 0, 1.0, 0.25)
    (tmp_path / "sorter_output").mkdir()
    np.save(tmp_path / "sorter_output" / "spike_posteriors.npy", posteriors)
    measured = confidence.measure_confidence(tmp_path, comparison)
    assert measured["n_spikes"] == [0, 0, 4, 0, 0, 0, 0, 0, 0, 11]
    assert measured["mean_posterior"] == [0, 0, 0.25, 0, 0, 0, 0, 0, 0, 1.0]
    assert measured["correct"] == [0, 0, 0, 0, 0, 0, 0, 0, 0, round(8 / 11, 4)]
    assert measured["quality"] == [0.9, 0.1235] and measured["is_true"] == [True, False]


def make_measured(n_spikes, posterior, correct, quality, is_true):
    """What is recorded of a run with spikes in the last two tenths."""
    return dict(
        n_spikes=[0] * 8 + n_spikes,
        mean_posterior=[0] * 8 + posterior,
        correct=[0] * 8 + correct,
        quality=quality,
        is_true=is_true,
    )


def test_pooled_by_hand():
    from summary import pool_confidences

    first = make_measured([0, 100], [0, 0.99], [0, 0.95], [0.8, 0.4], [True, False])
    second = make_measured([50, 300], [0.85, 0.95], [0.75, 0.95], [0.3, 0.9], [True, True])
    assert pool_confidences([first]) == pytest.approx((0.04, 1.0))
    assert pool_confidences([first, second]) == pytest.approx(((0.1 + 0.04 * 100 / 400) / 2, 2 / 3))
    assert np.isnan(pool_confidences([second])[1])


def test_table_has_a_row_a_case_and_one_for_all():
    from tables import describe_confidence, make_confidence_table

    first = make_measured([0, 100], [0, 0.99], [0, 0.95], [0.8, 0.4], [True, False])
    second = make_measured([50, 300], [0.85, 0.95], [0.75, 0.95], [0.3, 0.9], [True, True])
    results = [
        dict(case="np32_static", sorter="huidurep", confidence=second),
        dict(case="tetrode_static", sorter="huidurep", confidence=first),
        dict(case="tetrode_static", sorter="huidurep", error="died"),
        dict(case="tetrode_static", sorter="huidurep_gmm", confidence=second),
    ]
    table = make_confidence_table(results)
    assert table.index.tolist() == ["tetrode_static", "np32_static", "all"]
    assert table["units"].tolist() == [2, 2, 4] and table["false-positive"].tolist() == [1, 0, 1]
    assert table["area of quality"].tolist() == ["1.000", "", "0.667"]
    assert table["miscalibration"].tolist() == ["0.040", "0.050", "0.055"]
    (sentence,) = describe_confidence(table)
    assert "4 units and 450 spikes" in sentence and "0.055" in sentence and "0.667" in sentence
    (sentence,) = describe_confidence(make_confidence_table(results[:1]))
    assert "no unit is false-positive" in sentence and "area" not in sentence
    assert describe_confidence(make_confidence_table(results[2:])) == []
