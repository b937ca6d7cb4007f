"""What shifts mean: beside controls, beside random vectors, and beside a pull towards zero.

Arrays have the draws along one axis: 0 is the vector itself, the others are random vectors of its
length. If the vector were nothing special, any of the draws could have been draw 0; that is what
every p-value here rests on.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

RESAMPLES = 2000
_TIE = 1e-12


class Null(NamedTuple):
    """A statistic of draw 0 beside those of random vectors, arrays [spot]."""

    p: Numbers
    """Two-sided: share of draws, its own included, as far from the mean of all draws; NaN
    without random vectors."""
    p_max: Numbers
    """The same for the largest standardised distance over all spots (familywise)."""
    t: Numbers
    """Distance from the mean of all draws in their standard deviations (ddof 1)."""
    own: Numbers
    """The statistic of draw 0."""
    mean: Numbers
    """Of the random vectors."""
    low: Numbers
    """Their least."""
    high: Numbers
    """Their largest."""
    tested: NDArray[np.bool_]
    """Spots that count for ``p_max`` and ``strongest``."""

    @property
    def p_any(self) -> float:
        """Familywise p of the strongest spot; NaN without random vectors."""
        return float(self.p_max[self.strongest]) if self.p_max.size else float("nan")

    @property
    def strongest(self) -> int:
        """The tested spot of the smallest ``p_max``; of several that with the largest value."""
        p = np.where(self.tested, np.nan_to_num(self.p_max, nan=1.0), np.inf)
        far = np.where(p <= p.min() + _TIE, np.nan_to_num(np.abs(self.own)), -1.0)
        return int(np.argmax(far))


def against_random(statistic: Numbers, tested: NDArray[np.bool_] | None = None) -> Null:
    """The null of a statistic [draw, spot].

    p = #{r : |x_r - m| >= |x_0 - m|} / draws with m the mean of all draws, so that 20 random
    vectors give 1 / 21 at least. ``p_max`` compares with each draw's largest |x_r - m| / s over
    the spots (Westfall & Young 1993), s the standard deviation of all draws. A spot where the
    draws do not differ has t = 0 and p = 1.

    Args:
        statistic: draw 0 is the vector, the others are random.
        tested: Spots over which ``p_max`` goes [spot]; elsewhere it is NaN. They must be chosen
            without a look at which draw is the vector. None, or none of them, stands for all.
    """
    x = np.asarray(statistic, dtype=np.float64)
    draws, spots = x.shape
    nothing = np.full(spots, np.nan)
    chosen = np.ones(spots, dtype=bool) if tested is None or not tested.any() else tested
    if draws < 2:
        return Null(nothing, nothing, nothing, x[0], *[nothing] * 3, chosen)
    centred = x - x.mean(axis=0)
    spread = x.std(axis=0, ddof=1)
    varies = spread > _TIE * np.maximum(np.abs(x).max(axis=0), 1e-300)
    t = np.divide(centred, spread, out=np.zeros_like(centred), where=varies)
    far = np.abs(t)
    p = (far >= far[0] - _TIE).mean(axis=0)
    largest = far[:, chosen].max(axis=1)
    p_max = np.where(chosen, (largest[:, None] >= far[0] - _TIE).mean(axis=0), np.nan)
    rest = x[1:]
    bounds = (rest.mean(axis=0), rest.min(axis=0), rest.max(axis=0))
    return Null(p, p_max, t[0], x[0], *bounds, chosen)


class Scores(NamedTuple):
    """What a battery says of one vector; arrays [spot] but for ``draws`` and ``excess_draws``."""

    detect: Numbers
    """Mean shift of the questions about an injection."""
    no: Numbers
    """Mean shift of the controls whose right answer is No."""
    yes: Numbers
    """Mean shift of those whose right answer is Yes; NaN where there is none."""
    z: Numbers
    """Score in standard deviations (ddof 1) of the No controls' shifts."""
    percentile: Numbers
    """Share of the No controls that shift less than the mean question."""
    draws: Numbers
    """Score of every draw [draw, spot]: shift of the questions less that of the No controls."""
    excess_draws: Numbers
    """The same less what the controls' own baselines predict [draw, spot]."""

    @property
    def score(self) -> Numbers:
        """[b_detect(injected) - b_detect] - [b_no(injected) - b_no]."""
        return self.draws[0]

    @property
    def excess(self) -> Numbers:
        """Shift of the questions beyond the line through the controls."""
        return self.excess_draws[0]


def battery(b: Numbers, clean: Numbers, roles: NDArray[np.str_]) -> Scores:
    """The 2 x 2 scores of one vector.

    An injection that makes a model unsure pulls every b towards 0: of two questions the one that
    was answered with more certainty shifts more. ``excess`` takes that out: shifts of all controls
    are fitted by a line in their clean b, per draw and spot, and the line's value at the clean b
    of each question is taken from its shift.

    Args:
        b: Yes less No [item, draw, spot].
        clean: The same without injection [item].
        roles: ``detect``, ``no`` or ``yes`` [item].
    """
    shift = b - clean[:, None, None]
    is_detect, is_no, is_yes = (roles == role for role in ("detect", "no", "yes"))
    of_no = shift[is_no]
    detect, no = shift[is_detect].mean(axis=0), of_no.mean(axis=0)
    yes = shift[is_yes].mean(axis=0) if is_yes.any() else np.full_like(no, np.nan)
    spread = of_no[:, 0].std(axis=0, ddof=1) if len(of_no) > 1 else np.full(no.shape[1], np.nan)
    score = detect - no
    z = np.divide(score[0], spread, out=np.full_like(spread, np.nan), where=spread > _TIE)
    percentile = (of_no[:, 0] < detect[0] - _TIE).mean(axis=0)
    controls = is_no | is_yes
    expected = predicted(clean[controls], shift[controls], clean[is_detect])
    excess = (shift[is_detect] - expected).mean(axis=0)
    return Scores(detect[0], no[0], yes[0], z, percentile, score, excess)


def answering(b: Numbers, clean: Numbers, roles: NDArray[np.str_]) -> tuple[Numbers, float]:
    """Share of controls answered right, of No and Yes controls alike: [draw, spot], and without.

    A model that answers everything alike has one half here, whatever it says.
    """
    found, before = [], []
    for role, sign in (("no", -1.0), ("yes", 1.0)):
        rows = roles == role
        if rows.any():
            found.append((sign * b[rows] > 0).mean(axis=0))
            before.append(float((sign * clean[rows] > 0).mean()))
    return np.mean(found, axis=0), float(np.mean(before))


def still_answers(right: Numbers, before: float) -> NDArray[np.bool_]:
    """Spots [spot] where the draws, on average, leave at least half of what was better than chance.

    Elsewhere a model does not answer questions any more, and nothing that it says is a report.
    """
    return right.mean(axis=0) >= 0.5 + (before - 0.5) / 2


def predicted(x: Numbers, y: Numbers, at: Numbers) -> Numbers:
    """Values at ``at`` of the least-squares line of y [point, ...] in x [point]; [at, ...].

    Where all x are the same it is the mean of y.
    """
    dx = x - x.mean()
    total = float((dx**2).sum())
    middle = y.mean(axis=0)
    slope = np.tensordot(dx, y, axes=(0, 0)) / total if total > _TIE else np.zeros_like(middle)
    return middle + (at - x.mean()).reshape(-1, *([1] * middle.ndim)) * slope


def score_interval(shift: Numbers, roles: NDArray[np.str_], rng: np.random.Generator) -> Numbers:
    """95 % bootstrap interval of the score, questions and No controls resampled [2, spot].

    ``shift`` is of the vector itself [item, spot]. With one question only the controls vary.
    """
    means = []
    for role in ("detect", "no"):
        rows = shift[roles == role]
        picked = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
        counts = np.zeros((RESAMPLES, len(rows)))
        np.add.at(counts, (np.arange(RESAMPLES)[:, None], picked), 1.0)
        means.append(counts @ rows / len(rows))
    return np.percentile(means[0] - means[1], [2.5, 97.5], axis=0)


class Located(NamedTuple):
    """What trials say of one vector."""

    right: Numbers
    """Share of trials [draw, spot] in which the place of the injection gains most."""
    raw: Numbers
    """Share in which it is the likeliest answer as it is, position bias included [draw, spot]."""
    picks: NDArray[np.int64]
    """The place that gains most [trial, draw, spot]."""


def located(answers: Numbers, clean: Numbers, right: NDArray[np.integer]) -> Located:
    """Which places the answers point to.

    Args:
        answers: Log-probability of each place [trial, draw, spot, place].
        clean: The same without injection [trial, place].
        right: Where the injection was [trial].
    """
    gain = answers - clean[:, None, None, :]
    picks, raw = gain.argmax(axis=-1), answers.argmax(axis=-1)
    truth = right[:, None, None]
    return Located((picks == truth).mean(axis=0), (raw == truth).mean(axis=0), picks)


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n independent trials (Wilson 1927)."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
