"""A factor of x = T(z) as one of z: the same function, in the class that keeps a closed form where T lets it."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpyro.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, LowerCholeskyAffine

from numpyro_diffusion.factors import (
    AbstractFactor,
    Delta,
    Elementwise,
    Factor,
    Gaussian,
    LinearGaussian,
    Product,
    pull_back,
    simplify,
    with_known,
)
from numpyro_diffusion.factors.base import PulledBack

X = np.array([0.5, 1.5, 2.5])
SEEN = Gaussian(X, [0.5, np.inf, 2.0], [1.0, 2.0, -1.0])
LINEAR = LinearGaussian([0.3, -1.0], np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 1.0]]), 0.4)
SQUARE = Factor(lambda x: -jnp.sum(x**2))
ELEMENTS = AffineTransform(jnp.array([0.1, 0.2, 0.3]), jnp.array([2.0, 0.5, 1.0]))
MIXED = LowerCholeskyAffine(jnp.array([0.1, 0.2, 0.3]), jnp.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.1, 0.7]]))
POSITIVE = ExpTransform()
CASES = {
    "elements of elements": (SEEN, ELEMENTS, Gaussian),
    "elements of a mixture": (SEEN, MIXED, LinearGaussian),
    "elements of exponentials": (SEEN, POSITIVE, PulledBack),
    "a matrix of elements": (LINEAR, ELEMENTS, LinearGaussian),
    "a matrix of a mixture": (LINEAR, MIXED, LinearGaussian),
    "a matrix of exponentials": (LINEAR, POSITIVE, PulledBack),
    "a function": (SQUARE, MIXED, PulledBack),
    "one after the other": (LINEAR, ComposeTransform([MIXED, ELEMENTS]), LinearGaussian),
    "a composition inside": (LINEAR, ComposeTransform([ComposeTransform([MIXED, ELEMENTS]), MIXED]), LinearGaussian),
    "a product": (SEEN * LINEAR * SQUARE, MIXED, Product),
    "a product of one": (Product((SEEN,)), ELEMENTS, Gaussian),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_function(name):
    factor, transform, kind = CASES[name]
    pulled, constant = pull_back(factor, transform, (3,))
    assert type(pulled) is kind and constant == 0
    for z in np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32):
        np.testing.assert_allclose(pulled.log_r(z), factor.log_r(transform(z)), rtol=2e-4)


class Known(AbstractFactor):
    """A class of one's own that fixes the first element, and says so."""

    value: Array

    def log_r(self, x):
        return jnp.where(x[0] == self.value, 0.0, -jnp.inf)

    def pull_back(self, transform, origin):
        return Known(transform.inv(jnp.full(origin.shape, self.value))[0]), jnp.asarray(2.5)

    def fill(self, x):
        return x.at[..., 0].set(self.value)

    @property
    def fixes_elements(self):
        return True


def test_a_class_of_ones_own_is_asked():
    own = Known(jnp.asarray(3.0))
    pulled, constant = pull_back(own * SEEN, POSITIVE, (3,))
    assert isinstance(pulled.factors[0], Known) and constant == 2.5
    np.testing.assert_allclose(pulled.factors[0].value, np.log(3.0), rtol=1e-6)
    assert [type(part) for part in simplify(own * SQUARE * SEEN, (3,)).factors] == [Gaussian, Factor, Known]
    np.testing.assert_array_equal(with_known(own * SEEN, jnp.zeros((2, 3))), [[3.0, 0.0, 0.0]] * 2)


def test_what_factors_say_of_themselves():
    known = Delta(X, np.array([True, False, True]))
    by_element = [(known, True), (SEEN, True), (LINEAR, False), (SQUARE, False), (Elementwise(1.0), True)]
    by_element += [(SEEN * known, True), (SEEN * LINEAR, False)]
    assert all(factor.is_elementwise == wanted for factor, wanted in by_element)
    assert known.fixes_elements and (SEEN * known).fixes_elements and not (SEEN * LINEAR).fixes_elements
    assert SQUARE.linear((3,)) is None and LINEAR.linear((3,)) is LINEAR
    assert SQUARE.parts[0] is SQUARE and len((SEEN * LINEAR * SQUARE).parts) == 3
    np.testing.assert_array_equal(with_known(SEEN * known, jnp.full(3, 7.0)), [0.5, 7.0, 2.5])
