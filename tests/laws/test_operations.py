"""Each operation of each law against its definition, by quadrature or enumeration, and laws without a rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.discrete import BernoulliProbs
from scipy.stats import multivariate_normal

from numpyro_diffusion import laws
from numpyro_diffusion.laws.operations import Operation

KEY = jax.random.key(3)
LOC, SCALE = np.array([0.4, -1.1]), np.array([0.7, 1.3])
LOGITS = np.array([0.3, -1.2])
GRID = np.linspace(-14.0, 14.0, 8001)
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
MASK, VALUES = np.array([True, False]), np.array([1.0, 0.0])


def normal():
    return laws.normal(jnp.asarray(LOC), SCALE**2)


def bits():
    return laws.bits(jnp.asarray(LOGITS))


def grey(num_levels=5):
    return laws.levels(jnp.asarray([1.4, 3.2]), jnp.asarray([0.8, 1.1]), num_levels)


def narrowed():
    return laws.LoweredNormal(jnp.asarray(LOC), jnp.asarray(SCALE), jnp.array([[0.3, 0.7], [-0.2, 0.1]]))


LAWS = {"normal": normal, "bits": bits, "levels": grey, "lowered": narrowed}
UNKNOWN = dist.Gamma(jnp.ones(2)).to_event(1)


def moments_on_grid(log_density):
    """log of the integral, mean and variance of each element, of densities given on GRID; shape (len(GRID), 2)."""
    weight = np.exp(log_density - log_density.max(0))
    total = weight.sum(0)
    mean = (GRID[:, None] * weight).sum(0) / total
    var = ((GRID[:, None] - mean) ** 2 * weight).sum(0) / total
    return np.log(total * (GRID[1] - GRID[0])) + log_density.max(0), mean, var


def each(law, points):
    return np.asarray(law.base_dist.log_prob(jnp.asarray(points)), np.float64)


@pytest.mark.parametrize("name", LAWS)
def test_variance_is_that_of_the_law(name):
    law = LAWS[name]()
    np.testing.assert_allclose(jnp.broadcast_to(laws.variance(law), (2,)), law.variance, rtol=1e-6)


def test_variance_keeps_the_shape_in_which_a_normal_law_has_it():
    assert laws.variance(laws.normal(jnp.zeros((3, 4)), 0.5)).size == 1


# ---- draws


@pytest.mark.parametrize("name", ["normal", "bits", "levels"])
def test_noise_makes_draws_of_the_law(name):
    law, place = LAWS[name](), (np.arange(20_000) + 0.5) / 20_000
    noise = jnp.asarray(place if name == "bits" else jax.scipy.special.ndtri(jnp.asarray(place)))
    draws = np.asarray(jax.vmap(lambda one: laws.from_noise(law, jnp.full(2, one)))(noise), np.float64)
    np.testing.assert_allclose(draws.mean(0), law.mean, atol=2e-3)
    np.testing.assert_allclose(draws.var(0), law.variance, rtol=5e-3)


@pytest.mark.parametrize("name", ["normal", "bits", "lowered"])
def test_mirrored_draws_have_the_law_and_opposite_noise(name):
    law = LAWS[name]()
    draw = jax.vmap(lambda key, mirror: laws.mirrored(law, key, mirror), (0, None))
    keys = jax.random.split(KEY, 20_000)
    plain, other = (np.asarray(draw(keys, jnp.asarray(mirror)), np.float64) for mirror in (False, True))
    for draws in (plain, other):
        np.testing.assert_allclose(draws.mean(0), law.mean, atol=5 * np.sqrt(np.max(law.variance) / 20_000))
        np.testing.assert_allclose(draws.var(0), law.variance, rtol=0.06)
    assert (np.mean((plain - plain.mean(0)) * (other - other.mean(0)), 0) < 0).all()


# ---- products


@pytest.mark.parametrize("name", ["normal", "bits", "levels"])
def test_tilt_multiplies_by_an_exponential(name):
    law, gradient = LAWS[name](), jnp.array([0.5, -0.8])
    led = laws.tilt(law, gradient)
    if name == "normal":
        _, mean, var = moments_on_grid(each(law, GRID[:, None]) + GRID[:, None] * np.asarray(gradient))
        np.testing.assert_allclose(led.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(led.variance, var, rtol=1e-4)
    elif name == "bits":
        one = np.exp(each(law, 1.0) + np.asarray(gradient))
        np.testing.assert_allclose(led.mean, one / (one + np.exp(each(law, 0.0))), rtol=1e-5)
    else:  # of the normal law before it is rounded
        unrounded = laws.tilt(laws.normal(law.base_dist.loc, law.base_dist.scale**2), gradient)
        np.testing.assert_allclose(led.base_dist.loc, unrounded.mean, rtol=1e-6)
        assert led.base_dist.num_levels == 5


@pytest.mark.parametrize("name", ["normal", "bits"])
def test_tilt_goes_no_farther_than_five_deviations_or_logits(name):
    law, led = LAWS[name](), laws.tilt(LAWS[name](), jnp.array([1e3, -1e3]))
    place = lambda law: law.mean / SCALE if name == "normal" else laws.bit_logits(law)
    np.testing.assert_allclose(place(led) - place(law), [laws.FARTHEST, -laws.FARTHEST], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_between_is_the_geometric_mean_of_normals(share):
    kernel, proposal = normal(), laws.normal(jnp.array([-0.5, 0.2]), jnp.array([0.3, 2.0]))
    got = laws.between(proposal, kernel, jnp.asarray(share))
    mixed = share * each(proposal, GRID[:, None]) + (1 - share) * each(kernel, GRID[:, None])
    _, mean, var = moments_on_grid(mixed)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.variance, var, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_between_is_the_geometric_mean_of_bits(share):
    kernel, proposal = bits(), laws.bits(jnp.array([2.0, 0.4]))
    got = laws.between(proposal, kernel, jnp.asarray(share))
    weight = np.array([share * proposal.log_prob(state) + (1 - share) * kernel.log_prob(state) for state in STATES])
    chance = np.exp(weight) / np.exp(weight).sum()
    np.testing.assert_allclose(got.mean, chance @ STATES, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_between_is_the_geometric_mean_of_correlated_normals(share):
    proposal = narrowed()
    kernel = laws.normal(jnp.array([-0.5, 0.2]), SCALE**2)
    root = np.diag(SCALE) @ (np.eye(2) - sum(np.outer(w, w) * (1 - k) for w, k in zip(*parts(proposal), strict=True)))
    covariance = root @ np.diag(SCALE)
    precision = share * np.linalg.inv(covariance) + (1 - share) * np.diag(SCALE**-2.0)
    pull = share * np.linalg.inv(covariance) @ LOC + (1 - share) * np.asarray(kernel.mean) / SCALE**2
    want = multivariate_normal(np.linalg.solve(precision, pull), np.linalg.inv(precision))
    got = laws.between(proposal, kernel, jnp.asarray(share))
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(got.log_prob(jnp.asarray(points)), want.logpdf(points), rtol=2e-4)


def parts(law):
    return np.asarray(law.basis, np.float64), np.asarray(law.remaining, np.float64)


def test_observed_is_bayes_rule_for_normals():
    loc, scale, gain = jnp.array([1.0, 0.7]), jnp.array([0.5, jnp.inf]), jnp.array([-1.5, 2.0])
    log_z, led = laws.observed(normal(), loc, scale, gain)
    seen = -0.5 * ((1.0 + 1.5 * GRID) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    log_r = np.stack([seen, np.zeros_like(seen)], 1)
    total, mean, var = moments_on_grid(each(normal(), GRID[:, None]) + log_r)
    np.testing.assert_allclose(log_z, total.sum(), rtol=1e-4)
    np.testing.assert_allclose(led.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(led.variance, var, rtol=1e-4)


@pytest.mark.parametrize("law", [bits(), BernoulliProbs(jnp.asarray(1 / (1 + np.exp(-LOGITS)))).to_event(1)])
def test_weighted_is_bayes_rule_for_bits_in_either_form(law):
    one, zero = np.array([0.2, -1.0]), np.array([-0.4, 0.3])
    log_z, led = laws.weighted(law, lambda value: value * one + (1 - value) * zero)
    weight = np.array([law.log_prob(state) + (state * one + (1 - state) * zero).sum() for state in STATES])
    np.testing.assert_allclose(log_z, np.log(np.exp(weight).sum()), rtol=1e-5)
    np.testing.assert_allclose(led.mean, np.exp(weight) @ STATES / np.exp(weight).sum(), rtol=1e-5)


def test_lowered_takes_the_directions_from_the_covariance():
    shift, rows = np.array([0.2, -0.1]), np.array([[0.3, 0.5]])
    got = laws.lowered(normal(), jnp.asarray(shift), jnp.asarray(rows))
    want = multivariate_normal(LOC + shift, np.diag(SCALE**2) - rows.T @ rows)
    points = np.random.default_rng(1).normal(size=(5, 2))
    np.testing.assert_allclose(got.log_prob(jnp.asarray(points)), want.logpdf(points), rtol=1e-4)


# ---- known elements


@pytest.mark.parametrize("name", ["normal", "bits", "levels"])
def test_known_elements_count_once_and_stay(name):
    law = LAWS[name]()
    log_z, rest = laws.known(law, jnp.asarray(VALUES), jnp.asarray(MASK))
    np.testing.assert_allclose(log_z, each(law, VALUES)[0], rtol=1e-6)
    np.testing.assert_allclose(rest.log_prob(jnp.array([1.0, 1.0])), each(law, 1.0)[1], rtol=1e-6)
    again, same = laws.known(rest, jnp.asarray(VALUES), jnp.asarray(MASK))
    assert float(again) == 0 and bool(jnp.all(same.mask == MASK))
    other, _ = laws.known(rest, jnp.array([0.0, 0.0]), jnp.asarray(MASK))
    assert np.isneginf(other)


@pytest.mark.parametrize("name", ["normal", "bits"])
def test_operations_leave_known_elements_as_they_are(name):
    law = LAWS[name]()
    rest = laws.PartlyKnown(law, jnp.asarray(VALUES), jnp.asarray(MASK))
    noise, gradient = jnp.array([0.3, 0.2]), jnp.array([1.0, 1.0])
    for of in (
        lambda law: laws.from_noise(law, noise),
        lambda law: laws.mirrored(law, KEY, jnp.asarray(True)),
        lambda law: laws.tilt(law, gradient).mean,
    ):
        assert of(rest)[0] == VALUES[0]
        np.testing.assert_allclose(of(rest)[1], of(law)[1], rtol=1e-6)


def test_a_law_with_correlations_cannot_be_partly_known():
    assert laws.known(narrowed(), jnp.asarray(VALUES), jnp.asarray(MASK)) is None


# ---- laws without a rule, and new ones

CALLS = {
    "from_noise": lambda law: laws.from_noise(law, jnp.zeros(2)),
    "mirrored": lambda law: laws.mirrored(law, KEY, jnp.asarray(True)),
    "tilt": lambda law: laws.tilt(law, jnp.zeros(2)),
    "between": lambda law: laws.between(law, law, jnp.asarray(0.5)),
    "observed": lambda law: laws.observed(law, jnp.zeros(2), jnp.ones(2), jnp.ones(2)),
    "weighted": lambda law: laws.weighted(law, lambda value: value),
    "mean_and_variance": laws.mean_and_variance,
    "bit_logits": laws.bit_logits,
    "class_logits": laws.class_logits,
    "rounded": lambda law: laws.rounded(law, 4),
    "chosen": lambda law: laws.chosen(law, law, jnp.asarray(MASK)),
    "lowered": lambda law: laws.lowered(law, jnp.zeros(2), jnp.zeros((1, 2))),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_law_without_a_rule_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"^{name}: expected a law of .*, got one of Gamma$"):
        CALLS[name](UNKNOWN)
    assert not getattr(laws, name).knows(UNKNOWN)


@pytest.mark.parametrize("name", ["mirrored", "between", "observed", "weighted", "lowered"])
def test_rounded_laws_are_taken_neither_for_normal_ones_nor_for_bits(name):
    with pytest.raises(TypeError, match=f"{name}: .* got one of DiscretisedNormal"):
        CALLS[name](grey())


ODD = dist.Laplace(jnp.zeros(2), 1.0).to_event(1)
PAIRS = {
    "normal and Laplace": (laws.between, normal, lambda: ODD, "Normal beside one of Normal, got one of Laplace"),
    "normal and lowered": (laws.between, normal, narrowed, "Normal beside one of Normal, got one of LoweredNormal"),
    "lowered and bits": (laws.between, narrowed, bits, "Normal beside one of LoweredNormal, got one of BernoulliL"),
    "bits and normal": (laws.between, bits, normal, "BernoulliLogits beside one of BernoulliLogits, got one of Normal"),
    "chosen of bits and normal": (laws.chosen, bits, normal, "BernoulliLogits beside .* got one of Normal"),
    "columns": (
        laws.between,
        lambda: laws.Mixed([normal()], ((0, 1),)),
        lambda: laws.Mixed([ODD], ((0, 1),)),
        "Normal beside one of Normal, got one of Laplace",
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_second_of_two_laws_must_be_of_the_family_of_the_first(pair):
    operation, first, second, message = PAIRS[pair]
    with pytest.raises(TypeError, match=f"^{operation.name}: expected a law of {message}"):
        operation(first(), second(), jnp.asarray(0.5))


def test_two_forms_of_a_law_go_together():
    other = BernoulliProbs(jnp.asarray(1 / (1 + np.exp(-LOGITS)))).to_event(1)
    for mixed in (laws.between(bits(), other, jnp.asarray(0.3)), laws.between(bits(), share=0.3, kernel=other)):
        np.testing.assert_allclose(mixed.mean, other.mean, rtol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        laws.PartlyKnown(normal(), jnp.asarray(VALUES), jnp.asarray(MASK)),
        narrowed(),
        dist.Delta(jnp.asarray(LOC)).to_event(1),
        dist.Normal(0.5, 2.0).expand((2,)).to_event(1),
    ],
)
def test_normal_laws_of_every_form_have_a_mean_and_a_variance(law):
    mean, variance = laws.mean_and_variance(law)
    np.testing.assert_allclose(mean, law.mean)
    np.testing.assert_allclose(jnp.broadcast_to(variance, (2,)), law.variance)


def test_a_new_family_registers_its_own_rules():
    @Operation
    def doubled(law):
        """Twice the mean."""
        raise doubled.refuse(law)

    @doubled.register(dist.Gamma)
    def _doubled(law):
        return 2 * law.mean

    np.testing.assert_allclose(doubled(UNKNOWN), [2.0, 2.0])
    assert doubled.__doc__ == "Twice the mean."
    with pytest.raises(TypeError, match="doubled: expected a law of Gamma, got one of Normal"):
        doubled(normal())


def test_mass_is_not_lost_in_laws_that_hold_others():
    """Columns add theirs up; of an event of which some elements are known it is not known."""
    heavy = laws.UnnormalisedNormal(jnp.zeros(2), jnp.ones(2), jnp.asarray(0.7)).to_event(1)
    mixed, x = laws.Mixed([heavy, bits()], ((0, 2), (1, 3))), jnp.array([0.2, 1.0, -0.4, 0.0])
    np.testing.assert_allclose(laws.log_excess(mixed, x), 0.7, rtol=1e-6)
    np.testing.assert_allclose(laws.log_ahead(mixed), 0.7, rtol=1e-6)
    known = lambda law: laws.PartlyKnown(law, jnp.asarray(VALUES), jnp.asarray(MASK))
    assert laws.log_excess(known(normal()), x[:2]) == 0 and laws.log_ahead(known(normal())) == 0
    for call in (lambda: laws.log_excess(known(heavy), x[:2]), lambda: laws.log_ahead(known(heavy))):
        with pytest.raises(TypeError, match="^log_(excess|ahead): .* got one of PartlyKnown"):
            call()


# ---- shapes from shapes


def test_infer_shapes_says_what_the_law_has():
    """As for NumPyro's own distributions, with the event where a law is of a whole one."""
    known = laws.PartlyKnown(normal(), jnp.asarray(VALUES), jnp.asarray(MASK))
    mass = laws.UnnormalisedNormal(jnp.zeros(2), jnp.ones(2), jnp.zeros(()))
    expected = [
        (laws.LoweredNormal.infer_shapes((2,), (2,), (1, 2)), narrowed()),
        (laws.LoweredNormal.infer_shapes(loc=(2,), scale=(2,), directions=(1, 2)), narrowed()),
        (laws.PartlyKnown.infer_shapes(None, (2,), (2,)), known),
        (laws.PartlyKnown.infer_shapes(law=None, values=(2,), mask=(2,)), known),
        (laws.DiscretisedNormal.infer_shapes((2,), (), num_levels=5), grey().base_dist),
        (laws.DiscretisedNormal.infer_shapes((2,), (), 5), grey().base_dist),
        (laws.DiscretisedNormal.infer_shapes(loc=(), scale=(2,)), grey().base_dist),
        (laws.Categories.infer_shapes((2, 3)), laws.Categories(jnp.zeros((2, 3)))),
        (laws.UnnormalisedNormal.infer_shapes((2,), (2,), (), ((2,), (2,))), mass),
    ]
    assert all(shapes == (law.batch_shape, law.event_shape) for shapes, law in expected)
    with pytest.raises(NotImplementedError, match="Mixed.infer_shapes: the event shape is the groups'"):
        laws.Mixed.infer_shapes((2,))
