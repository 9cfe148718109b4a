"""Recipes: every fault at once and in words, overrides, the shipped ones, and the way to YAML and back."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maectl import recipe
from maectl.errors import UsageError
from maectl.recipe import SIZES, Recipe, load, named, shipped, text
from maectl.registry import load as adapter
from maectl.scan import made


def fault(*overrides: str, name: str | None = None) -> str:
    """The one line a user is shown."""
    with pytest.raises(UsageError) as caught:
        load(name, overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert "pydantic" not in line
    return line


@pytest.fixture
def file(tmp_path: Path):
    def write(content: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def test_every_fault_of_a_recipe_is_told_at_once(file):
    name = file(
        "data: {chanels: 3, crop: huge}\nmodel: {mask_ratio: 1.5, size: enormous}\n"
        "train: {epochs: -1, warmup: 3, base_lr: .nan}\nextra: {a: 1}\n"
    )
    line = fault(name=name)
    for part in (
        "unknown key data.chanels (did you mean channels?)", "model.mask_ratio: ", "not 1.5", "model.size: ",
        "not 'enormous'", "train.epochs: ", "not -1", "unknown key train.warmup (did you mean warmup_epochs?)",
        "train.base_lr: ", "not nan", "unknown key extra",
    ):  # fmt: skip
        assert part in line
    assert line.startswith(name)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.mask_ration=0.8", "did you mean mask_ratio?"),
        ("modell.size=tiny", "did you mean model?"),
        ("train.zzz=1", "unknown key train.zzz"),
        ("model.mask_ratio=0.8.1", "model.mask_ratio"),
        ("mask_ratio=0.8", "write it as --set SECTION.KEY=VALUE"),
        ("model.mask_ratio", "write it as --set SECTION.KEY=VALUE"),
        ("data.include=[*", "is not a YAML value"),
        ("model.patch_size=15", "patch_size [15, 15] does not divide image_size [224, 224]: use image_size [225, 225]"),
        ("model.patch_size=[16, 16, 16]", "differ in length"),
        ("data.crop=0px", "neither 'image' nor a size"),
        ("data.crop=224", "data.crop"),
        ("data.crop_scale=[0.9, 0.2]", "crop_scale [0.9, 0.2] must be [low, high]"),
        ("data.crop_ratio=[0, 1]", "data.crop_ratio"),
        ("data.group=(", "is not a regular expression"),
        ("data.normalize={mean: [1, 2], std: [1]}", "2 means and 1 deviations"),
        ("data.clip=[0, .inf]", "finite"),
        ("train.epochs=.inf", "finite"),
        ("train.seed=18446744073709551616", "train.seed"),
        ("train.batch_size=0", "train.batch_size"),
        ("data.options=3", "data.options"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_is_wrong(override: str, told: str):
    assert told in fault(override)


def test_a_size_that_the_patch_does_not_divide_is_given_one_that_it_does():
    line = fault("model.image_size=[230, 100]", "model.patch_size=[16, 14]")
    nearest = re.search(r"use image_size \[(\d+), (\d+)\]", line)
    assert [int(side) % patch for side, patch in zip(nearest.groups(), (16, 14), strict=True)] == [0, 0]


def test_overrides_replace_what_the_recipe_says_and_are_reported():
    given_, explicit = load("photographs", ["model.mask_ratio=0.5", "train.base_lr=1e-3", "model.image_size=64"])
    assert given_.model.mask_ratio == 0.5
    assert given_.train.base_lr == 1e-3  # YAML 1.1 takes it for text
    assert given_.model.image_size == (64, 64)
    assert given_.train.epochs == load("photographs")[0].train.epochs
    assert explicit == {"model.mask_ratio", "train.base_lr", "model.image_size"}
    assert load(None, ["train.epochs=1", "train.epochs=2"])[0].train.epochs == 2


def test_overrides_reach_into_nested_options():
    given_, explicit = load(None, ["data.options.max_pixels=9", "data.options.a.b=[1, x]", "data.display.range=[0, 5]"])
    assert given_.data.options == {"max_pixels": 9, "a": {"b": [1, "x"]}}
    assert given_.data.display.range == (0, 5)
    assert explicit == {"data.options.max_pixels", "data.options.a.b", "data.display.range"}
    # what stood there before makes way instead of breaking the program
    assert load(None, ["data.options=3", "data.options.a=1"])[0].data.options == {"a": 1}
    assert "model.mask_ratio" in fault("model.mask_ratio=0.3", "model.mask_ratio.deep=1")


@pytest.mark.parametrize("word", ["off", "no", "false", "'off'", "Off"])
def test_yaml_reads_off_as_false_and_the_store_is_off_all_the_same(word: str, file):
    assert load(None, [f"data.store={word}"])[0].data.store == "off"
    assert load(file(f"data:\n  store: {word}\n"))[0].data.store == "off"


def test_a_word_stands_for_a_list_of_one():
    given_ = load(None, ["data.include=*.png", "data.flip=vertical"])[0]
    assert given_.data.include == ("*.png",)
    assert given_.data.flip == ("vertical",)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_loads_and_says_why(name: str):
    header = text(name).split("data:")[0]
    assert named(name) in header
    assert len(named(name)) > 20
    assert all(line.startswith("#") for line in header.strip().splitlines())
    assert "Confidence" in header
    given_, explicit = load(name)
    assert explicit == set()
    assert given_.data.adapter in {None, "natural", "medical", "satellite"}  # None: whoever reads the files


def test_shipped_recipes_lie_where_the_readme_says():
    assert set(shipped()) >= {"photographs", "small-images"}
    assert all(path.suffix == ".yaml" for path in shipped().values())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("photograph", "there is no recipe 'photograph' (did you mean photographs?): see 'maectl recipes'"),
        ("nowhere.yaml", "recipe nowhere.yaml cannot be read"),
        ("/", "cannot be read"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(name: str, told: str):
    assert told in fault(name=name)


@pytest.mark.parametrize(
    "content",
    ["- a list", "data: [1, 2]", "just words", "data: [1", "data: {3: 4, [1]: 5}", "a: \0", "data: &x {a: *y}"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: str, file):
    assert "mine.yaml" in fault(name=file(content))


def test_no_recipe_names_a_python_object(file):
    assert "is not YAML" in fault(name=file("data: !!python/object/apply:os.system ['true']"))


def test_empty_sections_and_an_empty_file_are_the_defaults(file):
    assert load(file(""))[0] == load(file("data:\nmodel:\n"))[0] == load(None)[0] == Recipe()


contents = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "channels": st.just("auto") | st.integers(1, 13) | st.lists(st.text("ab", min_size=1), min_size=1),
                "normalize": st.sampled_from(["dataset", "image", "percentiles", {"mean": [1.5, 2], "std": [3, 4]}]),
                "clip": st.tuples(st.floats(-1e6, 0), st.floats(0, 1e6)),
                "group": st.sampled_from([None, r"^(\w+)_", "é+"]),
                "crop": st.sampled_from(["image", "224px", "90mm", "2240.5m"]),
                "options": st.dictionaries(st.text(max_size=4), st.booleans() | st.text(max_size=5), max_size=3),
                "store": st.sampled_from(["auto", "off", "/scratch/store", "no", "3"]),
                "include": st.lists(st.text(max_size=5), max_size=2),
            },
        ),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "size": st.sampled_from(sorted(SIZES)),
                "image_size": st.sampled_from(["auto", 64, [64, 128]]),
                "width": st.none() | st.integers(1, 999),
                "patch_size": st.sampled_from(["auto", 8, [16, 32]]),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={"epochs": st.floats(1e-3, 1e9), "seed": st.integers(0, 2**63 - 1), "base_lr": st.floats(1e-9, 1)},
        ),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(contents)
def test_a_recipe_survives_the_way_to_yaml_and_back(content):
    try:
        whole = Recipe.model_validate(content)
    except ValueError:  # an image size that the patch does not divide
        return
    assert Recipe.model_validate(yaml.safe_load(whole.yaml())) == whole


def test_auto_sizes_are_resolved_from_the_images_and_the_sizes_fill_in_the_model(photographs, tmp_path):
    from maectl.prepare import scan_with_recipe

    chosen, found = scan_with_recipe([photographs], None, None, (), tmp_path, 1)
    assert chosen.model.image_size == (48, 48)  # the median short side, 43 or so, to 16 px
    assert chosen.model.patch_size == (6, 6)
    assert chosen.data.adapter == found.adapter.name == "natural"
    for name, sizes in SIZES.items():
        arguments = Recipe.model_validate({"model": {"size": name, "depth": 5}}).model.arguments()
        assert arguments == {
            "image_size": (224, 224), "patch_size": (16, 16), "norm_pix_loss": True, **sizes, "depth": 5
        }  # fmt: skip


def test_updating_validates_again():
    updated = Recipe().updated({"model": {"mask_ratio": 0.5}, "train": {"seed": 7}})
    assert (updated.model.mask_ratio, updated.train.seed) == (0.5, 7)
    with pytest.raises(UsageError, match="does not divide"):
        Recipe().updated({"model": {"patch_size": [15, 15]}})


def test_options_an_adapter_does_not_have_are_all_named():
    options = {"max_pixel": 3, "other": 4}
    with pytest.raises(UsageError, match=r"options\.max_pixel: .*data\.options\.other: .*its options: max_pixels"):
        made(adapter("natural"), Recipe.model_validate({"data": {"options": options}}).data)
    for channels in (7, 0, "blue", ["x"]):
        with pytest.raises(UsageError, match=r"natural: data\.channels: "):
            made(adapter("natural"), Recipe.model_validate({"data": {"channels": channels}}).data)
    with pytest.raises(UsageError, match=r"set data\.channels instead"):
        made(adapter("natural"), Recipe.model_validate({"data": {"options": {"channels": 1}}}).data)


def test_installed_recipes_are_found_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "one.yaml").write_text("# One\n")
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "recipe.py"))
    assert list(shipped()) == ["one"]
