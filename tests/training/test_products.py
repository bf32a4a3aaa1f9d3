"""Mixtures of independent columns from rows with missing cells: closed forms by enumeration, EM beside all cells."""

import numpy as np
from scipy.stats import norm

from numpyro_diffusion.training.products import Columns, Products, fit_products

# A real column, three classes, six levels, two classes.
COLUMNS = Columns(np.array([0, 3, 0, 2]), np.array([0, 0, 6, 0]))
CHANCES = np.full((2, 4, 3), 1e-30)
CHANCES[:, 1] = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]
CHANCES[:, 3, :2] = [[0.8, 0.2], [0.25, 0.75]]
CHANCES[:, [0, 2], 0] = 1.0
LAW = Products(
    COLUMNS,
    np.array([0.35, 0.65]),
    np.array([[-1.0, 0.0, 1.2, 0.0], [1.5, 0.0, 3.1, 0.0]]),
    np.array([[0.8, 1.0, 0.9, 1.0], [1.0, 1.0, 0.7, 1.0]]),
    CHANCES,
)
NAN = np.nan


def test_the_density_of_known_cells_is_the_sum_over_the_missing_ones():
    """Over levels and classes by enumeration, over the real column by quadrature; nothing known has density 1."""
    for row in ([0.3, NAN, 2.0, NAN], [NAN, 1.0, NAN, 0.0], [NAN, NAN, 5.0, 1.0], [NAN] * 4):
        axes = [np.linspace(-9, 11, 4001), np.arange(3.0), np.arange(6.0), np.arange(2.0)]
        own = [axis if np.isnan(cell) else np.array([cell]) for cell, axis in zip(row, axes, strict=True)]
        table = np.stack([part.ravel() for part in np.meshgrid(*own, indexing="ij")], axis=1)
        step = 0.005 if np.isnan(row[0]) else 1.0
        wanted = np.log(np.exp(LAW.log_prob(table)).sum() * step)
        np.testing.assert_allclose(LAW.log_prob(np.array([row])), wanted, atol=1e-7)


def test_completions_have_the_law_of_the_missing_cells():
    """Class and level together by enumeration; the real column by the components' shares."""
    count = 40_000
    found = LAW.completed(np.random.default_rng(1), np.tile([NAN, NAN, NAN, 1.0], (count, 1)))
    assert (found[:, 3] == 1.0).all()
    cells = np.array([[NAN, c, level, 1.0] for c in range(3) for level in range(6)])
    wanted = np.exp(LAW.log_prob(cells) - LAW.log_prob(np.array([[NAN, NAN, NAN, 1.0]])))
    seen = np.bincount((6 * found[:, 1] + found[:, 2]).astype(int), minlength=18) / count
    assert (np.abs(seen - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / count)).all()
    share = LAW.weights * LAW.probabilities[:, 3, 1]
    share /= share.sum()
    for value, level in ((-1.0, 1), (0.5, 2), (2.0, 3)):
        each = norm.cdf([[value], [level + 0.5]], LAW.means[:, [0, 2]].T, LAW.scales[:, [0, 2]].T)
        both = np.mean((found[:, 0] < value) & (found[:, 2] <= level))
        assert abs(both - share @ each.prod(0)) < 4.5 * 0.5 / np.sqrt(count)
        assert abs((found[:, 0] < value).mean() - share @ each[0]) < 4.5 * 0.5 / np.sqrt(count)


def parameters(law):
    """Of the component whose real column is lower first."""
    first, second = np.argsort(law.means[:, 0])
    parts = law.means[:, [0, 2]], np.log(law.scales[:, [0, 2]]), law.probabilities[:, 1], law.probabilities[:, 3, :2]
    return np.concatenate([law.weights[[first]], *(part[[first, second]].ravel() for part in parts)])


def test_em_of_known_cells_ends_where_em_of_all_cells_does():
    """30% of the cells missing at random: each parameter within errors, which quarters of the rows tell."""
    count = 9_000
    rng = np.random.default_rng(3)
    x = LAW.completed(rng, np.full((count, 4), NAN))
    holes = np.where(rng.random(x.shape) < 0.3, NAN, x)
    held_out = holes[:200]
    fitted = lambda rows: parameters(fit_products(rows, held_out, COLUMNS, counts=(2,))[1])
    whole, some = fitted(x), fitted(holes)
    error = np.std([fitted(holes[rng.permutation(count)[: count // 4]]) for _ in range(12)], axis=0) / 2
    assert (np.abs(some - whole) < 4 * error).all()
    assert (np.abs(some[[1, 3]] - LAW.means[:, 0]) < 4 * error[[1, 3]]).all() and abs(some[0] - 0.35) < 4 * error[0]


def test_em_finds_the_kinds_of_rows_wherever_it_begins():
    """Three kinds of rows of classes, which a single run of EM misses as often as not; new rows at their entropy."""
    listed, odds = np.array([[0, 0, 1], [1, 0, 0], [2, 1, 1], [2, 1, 0]]), np.array([0.2, 0.3, 0.4, 0.1])
    columns = Columns(np.array([3, 2, 2]), np.zeros(3, int))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rows = listed[rng.choice(4, 330, p=odds)]
        rows = np.where(rng.random(rows.shape) < 0.3, NAN, rows)
        _, law = fit_products(rows[30:], rows[:30], columns)
        assert odds @ law.log_prob(listed) > np.sum(odds * np.log(odds)) - 0.25
