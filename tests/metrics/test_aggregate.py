import io
import math

import numpy as np
import pytest
import torch

from lore.metrics import MetricsAggregator


def test_means_of_numbers_tensors_and_vectors_in_order_of_appearance() -> None:
    aggregator = MetricsAggregator()
    aggregator.add(
        {"b": 1, "a": torch.tensor(2.0, dtype=torch.bfloat16), "v": [1.0, 0.0], "n": np.float32(3)}
    )
    aggregator.add({"b": 2.0, "a": torch.tensor(4.0), "v": torch.tensor([0, 3])})
    assert aggregator.result() == {"b": 1.5, "a": 3.0, "v": [0.5, 1.5], "n": 3.0}
    assert list(MetricsAggregator().result()) == []


def test_order_and_reset() -> None:
    aggregator = MetricsAggregator()
    aggregator.add({"z": 1.0})
    aggregator.add({"a": 1.0, "z": 3.0})
    assert list(aggregator.result()) == ["z", "a"]
    assert aggregator.result() == {}


def test_a_tensor_may_be_overwritten_and_keeps_no_graph() -> None:
    value = torch.tensor(1.0, requires_grad=True)
    ema = torch.tensor(5.0)
    aggregator = MetricsAggregator()
    aggregator.add({"loss": value * 2, "ema": ema})
    ema.zero_()
    assert not any(t.requires_grad for t in aggregator.state_dict()["sums"].values())
    assert aggregator.result() == {"loss": 2.0, "ema": 5.0}


def test_tensors_stay_on_their_device_until_result() -> None:
    aggregator = MetricsAggregator()
    aggregator.add({"x": torch.tensor(1.0, device="meta")})  # a meta tensor has no value to wait for
    aggregator.add({"x": torch.tensor(1.0, device="meta")})
    with pytest.raises(NotImplementedError):
        aggregator.result()


def test_number_and_tensor_of_one_metric_mix() -> None:
    for first, second in ((1.0, torch.tensor(2.0)), (torch.tensor(2.0, dtype=torch.bfloat16), 1.0)):
        aggregator = MetricsAggregator()
        aggregator.add({"x": first})
        aggregator.add({"x": second})
        assert aggregator.result() == {"x": 1.5}


def test_long_sums_of_small_tensors_keep_their_digits() -> None:
    aggregator = MetricsAggregator()
    for _ in range(3000):
        aggregator.add({"x": torch.tensor(0.1, dtype=torch.float32)})
    assert aggregator.result()["x"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_non_finite_values_show_in_the_mean() -> None:
    aggregator = MetricsAggregator()
    aggregator.add({"x": math.nan})
    aggregator.add({"x": 1.0})
    assert math.isnan(aggregator.result()["x"])  # type: ignore[arg-type]


@pytest.mark.parametrize("second", [[1.0, 2.0, 3.0], 1.0, torch.tensor(1.0)])
def test_a_changed_shape_names_the_metric(second: object) -> None:
    aggregator = MetricsAggregator()
    aggregator.add({"actions": [1.0, 2.0]})
    with pytest.raises(ValueError, match="actions"):
        aggregator.add({"actions": second})  # type: ignore[dict-item]


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="'m'"):
        MetricsAggregator().add({"m": torch.zeros(2, 2)})


def test_state_loads_weights_only_and_the_row_is_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"f": float(rng.normal()), "t": torch.tensor(rng.normal()), "v": rng.normal(size=7).tolist()}
        for _ in range(20)
    ]
    whole, before, after = MetricsAggregator(), MetricsAggregator(), MetricsAggregator()
    for row in rows:
        whole.add(row)
    for row in rows[:11]:
        before.add(row)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    before.add(rows[0])  # the saved state does not follow
    after.load_state_dict(torch.load(file, weights_only=True))
    for row in rows[11:]:
        after.add(row)
    assert after.result() == whole.result()
