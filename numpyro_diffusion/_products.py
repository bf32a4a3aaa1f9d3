"""Products of matrices in all bits of their type.

On some GPUs and on TPUs JAX multiplies matrices of float32 with the first 10 or 7 bits of their fractions, unless told
otherwise (`jax.default_matmul_precision`). A network may be fast at that price; a covariance, an observation or a
projection, from which small differences are taken, may not. What the package multiplies itself goes through these.
"""

from functools import partial

import jax.numpy as jnp

dot = partial(jnp.matmul, precision="highest")
einsum = partial(jnp.einsum, precision="highest")
tensordot = partial(jnp.tensordot, precision="highest")
vdot = partial(jnp.vdot, precision="highest")
