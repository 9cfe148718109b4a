"""How close a reconstruction is, in the image's unit, beside two trivial predictions of the same patches.

Shapes: C channels, S the image's spatial shape, M pixels measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels
from maectl.tiling import Layout, Mask

__all__ = ["MEANS", "compared", "fidelity", "joined", "mean", "nearest_visible", "patch_means"]

ROUNDING = 1e-6  # of the peak: an error below comes of computing in float32
RIVALS = ("patch_mean", "nearest_visible")
MEANS = tuple(f"{measure}_{name}" for name in ("masked", *RIVALS) for measure in ("mse", "psnr"))
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Constants = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def fidelity(
    values: npt.NDArray[Any], predicted: Floats, at: Bools, peak: float, rivals: dict[str, Floats]
) -> dict[str, Any]:
    """``mse_NAME`` and ``psnr_NAME`` of the prediction (``masked``) and its rivals, over the pixels ``at``.

    ``values`` and predictions are [C, *S], ``at`` bool [*S], rivals [C, M]. PSNR, in dB, is None where
    nothing is wrong (but for float32's rounding) or the peak is 0.
    """
    truth = values[:, at].astype(np.float32)
    named = {"masked": predicted[:, at], **rivals}
    errors = {name: float(np.square(each - truth, dtype=np.float64).mean()) for name, each in named.items()}
    return _told(errors, int(at.sum()), peak)


def joined(parts: Sequence[dict[str, Any]], peak: float) -> dict[str, Any]:
    """`fidelity` of an image, from that of its slices: squared errors are averaged over all their pixels."""
    pixels = np.array([part["pixels"] for part in parts])
    names = [key.removeprefix("mse_") for key in parts[0] if key.startswith("mse_")]
    errors = {name: float(np.average([part[f"mse_{name}"] for part in parts], weights=pixels)) for name in names}
    return _told(errors, int(pixels.sum()), peak)


def _told(errors: dict[str, float], pixels: int, peak: float) -> dict[str, Any]:
    result: dict[str, Any] = {"psnr_peak": peak, "pixels": pixels}
    for name, error in errors.items():
        result[f"mse_{name}"] = error
        result[f"psnr_{name}"] = 10 * float(np.log10(peak**2 / error)) if error > (ROUNDING * peak) ** 2 > 0 else None
    return result


def patch_means(
    values: npt.NDArray[Any],
    at: Bools,
    patches: Sequence[npt.NDArray[np.int64]],
    cells: tuple[int, ...],
    constants: Constants | None = None,
) -> Floats:
    """[C, M] each pixel of ``at`` predicted by the mean of those pixels of its patch, channel by channel.

    ``patches`` say along each axis which of ``cells`` patches a pixel lies in (`tiling.places`).
    With ``constants``, mean and deviation [C], by one mean of all channels, each normalised with them: what a
    model that normalises its target (``norm_pix_loss``) is told of a patch. `baselines.patch_mean` does alike.
    """
    patch = np.ravel_multi_index(np.ix_(*patches), cells)[at]  # [M]
    count = np.maximum(np.bincount(patch), 1)
    inside = values[:, at].astype(np.float64)
    mean, std = (np.zeros(len(values)), np.ones(len(values))) if constants is None else constants
    normalised = (inside - mean[:, None]) / std[:, None]
    if constants is not None:
        normalised = np.broadcast_to(normalised.mean(axis=0), normalised.shape)
    means = np.array([(np.bincount(patch, weights=channel) / count)[patch] for channel in normalised])
    return (means * std[:, None] + mean[:, None]).astype(np.float32)


def nearest_visible(seen: Pixels, plan: Layout, chosen: Sequence[Mask]) -> Floats:
    """[C, *size] every pixel of a removed patch predicted by the visible patch nearest on the lattice, else 0.

    ``seen`` is the image at the model's scale, [C, *size], and so is the prediction. With several masks a patch is
    copied to where its prediction is used; invalid pixels count as the channel's mean.
    """
    from scipy import ndimage  # half a second of imports

    patches = _split(seen.values.astype(np.float32), plan)
    copied = np.zeros_like(patches)
    for mask in chosen:
        removed, used = plan.spread(mask.removed), plan.spread(mask.used)
        nearest = ndimage.distance_transform_edt(removed, return_distances=False, return_indices=True)
        copied[used] = patches[tuple(nearest[:, used])]
    return _joined(copied, plan)


def _split(values: Floats, plan: Layout) -> Floats:
    """[C, *size] -> [*G, C, *patch]."""
    axes = len(plan.size)
    pairs = [side for pair in zip(plan.cells, plan.patch, strict=True) for side in pair]
    return values.reshape(-1, *pairs).transpose(*range(1, 2 * axes, 2), 0, *range(2, 2 * axes + 1, 2))


def _joined(patches: Floats, plan: Layout) -> Floats:
    """[*G, C, *patch] -> [C, *size]."""
    axes = len(plan.size)
    pairs = [side for axis in range(axes) for side in (axis, axes + 1 + axis)]
    return np.ascontiguousarray(patches.transpose(axes, *pairs)).reshape(-1, *plan.size)


def mean(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over images, of MSE and of PSNR (not the PSNR of a mean).

    For PSNR an image counts where none of its three values is None, so that means can be compared.
    """
    known = [entry for entry in entries if all(entry[key] is not None for key in MEANS)]
    means: dict[str, Any] = {}
    for key in MEANS:
        values = [entry[key] for entry in (entries if key.startswith("mse") else known)]
        means[key] = float(np.mean(values)) if values else None
    return means


def compared(entry: dict[str, Any]) -> str:
    """The PSNR beside its rivals', in words."""
    ours, means, nearest = (
        "-" if entry[f"psnr_{name}"] is None else f"{entry[f'psnr_{name}']:.2f} dB" for name in ("masked", *RIVALS)
    )
    return f"PSNR {ours} over removed patches (each patch's own mean {means}, nearest visible patch {nearest})"
