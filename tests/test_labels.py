"""Labels and splits: every layout, every error line, and that no group is ever in both parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maectl.errors import UsageError
from maectl.labels import Labels, duplicates, resolve, split


def found(paths: list[str], groups: list[int] | None = None, seed: int = 0, file: Path | None = None) -> Labels:
    dense = np.arange(len(paths)) if groups is None else np.array(groups)
    return resolve(paths, dense, labels_csv=file, folder="/data/set", seed=seed)


def csv_file(folder: Path, *lines: str) -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def files(*names: str, count: int = 4) -> list[str]:
    return [f"{name}/{i}.png" for name in names for i in range(count)]


def test_train_and_test_folders_give_classes_and_split() -> None:
    labels = found([*files("test/b", "test/a", "train/a", "train/b"), "train/a/series/1.dcm"])
    assert labels.classes == ("a", "b")
    assert labels.train.tolist() == [False] * 8 + [True] * 9
    assert labels.targets.tolist() == [1] * 4 + [0] * 8 + [1] * 4 + [0]
    assert labels.rows.tolist() == list(range(17))
    assert labels.split == "the folders train/ and test/"
    assert labels.notes == []


def test_kaggle_names_of_the_parts_are_understood() -> None:
    labels = found(files("Training/a", "Training/b", "Testing/a", "Testing/b"))
    assert labels.classes == ("a", "b")
    assert labels.train.sum() == 8


def test_other_folders_and_images_in_no_class_folder_are_left_out_with_a_note() -> None:
    given_paths = files("train/a", "train/b", "test/a", "test/b", "val/a")
    labels = found([*given_paths, "top.png", "train/bare.png"])
    assert len(labels.rows) == 16
    assert labels.notes == ["left out, in val/: 4 images", "left out, in no class folder: 2 images"]


def test_class_folders_are_split_by_seed_and_stratified() -> None:
    labels = found(files("a", "b", "c", count=50))
    assert [(labels.targets[~labels.train] == k).sum() for k in range(3)] == [15, 15, 15]
    assert labels.split == "seeded, stratified, by group: 30% for testing (seed 0)"
    again, other = found(files("a", "b", "c", count=50)), found(files("a", "b", "c", count=50), seed=1)
    assert (again.train == labels.train).all()
    assert (other.train != labels.train).any()


def test_two_images_a_class_are_enough() -> None:
    labels = found(files("a", "b", count=2))
    assert sorted(labels.targets[labels.train]) == sorted(labels.targets[~labels.train]) == [0, 1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60), st.integers(0, 2**32))
def test_a_split_never_divides_a_group(items: list[tuple[int, int]], seed: int) -> None:
    groups, targets = (np.array(column) for column in zip(*items, strict=True))
    for kinds in (targets, targets[:, None] > np.arange(3)):
        test = split(kinds, groups, 0.3, seed)
        assert not set(groups[test]) & set(groups[~test])
        assert (test == split(kinds, groups, 0.3, seed)).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=2, max_size=6), st.integers(0, 1000), st.sampled_from([0.25, 0.3]))
def test_a_split_of_single_images_takes_the_nearest_count_of_every_class(
    sizes: list[int], seed: int, share: float
) -> None:
    targets = np.repeat(np.arange(len(sizes)), sizes)
    test = split(targets, np.arange(len(targets)), share, seed)
    for k, size in enumerate(sizes):
        assert abs((targets[test] == k).sum() - share * size) <= 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(0, 1000))
def test_whole_groups_come_within_half_a_group_of_the_share(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    test = split(np.zeros(len(groups), np.int64), groups, 0.3, seed)
    assert abs(test.sum() - 0.3 * len(groups)) <= max(sizes) / 2
    assert test.any()
    assert not test.all()


def test_a_multi_label_split_keeps_every_label_near_its_share() -> None:
    targets = np.random.default_rng(0).random((400, 5)) < [0.02, 0.1, 0.3, 0.5, 0.7]
    test = split(targets, np.arange(400), 0.3, 0)
    shares = targets[test].sum(axis=0) / targets.sum(axis=0)
    assert (abs(shares - 0.3) < 0.13).all()
    assert abs(test.mean() - 0.3) < 0.05


def test_patients_of_several_classes_are_split_so_that_both_parts_have_every_class() -> None:
    groups = [i // 4 for i in range(40)]
    paths = [f"{'ab'[i % 4 == 0]}/{i:02}.png" for i in range(40)]
    labels = found(paths, groups)
    assert not set(labels.groups[labels.train]) & set(labels.groups[~labels.train])
    assert set(labels.targets[labels.train]) == set(labels.targets[~labels.train]) == {0, 1}


def test_test_images_of_groups_that_train_are_dropped_and_counted() -> None:
    paths = files("train/a", "train/b", "test/a", "test/b")
    labels = found(paths, [0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 9, 10, 5, 5, 11, 12])
    assert labels.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14, 15]
    assert labels.groups.max() == len(set(labels.groups.tolist())) - 1 == 12
    assert labels.notes == [
        "left out of the test part: 3 images of 2 groups (patients, scenes) that are in the training part too"
    ]


def test_a_csv_file_with_a_split_column(tmp_path: Path) -> None:
    file = csv_file(
        tmp_path,
        "\ufeffFileName, Label ,split",
        "0.png,cat,train",
        "1.png,dog,Training",
        "a\\2.png,cat,test",
        "/data/set/a/3.png,dog,TEST",
        "set/a/4.png,dog,val",
        "5.png,,train",
        "0.png,cat,train",
    )
    labels = found([f"a/{i}.png" for i in range(8)], file=file)
    assert labels.classes == ("cat", "dog")
    assert labels.rows.tolist() == [0, 1, 2, 3]
    assert labels.targets.tolist() == [0, 1, 0, 1]
    assert labels.train.tolist() == [True, True, False, False]
    assert labels.split == "the split column of labels.csv"
    assert labels.notes == [
        "left out, split 'val': 1 images",
        "left out, without a label: 1 images",
        "left out, without a row in labels.csv: 2 images",
    ]


def test_csv_groups_stand_in_place_of_the_index_s(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},{'p' + str(i // 4) if i < 20 else ''}" for i in range(40)]
    labels = found([f"{i}.png" for i in range(40)], file=csv_file(tmp_path, "path,label,group", *rows))
    assert len(set(labels.groups.tolist())) == 5 + 20
    for patient in range(5):
        assert len(set(labels.groups[4 * patient : 4 * patient + 4].tolist())) == 1
    assert not set(labels.groups[labels.train]) & set(labels.groups[~labels.train])


def test_several_labels_make_it_multi_label(tmp_path: Path) -> None:
    rows = ["0.png,a;b", "1.png,", "2.png,b", "3.png, b ; a ;", "4.png,b", "5.png,a", "6.png,"]
    labels = found([f"{i}.png" for i in range(7)], file=csv_file(tmp_path, "path,label", *rows))
    assert labels.targets.dtype == np.bool_
    assert labels.targets.astype(int).tolist() == [[1, 1], [0, 0], [0, 1], [1, 1], [0, 1], [1, 0], [0, 0]]


def test_a_rare_label_of_a_multi_label_set_is_noted_not_refused(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'a;b' if i % 2 else 'a'}" for i in range(20)]
    file = csv_file(tmp_path, "path,label", *rows, "20.png,b;once")
    assert found([f"{i}.png" for i in range(21)], file=file).notes == ["in one part only: once"]
    rows = [f"{i}.png,{'a;b' if i % 2 else 'a'},{'train' if i < 9 else 'test'}" for i in range(20)]
    file = csv_file(tmp_path, "path,label,split", *rows, "20.png,b;once,test", "21.png,only,train")
    assert found([f"{i}.png" for i in range(22)], file=file).notes == [
        "without a training image: once",
        "without a test image: only",
    ]


def test_a_row_may_name_the_folder_of_a_series_or_a_patient(tmp_path: Path) -> None:
    paths = [f"study/p{i}/s{j}/0001.dcm" for i in range(4) for j in range(2)]
    rows = ["p0,a", "study/p1,b", "set/study/p2/s0,a", "study/p2/s1,b", "study/p3,b", "study/p0,a"]
    labels = found(paths, file=csv_file(tmp_path, "path,label", *rows[1:]))
    assert labels.targets.tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    with pytest.raises(UsageError, match=r"1 of 1 rows .*\(p0\)"):
        found(paths, file=csv_file(tmp_path, "path,label", rows[0]))


def test_other_delimiters_and_numeric_classes(tmp_path: Path) -> None:
    for mark in ";\t":
        file = csv_file(tmp_path, mark.join(["path", "label"]), *[f"{i}.png{mark}{i % 3 * 5}" for i in range(12)])
        assert found([f"{i}.png" for i in range(12)], file=file).classes == ("0", "5", "10")


@pytest.mark.parametrize(
    ("paths", "groups", "line"),
    [
        (files("images"), None, "1 class found (images), a probe needs two"),
        (["0.png", "1.png"], None, "0 class found (none), a probe needs two"),
        ([*files("a", "b"), "c/0.png"], None, "class 'c' has one image and cannot be in both parts"),
        (files("a", "b"), [0, 1, 2, 3, 4, 4, 4, 4], "class 'b' has one group (patient, scene) and cannot"),
        (files("train/a", "train/b", "val/a"), None, "train, val and no test: rename a folder"),
        (files("train/a", "train/b", "test/c"), None, "class 'c' is in the test part and not in the"),
        (
            files("train/a", "train/b", "test/a"),
            [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3],
            "the test part is empty (left out of the test part: 4 images of 4 groups",
        ),
        (["a/0", "b/0", "c/0", "a/1", "b/1", "c/1"], [0, 0, 1, 1, 2, 2], "no split of 3 groups has class"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_probed_are_refused(paths: list[str], groups: list[int] | None, line: str) -> None:
    with pytest.raises(UsageError) as error:
        found(paths, groups)
    assert line in str(error.value)
    assert str(error.value).startswith("/data/set: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["image,class", "0.png,a"], "has the columns image, class: it needs path (or filename) and label"),
        ([""], "has the columns (none)"),
        (["path,label"], "has a header and no row"),
        (["path,label", "0.png,a", "x.png,a", "y.png,b", "z.png,b", "w.png,b"],
         "4 of 5 rows name no image under /data/set, or several (x.png, y.png, z.png)"),
        (["path,label", "same.png,a"], "1 of 1 rows name no image under /data/set, or several (same.png)"),
        (["path,label", "other/0.png,a"], "1 of 1 rows name no image"),
        (["path,label", "0.png,a", "a/0.png,b"], "a/0.png is labelled a and b: keep one row"),
        (["path,label,split", "0.png,a,train", "0.png,a,test"], "labelled a in train and a in test"),
        (["path,label,split", "0.png,a,train", "1.png,b,train"], "test part is empty (left out, "),
        (["path,label,split", "a,a,test", "b/same.png,b,test"], "the train part is empty: give it images"),
        (["path,label,split", "0.png,a,train", "1.png,b,test"], "class 'b' is in the test part"),
        (["path,label", "0.png,0.13", "1.png,0.19"], "both parts of a split (2 of 2 classes are so)"),
        (["path,label", "0.png,a", "1.png,a"], "1 class found (a)"),
    ],
)  # fmt: skip
def test_label_files_that_cannot_be_used_are_refused(tmp_path: Path, lines: list[str], line: str) -> None:
    paths = ["a/0.png", "a/1.png", "a/same.png", "b/same.png"]
    with pytest.raises(UsageError) as error:
        found(paths, file=csv_file(tmp_path, *lines))
    assert line in str(error.value)
    assert "labels.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    with pytest.raises(UsageError, match="cannot be read as a CSV file"):
        found(["0.png"], file=file)
    for content in (b"path,label\n\xff\xfe.png,a\n", b'path,label\n"' + b"x" * 200_000 + b'",a\n'):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read as a CSV file"):
            found(["0.png"], file=file)


def test_duplicates_counts_test_items_whose_content_trains() -> None:
    train, test = np.array([1, 2, 3, 3], np.uint64), np.array([3, 3, 4, 1], np.uint64)
    assert duplicates(train, test) == 3
    assert duplicates(np.array([b"ab", b"cd"]), np.array([b"cd", b"ef"])) == 1
