"""What many tests share: small folders of real image files, made anew, and the command line as a process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: models this small only lose by more threads

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real images, where the machine has them."""
    if not DATA.is_dir():
        pytest.skip("the folder ../shared/data with real images is not on this machine")
    return DATA


def picture(seed: int, height: int = 40, width: int = 48, channels: int = 3) -> np.ndarray:
    """A smooth random uint8 picture [H, W, C], so that there is something to fill in."""
    generator = np.random.default_rng(seed)
    row, column = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(generator.uniform(0.1, 0.5) * row + generator.uniform(0.1, 0.5) * column + generator.uniform(0, 6))
        for _ in range(channels)
    ]
    return np.stack([(127 + 90 * wave).astype(np.uint8) for wave in waves], axis=-1)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """24 JPEG and PNG pictures of several sizes in nested folders, with a text file between."""
    folder = tmp_path / "photographs"
    for number in range(24):
        where = folder / f"set{number % 3}"
        where.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture(number, 36 + number, 60 - number))
        image.save(where / (f"{number:02d}.jpg" if number % 2 else f"{number:02d}.png"))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def maectl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own; the tests' warnings are errors there too."""

    def run(*arguments: object, timeout: float = 120, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maectl", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


SMALL = [
    "model.image_size=32", "model.patch_size=8", "model.width=32", "model.depth=2", "model.heads=2",
    "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "train.precision=fp32",
    "train.base_lr=1e-2",
]  # fmt: skip


@pytest.fixture
def small() -> list[str]:
    """Overrides for a model that trains in a second, in float32."""
    return list(SMALL)
