"""What shifts are held against: closed forms, plain loops, and how often the null is refused."""

import numpy as np
import pytest

from mlxroles.report.inject.wording import verdict
from mlxroles.studies.inject import scores
from mlxroles.studies.inject.readout import Choice, Headline, YesNo

ROLES = np.array(["detect", "detect", "no", "no", "no", "yes", "yes"])


def made(seed, draws=6, spots=4):
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=7) * 4
    return clean[:, None, None] + rng.normal(size=(7, draws, spots)), clean


def test_p_values_are_counts_of_draws():
    x = np.random.default_rng(1).normal(size=(5, 3))
    null = scores.against_random(x)
    t = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    for k in range(3):
        reached = [abs(x[r, k] - x[:, k].mean()) >= abs(x[0, k] - x[:, k].mean()) for r in range(5)]
        assert null.p[k] == pytest.approx(sum(reached) / 5)
        most = [np.abs(t[r]).max() >= abs(t[0, k]) - 1e-12 for r in range(5)]
        assert null.p_max[k] == pytest.approx(sum(most) / 5)
        assert (null.low[k], null.high[k]) == (x[1:, k].min(), x[1:, k].max())
        assert null.mean[k] == pytest.approx(x[1:, k].mean())
    assert null.p_any == null.p_max.min()


def test_twenty_random_vectors_reach_a_twenty_first_and_no_less():
    x = np.zeros((21, 2))
    x[:, 1] = np.linspace(-1, 1, 21)
    x[0, 1] = 40.0
    null = scores.against_random(x)
    assert null.p.tolist() == [1.0, pytest.approx(1 / 21)]
    assert null.strongest == 1
    assert null.p_any == pytest.approx(1 / 21)


def test_without_random_vectors_there_is_no_p():
    null = scores.against_random(np.ones((1, 3)))
    assert np.isnan(null.p).all()
    assert np.isnan(null.p_any)


def test_spots_that_are_not_tested_do_not_count():
    x = np.random.default_rng(3).normal(size=(9, 3))
    x[0, 0] = 100.0
    tested = np.array([False, True, True])
    null = scores.against_random(x, tested)
    assert np.isnan(null.p_max[0])
    assert null.strongest in (1, 2)
    assert null.p_max[1:] == pytest.approx(scores.against_random(x[:, 1:]).p_max)
    assert scores.against_random(x, np.zeros(3, dtype=bool)).strongest == 0


def test_the_null_is_refused_as_often_as_it_says():
    rng = np.random.default_rng(5)
    p = [scores.against_random(rng.normal(size=(20, 6))).p_any for _ in range(600)]
    for level in (0.05, 0.1, 0.5):
        assert abs(np.mean(np.array(p) <= level) - level) < 0.06


def test_scores_are_differences_of_differences():
    b, clean = made(2)
    found = scores.battery(b, clean, ROLES)
    for r in range(6):
        for k in range(4):
            shift = [b[i, r, k] - clean[i] for i in range(7)]
            expected = np.mean(shift[:2]) - np.mean(shift[2:5])
            assert found.draws[r, k] == pytest.approx(expected)
            line = np.polyfit(clean[2:], shift[2:], 1)
            beyond = np.mean(shift[:2] - np.polyval(line, clean[:2]))
            assert found.excess_draws[r, k] == pytest.approx(beyond)
    no = b[2:5, 0] - clean[2:5, None]
    detect = (b[:2, 0] - clean[:2, None]).mean(axis=0)
    assert found.z == pytest.approx((detect - no.mean(axis=0)) / no.std(axis=0, ddof=1))
    assert found.percentile == pytest.approx((no < detect).mean(axis=0))
    assert found.yes == pytest.approx((b[5:, 0] - clean[5:, None]).mean(axis=0))


def test_a_pull_towards_zero_is_a_score_but_no_excess():
    clean = np.array([-9.0, -8.0, -4.0, -3.0, -2.0, 5.0, 6.0])
    b = np.repeat(0.4 * clean[:, None, None], 2, axis=1)
    found = scores.battery(b, clean, ROLES)
    assert found.score[0] == pytest.approx(0.6 * (8.5 - 3.0))
    assert found.excess[0] == pytest.approx(0.0, abs=1e-12)


def test_equal_baselines_leave_the_mean_as_what_is_expected():
    assert scores.predicted(np.ones(3), np.array([1.0, 2.0, 6.0]), np.array([7.0])) == [3.0]


def test_a_model_that_says_one_thing_to_everything_does_not_answer():
    b, clean = np.full((7, 3, 2), -1.0), np.array([-1.0, -1, -1, -1, -1, 1, 1])
    b[5:, :, 1] = 1.0
    right, before = scores.answering(b, clean, ROLES)
    assert before == 1.0
    assert right[:, 0].tolist() == [0.5] * 3
    assert scores.still_answers(right, before).tolist() == [False, True]


def test_the_interval_of_a_score_covers_it():
    rng = np.random.default_rng(0)
    roles = np.array(["detect"] * 10 + ["no"] * 20)
    inside = 0
    for n in range(60):
        shift = rng.normal(size=(30, 1))
        low, high = scores.score_interval(shift, roles, np.random.default_rng(n))
        inside += low[0] <= 0 <= high[0]
    assert inside >= 50


def test_the_place_that_gains_most_is_named():
    clean = np.log([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    answers = np.log([[[[0.6, 0.3, 0.1]]], [[[0.15, 0.2, 0.65]]]])
    found = scores.located(answers, clean, np.array([1, 2]))
    assert found.picks[:, 0, 0].tolist() == [1, 0]
    assert found.right[0, 0] == 0.5
    assert found.raw[0, 0] == 0.5


@pytest.mark.parametrize(("share", "n"), [(0.0, 20), (0.25, 20), (1.0, 7)])
def test_intervals_of_shares_are_those_of_wilson(share, n):
    from scipy.stats import binomtest

    known = binomtest(round(share * n), n).proportion_ci(method="wilson")
    assert scores.share_interval(share, n) == pytest.approx((known.low, known.high))


def test_readouts_are_plain_sums_over_probabilities():
    rng = np.random.default_rng(4)
    rows, clean = rng.normal(size=(3, 9)) * 3, rng.normal(size=9)
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (rows, clean))
    found = YesNo((1, 2), (5,)).measure(rows, clean)
    assert found[:, 0] == pytest.approx(np.log((p[:, 1] + p[:, 2]) / p[:, 5]))
    assert found[:, 1] - found[:, 2] == pytest.approx(found[:, 0])
    assert found[:, 3] == pytest.approx(p[:, [1, 2, 5]].sum(axis=1))
    assert found[:, 4] == pytest.approx(-(p * np.log(p)).sum(axis=1))
    assert found[:, 5] == pytest.approx((q * np.log(q / p)).sum(axis=1))
    picked = Choice((3, 4), ("1", "2")).measure(rows, clean)
    assert np.exp(picked[:, :2]) == pytest.approx(p[:, [3, 4]])

    from mlxroles.probes.targets import targets_from_ids

    read = Headline(targets_from_ids([6], variants=[7])).measure(rows, clean)
    assert read[:, 0] == pytest.approx(np.log(p[:, 6] / (1 - p[:, 6])))
    assert read[:, 1] == pytest.approx(p[:, 6])
    assert read[:, 2] == pytest.approx(p[:, [6, 7]].sum(axis=1))
    with pytest.raises(FloatingPointError):
        Choice((3, 4), ("1", "2")).measure(np.full((1, 9), np.nan), clean)


def test_a_question_that_moves_away_from_yes_is_no_sign_of_noticing():
    test = {"test": "score", "value": 2.0, "excess": 1.0, "p_any": 0.04, "p_any_excess": 0.04}
    doc = {"n_random": 24}
    assert "beyond controls" in verdict(doc, test | {"shift_detect": 0.5})
    assert "does not move towards Yes" in verdict(doc, test | {"shift_detect": -0.5})
