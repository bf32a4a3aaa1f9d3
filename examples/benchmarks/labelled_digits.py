"""Digits whose lower half is hidden and whose label is unknown: the label's posterior against ten evidences.

    python examples/benchmarks/labelled_digits.py [--prior labelled.safetensors] [--digits 100] [--replicates 200]
    python examples/benchmarks/labelled_digits.py --short

--only a, digits, draws: some of it, (b) by what the data are.

A prior p(x | label) of scikit-learn's 8 × 8 digits, learned from 1,500 of them, or loaded from a file; in a chain of 8
steps. A label of ten, a digit, and y = its upper half with noise of scale 0.2.

(a) The label's posterior by one run of `nd.infer.SMC` of the model, label and digit both unknown, against the ten
    evidences of the model with its label given, each by SMC of the digit alone. Errors of both are those of islands; z
    is the difference over them, for every label with a share between 0.5% and 99.5%.
(b) The ten evidences of held-out digits, and of the prior's own draws: accuracy of the likeliest label; whether it is
    as accurate as its probabilities say, as p of z; and p of the true labels' places in the posterior's distribution
    function (uniform, if all is right; Kolmogorov and Smirnov's test).

With --short: a Gaussian for each label, which is not learned, whose evidences have closed forms too; few digits.
"""

import argparse
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp, softmax
from scipy.stats import kstest, norm

import numpyro_diffusion as nd

LABELS, NOISE, STEPS, SEEN = 10, 0.2, 8, 4  # rows that are seen


def learned(path, train):
    """A prior of digits given their label; from the file, if it exists."""
    if path is not None and path.exists():
        return nd.load(path)
    digits = nd.datasets.digits()
    start = time.process_time()
    prior = nd.fit_prior(
        jax.random.key(0), digits.train_images, context=np.asarray(digits.train_labels), max_steps=train,
        progress_bar=False,
    )  # fmt: skip
    print(f"{prior.report()}\nlearned in {time.process_time() - start:.0f} s of CPU time\n", flush=True)
    if path is not None:
        prior.save(path)
    return prior


def gaussian_prior():
    """A Gaussian of independent pixels for each label, by an exact denoiser, and its moments, shape (10, 64) each."""
    digits = nd.datasets.digits()
    x, labels = np.asarray(digits.train_images, np.float64).reshape(-1, 64), np.asarray(digits.train_labels)
    mean, sd = (np.stack([f(x[labels == k], axis=0) for k in range(LABELS)]) for f in (np.mean, np.std))
    sd = np.hypot(sd, 0.1)
    means, sds = jnp.asarray(mean, float), jnp.asarray(sd, float)
    flat = nd.denoisers.Conditional(lambda label: nd.denoisers.Gaussian(means[label], sds[label]), (), LABELS)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS, -9.0, 6.0), 0.3, 0.4)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, flat, 64)), (mean, sd)


def closed_form(y, moments):
    """Log evidence of each label by the Gaussians, shape (n, 10)."""
    mean, sd = (part[:, : 8 * SEEN] for part in moments)
    return norm.logpdf(np.asarray(y, np.float64)[:, None], mean, np.hypot(sd, NOISE)).sum(-1)


def upper(x):
    """What is seen of images (*batch, 8, 8), or of vectors (*batch, 64)."""
    return x[..., : 8 * SEEN] if x.shape[-1] == 64 else x[..., :SEEN, :].reshape(*x.shape[:-2], -1)


def whole_model(prior):
    """Label and digit unknown."""

    def model(y):
        label = numpyro.sample("label", dist.Categorical(probs=jnp.full(LABELS, 1 / LABELS)))
        x = numpyro.sample("x", prior.given(label))
        numpyro.sample("y", dist.Normal(upper(x), NOISE).to_event(1), obs=y)

    return model


def given_model(prior):
    """Each of some digits with each of the labels, as a plate."""

    def model(y):
        with numpyro.plate("digits", len(y), dim=-2), numpyro.plate("labels", LABELS, dim=-1):
            x = numpyro.sample("x", prior.given(jnp.broadcast_to(jnp.arange(LABELS), (len(y), LABELS))))
            numpyro.sample("y", dist.Normal(upper(x), NOISE).to_event(1), obs=y[:, None].repeat(LABELS, 1))

    return model


def ten_evidences(prior, particles, islands, batch=10):
    """From a key and what is seen of n digits to log evidences of all labels by island, shape (islands, n, 10)."""
    twist = nd.twists.Tempered(nd.twists.PseudoInverse(), 1.0)  # named, so that unlikely labels bring no trials
    smc = nd.infer.SMC(given_model(prior), num_particles=particles, num_islands=islands, twist=twist)

    def evidences(key, y):
        found = []
        for start in range(0, len(y), batch):
            index = np.minimum(np.arange(start, start + batch), len(y) - 1)  # filled up: one program serves all
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", nd.ReliabilityWarning)  # of unlikely labels; islands give the errors
                smc.run(jax.random.fold_in(key, start), y[index])
            found.append(np.asarray(smc.particles.log_evidence, np.float64)[:, : len(y) - start])
        return np.concatenate(found, 1)

    return evidences


def shares_of(log_evidences):
    """Posterior of the label, shape (n, 10), and its standard errors from the islands', by the delta method."""
    islands = len(log_evidences)
    log_mean = logsumexp(log_evidences, axis=0) - np.log(islands)
    relative = np.std(np.exp(log_evidences - log_mean), axis=0, ddof=1) / np.sqrt(islands)
    share = softmax(log_mean, axis=1)
    others = np.sum((share * relative) ** 2, 1, keepdims=True) - (share * relative) ** 2
    return share, share * np.sqrt(((1 - share) * relative) ** 2 + others)


def whole_shares(smc):
    """The same for one run of the model with an unknown label; islands count by their evidence."""
    labels = np.asarray(smc.get_samples(group_by_chain=True)["label"])
    each = np.stack([np.mean(labels == label, axis=1) for label in range(LABELS)], 1)
    weight = softmax(np.asarray(smc.log_evidences, np.float64))
    share = weight @ each
    scatter = np.sqrt(np.sum((weight[:, None] * (each - share)) ** 2, 0) * len(each) / (len(each) - 1))
    binomial = np.sqrt(share * (1 - share) / labels.size)  # islands that agree by chance know no better
    return share, np.maximum(scatter, binomial)


def said(labels, share, error):
    """Shares of some labels in words."""
    return ", ".join(f"{label}: {share[label]:.3f} ± {error[label]:.3f}" for label in labels)


def compare(prior, evidences, y, true, options):
    """(a): one line for each digit."""
    print("| digit | likeliest, by ten evidences | by SMC of the whole | largest z | log Z: ten; whole | seconds |")
    print("|---|---|---|---|---|---|")
    found = evidences(jax.random.key(1), y)
    reference, error = shares_of(found)
    twist = nd.twists.Tempered(nd.twists.PseudoInverse(), 1.0)
    counts = {"num_islands": options.islands, "num_draws": options.draws, "num_particles": options.inner}
    smc = nd.infer.SMC(whole_model(prior), twist=twist, **counts)
    largest = []
    for i, each in enumerate(y):
        start = time.process_time()
        smc.run(jax.random.key(i), each)
        seconds = time.process_time() - start
        share, own = whole_shares(smc)
        between = (reference[i] > 0.005) & (reference[i] < 0.995)
        z = np.where(between, (share - reference[i]) / np.hypot(error[i], own), 0.0)
        largest.append(np.abs(z).max())
        ten = logsumexp(found[:, i]) - np.log(options.islands * LABELS)
        both = f"{ten:.2f}; {smc.log_evidence:.2f} ± {smc.log_evidence_error:.2f}"
        top = np.argsort(-reference[i])[:3]
        ten_said, whole_said = said(top, reference[i], error[i]), said(top, share, own)
        row = f"{ten_said} | {whole_said} | {largest[-1]:.1f} | {both} | {seconds:.0f}"
        print(f"| {true[i]} | {row} |", flush=True)
    print(f"\nlargest z of {len(y)} digits: {max(largest):.2f}\n", flush=True)


def calibrated(name, share, true):
    """(b): one line."""
    likeliest = share.max(1)
    right = share.argmax(1) == true
    z = (right.sum() - likeliest.sum()) / np.sqrt(np.sum(likeliest * (1 - likeliest)))
    uniform = np.random.default_rng(0).uniform(size=len(true))
    below = np.array([p[:label].sum() for p, label in zip(share, true, strict=True)])
    place = below + uniform * share[np.arange(len(true)), true]
    p = kstest(place, "uniform").pvalue
    said = f"{right.mean():.3f} | {likeliest.mean():.3f} | {2 * norm.sf(abs(z)):.3f} | {p:.3f}"
    print(f"| {name} | {len(true)} | {said} |", flush=True)


def held_out(count):
    """What is seen of digits that were not learned from, and their labels."""
    digits = nd.datasets.digits()
    x = upper(digits.test_images[:count])
    return x + NOISE * jax.random.normal(jax.random.key(2), x.shape), np.asarray(digits.test_labels)[:count]


def own_draws(key, prior, count):
    """Data of the model itself: what is seen of digits, and their labels."""
    first, second, third = jax.random.split(key, 3)
    labels = jax.random.randint(first, (count,), 0, LABELS)
    x = upper(prior.given(labels).sample(second))
    return x + NOISE * jax.random.normal(third, x.shape), np.asarray(labels)


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a prior that is known, few digits")
    parser.add_argument("--prior", type=Path, help="a file to keep the learned prior in, and to load it from")
    parser.add_argument("--train", type=int, help="steps of training; fit_prior's unless given")
    parser.add_argument("--compared", type=int, default=3, help="digits of (a), the least sure of ten")
    parser.add_argument("--digits", type=int, default=100, help="held-out digits of (b)")
    parser.add_argument("--replicates", type=int, default=200, help="the prior's own draws of (b)")
    parser.add_argument("--particles", type=int, default=64, help="of each of the ten evidences")
    parser.add_argument("--islands", type=int, default=4)
    parser.add_argument("--draws", type=int, default=128, help="of SMC of the whole, in each island")
    parser.add_argument("--inner", type=int, default=16, help="particles of x for each of them")
    parser.add_argument("--only", nargs="*", choices=("a", "digits", "draws"), default=["a", "digits", "draws"])
    options = parser.parse_args()
    moments = None
    if options.short:
        options.compared, options.digits, options.replicates, options.islands = 1, 10, 10, 2
        options.draws, options.particles, options.inner = 16, 16, 4
        prior, moments = gaussian_prior()
    else:
        prior = learned(options.prior, options.train)
    prior = prior.with_(sampler=nd.samplers.Ancestral(STEPS))
    evidences = ten_evidences(prior, options.particles, options.islands)
    if "a" in options.only:
        y, true = held_out(10)
        found = evidences(jax.random.key(3), y)
        share, _ = shares_of(found)
        if moments is not None:
            off = np.abs(share - softmax(closed_form(y, moments), axis=1)).max()
            print(f"largest difference from the closed form's shares: {off:.3f}\n", flush=True)
        unsure = np.argsort(share.max(1))[: options.compared]
        compare(prior, evidences, y[unsure], true[unsure], options)
    print("| data | how many | accuracy | as its probabilities say | p of the difference | p of places |")
    print("|---|---|---|---|---|---|")
    if "digits" in options.only:
        y, true = held_out(options.digits)
        calibrated("held-out digits", shares_of(evidences(jax.random.key(4), y))[0], true)
    if "draws" in options.only:
        y, true = own_draws(jax.random.key(5), prior, options.replicates)
        calibrated("the prior's own draws", shares_of(evidences(jax.random.key(6), y))[0], true)


if __name__ == "__main__":
    main()
