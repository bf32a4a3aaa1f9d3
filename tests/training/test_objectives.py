"""What training minimises, against the K bound, formulas in numpy, and counting."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.denoisers import Network
from numpyro_diffusion.training import bound_loss, hybrid_loss, simple_loss
from numpyro_diffusion.training.objectives import _eighth, _stratified_times

T = 5
BETA = np.array([0.1, 0.2, 0.3, 0.5, 0.6])
KEPT = np.cumprod(1 - BETA)
SLOPE, OFFSET = np.array([0.3, 0.5, -0.2, 0.6, 0.1]), np.array([0.1, -0.4, 0.2, 0.0, 0.3])
RATE = 0.3


class Affine(eqx.Module):
    slope: jax.Array
    offset: jax.Array

    def __call__(self, x, t):
        step = jnp.asarray(t).astype(int) - 1
        return self.slope[step] * x + self.offset[step]


def _process(family, last_step="learned", predicts=None):
    fn = Affine(jnp.asarray(SLOPE, jnp.float32), jnp.asarray(OFFSET, jnp.float32))
    schedule = schedules.from_beta(BETA)
    if family == "bits":
        diffusion = nd.BinomialDiffusion(schedule, RATE)
        return nd.ReverseProcess(diffusion, Network(fn, "logits"), 3, last_step=last_step)
    diffusion = nd.GaussianDiffusion(schedule, [0.5, -1.0, 0.0], 2.0)
    return nd.ReverseProcess(diffusion, Network(fn, predicts or "noise"), 3, last_step=last_step)


def _batch(family, count):
    rng = np.random.default_rng(0)
    if family == "bits":
        return (rng.random((count, 3)) < 0.4).astype(np.float32)
    return rng.normal([1.0, -2.0, 0.5], [1.0, 2.0, 3.0], (count, 3)).astype(np.float32)


def _draws(loss, process, batch, count=20_000):
    keys = jax.random.split(jax.random.key(3), count)
    run = lambda keys: jax.lax.map(lambda key: loss(key, process, batch), keys, batch_size=1000)
    return np.asarray(jax.jit(run)(keys), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("last_step", ["learned", "forward"])
@pytest.mark.parametrize("family", ["real", "bits"])
def test_the_bound_loss_is_minus_k_on_average(family, last_step):
    """For one fixed batch, in order of size: no example may be favoured."""
    process, batch = _process(family, last_step), _batch(family, 16)
    batch = batch[np.argsort(np.square(batch).sum(axis=1))]
    losses = _draws(bound_loss, process, batch)
    bound = nd.KBound(2000, antithetic=False, chunk=4000)
    k = jax.jit(lambda key: bound(key, process, batch))(jax.random.key(4))
    error = np.hypot(losses.std() / np.sqrt(len(losses)), np.sqrt(np.sum(np.square(k.widened_error))) / 16)
    assert error < 0.05 * losses.std()
    assert abs(losses.mean() + np.mean(k.value)) < 4 * error


def test_the_simple_loss_of_real_values():
    """With ε̂ = a z_t + b: E‖ε − ε̂‖² = d (1 − aσ)² + ‖a √ᾱ z_0 + b‖², averaged over t = 1 … T and the batch."""
    batch = _batch("real", 6)
    z = ((batch - [0.5, -1.0, 0.0]) / 2.0)[:, None]
    slope, offset, kept = SLOPE[:, None], OFFSET[:, None], KEPT[:, None]
    expected = (1 - slope * np.sqrt(1 - kept)) ** 2 + (slope * np.sqrt(kept) * z + offset) ** 2
    losses = _draws(simple_loss, _process("real", "forward"), batch)
    assert abs(losses.mean() - expected.sum(-1).mean()) < 4 * losses.std() / np.sqrt(len(losses))


def test_the_simple_loss_of_bits():
    """The cross-entropy of x_0, with x_t = 1 of probability ᾱ x_0 + (1 − ᾱ) ρ."""
    batch = _batch("bits", 6)
    x, slope, offset, kept = batch[:, None], SLOPE[:, None], OFFSET[:, None], KEPT[:, None]
    one = kept * x + (1 - kept) * RATE
    cost = lambda logits: np.logaddexp(0, logits) - x * logits
    expected = one * cost(slope + offset) + (1 - one) * cost(offset)
    losses = _draws(simple_loss, _process("bits", "forward"), batch)
    assert abs(losses.mean() - expected.sum(-1).mean()) < 4 * losses.std() / np.sqrt(len(losses))


@pytest.mark.slow
def test_the_last_step_is_fitted_beside_the_simple_loss():
    """Its scale has a gradient; the denoiser's is what it is without it."""
    batch, key = jnp.asarray(_batch("real", 8)), jax.random.key(0)
    learned, forward = _process("real"), _process("real", "forward")
    slope = lambda tree: tree.denoiser.fn.slope
    gradient = lambda process: eqx.filter_jit(eqx.filter_grad(lambda p: simple_loss(key, p, batch)))(process)
    with_it, without = gradient(learned), gradient(forward)
    np.testing.assert_allclose(slope(with_it), slope(without), rtol=1e-5)
    assert abs(float(with_it.last_step.log_scale)) > 1e-3
    assert np.abs(slope(without)).max() > 1e-3


def test_stratified_times_cover_all():
    draw = jax.jit(jax.vmap(lambda key: _stratified_times(key, 12, 4)))
    times = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert times.dtype.kind == "i"
    for value in range(4):
        assert ((times == value).sum(axis=1) == 3).all()
    # Each example has every time equally often: 4 standard errors of 4000 draws.
    share = np.stack([(times == value).mean(axis=0) for value in range(4)])
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_fewer_examples_than_times():
    draw = jax.jit(jax.vmap(lambda key: _stratified_times(key, 3, 10)))
    times = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    ordered = np.sort(times, axis=1)
    low, high = np.array([0, 3, 6]), np.array([3, 6, 9])  # thirds of 10, rounded down
    assert (ordered >= low).all() and (ordered <= high).all()
    assert np.abs(np.bincount(times.ravel(), minlength=10) / 12_000 - 0.1).max() < 0.012


def test_an_eighth_favours_no_example():
    batch = jnp.arange(20.0)[:, None]
    draw = jax.jit(jax.vmap(lambda key: _eighth(key, batch)))
    some = np.asarray(draw(jax.random.split(jax.random.key(1), 8000)))
    assert some.shape == (8000, 2, 1) and (some[:, 0] != some[:, 1]).all()
    counts = np.bincount(some.ravel().astype(int), minlength=20)
    assert np.abs(counts - 800).max() < 4.5 * np.sqrt(800)
    assert _eighth(jax.random.key(0), batch[:3]).shape == (1, 1)


def _numbers(parts):
    return [(name, np.asarray(x, np.float64)) for name, x in parts.items()]


class Pair(eqx.Module):
    """An affine noise head, and one number v for each step."""

    affine: Affine
    share: jax.Array

    def __call__(self, x, t):
        return self.affine(x, t), jnp.broadcast_to(self.share[jnp.asarray(t).astype(int) - 1], x.shape)


@pytest.mark.slow
def test_the_hybrid_loss_is_the_simple_one_and_a_thousandth_of_minus_k():
    """Its value on average; the gradient of the mean is that of the simple loss, that of the variance is of −K/1000."""
    batch, key = jnp.asarray(_batch("real", 16)), jax.random.key(3)
    fn = Pair(_process("real").denoiser.fn, jnp.linspace(-0.8, 0.9, T))
    process = nd.ReverseProcess(_process("real").diffusion, Network(fn, "noise", "learned"), 3)
    plain = _process("real", "forward")
    means = {}
    for name, loss, chain in (("hybrid", hybrid_loss, process), ("bound", bound_loss, process),
                              ("simple", simple_loss, plain)):  # fmt: skip
        both = eqx.filter_value_and_grad(lambda p, key, loss=loss: loss(key, p, batch))
        run = eqx.filter_jit(jax.vmap(lambda key, both=both, chain=chain: both(chain, key)))
        value, gradient = run(jax.random.split(key, 20_000))
        net = gradient.denoiser.fn
        parts = {"value": value, "slope": (net if name == "simple" else net.affine).slope}
        parts |= {} if name == "simple" else {"share": net.share}
        means[name] = {part: (np.mean(x, 0), np.std(x, 0) / 20_000**0.5) for part, x in _numbers(parts)}
    hybrid, bound, simple = means["hybrid"], means["bound"], means["simple"]
    for part, parts in (
        ("value", [(1.0, simple["value"]), (0.001, bound["value"])]),
        ("slope", [(1.0, simple["slope"])]),
        ("share", [(0.001, bound["share"])]),
    ):
        expected = sum(weight * mean for weight, (mean, _) in parts)
        error = np.sqrt(hybrid[part][1] ** 2 + sum((weight * std) ** 2 for weight, (_, std) in parts))
        assert np.all(np.abs(hybrid[part][0] - expected) < 4.5 * error), part
        assert np.max(np.abs(hybrid[part][0]) / error) > 10, part
