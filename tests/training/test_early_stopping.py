"""The stopping rule on losses whose end is known."""

from progdist.training.early_stopping import EarlyStopping


def first_stop(rule: EarlyStopping, losses: list[float]) -> int | None:
    return next((count for count in range(1, len(losses) + 1) if rule.reached(losses[:count])), None)


def test_a_geometric_loss_stops_where_its_ratio_says() -> None:
    """L_j = q^j improves by 1 - q^w over a window, always: it stops at once or never."""
    losses = [0.9**j for j in range(50)]
    assert first_stop(EarlyStopping(1, 3, 0.27), losses) is None  # 1 - 0.9^3 = 0.271
    assert first_stop(EarlyStopping(1, 3, 0.272), losses) == 6


def test_a_loss_with_a_floor_stops_when_the_rest_is_small() -> None:
    """L_j = 1 + q^j: over one measurement it gains q^(j-1) (1 - q) of 1 + q^(j-1), known in closed form."""
    q, fraction = 0.5, 0.01
    expected = next(j for j in range(1, 99) if q ** (j - 1) * (1 - q) < fraction * (1 + q ** (j - 1)))
    assert first_stop(EarlyStopping(1, 1, fraction), [1 + q**j for j in range(30)]) == expected + 1
