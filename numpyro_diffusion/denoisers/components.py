"""A mixture of Gaussians, and each component's law of x_0 given x_t.

If x_0 is a mixture of Gaussians and the noise is Gaussian, x_0 given x_t is a mixture again: each component is
conditioned by linear-Gaussian algebra, and its weight is multiplied by its density of x_t. In the basis in which a
component's covariance is diagonal all of that goes element by element, and the variances do not depend on x_t. The
formulas are exact for the mixture; twists also take them for networks that are about one, where they are an
approximation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._products import dot, einsum
from .._shapes import AnyTime, Example


class Components(NamedTuple):
    """k Gaussians of flat examples, each with a covariance that is diagonal in a basis of its own.

    Attributes:
        locs: means, shape (k, d).
        variances: in their bases, shape (k, d).
        bases: orthonormal, as columns, shape (k, d, d); None for the elements themselves.
        weights: shape (k,).
    """

    locs: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    bases: Float[Array, "k d d"] | None
    weights: Float[Array, " k"]

    def standardized(self, diffusion: Any, event_shape: tuple[int, ...]) -> "Components":
        """In units of the noise law; its scale is one number where there are bases."""
        flat = lambda x: jnp.broadcast_to(x, event_shape).reshape(-1)
        loc, scale = flat(diffusion.loc), flat(diffusion.scale)
        return self._replace(locs=(self.locs - loc) / scale, variances=self.variances / scale**2)

    def covariance(self) -> Float[Array, "d d"]:
        """Of all together: within components and between them."""
        roots = self.turned_roots(jax.vmap(jnp.diag)(jnp.sqrt(self.variances)))
        within = einsum("k,kij,klj->il", self.weights, roots, roots)
        apart = self.locs - dot(self.weights, self.locs)
        return within + dot((apart * self.weights[:, None]).T, apart)

    def left(self, diffusion: Any, t: AnyTime) -> Float[Array, "k d"]:
        """Variances of x_0 given x_t in the bases, the same for all x_t; of a standardised mixture, as the rest."""
        alpha_bar, noise = diffusion.schedule.signal_and_noise(t)
        return self.variances * noise / (alpha_bar * self.variances + noise)

    def given(self, diffusion: Any, x_t: Example, t: AnyTime) -> tuple[Float[Array, " k"], Float[Array, "k d"]]:
        """Log probability of each component given x_t, in nats, and its mean of x_0."""
        alpha_bar, noise = diffusion.schedule.signal_and_noise(t)
        z = diffusion.standardize(x_t).reshape(-1)
        marginal = alpha_bar * self.variances + noise
        turned = self._turned(z - jnp.sqrt(alpha_bar) * self.locs)
        log_share = jnp.log(self.weights) - 0.5 * jnp.sum(jnp.square(turned) / marginal + jnp.log(marginal), 1)
        moved = jnp.sqrt(alpha_bar) * self.variances / marginal * turned
        back = moved if self.bases is None else einsum("kij,kj->ki", self.bases, moved)
        return jax.nn.log_softmax(log_share), self.locs + back

    def _turned(self, x: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return x if self.bases is None else einsum("kij,ki->kj", self.bases, x)

    def turned_rows(self, rows: Float[Array, "m d"]) -> Float[Array, "k m d"]:
        """Rows in the basis of each component."""
        if self.bases is None:
            return jnp.broadcast_to(rows, (len(self.weights), *rows.shape))
        return einsum("mi,kij->kmj", rows, self.bases)

    def turned_back(self, rows: Float[Array, "k m d"]) -> Float[Array, "k m d"]:
        """Rows of each component's basis as elements."""
        return rows if self.bases is None else einsum("kmj,kij->kmi", rows, self.bases)

    def variances_of(self, left: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Variances of the elements, of those in the bases."""
        return left if self.bases is None else einsum("kij,kj->ki", jnp.square(self.bases), left)

    def turned_roots(self, roots: Float[Array, "k d e"]) -> Float[Array, "k d e"]:
        """Roots of covariances in the bases as those of the elements."""
        return roots if self.bases is None else einsum("kij,kje->kie", self.bases, roots)
