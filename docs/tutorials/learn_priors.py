"""Learn the priors that five tutorials load, so that these pages are made in seconds: some minutes on one core.

python docs/tutorials/learn_priors.py

Writes diabetes.safetensors (six columns with missing cells), epidemics.safetensors (simulated epidemics),
demand.safetensors (days of electricity demand), galaxies.safetensors (cut-outs of a deep field) and the folder
ddpm-digits (a DDPM pipeline of small digits) beside itself.
"""

import importlib.util
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
from scipy import ndimage
from sklearn.datasets import load_diabetes

import numpyro_diffusion as nd

FOLDER = Path(__file__).parent
DAYS = 21
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


def epidemics(rng: np.random.Generator, count: int) -> np.ndarray:
    """Log infections a day, shape (count, DAYS): a renewal equation, in half of them with a measure on some day."""
    interval = np.arange(1, 15) * np.exp(-np.arange(1, 15) / 2.5)
    interval /= interval.sum()
    log_r = rng.normal(0.1, 0.25, count)[:, None] + np.cumsum(rng.normal(0, 0.02, (count, DAYS)), 1)
    day = rng.integers(3, DAYS - 3, count)
    measure = np.where(rng.uniform(size=count) < 0.5, rng.uniform(0.3, 1.0, count), 0.0)
    log_r -= measure[:, None] * (np.arange(DAYS) >= day[:, None])
    infections = np.exp(rng.normal(5.0, 0.5, count))[:, None] * np.ones((count, 14))
    for step in range(DAYS):
        new = np.exp(log_r[:, step]) * (infections[:, -14:][:, ::-1] @ interval)
        infections = np.column_stack([infections, new])
    return np.log(infections[:, -DAYS:])


def demand() -> tuple[np.ndarray, np.ndarray]:
    """Days of electricity demand in Italy, to learn from and held out, shapes (896, 24) and (200, 24).

    sktime ships them; it takes long to import, so its files are read as they are: a line has 24 numbers and a class.
    """
    folder = Path(importlib.util.find_spec("sktime").submodule_search_locations[0])
    files = [folder / f"datasets/data/ItalyPowerDemand/ItalyPowerDemand_{part}.ts" for part in ("TRAIN", "TEST")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").partition("@data")[2].split()]
    days = np.array([line.partition(":")[0].split(",") for line in lines], float)
    days = np.random.default_rng(0).permutation(days)
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
    examples = epidemics(np.random.default_rng(0), 1000)
    prior = nd.fit_prior(jax.random.key(0), examples, max_steps=1000, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "epidemics.safetensors", card={"data": "1,000 simulated epidemics, log infections a day"})
    prior = nd.fit_prior(jax.random.key(0), demand()[0], max_steps=1000, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "demand.safetensors", card={"data": "896 days of ItalyPowerDemand, as sktime ships it"})
    prior = nd.fit_prior(jax.random.key(0), turned(galaxies()[0]), max_steps=800, progress_bar=False)
    print(prior.report())
    prior.save(FOLDER / "galaxies.safetensors", card={"data": "cut-outs of scikit-image's Hubble deep field, a JPEG"})
    nd.save_diffusers(ddpm(), FOLDER / "ddpm-digits")


if __name__ == "__main__":
    main()
