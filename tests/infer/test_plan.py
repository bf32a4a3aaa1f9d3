"""Which of several tries is taken."""

from typing import NamedTuple

import numpy as np

from numpyro_diffusion.infer.evidence import evidence_error
from numpyro_diffusion.infer.plan import badness, best_run, contradicted, is_good, most_credible
from numpyro_diffusion.samplers import Reliability


class Try(NamedTuple):
    """A run that is good where it is said to be, and may grow once."""

    name: str
    log_evidences: list[float]
    badness: float
    is_good: bool = False
    grows: bool = True
    last: str | None = None

    @property
    def log_evidence_error(self):
        return evidence_error(self.log_evidences)

    @property
    def more(self):
        return self.name + "+" if self.grows else None

    def alternatives(self, found):
        return found

    def without_twist(self, found, plan):
        return self.last


LOW = Try("low", [-4.3, -4.1, -4.4, -4.2], 1.0)
HIGH = Try("high", [-3.1, -3.9, -3.4, -3.2], 3.0)
UNSURE = Try("unsure", [-3.6, -5.0, -3.4, -3.9], 3.0)


def test_of_two_that_contradict_each_other_the_larger_is_believed():
    assert contradicted(LOW, [LOW, HIGH]) and not contradicted(HIGH, [LOW, HIGH])
    assert most_credible([LOW, HIGH]) is HIGH
    assert most_credible([LOW, UNSURE]) is LOW  # the less bad one, as the errors of both allow the difference
    lost = Try("lost", [-np.inf] * 4, 0.5)
    assert most_credible([lost, LOW]) is LOW


def run(found, **settings):
    """What `best_run` takes of these runs, by name, and in which order they were run."""
    made = []

    def once(count, plan):
        assert count == len(made)
        made.append(plan)
        return found[plan]

    options = {"may_try": True, "may_grow": True, **settings}
    return best_run(once, "low", ["high", "unsure"], **options).name, made


def test_what_is_doubted_grows_beside_the_best():
    grown = {"low+": LOW._replace(name="low+", grows=False), "high+": HIGH._replace(name="high+", grows=False)}
    every = {"low": LOW, "high": HIGH._replace(log_evidences=[-3.4, -4.6, -3.5, -3.3]), "unsure": UNSURE, **grown}
    assert contradicted(LOW, [every["high"]], 1.0) and not contradicted(LOW, [every["high"]])
    assert run(every) == ("high+", ["low", "high", "unsure", "low+", "high+"])
    assert run(every, may_grow=False) == ("low", ["low", "high", "unsure"])
    assert run({**every, "low": LOW._replace(is_good=True)}) == ("low", ["low"])
    assert run({**every, "high": LOW._replace(name="high", badness=0.0, is_good=True)}) == ("high", ["low", "high"])
    assert run(every, may_try=False) == ("low+", ["low", "low+"])


def test_where_no_twist_will_do_there_is_none_at_last():
    """After other twists and more particles; and it is not believed where another evidence contradicts it."""
    grown = LOW._replace(name="low+", grows=False, last="tempered")
    tempered = Try("tempered", [-3.5, -3.8, -3.6, -3.4], 0.0, is_good=True)
    every = {"low": LOW, "high": LOW._replace(name="high", badness=5.0), "unsure": UNSURE._replace(badness=6.0)}
    every |= {"low+": grown, "high+": grown, "unsure+": grown, "tempered": tempered}
    assert run(every)[0] == "tempered" and run(every)[1][-1] == "tempered" and "low+" in run(every)[1]
    assert run({**every, "tempered": tempered._replace(log_evidences=[-9.0, -9.1, -9.2, -8.9])})[0] == "low+"
    assert "tempered" not in run({**every, "low+": grown._replace(is_good=True)})[1]
    assert "tempered" not in run(every, may_try=False)[1]
    assert run({**every, "low": LOW._replace(last="tempered")}, may_grow=False)[0] == "tempered"


def test_a_run_with_noisy_weights_is_not_good():
    """Though its islands agree: a twist that is wrong at every level has a heavy tail that few of them meet."""
    fine = Reliability(least_size=80.0, final_size=300.0, khat=0.2, gap=0.1, deviation=0.05)
    assert is_good(fine, 0.1) and not is_good(fine, 0.2)
    assert badness(fine, 0.1) == badness(fine, 0.0) < badness(fine, 0.2)
