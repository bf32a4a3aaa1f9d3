"""The defaults of `nd.infer.SMC` on tasks of sbibm (Lueckmann et al. 2021), beside published numbers.

The likelihood of these tasks is known, so that each is a NumPyro model whose prior is an exact chain: z ~ N(0, I), and
the parameters are a function of z. What is printed is sbibm's C2ST: how well a classifier tells draws from those of the
reference posterior, 0.5 at best. Published numbers are means over ten observations, by methods that only simulate.

The reference posteriors and the observations are in sbibm's wheel, which is 100 MB and need not be installed:

    pip download sbibm --no-deps && unzip 'sbibm-*.whl' -d sbibm-wheel
    python examples/benchmarks/sbibm.py --folder sbibm-wheel

Without the folder two tasks run on simulated data, and with --short one of them.
"""

import argparse
import bz2
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import ndtr
from numpyro.handlers import seed, substitute, trace
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import numpyro_diffusion as nd

NUM_STEPS = 100  # of the prior's chain
# C2ST at 1,000, 10,000 and 100,000 simulations: sbibm's tables, and the best of GenSBI.
PUBLISHED = {
    "two_moons": {"NPE": (0.725, 0.606, 0.542), "GenSBI": (0.522, 0.513, 0.502)},
    "slcp": {"NPE": (0.975, 0.901, 0.831), "NLE": (0.921, 0.713, 0.578), "GenSBI": (0.657, 0.586, 0.534)},
    "gaussian_linear": {"NPE": (0.694, 0.552, 0.506), "GenSBI": (0.508, 0.503, 0.501)},
    "gaussian_linear_uniform": {"NPE": (0.696, 0.553, 0.509)},
    "bernoulli_glm": {"NPE": (0.863, 0.678, 0.559), "NLE": (0.634, 0.553, 0.522), "GenSBI": (0.616, 0.578, 0.555)},
    "gaussian_mixture": {"NPE": (0.716, 0.615, 0.548), "NLE": (0.740, 0.723, 0.690), "GenSBI": (0.510, 0.504, 0.501)},
}


class Task(NamedTuple):
    """One of sbibm's tasks.

    Attributes:
        size: number of parameters.
        parameters: from standard-normal z to the parameters.
        law: from the parameters to the distribution of the observation.
        shape: of the observation.
        file: where the observation is.
    """

    size: int
    parameters: Callable[[Array], Array]
    law: Callable[[Array], dist.Distribution]
    shape: tuple[int, ...]
    file: str = "observation.csv"

    def model(self, y: Array | None) -> None:
        """The task in NumPyro."""
        denoiser = nd.denoisers.Gaussian(0.0, 1.0)
        process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS)), denoiser, self.size)
        z = numpyro.sample("z", nd.DiffusionPrior(process))
        theta = numpyro.deterministic("theta", self.parameters(z))
        numpyro.sample("y", self.law(theta), obs=y)


class Crescent(dist.Distribution):
    """The law of two_moons' observation: a half circle of blurred radius, moved by the parameters.

    An angle a ~ U(−π/2, π/2) and a radius r ~ N(0.1, 0.01²) make the point (r cos a + 0.25, r sin a) + shift.
    """

    support = dist.constraints.real_vector
    pytree_data_fields = ("shift",)

    def __init__(self, shift: Array) -> None:
        self.shift = shift
        super().__init__((), (2,))

    def log_prob(self, value: Array) -> Array:
        """log N(r; 0.1, 0.01²) − log π − log r on the right half plane, −inf on the left."""
        across, along = value - self.shift - jnp.array([0.25, 0.0])
        r = jnp.sqrt(across**2 + along**2 + 1e-12)
        inside = dist.Normal(0.1, 0.01).log_prob(r) - jnp.log(jnp.pi) - jnp.log(r)
        return jnp.where(across > 0, inside, -jnp.inf)


def moons(theta: Array) -> dist.Distribution:
    """Two crescents of parameters for one of the observation, through the absolute value."""
    return Crescent(jnp.stack([-jnp.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / jnp.sqrt(2.0))


def four_points(theta: Array) -> dist.Distribution:
    """slcp: four points of one bivariate normal, whose covariance is a function of three parameters."""
    one, two, correlation = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
    across = correlation * one * two
    covariance = jnp.array([[one**2, across], [across, two**2]]) + 1e-6 * jnp.eye(2)
    return dist.MultivariateNormal(theta[:2], covariance).expand((4,)).to_event(1)


def wide_or_narrow(theta: Array) -> dist.Distribution:
    """gaussian_mixture: the parameters in noise of scale 1 or 0.1."""
    components = dist.Normal(jnp.stack([theta, theta]), jnp.array([[1.0], [0.1]])).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), components)


def uniform(bound: float) -> Callable[[Array], Array]:
    """z to parameters that are uniform between ±bound."""
    return lambda z: bound * (2 * ndtr(z) - 1)


def filter_scale() -> np.ndarray:
    """A root of the covariance of bernoulli_glm's parameters, an offset and a smooth filter."""
    size = 9
    differences = np.eye(size) - np.eye(size, k=-1)
    smooth = differences @ differences + np.diag(np.sqrt(np.arange(size) / size))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    return np.linalg.cholesky(np.linalg.inv(precision))


def design() -> np.ndarray:
    """bernoulli_glm's constant and its last nine stimuli at each of 100 times, as sbibm's own setup makes them."""
    stimulus = np.random.RandomState(42).randn(100)
    lagged = np.stack([np.concatenate([np.zeros(lag), stimulus[: 100 - lag]]) for lag in range(9)], axis=1)
    return np.concatenate([np.ones((100, 1)), lagged], axis=1)


def tasks() -> dict[str, Task]:
    """Six of sbibm's tasks."""
    root, noise = jnp.asarray(filter_scale(), dtype=float), 0.1**0.5
    inputs = jnp.asarray(design(), dtype=float)
    normal = lambda theta: dist.Normal(theta, noise).to_event(1)
    spikes = lambda theta: dist.BernoulliLogits(inputs @ theta).to_event(1)
    return {
        "gaussian_linear": Task(10, lambda z: noise * z, normal, (10,)),
        "gaussian_linear_uniform": Task(10, uniform(1.0), normal, (10,)),
        "gaussian_mixture": Task(2, uniform(10.0), wide_or_narrow, (2,)),
        "two_moons": Task(2, uniform(1.0), moons, (2,)),
        "slcp": Task(5, uniform(3.0), four_points, (4, 2)),
        "bernoulli_glm": Task(10, lambda z: root @ z, spikes, (100,), "observation_raw.csv"),
    }


def c2st(one: np.ndarray, two: np.ndarray, seed: int = 1) -> float:
    """How well a classifier tells two sets of draws apart, as sbibm measures it: 0.5 is not at all."""
    mean, sd = one.mean(0), one.std(0, ddof=1)
    x = np.concatenate([(one - mean) / sd, (two - mean) / sd])
    label = np.repeat([0, 1], [len(one), len(two)])
    width = 10 * x.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, x, label, cv=folds, scoring="accuracy").mean())


def read(path: Path) -> np.ndarray:
    """A CSV file with a header, compressed or not."""
    opened = bz2.open(path, "rt") if path.suffix == ".bz2" else path.open()
    with opened as file:
        return np.loadtxt(file, delimiter=",", skiprows=1)


def sample(task: Task, y: Array, count: int, key: Array) -> tuple[np.ndarray, Any, bool, float]:
    """Draws of the parameters, the finished SMC, whether it warned, and its processor time with compiling."""
    # Weighted particles come several times among as many draws, which a classifier learns by heart: four islands of
    # `count` are four times what is compared. All else is as it is by default.
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        smc = nd.infer.SMC(task.model, "z", num_particles=max(count, 512)).run(key, y)
        z = smc.get_samples()["z"]
    theta = np.asarray(jax.vmap(task.parameters)(z), dtype=np.float64)
    picked = np.random.default_rng(0).permutation(len(theta))[:count]
    warned = any(issubclass(warning.category, UserWarning) for warning in caught)
    return theta[picked], smc, warned, time.process_time() - start


def measure(name: str, number: Any, task: Task, y: Array, reference: np.ndarray, count: int) -> None:
    """Run one observation and print its line."""
    theta, smc, warned, seconds = sample(task, y, count, jax.random.key(0))
    score = c2st(reference[: len(theta)], theta)
    sizes = float(np.min(np.asarray(smc.particles.effective_size)))
    rows = PUBLISHED[name].items()
    published = "; ".join(f"{method} {' / '.join(f'{value:.3f}' for value in values)}" for method, values in rows)
    print(
        f"| {name} | {number} | {score:.3f} | {smc.log_evidence:.3f} ± {smc.log_evidence_error:.3f} | {sizes:.0f} | "
        f"{getattr(smc, 'plan', '')} | {'yes' if warned else 'no'} | {seconds:.1f} | {published} |",
        flush=True,
    )


def simulated(name: str, task: Task, key: Array) -> tuple[Array, Array]:
    """Parameters of the prior, and an observation of them."""
    one, two = jax.random.split(key)
    z = 0.5 * jax.random.normal(one, (task.size,))
    sites = trace(seed(substitute(task.model, {"z": z}), two)).get_trace(None)
    return sites["theta"]["value"], sites["y"]["value"]


def without_references(count: int, short: bool) -> None:
    """Two tasks on simulated data: one whose posterior can be drawn from, one whose truth is in the posterior."""
    every = tasks()
    _, y = simulated("gaussian_mixture", every["gaussian_mixture"], jax.random.key(1))
    rng = np.random.default_rng(0)
    scale = np.where(rng.uniform(size=(4 * count, 1)) < 0.5, 1.0, 0.1)
    exact = np.asarray(y) + scale * rng.standard_normal((4 * count, 2))
    measure("gaussian_mixture", "simulated", every["gaussian_mixture"], y, exact[(np.abs(exact) < 10).all(1)], count)
    if short:
        return
    task = every["bernoulli_glm"]
    truth, y = simulated("bernoulli_glm", task, jax.random.key(2))
    theta, smc, warned, _ = sample(task, y, count, jax.random.key(0))
    off = np.sqrt(np.mean(((theta.mean(0) - np.asarray(truth)) / theta.std(0)) ** 2))
    evidence = f"{smc.log_evidence:.3f} ± {smc.log_evidence_error:.3f}"
    print(f"\nbernoulli_glm, simulated: log Z {evidence}, {'a' if warned else 'no'} warning; the true parameters are")
    print(f"{off:.2f} posterior standard deviations from their means (root mean square)")


def main() -> None:
    """Run the tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one task on simulated data, few draws")
    parser.add_argument("--folder", type=Path, metavar="PATH", help="where sbibm's wheel was unzipped")
    parser.add_argument("--only", nargs="*", metavar="TASK", help="tasks; all six unless given")
    parser.add_argument("--observations", nargs="*", type=int, default=[1, 2, 3], help="1 … 10")
    parser.add_argument("--draws", type=int, default=2_000, help="on either side of the comparison, at most 10000")
    options = parser.parse_args()
    columns = "task | observation | C2ST | log Z | least ESS | plan | warned | CPU s | published"
    print(f"| {columns} |\n|" + "---|" * 9, flush=True)
    if options.short or options.folder is None:
        without_references(100 if options.short else 300, options.short)
        print("The references need --folder; see --help.")
        return
    for name, task in tasks().items():
        for number in options.observations if not options.only or name in options.only else ():
            folder = options.folder / "sbibm" / "tasks" / name / "files" / f"num_observation_{number}"
            y = jnp.asarray(read(folder / task.file).reshape(task.shape), dtype=float)
            reference = read(folder / "reference_posterior_samples.csv.bz2")
            measure(name, number, task, y, reference, options.draws)


if __name__ == "__main__":
    main()
