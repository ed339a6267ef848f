"""CSV files as people have them: lists of images and tables of numbers, and what becomes of files that change."""

import csv
import io
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gradstep
from gradstep import data, parts
from gradstep.data import FileList, Options, Reading, open_data, read_csv, table
from gradstep.data.listing import Listing, read_listing
from gradstep.errors import DataError, RecipeError
from gradstep.recipe import Recipe

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def grey(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    """An image all of one grey, so that which file a batch holds is seen from any of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of eight images, `0.png` to `7.png`, of the greys 0, 10, ..., 70."""
    for number in range(8):
        grey(tmp_path / f"{number}.png", number * 10)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all examples of a test: each overwrites what the one before it wrote."""
    return tmp_path_factory.mktemp("csv")


def written(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def first_greys(source) -> list[int]:
    return source.batch(torch.arange(len(source)), 0, 0)[0][:, 0, 0, 0].tolist()


def labels(path: Path, columns=None, **more) -> list[str]:
    """The labels' names, sample by sample."""
    train = read_csv(path, columns or {}, **more).parts["train"]
    return [train.classes[number] for number in train.targets]


def told(path: Path, columns=None, **more) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        read_csv(path, columns or {}, **more)
    return str(caught.value)


# Lists of images: what is in them


@pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
@pytest.mark.parametrize("header", ["file{0}label\n", "image{0}class\n", "Name{0}Kind\n", ""], ids=repr)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_with_a_header_or_without_whatever_the_delimiter_and_the_ends_of_lines(photos, delimiter, header, end):
    rows = [("2.png", "dog"), ("0.png", "cat"), ("5.png", "dog")]
    text = header.format(delimiter) + "".join(delimiter.join(row) + "\n" for row in rows)
    path = written(photos, text.replace("\n", end))
    source = open_data(str(path)).train
    assert first_greys(source) == [20, 0, 50]
    assert source.classes == ("cat", "dog")
    assert source.targets.tolist() == [1, 0, 1]
    assert source.targets.dtype == torch.int64


def test_a_delimiter_that_is_no_comma_is_told(photos):
    for name, delimiter in DELIMITERS.items():
        notes = open_data(str(written(photos, f"0.png{delimiter}a\n1.png{delimiter}b\n"))).notes
        if name == "comma":
            assert notes == ()
        else:
            assert len(notes) == 1
            assert notes[0].endswith("separated by " + ("a tab" if name == "tab" else delimiter))


COLUMNS = [
    {"path": "where", "target": "what"},
    {"path": 1, "target": 2},
    {"path": "where", "target": 2},
    {"target": "what"},
    {"target": ["what"]},
    {"target": 2},
]


@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_columns_are_meant_by_name_or_by_number(photos, columns):
    path = written(photos, "id,where,what,who\n7,3.png,b,ann\n9,1.png,a,bob\n")
    source = open_data(str(path), Options(columns=columns)).train
    assert first_greys(source) == [30, 10]
    assert [source.classes[t] for t in source.targets] == ["b", "a"]


def test_columns_are_meant_by_number_where_there_is_no_header(photos):
    path = written(photos, "x,b,3.png\ny,a,1.png\n")
    source = open_data(str(path), Options(columns={"path": 2, "target": 1})).train
    assert first_greys(source) == [30, 10]
    assert source.classes == ("a", "b")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"target": "waht"}, "data.columns.target: there is no column 'waht'. {} has id, where, what. "
                             "Did you mean 'what'?"),
        ({"path": "Where"}, "data.columns.path: there is no column 'Where'. {} has id, where, what. "
                            "Did you mean 'where'?"),
        ({"split": "zzzzzz"}, "data.columns.split: there is no column 'zzzzzz'. {} has id, where, what."),
        ({"target": 3}, "data.columns.target: {} has 3 columns, numbered from 0; not 3."),
        ({"target": -1}, "data.columns.target: {} has 3 columns, numbered from 0; not -1."),
        ({"tagret": "what"}, "data.columns: there is no 'tagret'. Did you mean 'target'?"),
        (
            {"colour": "what"},
            "data.columns: there is no 'colour'. There are path, inputs, target, split; "
            "the label's column is the target.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_column_that_is_not_there_is_answered_with_the_nearest(photos, columns, text):
    path = written(photos, "id,where,what\n7,3.png,b\n9,1.png,a\n")
    assert told(path, columns) == text.format(path)


def test_a_name_that_two_columns_have_asks_for_a_number(photos):
    path = written(photos, "file,label,label\n0.png,a,x\n1.png,b,y\n")
    assert told(path, {"target": "label"}) == (
        f"data.columns.target: {path} has several columns 'label'. Write its number, from 0."
    )
    assert labels(path, {"target": 2}) == ["x", "y"]
    assert "which column is the target? There are label, label." in told(path)


def test_two_columns_of_images_ask_which(photos):
    path = written(photos, "left,right,label\n0.png,1.png,a\n2.png,3.png,b\n")
    assert told(path) == f"{path}: the columns left and right name images. Say which: data.columns.path=left"


def test_images_alone_have_no_labels_and_one_says_so(photos):
    assert "there is no column for the labels beside the paths" in told(written(photos, "0.png\n1.png\n"))


ACCENTS = ["Zürich", "señor", "façade", "œuvre", "naïve"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_accents_in_names_of_files_and_labels_survive_the_encoding(tmp_path, encoding):
    for number, name in enumerate(ACCENTS):
        grey(tmp_path / f"{name}.png", number)
    path = written(tmp_path, ("file,label\n" + "".join(f"{n}.png,{n}\n" for n in ACCENTS)).encode(encoding))
    splits = open_data(str(path))
    assert first_greys(splits.train) == [0, 1, 2, 3, 4]
    assert [splits.train.classes[t] for t in splits.train.targets] == ACCENTS
    assert [("Windows-1252" in note) for note in splits.notes] == ([True] if encoding == "cp1252" else [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_what_has_zeros_in_it_is_no_text_and_says_what_to_do(tmp_path, encoding):
    text = told(written(tmp_path, "file,label\na.png,b\n".encode(encoding)))
    assert text.endswith("not a text file, or one in UTF-16 without a mark at its start. Save it as UTF-8.")


def test_utf_16_has_two_orders_of_bytes(photos):
    for order, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        assert labels(written(photos, mark + "0.png,ä\n1.png,b\n".encode(order))) == ["ä", "b"]


def test_quoted_cells_hold_delimiters_quotes_and_ends_of_lines(tmp_path):
    grey(tmp_path / "a, b.png", 5)
    grey(tmp_path / "c.png", 6)
    text = 'file,label,remark\n"a, b.png","cat, ""tabby""","one\ntwo, three"\nc.png,dog,\n'
    source = open_data(str(written(tmp_path, text)), Options(columns={"target": "label"})).train
    assert first_greys(source) == [5, 6]
    assert source.classes == ('cat, "tabby"', "dog")
    assert source.files.places == ["line 2", "line 4"]  # a cell of two lines counts as two


@pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
@pytest.mark.parametrize("blank", ["\n", "\n\n\n"], ids=repr)
def test_blank_lines_are_passed_over_and_counted(photos, delimiter, blank):
    path = written(photos, f"{blank}0.png{delimiter}a\n{blank}1.png{delimiter}b\n{blank}")
    train = read_csv(path, {}).parts["train"]
    assert [Path(p).name for p in train.paths] == ["0.png", "1.png"]
    assert train.places == [f"line {1 + len(blank)}", f"line {2 + 2 * len(blank)}"]


@pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
def test_a_line_of_blanks_is_a_blank_line(photos, delimiter):
    assert labels(written(photos, f"0.png{delimiter}a\n   \n1.png{delimiter}b\n")) == ["a", "b"]


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_stray_blanks_around_cells_mean_nothing(photos, delimiter):
    path = written(
        photos, f" file {delimiter}  label \n 0.png {delimiter} a\n\t1.png{delimiter}a  \n2.png {delimiter}b\n"
    )
    source = open_data(str(path)).train
    assert first_greys(source) == [0, 10, 20]
    assert source.classes == ("a", "b")


def test_a_blank_before_a_quoted_cell_means_nothing_either(photos):
    assert labels(written(photos, '"0.png", "cat"\n"1.png", "dog"\n')) == ["cat", "dog"]
    assert labels(written(photos, '0.png, "cat, tabby"\n1.png, "dog"\n')) == ["cat, tabby", "dog"]


def test_a_quote_that_is_never_closed_is_an_error(photos):
    path = written(photos, 'file,label\n0.png,"a\n1.png,b\n2.png,a\n')
    assert str(path) in told(path)


@pytest.mark.parametrize(("row", "count"), [("2.png", 1), ("2.png,a,b", 3)])
def test_a_row_of_another_length_is_named_by_its_line(photos, row, count):
    path = written(photos, f"file,label\n0.png,a\n\n1.png,b\n{row}\n3.png,a\n")
    assert told(path) == (
        f"{path}, line 5: {count} columns, where line 1 has 2. A cell with a ',' in it needs quotes around it."
    )


def test_so_is_one_after_many(photos):
    path = written(photos, "file;label\n" + "0.png;a\n" * 300 + "1.png;b;c\n")
    assert f"{path}, line 302: 3 columns, where line 1 has 2. A cell with a ';'" in told(path)


@pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
def test_a_row_of_another_length_is_named_whatever_the_delimiter(photos, delimiter):
    rows = [["file", "label"], ["0.png", "a"], ["1.png", "b", "c"], ["2.png", "a"]]
    path = written(photos, "".join(delimiter.join(row) + "\n" for row in rows))
    assert "line 3" in told(path)


@pytest.mark.parametrize("content", ["", "\n", "\n \n\t\n", "\ufeff"], ids=repr)
def test_an_empty_file_has_nothing_in_it(tmp_path, content):
    assert told(written(tmp_path, content)).endswith("list.csv: there is nothing in it.")


def test_a_header_alone_that_columns_name_has_nothing_below(tmp_path):
    text = told(written(tmp_path, "file,label\n"), {"target": "label"})
    assert text.endswith("there is a header and nothing below it.")


@pytest.mark.parametrize("header", ["file,label\n", "path,class\n", "a,b,y\n"])
def test_a_header_alone_has_nothing_below(tmp_path, header):
    assert "nothing below it" in told(written(tmp_path, header))


def test_a_missing_file_a_folder_and_a_binary_one_are_errors_that_say_which(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    written(tmp_path, np.random.default_rng(0).bytes(1000), "binary.csv")
    written(tmp_path, bytes(range(1, 256)) * 4, "latin.csv")
    for name, text in [
        ("none.csv", "there is no such file."),
        ("folder.csv", "can't be read (Is a directory)."),
        ("binary.csv", "not a text file"),
        ("latin.csv", ""),
    ]:
        assert told(tmp_path / name).startswith(f"{tmp_path / name}")
        assert text in told(tmp_path / name)


def test_a_misspelt_file_is_answered_with_the_nearest(photos):
    written(photos, "0.png,a\n1.png,b\n", "photos.csv")
    with pytest.raises(DataError, match=r"no file or folder .*phtos\.csv'\. Did you mean 'photos\.csv'\?"):
        open_data(str(photos / "phtos.csv"))


def test_the_file_stays_untouched(photos):
    path = written(photos, b"\xef\xbb\xbffile;label\r\n 0.png ;a\r\n1.png;b")
    before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(os.listdir(photos)))
    open_data(str(path))
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(os.listdir(photos))) == before


def test_paths_are_relative_to_the_csv_wherever_one_stands(tmp_path, monkeypatch):
    grey(tmp_path / "set" / "images" / "x.png", 7)
    grey(tmp_path / "set" / "y.png", 8)
    grey(tmp_path / "elsewhere" / "y.png", 99)
    grey(tmp_path / "above.png", 9)
    path = written(tmp_path / "set", "images/x.png,a\ny.png,b\n../above.png,a\n./images/../y.png,b\n")
    monkeypatch.chdir(tmp_path / "elsewhere")  # where there is a y.png too
    assert first_greys(open_data(str(path)).train) == [7, 8, 9, 8]
    assert first_greys(open_data("../set/list.csv").train) == [7, 8, 9, 8]
    monkeypatch.chdir(tmp_path / "set")
    assert first_greys(open_data("list.csv").train) == [7, 8, 9, 8]


def test_absolute_paths_are_what_they_are(tmp_path):
    image = grey(tmp_path / "far" / "x.png", 7)
    other = grey(tmp_path / "far" / "y.png", 8)
    (tmp_path / "near").mkdir()
    path = written(tmp_path / "near", f"{image},a\n{other},b\n")
    assert first_greys(open_data(str(path)).train) == [7, 8]


def test_a_row_that_names_no_file_or_has_no_label_is_named(photos):
    path = written(photos, "file,label\n0.png,a\n,b\n")
    assert told(path) == f"line 3 of {path} names no file. Fill it in, or take the line out."
    path = written(photos, "file,label\n0.png,a\n1.png,\n")
    assert told(path) == f"line 3 of {path} has no label. Fill it in, or take the line out."


# Labels


def test_3_and_03_and_3_0_are_one_label(photos):
    train = read_csv(written(photos, "0.png,3\n1.png,03\n2.png,3.0\n3.png,10\n4.png, 3 \n"), {}).parts["train"]
    assert train.classes == ("3", "10")  # by size, where the alphabet would have 10 first
    assert train.targets.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("written_labels", "classes"),
    [
        (["10", "9", "100", "-1"], ("-1", "9", "10", "100")),
        (["10", "9", "100", "x"], ("10", "100", "9", "x")),
        (["b", "B", "a", "ä"], ("B", "a", "b", "ä")),
        (["3", "03", "x", "x"], ("03", "3", "x")),  # beside a name, numbers are names
        (["nan", "cat", "inf", "cat"], ("cat", "inf", "nan")),
        (["True", "False", "True", "False"], ("False", "True")),
    ],
    ids=str,
)
def test_classes_are_in_the_order_of_the_numbers_or_the_alphabet(photos, written_labels, classes):
    path = written(photos, "".join(f"{n}.png,{label}\n" for n, label in enumerate(written_labels)))
    assert read_csv(path, {}).parts["train"].classes == classes
    if classes != ("-1", "9", "10", "100"):
        assert labels(path) == written_labels


def test_names_with_a_low_line_between_digits_are_names(photos):
    path = written(photos, "0.png,1_0\n1.png,10\n2.png,2_0\n")
    assert len(set(labels(path))) == 3


def test_long_numbers_are_told_apart(photos):
    path = written(photos, f"0.png,{2**53}\n1.png,{2**53 + 1}\n")
    assert labels(path) == [str(2**53), str(2**53 + 1)]


def test_too_many_labels_to_be_classes_ask_what_they_are(photos):
    path = written(photos, "file,n\n" + "".join(f"0.png,{n * 7}\n" for n in range(30)))
    text = told(path)
    assert "30 different labels in 30 samples, such as '0'" in text
    assert "data.columns.target=NAME" in text
    assert "data.targets=numbers or data.targets=classes" in text
    assert read_csv(path, {}, "numbers").parts["train"].targets.tolist() == [float(n * 7) for n in range(30)]
    assert len(read_csv(path, {}, "classes").parts["train"].classes) == 30


def test_targets_that_are_neither_are_refused():
    with pytest.raises(RecipeError, match=r"data\.targets: 'class' is neither classes nor numbers"):
        Options(targets="class")


# Parts: by a column, by a second file, by a fraction


@pytest.mark.parametrize("word", ["valid", "val", "validation", "dev", "VALID", " Validation "])
def test_a_column_divides_the_rows(photos, word):
    path = written(
        photos, f"file,label,part\n0.png,b,train\n1.png,a,{word}\n2.png,a,training\n3.png,b,test\n4.png,b,Train\n"
    )
    splits = open_data(str(path), Options(columns={"split": "part"}))
    assert {name: first_greys(part) for name, part in splits.items()} == {
        "train": [0, 20, 40],
        "valid": [10],
        "test": [30],
    }
    assert {name: part.targets.tolist() for name, part in splits.items()} == {
        "train": [1, 0, 1],
        "valid": [0],
        "test": [1],
    }
    assert {part.classes for _, part in splits.items()} == {("a", "b")}


def test_the_training_rows_say_the_classes_wherever_in_the_file_they_are(photos):
    path = written(photos, "file,label,part\n1.png,b,valid\n0.png,b,train\n2.png,a,train\n")
    assert open_data(str(path), Options(columns={"split": 2, "path": 0, "target": 1})).valid.targets.tolist() == [1]
    path = written(photos, "file,label,part\n1.png,zebra,valid\n0.png,b,train\n2.png,a,train\n")
    assert "line 2 of" in told(path, {"split": "part"})
    assert "has the label 'zebra', which the training data does not have. It has a, b." in told(path, {"split": "part"})


def test_an_unknown_part_is_named_and_none_to_train_on_is_an_error(photos):
    path = written(photos, "file,label,part\n0.png,a,train\n1.png,b,trian\n")
    text = told(path, {"split": "part"})
    assert text == f"line 3 of {path}: the split 'trian' is none of train, valid and test."
    assert "no row's split is train" in told(written(photos, "f,l,p\n0.png,a,test\n1.png,b,val\n"), {"split": "p"})


def recipe(**data_keys) -> Recipe:
    return Recipe.parse(
        {
            "data": data_keys,
            "model": "gradstep.models:LeNet",
            "criterion": "CrossEntropyLoss",
            "batch_size": 2,
            "epochs": 1,
            "optimizer": {"name": "SGD", "lr": 0.1},
        }
    )


def test_a_second_file_has_the_classes_of_the_first(photos):
    train = written(photos, "0.png,b\n1.png,a\n2.png,c\n", "train.csv")
    valid = written(photos, "3.png,c\n4.png,b\n", "valid.csv")
    splits = parts.read_splits(recipe(train=str(train), valid=str(valid)))
    assert splits.train.classes == splits.valid.classes == ("a", "b", "c")
    assert splits.valid.targets.tolist() == [2, 1]
    assert first_greys(splits.valid) == [30, 40]


def test_a_second_files_unknown_label_is_an_error_with_the_label_and_its_line(photos):
    train = written(photos, "0.png,b\n1.png,a\n", "train.csv")
    valid = written(photos, "file,label\n3.png,a\n4.png,zebra\n", "valid.csv")
    with pytest.raises(DataError) as caught:
        parts.read_splits(recipe(train=str(train), valid=str(valid)))
    assert str(caught.value) == (
        f"line 3 of {valid} has the label 'zebra', which the training data does not have. It has a, b."
    )


def test_a_second_files_numbers_are_spelled_as_they_like(photos):
    train = written(photos, "0.png,3\n1.png,10\n2.png,4\n", "train.csv")
    valid = written(photos, "3.png,010\n4.png,4.0\n", "valid.csv")
    assert parts.read_splits(recipe(train=str(train), valid=str(valid))).valid.targets.tolist() == [2, 1]


def test_a_second_files_targets_are_numbers_where_the_first_ones_are(tmp_path):
    train = written(tmp_path, "a,y\n1,0.5\n2,1.5\n3,2.5\n", "train.csv")
    valid = written(tmp_path, "a,y\n1,5\n2,7\n", "valid.csv")
    splits = parts.read_splits(recipe(train=str(train), valid=str(valid), columns={"target": "y"}))
    assert splits.train.targets.tolist() == [0.5, 1.5, 2.5]
    assert splits.valid.targets.tolist() == [5.0, 7.0]
    assert splits.valid.targets.dtype == torch.float32


def many(photos: Path) -> Path:
    rows = [f"{n % 8}.png,{'abc'[(n > 59) + (n > 89)]}\n" for n in range(100)]  # 60, 30, 10
    return written(photos, "file,label\n" + "".join(rows))


def test_a_fraction_is_stratified_and_belongs_to_its_own_seed(photos):
    path = many(photos)
    splits = parts.read_splits(recipe(train=str(path), valid=0.2))
    assert splits.valid.targets.bincount().tolist() == [12, 6, 2]
    assert splits.train.targets.bincount().tolist() == [48, 24, 8]
    assert set(splits.train.numbers.tolist()).isdisjoint(splits.valid.numbers.tolist())
    again = parts.read_splits(recipe(train=str(path), valid=0.2))
    assert again.valid.numbers.equal(splits.valid.numbers)
    other = parts.read_splits(recipe(train=str(path), valid=0.2, split_seed=1))
    assert not other.valid.numbers.equal(splits.valid.numbers)
    assert other.valid.targets.bincount().tolist() == [12, 6, 2]


def test_a_fraction_is_stratified_under_a_transform_of_the_users_own_too(photos):
    train = open_data(str(many(photos)), Options(transform=lambda image: torch.zeros(1))).train
    plain = open_data(str(many(photos))).train
    assert data.split(train, 0.2)[1].numbers.equal(data.split(plain, 0.2)[1].numbers)


# Numbers


def test_several_numeric_targets_are_a_regression(photos):
    path = written(photos, "file,x,y\n0.png,1,2\n1.png,3,4\n2.png,5,6.5\n")
    train = open_data(str(path), Options(columns={"target": ["x", "y"]})).train
    assert train.classes is None
    assert train.targets.dtype == torch.float32
    assert train.targets.tolist() == [[1, 2], [3, 4], [5, 6.5]]
    turned = open_data(str(path), Options(columns={"target": ["y", 1]})).train
    assert turned.targets.tolist() == [[2, 1], [4, 3], [6.5, 5]]


def test_one_target_of_fractions_is_a_regression_of_one_number_a_sample(photos):
    train = open_data(str(written(photos, "0.png,0.25\n1.png,3\n"))).train
    assert train.classes is None
    assert train.targets.tolist() == [0.25, 3]


def test_a_table_of_numbers_gives_all_other_columns_as_inputs(tmp_path):
    path = written(tmp_path, "a,kind,b,c\n1,x,2,-3e-2\n4,y,5,6\n")
    train = open_data(str(path), Options(columns={"target": "kind"})).train
    inputs, targets = train.batch(torch.arange(2), 0, 0)
    torch.testing.assert_close(inputs, torch.tensor([[1, 2, -0.03], [4, 5, 6]]), rtol=0, atol=0)
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [0, 1]
    some = open_data(str(path), Options(columns={"target": "kind", "inputs": ["c", 0]})).train
    assert some.content[0].tolist() == [[np.float32(-0.03), 1], [6, 4]]


@pytest.mark.parametrize("name", ["label", "target", "class", "y", "Category"])
def test_a_target_that_is_called_so_needs_no_word(tmp_path, name):
    path = written(tmp_path, f"{name},a,b\nx,1,2\nz,3,4\n")
    train = open_data(str(path)).train
    assert (train.content[0].tolist(), train.classes) == ([[1, 2], [3, 4]], ("x", "z"))


def test_a_table_without_such_a_name_asks_which(tmp_path):
    path = written(tmp_path, "a,b,c\n1,2,3\n4,5,6\n")
    text = told(path)
    assert "which column is the target? There are a, b, c. Say so: data.columns.target=c" in text
    text = told(written(tmp_path, "1,2,3\n4,5,6\n"))
    assert "There are 0, 1, 2. Say so: data.columns.target=2" in text
    assert told(written(tmp_path, "y\n1\n2\n")).endswith("there is no column left for the inputs.")


def test_a_table_without_a_header_keeps_its_first_row(tmp_path):
    train = open_data(str(written(tmp_path, "1,2,0\n4,5,1\n")), Options(columns={"target": 2})).train
    assert train.content[0].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "NA", "", "1,5", "1e400", "0x10"])
def test_an_input_that_is_no_finite_number_is_named(tmp_path, cell):
    path = written(tmp_path, f'a,b,y\n1,2,0\n3,"{cell}",1\n')
    text = told(path, {"target": "y"})
    assert text.startswith(f"line 3 of {path}: the column 'b' has '{cell}', which is no finite number.")
    assert "data.columns.inputs=[...]" in text
    path = written(tmp_path, f'1,2,0\n3,"{cell}",1\n')
    assert told(path, {"target": 2}).startswith(f"line 2 of {path}: the column number 1 has '{cell}'")


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity"])
def test_a_target_that_is_no_finite_number_is_named(tmp_path, cell):
    path = written(tmp_path, f"a,y\n1,0.5\n3,{cell}\n")
    assert told(path) == f"line 3 of {path} has the target '{cell}', which is no finite number."


def test_a_target_that_is_no_number_at_all_is_named_where_numbers_are_asked_for(tmp_path):
    path = written(tmp_path, "a,y\n1,0.5\n3,many\n")
    assert f"line 3 of {path} has the target 'many'" in told(path, kind="numbers")


@pytest.mark.parametrize("row", ["1,1e39", "1e39,1"])
def test_a_number_too_large_for_float32_is_named(tmp_path, row):
    path = written(tmp_path, f"a,y\n2,0.5\n{row}\n")
    assert f"line 3 of {path}" in told(path, {"target": "y"})


# Images that are missing or can't be read


def some_bad(folder: Path, count: int) -> tuple[Path, list[str]]:
    """A CSV of 40 rows, `count` of them bad in turn in four ways; and a CSV of the good rows alone, with a header."""
    for number in range(40):
        grey(folder / f"{number}.png", number)
    bad = list(range(1, 40, 40 // count))[:count]
    for turn, number in enumerate(bad):
        path = folder / f"{number}.png"
        content = path.read_bytes()
        path.unlink()
        if turn % 4 == 1:
            path.write_bytes(content[: len(content) // 2])
        elif turn % 4 == 2:
            path.write_text("not an image")
        elif turn % 4 == 3:
            path.mkdir()
    rows = [f"{number}.png,{'ab'[number % 3 > 0]}" for number in range(40)]
    good = [row for number, row in enumerate(rows) if number not in bad]
    written(folder, "\n".join(["file,label", *good]), "good.csv")
    return written(folder, "\n".join(["file,label", *rows])), [f"{number}.png" for number in bad]


def test_all_bad_images_are_counted_and_the_first_ten_named_with_their_line(tmp_path):
    path, bad = some_bad(tmp_path, 13)
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    first, *named, more, last = str(caught.value).splitlines()
    assert first == f"{path}: 13 of 40 images are missing or can't be read:"
    assert more == "  ... and 3 more"
    assert last == "Mend them, or leave them out: data.on_bad=skip"
    assert len(named) == 10
    reasons = ["there is no such file", "", "not an image that can be read", "Is a directory"]
    for turn, (line, name) in enumerate(zip(named, bad, strict=False)):
        number = int(name.removesuffix(".png"))
        assert line.startswith(f"  {tmp_path / name} (line {number + 2}): {reasons[turn % 4]}")
        assert not line.endswith(": ")


def test_ten_bad_ones_are_all_named(tmp_path):
    path, _ = some_bad(tmp_path, 10)
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    assert "more" not in str(caught.value)
    assert str(caught.value).count("(line ") == 10


@pytest.mark.parametrize("kept", [0, None], ids=["read again", "kept in memory"])
def test_skip_leaves_them_out_says_so_and_is_the_csv_without_them(tmp_path, monkeypatch, kept):
    if kept is not None:
        monkeypatch.setattr("gradstep.data.files._KEPT", kept)
    path, bad = some_bad(tmp_path, 13)
    skipped = open_data(str(path), Options(on_bad="skip"))
    clean = open_data(str(tmp_path / "good.csv"))
    assert clean.notes == ()
    assert len(skipped.notes) == 1
    assert skipped.notes[0].startswith(f"left out: {path}: 13 of 40 images are missing or can't be read:")
    assert bad[0] in skipped.notes[0]
    assert skipped.train.classes == clean.train.classes
    listed = skipped.train.whole.files
    assert [listed.paths[number] for number in skipped.train.numbers] == clean.train.files.paths
    assert skipped.train.whole.stamps[skipped.train.numbers].equal(clean.train.stamps)
    assert skipped.train.in_memory == clean.train.in_memory == (kept is None)
    for numbers in torch.arange(27).split(5):
        for ours, theirs in zip(skipped.train.batch(numbers, 1, 2), clean.train.batch(numbers, 1, 2), strict=True):
            assert ours.equal(theirs)
    assert trained(skipped.train).equal(trained(clean.train))


def test_where_all_are_bad_nothing_is_left(photos):
    path = written(photos, "file,label\nx.png,a\ny.png,b\n")
    for on_bad, end in (("error", "data.on_bad=skip"), ("skip", "Nothing is left without them.")):
        with pytest.raises(DataError, match="2 of 2 images") as caught:
            open_data(str(path), Options(on_bad=on_bad))
        assert str(caught.value).endswith(end)


def test_on_bad_is_error_or_skip(photos):
    with pytest.raises(RecipeError, match=r"data\.on_bad: 'ignore' is neither error nor skip"):
        open_data(str(written(photos, "0.png,a\n1.png,b\n")), Options(on_bad="ignore"))


# Images that change while they are trained on


def trained(source, *hooks, workers: int = 0, epochs: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    run = gradstep.fit(
        model,
        torch.nn.CrossEntropyLoss(),
        source.transformed((data.ToFloat(),)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        epochs=epochs,
        batch_size=4,
        hooks=list(hooks),
        workers=workers,
        device="cpu",
        quiet=True,
    )
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


class After:
    """Does something once, when an epoch is over; counts the epochs."""

    def __init__(self, deed) -> None:
        self.deed, self.epochs = deed, 0

    def on_epoch_end(self, state) -> None:
        self.epochs += 1
        if self.epochs == 1:
            self.deed()


def touch_later(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))


CHANGES = {
    "another image": (lambda path: (grey(path, 200), touch_later(path)), "it is another file than the one that was"),
    "another size": (lambda path: grey(path, 3, (9, 9)), "it is another file than the one that was read before"),
    "touched": (touch_later, "it is another file than the one that was read before the first step"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:30]), "it is another file than the one"),
    "deleted": (lambda path: path.unlink(), "it was there before the first step, and is gone"),
    "a folder now": (lambda path: (path.unlink(), path.mkdir()), "it is another file than the one that was read"),
}


def in_the_middle(photos: Path) -> Path:
    return written(photos, "file,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(8)))


@pytest.mark.parametrize("kept", [0, None], ids=["read again", "kept in memory"])
@pytest.mark.parametrize(("change", "text"), CHANGES.values(), ids=CHANGES)
def test_an_image_that_changes_during_a_run_is_found_at_the_next_epoch_and_named(
    photos, monkeypatch, kept, change, text
):
    if kept is not None:
        monkeypatch.setattr("gradstep.data.files._KEPT", kept)
    source = open_data(str(in_the_middle(photos))).train
    assert source.in_memory == (kept is None)
    hook = After(lambda: change(photos / "5.png"))
    with pytest.raises(DataError) as caught:
        trained(source, hook, epochs=3)
    assert hook.epochs == 1  # the first one was whole, the second one never was
    assert str(caught.value).startswith(f"{photos / '5.png'} (line 7): {text}")
    assert str(caught.value).endswith("Images must stay as they are while they are trained on.")


@pytest.mark.parametrize("change", ["another image", "deleted"])
def test_a_worker_process_finds_it_too(photos, monkeypatch, change):
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)
    source = open_data(str(in_the_middle(photos))).train
    deed, text = CHANGES[change]
    with pytest.raises(DataError) as caught:
        trained(
            source, After(lambda: deed(photos / "5.png")), workers=1, epochs=6
        )  # some batches were asked for before
    assert str(caught.value).startswith(f"{photos / '5.png'} (line 7): {text}")


def test_nothing_is_found_where_nothing_changed_and_workers_and_memory_change_no_bit(photos, monkeypatch):
    path = in_the_middle(photos)
    in_memory = trained(open_data(str(path)).train)
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)
    assert trained(open_data(str(path)).train).equal(in_memory)
    assert trained(open_data(str(path)).train, workers=1).equal(in_memory)


def test_an_image_that_changes_between_two_openings_is_another_fingerprint(photos):
    path = in_the_middle(photos)
    before = open_data(str(path)).train.fingerprint
    assert open_data(str(path)).train.fingerprint == before
    touch_later(photos / "5.png")
    assert open_data(str(path)).train.fingerprint["modified"] > before["modified"]
    grey(photos / "5.png", 3, (90, 9))
    assert open_data(str(path)).train.fingerprint["content"] != before["content"]
    written(photos, path.read_text().replace("5.png,b", "5.png,a"))
    assert open_data(str(path)).train.fingerprint["content"] != before["content"]


def test_images_of_several_sizes_are_kept_apart_until_a_size_is_said(photos):
    grey(photos / "1.png", 9, (6, 2))
    path = written(photos, "0.png,a\n1.png,b\n")
    inputs, _ = open_data(str(path)).train.batch(torch.arange(2), 0, 0)
    assert [tuple(image.shape) for image in inputs.images] == [(1, 4, 4), (1, 6, 2)]
    inputs, _ = open_data(str(path), Options(images=Reading(size=(3, 5)))).train.batch(torch.arange(2), 0, 0)
    assert inputs.shape == (2, 1, 3, 5)
    with pytest.raises(DataError, match=r"several sizes .*data\.images\.size=64"):
        trained(open_data(str(path)).train)


# Any table


cells = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6)
)


def as_csv(table: list[list[str]], **options) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **options).writerows(table)
    return out.getvalue()


def as_meant(table: list[list[str]]) -> list[list[str]]:
    """Without blanks around the cells, and without the rows that are all blank."""
    stripped = [[cell.strip() for cell in row] for row in table]
    return [row for row in stripped if any(row)]


def as_read(path: Path) -> list[list[str]] | None:
    try:
        return read_listing(path, lambda first, second: False).rows
    except DataError as error:
        told_so = str(error)
        assert "there is nothing in it" in told_so
        return None


@given(
    table=tables,
    delimiter=st.sampled_from(list(DELIMITERS.values())),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_in_quotes_reads_back_the_same(folder, table, delimiter, end, encoding):
    text = as_csv(table, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    assert as_read(written(folder, text.encode(encoding))) == (as_meant(table) or None)


@given(table=tables, delimiter=st.sampled_from(list(DELIMITERS.values())), newline=st.booleans())
def test_any_table_reads_back_the_same_where_no_other_delimiter_is_in_it(folder, table, delimiter, newline):
    """Quotes only where they are needed: around the delimiter itself, quotes, ends of lines."""
    others = str.maketrans({other: "_" for other in DELIMITERS.values() if other != delimiter})
    table = [[cell.translate(others) for cell in row] for row in table]
    if newline:
        table = [[cell + "\n" + cell if cell else cell for cell in row] for row in table]
    text = as_csv(table, delimiter=delimiter)
    assert as_read(written(folder, text)) == (as_meant(table) or None)


@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_with_the_file_named(folder, content):
    path = written(folder, content)
    try:
        listing = read_listing(path, lambda first, second: False)
    except DataError as error:
        told_so = str(error)
        assert str(path) in told_so
        return
    assert {len(row) for row in listing.rows} == {listing.width}
    assert all(cell == cell.strip() for row in listing.rows for cell in row)


def test_a_table_wider_than_what_the_delimiter_is_looked_for_in(tmp_path):
    row = ";".join(["0.123456"] * 20000)
    listing = read_listing(written(tmp_path, f"{row}\n{row}\n"), lambda first, second: False)
    assert (listing.width, len(listing.rows)) == (20000, 2)


def test_a_long_list_is_read_to_its_end(photos):
    path = written(photos, "file;label\n" + "".join(f"{n % 8}.png;{n % 3}\n" for n in range(20000)))
    train = read_csv(path, {}).parts["train"]
    assert isinstance(train, FileList)
    assert train.targets.bincount().tolist() == [6667, 6667, 6666]
    assert train.places[-1] == "line 20001"


def test_names_that_look_the_same_are_told_apart_as_the_file_system_does(tmp_path):
    """An accent as one character or as two is two names, of files as of labels; nothing is made the same unasked."""
    one, two = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    grey(tmp_path / "a.png")
    assert len(set(labels(written(tmp_path, f"a.png,{one}\na.png,{two}\n")))) == 2


def test_all_errors_name_the_file(tmp_path):
    for text in ("a.png;x;y\nb.png\n", "1,2,3\n4,5,6\n", "a.png,b.png,c\nd.png,e.png,f\n"):
        assert re.search(r"list\.csv", told(written(tmp_path, text)))


@given(
    cell=st.lists(st.sampled_from(["a", "b.png", ".", "..", "", "/", " "]), min_size=1, max_size=5).map("/".join),
    folder=st.sampled_from([".", "x", "/y/z", "x/../y"]),
)
def test_a_file_is_named_as_path_names_it(cell: str, folder: str) -> None:
    listing = Listing(Path(folder) / "list.csv", None, [[cell]], [1])
    if cell:
        assert table._files(listing, 0, [0]) == [str(Path(folder) / cell)]
