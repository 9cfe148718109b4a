"""Recipes: what to see, which model, how to train; pydantic models, YAML files and ``--set`` overrides.

Every fault of a recipe is reported at once, unknown keys with the nearest known one. Recipes hold plain
values only: names of adapters, never of Python objects.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from maectl.adapter import Channels
from maectl.errors import UsageError

__all__ = ["SIZES", "DataRecipe", "ModelRecipe", "Recipe", "TrainRecipe", "load", "named", "shipped", "text"]


def _size(width: int, depth: int, heads: int, *decoder: int) -> dict[str, int]:
    names = ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
    return dict(zip(names, (width, depth, heads, *decoder), strict=True))


SIZES: dict[str, dict[str, int]] = {
    # Encoders: tiny and small as DeiT (Touvron et al. 2021, Table 1), base to huge as ViT (Dosovitskiy et al.
    # 2021, Table 1). Decoders: He et al. 2021 use 512x8 for all; it would be 81 % of small's cost, so tiny and
    # small get lighter ones.
    "tiny": _size(192, 12, 3, 128, 2, 4),
    "small": _size(384, 12, 6, 256, 4, 8),
    "base": _size(768, 12, 12, 512, 8, 16),
    "large": _size(1024, 24, 16, 512, 8, 16),
    "huge": _size(1280, 32, 16, 512, 8, 16),
}


def _pair(value: object) -> object:
    """A bare number means a square."""
    return (value, value) if isinstance(value, int) else value


def _single(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _texts(value: object) -> object:
    """[4, 3, 2] are names of channels, too."""
    whole = isinstance(value, list | tuple) and all(type(each) in (int, str) for each in value)
    return tuple(map(str, value)) if whole else value  # type: ignore[call-overload]


def _off(value: object) -> object:
    """YAML 1.1 reads a bare off as false."""
    return "off" if value is False else value


def _switch(value: object) -> object:
    """YAML 1.1 reads bare on and off as truths."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Positive = Annotated[int, Field(gt=0)]
Above0 = Annotated[float, Field(gt=0)]
Extent = Annotated[
    tuple[Positive, Positive] | tuple[Positive, Positive, Positive] | Literal["auto"], BeforeValidator(_pair)
]
Globs = Annotated[tuple[str, ...], BeforeValidator(_single)]
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, no key that is not known, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeanStd(Section):
    """Given statistics, one value a channel, in the images' own unit."""

    mean: tuple[float, ...]
    std: tuple[Above0, ...]

    @model_validator(mode="after")
    def _paired(self) -> "MeanStd":
        if len(self.mean) != len(self.std):
            raise ValueError(f"normalize has {len(self.mean)} means and {len(self.std)} deviations")
        return self


class Display(Section):
    """How panels show an image: which channels as red, green, blue (or one), and which values as black, white."""

    channels: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None


class DataRecipe(Section):
    """Which images, and how the model sees them."""

    adapter: str | None = None  # None: chosen by looking at the files
    options: dict[str, Any] = {}  # the adapter's own
    channels: Annotated[Channels, BeforeValidator(_texts)] = "auto"  # auto (what most images have), a count, or names
    normalize: Literal["dataset", "image", "foreground", "percentiles"] | MeanStd = "dataset"
    clip: tuple[float, float] | None = None  # in the images' unit, before statistics
    include: Globs = ()  # globs on the path below the folder
    exclude: Globs = ()
    group: str | None = None  # regex on the path; what it captures must not straddle a split
    axis: str | None = None  # the axis a 2-D model slices volumes along: axial, coronal, ...; None: as acquired
    crop: str = "image"  # image, or a window: 224px | 2240m | 90mm
    crop_scale: tuple[Share, Share] = (0.2, 1.0)  # share of the image's (or window's) area
    crop_ratio: tuple[Above0, Above0] = (3 / 4, 4 / 3)  # width over height
    flip: Annotated[tuple[Literal["horizontal", "vertical", "depth"], ...], BeforeValidator(_single)] = ("horizontal",)
    rotate: bool = False  # by quarter turns, each as likely: with flips all eight ways a square can lie
    crops_per_image: Positive = 1  # of one decoding, one after another; an epoch shows as many images as ever
    resize: Literal["cpu", "device"] = "cpu"  # where crops are resized; device: within two grey levels of cpu
    min_valid: Fraction = 0.5  # a crop with fewer valid pixels is drawn again, up to ten times
    min_contrast: Fraction = 0.0  # so is one whose deviation is a smaller share of the one it is normalised with
    display: Display = Display()
    store: Annotated[str, BeforeValidator(_off)] = "auto"  # auto | off | a folder
    store_form: Literal["auto", "raw", "compact"] = "auto"  # compact: 8-bit images as JPEG, auto where raw does not fit
    store_max_side: Positive | Literal["auto"] = (
        "auto"  # px, of 8-bit images; auto: their own, compact 8/7 of the model's
    )
    verify: Literal["auto", "all"] | Annotated[int, Field(ge=0)] = "auto"  # sources decoded before step 1
    max_bad: Fraction = 1.0  # a larger share of files that cannot be used stops the run

    @model_validator(mode="after")
    def _sane(self) -> "DataRecipe":
        window = re.fullmatch(r"([0-9]+(\.[0-9]+)?)(px|mm|m)", self.crop)
        if self.crop != "image" and (window is None or float(window[1]) == 0):
            raise ValueError(f"crop {self.crop!r} is neither 'image' nor a size such as 224px, 90mm or 2240m")
        for name in ("crop_scale", "crop_ratio", "clip"):
            pair = getattr(self, name)
            if pair is not None and not pair[0] <= pair[1]:
                raise ValueError(f"{name} {list(pair)} must be [low, high]")
        if self.group is not None:
            try:
                re.compile(self.group)
            except re.error as error:
                raise ValueError(f"group {self.group!r} is not a regular expression: {error}") from None
        return self


class ModelRecipe(Section):
    """The masked autoencoder; a field left out follows from ``size``."""

    size: Literal["tiny", "small", "base", "large", "huge"] = "base"
    image_size: Extent = (224, 224)  # auto: the images' own size, rounded to 16 px and at most 96
    patch_size: Extent = (16, 16)  # auto: an eighth of the image size
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    norm_pix_loss: bool = True
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    decoder_width: Positive | None = None
    decoder_depth: Positive | None = None
    decoder_heads: Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ModelRecipe":
        if isinstance(self.image_size, str) or isinstance(self.patch_size, str):
            return self  # auto: resolved once the images are known
        if len(self.image_size) != len(self.patch_size):
            raise ValueError(
                f"image_size {list(self.image_size)} and patch_size {list(self.patch_size)} differ in length"
            )
        sides = list(zip(self.image_size, self.patch_size, strict=True))
        if any(size % patch for size, patch in sides):
            nearest = [max(1, round(size / patch)) * patch for size, patch in sides]
            raise ValueError(
                f"patch_size {list(self.patch_size)} does not divide image_size {list(self.image_size)}: "
                f"use image_size {nearest}"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """The plain arguments of `maectl.mae.MaskedAutoencoder`, less ``channels``."""
        shape = {key: getattr(self, key) or default for key, default in SIZES[self.size].items()}
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "norm_pix_loss": self.norm_pix_loss,
            **shape,
        }


class TrainRecipe(Section):
    """How long and how fast; defaults are the reference's (He et al. 2021, Table 8)."""

    epochs: Above0 = 800
    warmup_epochs: Annotated[float, Field(ge=0)] = 40  # never more than a tenth of the steps
    batch_size: Positive = 4096  # images an optimizer step, all processes together; in a recipe, a maximum
    micro_batch: Positive | Literal["auto"] = "auto"  # images at once a process; auto: what fits in memory
    base_lr: Above0 = 1.5e-4  # learning rate per 256 images of the batch
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"  # torch.compile; auto: on CUDA
    checkpointing: bool = False  # compute activations again in backward: slower, a fraction of the memory
    keep: Annotated[int, Field(ge=1)] = 2  # whole checkpoints; weights alone are kept at each tenth
    checkpoint_minutes: Above0 = 10


class Recipe(Section):
    """A whole recipe."""

    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    train: TrainRecipe = TrainRecipe()

    @model_validator(mode="after")
    def _turns(self) -> "Recipe":
        size = self.model.image_size
        if "depth" in self.data.flip and len(size) == 2:
            raise ValueError("data.flip depth: a 2-D model sees no depth; leave it out")
        if self.data.rotate and not isinstance(size, str) and (len(size) != 2 or size[0] != size[1]):
            raise ValueError(f"data.rotate turns square images, model.image_size is {list(size)}; leave it out")
        return self

    def updated(self, changes: Mapping[str, Mapping[str, Any]]) -> "Recipe":
        """A copy with ``{section: {key: value}}`` replaced, validated again."""
        whole = self.model_dump(mode="json")
        for section, values in changes.items():
            whole[section].update(values)
        return _validated(whole, "recipe")

    def yaml(self) -> str:
        """The recipe as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def shipped() -> dict[str, Path]:
    """The recipes that come with maectl, by name.

    Installed from a wheel they lie inside the package; in a checkout beside it.
    """
    inside = Path(__file__).parent / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def text(name: str) -> str:
    """The text of a shipped recipe. Raises UsageError with the nearest name."""
    if name not in shipped():
        raise UsageError(f"there is no recipe {name!r}{_nearest(name, shipped())}: see 'maectl recipes'")
    return shipped()[name].read_text(encoding="utf-8")


def named(name: str) -> str:
    """What a shipped recipe is for: the first line of its header."""
    return text(name).splitlines()[0].lstrip("# ")


def load(name: str | None, overrides: Iterable[str] = ()) -> tuple[Recipe, set[str]]:
    """A recipe by name or file (None: all defaults) with ``KEY=VALUE`` overrides, and the keys overridden.

    Raises UsageError that names every fault.
    """
    where = name or "the default recipe"
    if name is None:
        whole: Any = {}
    elif name.endswith((".yaml", ".yml")) or "/" in name:
        whole = _parsed(_file_text(Path(name)), where)
    else:
        whole = _parsed(text(name), where)
    explicit = set()
    for override in overrides:
        key, sep, value = override.partition("=")
        section, dot, field = key.strip().partition(".")
        if not (sep and dot):
            raise UsageError(f"--set {override}: write it as --set SECTION.KEY=VALUE, e.g. model.mask_ratio=0.8")
        inner, *path = field.split(".")
        target = whole.setdefault(section, {})
        for step in path:  # data.options.max_pixels=...
            if not isinstance(target.get(inner), dict):
                target[inner] = {}
            target, inner = target[inner], step
        target[inner] = _yaml_value(value, override)
        explicit.add(key.strip())
    return _validated(whole, where), explicit


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None


def _parsed(source: str, where: str) -> dict[str, Any]:
    try:
        whole = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if whole is None:
        return {}
    if not isinstance(whole, dict) or not all(value is None or isinstance(value, dict) for value in whole.values()):
        raise UsageError(f"{where} must hold the sections data, model and train, each with keys below it")
    return {section: value or {} for section, value in whole.items()}


def _yaml_value(value: str, override: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        if value[:1] in "[{'\"":
            raise UsageError(f"--set {override}: {value!r} is not a YAML value") from None
        return value  # a glob (*.png), say


def _validated(whole: Any, where: str) -> Recipe:
    try:
        return Recipe.model_validate(whole)
    except ValidationError as error:
        faults = dict.fromkeys(_fault(dict(fault)) for fault in error.errors())
        raise UsageError(f"{where}: " + "; ".join(faults)) from None


def _fault(fault: dict[str, Any]) -> str:
    """One fault in one phrase: where, what is wrong, and with which value."""
    known: dict[str, Any] = {"": Recipe, "data": DataRecipe, "model": ModelRecipe, "train": TrainRecipe}
    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        section = known.get(".".join(place[:-1]))
        near = _nearest(place[-1], section.model_fields) if section else ""
        return f"unknown key {'.'.join(place)}{near}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place[0]}: {message}" if place else message
    return f"{'.'.join(place[:2])}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""
