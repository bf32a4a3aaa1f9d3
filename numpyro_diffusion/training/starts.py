"""Where learning from rows with missing cells begins: simple models of them, by expectation maximisation.

Expectation maximisation for rows with missing cells (Dempster, Laird and Rubin 1977), for models in which the law of
missing cells given the known ones is a closed form: a Gaussian or a mixture of Gaussians, and independent columns of
several kinds or a mixture of them. Completions and log densities of known cells are *exact* for the model. The number
of components is chosen on held-out rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from .._frames import AbstractTable
from .._numbers import check_resolution
from ..distributions import DiffusionPrior
from ..process import ReverseProcess
from ..twists import AbstractTwist, Laplace
from .assemble import chain_of
from .baselines import Mixture
from .gaps import Rows, completed, fit_gaussian, fit_mixture_of_rows, known_log_prob
from .holes import parted, resampled
from .mixed import by_name, check_columns, plan_about
from .plan import PriorPlan
from .products import Products, fit_products
from .tables import table

Choose = Callable[..., PriorPlan]


class Begun(NamedTuple):
    """What the laps begin with.

    Attributes:
        plan: what is trained on completed rows; of 0 steps where the simple model is all that is fitted.
        laws: simple models by name, fitted to the known cells that are trained on.
        train: rows to train on.
        out: others, held out; none where nothing is trained.
    """

    plan: PriorPlan
    laws: dict[str, Any]
    train: Rows
    out: Rows


class AbstractStart(ABC):
    """Simple models of rows of one kind, which know the law of known cells and of missing ones in closed form.

    Attributes:
        twist: of the priors that are learned about them; None for that chosen by rule.
        resample: whether the rows to train on are drawn with replacement.
    """

    twist: AbstractTwist | None
    resample: bool

    @abstractmethod
    def begun(self, rng: np.random.Generator, rows: Rows) -> Begun:
        """Fit the models, and plan what is trained.

        Args:
            rng: of what is held out, and of first completions.
            rows: all of them, with noise between steps.
        """

    @abstractmethod
    def known_log_prob(self, law: Any, rows: Rows) -> np.ndarray:
        """Log density of each row's known cells in nats, shape (n,); *exact*."""

    @abstractmethod
    def completed(self, rng: np.random.Generator, law: Any, rows: Rows) -> np.ndarray:
        """The rows with a draw of their missing cells given the known ones, shape (n, d); *exact*."""

    @abstractmethod
    def chain(self, law: Any, plan: PriorPlan) -> DiffusionPrior:
        """The chain about a model, without a network."""


class GaussianStart(AbstractStart):
    """A Gaussian of real numbers, or a mixture of them.

    Args:
        choose: the plan for completed examples, of shape (n, *event) and with the width of their noise.
        event_shape: of one example.
        resample: whether the rows to train on are drawn with replacement.
    """

    def __init__(self, choose: Choose, event_shape: tuple[int, ...], resample: bool) -> None:
        self.twist, self.resample, self._choose, self._event_shape = Laplace(), resample, choose, event_shape

    def begun(self, rng: np.random.Generator, rows: Rows) -> Begun:
        """The number of components is chosen on held-out rows; the plan on all rows, completed by one Gaussian."""
        gaussian = fit_gaussian(rows)
        whole = completed(rng, gaussian, rows)
        check_resolution("data", whole)
        plan = self._choose(whole.reshape(len(whole), *self._event_shape), dequantize=0.0)
        if not plan.max_steps:
            gaussian = fit_gaussian(resampled(rng, rows)) if self.resample else gaussian
            return Begun(plan, {"Gaussian": gaussian}, rows, rows.take(slice(0)))
        train, out = parted(rng, rows, self.resample)
        gaussian = fit_gaussian(train)
        laws = {"Gaussian": gaussian}
        simple = table(completed(rng, gaussian, train), completed(rng, gaussian, out), 0.0, copies=True)
        if (parts := len(simple.mixture.weights)) > 1:
            laws[f"mixture of {parts} Gaussians"] = fit_mixture_of_rows(train, simple.mixture)
        return Begun(plan, laws, train, out)

    def known_log_prob(self, law: Mixture, rows: Rows) -> np.ndarray:
        """Of the known cells' marginal law."""
        return known_log_prob(law, rows)

    def completed(self, rng: np.random.Generator, law: Mixture, rows: Rows) -> np.ndarray:
        """By a component drawn from its law given the known cells, and the others' normal law given them."""
        return completed(rng, law, rows)

    def chain(self, law: Mixture, plan: PriorPlan) -> DiffusionPrior:
        """Its law is the Gaussian itself, and near to a mixture."""
        return chain_of(law, self._event_shape, plan.schedule)


class ProductStart(AbstractStart):
    """Independent columns of classes, levels and numbers, or a mixture of up to eight laws of them.

    Args:
        key: JAX random key, for the network's first weights.
        table: of which the rows are.
        network: ``fn(x_t, t)`` with a pair of outputs, or None for an `MLP`.
        max_steps: of the optimiser, or None.
        resample: whether the rows to train on are drawn with replacement.
    """

    def __init__(self, key: Array, table: AbstractTable, network: Any, max_steps: int | None, resample: bool) -> None:
        self.twist, self.resample, self._of = None, resample, (key, table, network, max_steps)

    def begun(self, rng: np.random.Generator, rows: Rows) -> Begun:
        """The number of components is chosen on held-out rows, and the network learns what the better model leaves."""
        key, table, network, max_steps = self._of
        train, out = parted(rng, rows, self.resample)
        independent, best = fit_products(train.cells, out.cells, check_columns(table))
        plan = plan_about(key, table, best, best.completed(rng, train.cells), network, max_steps)
        return Begun(plan, by_name(independent, best), train, out)

    def known_log_prob(self, law: Products, rows: Rows) -> np.ndarray:
        """A density of real columns, times probabilities of classes and levels."""
        return law.log_prob(rows.cells)

    def completed(self, rng: np.random.Generator, law: Products, rows: Rows) -> np.ndarray:
        """By a component drawn from its law given the known cells, and that component's columns."""
        return law.completed(rng, rows.cells)

    def chain(self, law: Products, plan: PriorPlan) -> DiffusionPrior:
        """Its law is near to the mixture."""
        own = plan.process
        return DiffusionPrior(ReverseProcess(own.diffusion, law.denoiser, own.event_shape, last_step=own.last_step))
