"""What is known of how good a prior is: the record that `fit_prior` keeps with it.

K of held-out examples stands beside the exact log densities of simple models of the same examples, in nats. As K is a
*lower bound*, a prior that is ahead by it is better, while one that is behind may still be as good. Standard errors are
those of means over held-out examples, which also chose when training stopped: a slight favour to the prior. The record
is no parameter; files keep it, and JAX's transformations leave it out.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from .._display import shown_as_text

Curve = dict[str, list[float]]


class Score(NamedTuple):
    """A mean log density of held-out data, in nats per example.

    Attributes:
        name: of the model.
        value: the mean; of a prior, that of K.
        error: its standard error over the examples.
        gain: the prior's mean minus this one; 0 for the prior itself.
        gain_error: standard error of that, from the differences example by example.
    """

    name: str
    value: float
    error: float
    gain: float = 0.0
    gain_error: float = 0.0


class PriorChecks(NamedTuple):
    """Whether draws look like held-out data, and whether predictions of x_0 err as much as the denoiser says.

    Attributes:
        energy: energy distance of draws and held-out examples, each element in units of the data's standard deviation.
        p_value: of the energy test, by permutations; small where draws differ from data.
        nearest_draws: median distance of draws to the nearest training example, in the same units.
        nearest_held_out: that of held-out examples. Draws that lie much nearer were memorised.
        jacobian: pairs of √ᾱ_t and the mean squared error of E[x_0 given x_t] over the mean trace of the covariance
            that the denoiser's Jacobian says (Tweedie's formula), which twists rely on: 1 where it is right. Empty for
            bits.
    """

    energy: float
    p_value: float
    nearest_draws: float
    nearest_held_out: float
    jacobian: tuple[tuple[float, float], ...] = ()

    @property
    def lines(self) -> list[str]:
        """What the report prints of them."""
        found = [
            f"draws beside held-out data: energy distance {self.energy:.3f}, p = {self.p_value:.3f}; nearest training "
            f"example at {self.nearest_draws:.3g} (held-out data: {self.nearest_held_out:.3g})"
        ]
        if self.jacobian:
            ratios = ", ".join(f"{ratio:.2f} at {level:.1f}" for level, ratio in self.jacobian)
            found.append(f"squared errors of x_0 over the Jacobian's variances, by √ᾱ: {ratios}")
        return found


@shown_as_text
class PriorReport(NamedTuple):
    """What `fit_prior` saw; `print` it.

    The held-out examples also chose the training's length, the coordinates and the number of components, so that the
    prior's own figure is slightly too good where they are few.

    Attributes:
        prior: the held-out K of the prior that was returned.
        baselines: log densities of simple models, fitted to the same examples, of the same held-out ones.
        trained: number of examples that were trained on.
        held_out: number of examples held out.
        steps: the training step whose weights were kept; 0 for the baseline itself.
        reasons: what was chosen, one line each, as in `PriorPlan`.
        curves: validation K by training step, ``{"step": […], "validation": […]}``, of each candidate by name.
        checks: of draws and predictions beside held-out examples; None where there are none.
        laps: of a prior learned from incomplete data, the held-out log evidence of what is known, in nats per example,
            by lap, the start first, ``{"score": […], "error": […]}``; `prior` and `baselines` are then log evidences
            too. Empty otherwise.
        columns: names of the elements, of data that came as a frame.
        levels: of each column of classes, what the codes 0, 1, … stand for.
    """

    prior: Score | None
    baselines: tuple[Score, ...]
    trained: int
    held_out: int
    steps: int
    reasons: tuple[str, ...]
    curves: dict[str, Curve]
    checks: PriorChecks | None = None
    laps: dict[str, list[float]] = {}
    columns: tuple[str, ...] = ()
    levels: tuple[tuple[Any, ...], ...] = ()

    @property
    def verdict(self) -> str:
        """One line that says whether there was more to learn than the simple models say."""
        if self.prior is None:
            return "not compared: too few examples to hold any out"
        if not self.baselines:
            return "not compared: no simple model of such data"
        best = max(self.baselines, key=lambda score: score.value)
        gap = f"{best.gain:+.2f} ± {best.gain_error:.2f} nats beside the {best.name}"
        if best.gain > 2 * best.gain_error:
            return f"better than the simple models: {gap}"
        if best.gain < -2 * best.gain_error and best.gain < -LEAST:
            return f"WORSE than a simple model: {gap}"
        return f"no better than a simple model: {gap}"

    @property
    def is_worse(self) -> bool:
        """Whether a simple model is better, beyond errors."""
        return self.verdict.startswith("WORSE")

    def __str__(self) -> str:
        lines = list(self.reasons)
        if self.prior is not None:
            count = f"{self.trained} examples trained on, {self.held_out} held out"
            lines.append(f"held out: {count}; nats per example, and the prior's gain")
            lines.append(f"  {self.prior.name:<24} {self.prior.value:9.2f} ± {self.prior.error:.2f}")
            for score in self.baselines:
                gain = f"{score.gain:+9.2f} ± {score.gain_error:.2f}"
                lines.append(f"  {score.name:<24} {score.value:9.2f} ± {score.error:.2f} {gain}")
        lines += [] if self.checks is None else self.checks.lines
        return "\n".join([*lines, f"verdict: {self.verdict}"])

    def to_json(self) -> dict[str, Any]:
        """As what JSON can hold."""
        scores = [list(score) for score in self.baselines]
        own = None if self.prior is None else list(self.prior)
        checks = None if self.checks is None else self.checks._asdict()
        return self._asdict() | {
            "prior": own,
            "baselines": scores,
            "reasons": list(self.reasons),
            "checks": checks,
            "columns": list(self.columns),
            "levels": [list(levels) for levels in self.levels],
        }


LEAST = 0.05  # nats: a difference below which no one cares, and which K's own noise may make


def report_from_json(stored: Any) -> PriorReport | None:
    """The report that `to_json` wrote, or None if there is none."""
    if not isinstance(stored, dict):
        return None
    own = None if stored["prior"] is None else Score(*stored["prior"])
    scores = tuple(Score(*score) for score in stored["baselines"])
    checks = stored.get("checks")
    if checks is not None:
        checks = PriorChecks(**(checks | {"jacobian": tuple((level, ratio) for level, ratio in checks["jacobian"])}))
    read = {"prior": own, "baselines": scores, "reasons": tuple(stored["reasons"]), "checks": checks,
            "columns": tuple(stored.get("columns", ())),
            "levels": tuple(tuple(levels) for levels in stored.get("levels", ()))}  # fmt: skip
    return PriorReport(**(stored | read))


class Reported:
    """A distribution with a record of how good it is, which is no parameter: JAX's transformations leave it out."""

    _report: PriorReport | None = None

    def report(self) -> PriorReport:
        """How good the prior is, as `fit_prior` saw it: `print` it. Files keep it.

        Raises:
            ValueError: a prior that `fit_prior` did not make.
        """
        if self._report is None:
            raise ValueError("report: expected a prior made by fit_prior, which keeps a record, got one without")
        return self._report

    def with_report(self, report: PriorReport | None) -> Self:
        """The same prior with another record."""
        new = copy.copy(self)
        new._report = report
        return new

    def _like(self, make: Callable[[Any], Any]) -> Any:
        """As of any distribution; one that can have the record has it too."""
        base: Any = super()
        new = base._like(make)
        return new.with_report(self._report) if isinstance(new, Reported) else new

    def _metadata(self, card: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a file holds beside the arrays."""
        extra = {} if self._report is None else {"report": self._report.to_json()}
        return {"content": "DiffusionPrior", "card": dict(card or {})} | extra
