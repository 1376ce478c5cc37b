"""JPEG shards of real photographs, to measure reading with: made once, kept outside the repository.

    python benchmarks/photos.py --samples 2000

scikit-image and scikit-learn carry a dozen photographs in their wheels, so nothing is downloaded. Each sample is a
random cut of one of them, resized to 0.3 to 0.5 megapixels and saved as the web saves photographs: quality 80 to 95,
halved chroma. The same numbers give the same shards.
"""

from __future__ import annotations

import argparse
import io
import math
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.data.shard_writers import ShardWriter

CACHE = Path("~/.cache/clip-on-ray/photos").expanduser()
SAMPLES_A_SHARD = 500
MEGAPIXELS = (0.3, 0.5)
SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
WORDS = (  # noqa: SIM905
    "a photo of the old red small large bright dark close view street temple flower cat coffee cup rocket "
    "launch night sky galaxy motorcycle garage portrait astronaut smiling cell tissue eye roof tree in on "
    "under with and behind near "
).split()


@cache
def _photographs() -> list[Image.Image]:
    import skimage
    import sklearn.datasets

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    paths = [
        folder / name for folder, names in zip(folders, (SCIKIT_IMAGE, SCIKIT_LEARN), strict=True) for name in names
    ]
    return [Image.open(path).convert("RGB") for path in paths]


def _sample(rng: np.random.Generator) -> dict[str, bytes]:
    """One photograph's cut as .jpg, with a made-up caption of 5 to 20 words as .txt."""
    photographs = _photographs()
    photograph = photographs[int(rng.integers(len(photographs)))]
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(16 / 9)))
    full_width, full_height = photograph.size
    share = rng.uniform(0.6, 1.0)
    width = min(full_width, full_height * aspect) * share
    height = width / aspect
    left, top = rng.uniform(0, full_width - width), rng.uniform(0, full_height - height)
    pixels = rng.uniform(*MEGAPIXELS) * 1e6
    size = (round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect)))
    cut = photograph.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    encoded = io.BytesIO()
    cut.save(encoded, "JPEG", quality=int(rng.integers(80, 96)), subsampling="4:2:0")
    caption = " ".join(rng.choice(WORDS, size=int(rng.integers(5, 21))))
    return {"jpg": encoded.getvalue(), "txt": caption.encode()}


def _write_shard(folder: Path, number: int) -> Path:
    path = folder / f"{number:05d}.tar"
    if not path.exists():
        with ShardWriter(str(path)) as writer:
            for index in range(SAMPLES_A_SHARD):
                writer.write(f"{number:05d}{index:04d}", _sample(np.random.default_rng([number, index])))
    return path


def photo_shards(samples: int, processes: int, folder: Path = CACHE) -> list[str]:
    """Paths of shards that hold at least so many samples; those not there yet are written.

    Parameters
    ----------
    samples : wanted; rounded up to whole shards of 500
    processes : that write
    folder : where the shards are kept
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(math.ceil(samples / SAMPLES_A_SHARD))
    if all((folder / f"{number:05d}.tar").exists() for number in numbers):
        return [str(folder / f"{number:05d}.tar") for number in numbers]
    print(f"writing {samples:,} photographs to {folder}", flush=True)
    with ProcessPoolExecutor(processes) as pool:
        return [str(path) for path in pool.map(partial(_write_shard, folder), numbers)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    shards = photo_shards(arguments.samples, arguments.processes)
    size = sum(Path(shard).stat().st_size for shard in shards)
    print(f"{len(shards)} shards, {size / 1e6:,.0f} MB, {size / len(shards) / SAMPLES_A_SHARD / 1e3:.0f} kB a sample")
