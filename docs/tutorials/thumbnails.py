"""Make the gallery's thumbnails from pictures of the built tutorials.

python docs/tutorials/thumbnails.py site      # after a build into `site`; writes docs/images/tutorials/*.png
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np

# Which of its pictures stands for a page, counted from 0.
CHOSEN = {
    "ten_minutes": 1, "missing_hours": 1, "table_with_holes": 1, "nowcasting": 2, "spatial_field": 2,
    "deblurring": 1, "tomography": 0, "galaxies": 2, "which_prior": 1, "is_it_right": 3, "own_network": 0,
    "diffusers_model": 1,
}  # fmt: skip
WIDTH, HEIGHT, DPI = 4.0, 2.0, 80
STRIP = 4.0  # what is wider than so many times its height is cut in two, one half below the other


def stacked(picture: np.ndarray) -> np.ndarray:
    """A row of panels as two rows of them; other pictures as they are."""
    half = picture.shape[1] // 2
    if picture.shape[1] < STRIP * picture.shape[0]:
        return picture
    return np.concatenate([picture[:, :half], picture[:, -half:]])


def main(site: Path) -> None:
    """A picture of one size for each page, whatever the shape of what it shows."""
    for page, number in CHOSEN.items():
        html = (site / "tutorials" / f"{page}.html").read_text(encoding="utf-8")
        pictures = re.findall(r'src="\.\./(_images/[0-9a-f]+\.png)"', html)
        picture = stacked(matplotlib.image.imread(site / pictures[number]))
        figure = plt.figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.clip(picture, 0, 1), interpolation="antialiased")
        axes.axis("off")
        figure.savefig(Path(__file__).parents[1] / "images" / "tutorials" / f"{page}.png")
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
