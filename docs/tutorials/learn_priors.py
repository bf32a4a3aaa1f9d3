"""Learn the priors that six tutorials load, so that these pages are made in seconds: some minutes on one core.

python docs/tutorials/learn_priors.py

Writes diabetes.safetensors (six columns with missing cells), epidemics.safetensors (confirmed cases of countries),
demand.safetensors (days of electricity demand), fields.safetensors (fields that are told their length scale),
galaxies.safetensors (cut-outs of a deep field) and the folder ddpm-digits (a DDPM pipeline of small digits) beside
itself.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
from jax import Array
from scipy import ndimage
from sklearn.datasets import load_diabetes

import numpyro_diffusion as nd

FOLDER = Path(__file__).parent
DAYS = 21
PLACES = np.linspace(0, 1, 32)
SOFTENING = 10.0  # grey levels, about where the stretch of the galaxies turns from linear to logarithmic


def table_with_holes() -> tuple[np.ndarray, np.ndarray]:
    """Six columns of scikit-learn's diabetes data, complete and with cells taken out, shape (442, 6) each."""
    data = load_diabetes(scaled=False)
    columns = [data.feature_names.index(name) for name in ("age", "bmi", "bp", "s3", "s5")]
    full = np.column_stack([data.data[:, columns], data.target])
    rng, holes = np.random.default_rng(0), full.copy()
    worse = full[:, 5] > 140
    for column, often, rarely in ((1, 0.6, 0.15), (4, 0.5, 0.1)):
        holes[rng.uniform(size=len(full)) < np.where(worse, often, rarely), column] = np.nan
    return full, holes


def read_series(name: str) -> np.ndarray:
    """The series of a data set of sktime, shape (n, length).

    sktime ships them; it takes long to import, so its files are read as they are: a line has the numbers and a target.
    """
    folder = Path(importlib.util.find_spec("sktime").submodule_search_locations[0])
    files = [folder / f"datasets/data/{name}/{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").partition("@data")[2].split()]
    return np.array([line.partition(":")[0].split(",") for line in lines], float)


def epidemics() -> tuple[np.ndarray, np.ndarray]:
    """Confirmed cases a day of 201 countries early in 2020, to learn from and held out, shapes (n, 84) and (m, 84).

    Day 74 has no cases in most countries, also in those that have many before and after: it is NaN. Every third
    country of those with at least 1,000 cases is held out, beginning with the first.
    """
    series = read_series("Covid3Month")
    series[:, 74] = np.nan
    held_out = np.zeros(len(series), bool)
    held_out[np.flatnonzero(np.nansum(series, 1) >= 1000)[::3]] = True
    return series[~held_out], series[held_out]


def windows(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log smooth cases of DAYS days on end, where they are never below one, shape (k, DAYS), and whose they are, (k,).

    Smooth is the mean of a week about the day.
    """
    week = np.lib.stride_tricks.sliding_window_view(series, 7, axis=1)
    curves = np.lib.stride_tricks.sliding_window_view(np.nanmean(week, -1), DAYS, axis=1)
    enough = curves.min(-1) >= 1
    return np.log(curves[enough]), np.nonzero(enough)[0]


def covariance(length: Array, xp: Any = jnp) -> Array:
    """Of a field of unit variance at PLACES, shape (32, 32): Matérn 3/2 of a length scale."""
    distance = np.sqrt(3) * np.abs(PLACES[:, None] - PLACES) / length
    return (1 + distance) * xp.exp(-distance)


def fields(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of Gaussian processes, shape (count, 32), and the logs of their length scales, shape (count,)."""
    log_length = rng.uniform(np.log(0.03), np.log(1.2), count)
    roots = [np.linalg.cholesky(covariance(np.exp(each), np) + 1e-6 * np.eye(32)) for each in log_length]
    return np.stack([root @ rng.normal(size=32) for root in roots]), log_length


def demand() -> tuple[np.ndarray, np.ndarray]:
    """Days of electricity demand in Italy, to learn from and held out, shapes (896, 24) and (200, 24)."""
    days = np.random.default_rng(0).permutation(read_series("ItalyPowerDemand"))
    return days[:896], days[896:]


def galaxies() -> tuple[np.ndarray, np.ndarray]:
    """Light of galaxies as arcsinh(light / SOFTENING), to learn from and held out, shapes (484, 5, 5) and (122, 5, 5).

    Cut-outs about local maxima of the Hubble deep field, a JPEG that scikit-image ships; it is read as a file, as the
    package's own loader may ask the network. Two by two pixels are one, the median is taken for the sky, and cut-outs
    with little light at their border are kept. Those right of column 810 are held out; none reaches across.
    """
    folder = Path(importlib.util.find_spec("skimage").submodule_search_locations[0])
    picture = matplotlib.image.imread(folder / "data" / "hubble_deep_field.jpg").mean(-1)
    height, width = picture.shape
    field = picture.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    field -= np.median(field)
    smooth = ndimage.uniform_filter(field, 3)
    places = np.argwhere((smooth == ndimage.maximum_filter(smooth, 5)) & (smooth > 15) & (smooth < 200))
    places = places[((places >= 4) & (places < np.array(field.shape) - 4)).all(1)]
    cuts = np.stack([field[row - 2 : row + 3, column - 2 : column + 3] for row, column in places])
    border = np.ones((5, 5), bool)
    border[1:-1, 1:-1] = False
    alone = (cuts[:, border].mean(1) < 10) & (cuts[:, border].max(1) < 40)
    stretched, column = np.arcsinh(cuts[alone] / SOFTENING), 2 * places[alone, 1]
    return stretched[column < 800], stretched[column >= 810]


def turned(pictures: np.ndarray) -> np.ndarray:
    """In all eight orientations, as the sky has no upper side, shape (8 n, height, width)."""
    return np.concatenate([np.rot90(each, k, (1, 2)) for each in (pictures, pictures[:, :, ::-1]) for k in range(4)])


def ddpm(max_steps: int = 5000) -> nd.DiffusionPrior:
    """A DDPM of 8 × 8 digits in [-1, 1], made as the library's own are: 1000 linear steps, noise, the simple loss."""
    sizes = nd.networks.UNET_SIZES["tiny"] | {"channels": (8, 16), "num_groups": 4}
    network = nd.networks.UNet(jax.random.key(0), (8, 8), **sizes)
    denoiser = nd.denoisers.Network(network, predicts="noise", variance="beta", clip=(-1, 1))
    untrained = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.linear(1000)), denoiser, (8, 8))
    images = 2 * nd.datasets.digits().train_images - 1
    options = {"objective": "simple", "batch_size": 64, "learning_rate": 3e-3, "validation": 0, "progress_bar": False}
    result = nd.fit(jax.random.key(1), untrained, images, max_steps=max_steps, **options)
    return nd.DiffusionPrior(result.process)


def main() -> None:
    """Learn all, print their reports, save them."""
    prior = nd.fit_prior(jax.random.key(0), table_with_holes()[1], max_steps=400, progress_bar=False)
    print(prior.report(), flush=True)
    prior.save(FOLDER / "diabetes.safetensors", card={"data": "scikit-learn's diabetes, with cells taken out"})
    curves = windows(epidemics()[0])[0]
    prior = nd.fit_prior(jax.random.key(0), curves, max_steps=1000, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "epidemics.safetensors", card={"data": "Covid3Month, as sktime ships it: log smooth cases"})
    prior = nd.fit_prior(jax.random.key(0), demand()[0], max_steps=1000, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "demand.safetensors", card={"data": "896 days of ItalyPowerDemand, as sktime ships it"})
    examples, log_length = fields(np.random.default_rng(0), 4000)
    prior = nd.fit_prior(jax.random.key(0), examples, context=log_length, max_steps=2000, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "fields.safetensors", card={"data": "4,000 draws of Matérn 3/2 processes, log length scales"})
    prior = nd.fit_prior(jax.random.key(0), turned(galaxies()[0]), max_steps=800, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "galaxies.safetensors", card={"data": "cut-outs of scikit-image's Hubble deep field, a JPEG"})
    nd.save_diffusers(ddpm(), FOLDER / "ddpm-digits")


if __name__ == "__main__":
    main()
