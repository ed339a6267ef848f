"""Which columns of a CSV mean what, where nobody says so: headers, split columns, labels that may be numbers."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradstep.data import Options, open_data, read_csv, survey
from gradstep.data.columns import is_header
from gradstep.data.listing import read_listing
from gradstep.errors import DataError


def written(folder: Path, text: str, name: str = "list.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        Image.new("L", (4, 4), 40 * number).save(tmp_path / f"{number}.png")
    return tmp_path


TABLES = {
    "pandas writes columns without names so": ("0,1,2,3,target", "0.1,0.2,0.3,0.4,{}", ["5", "6"]),
    "the same, of names for targets": ("0,1,2,3,kind", "0.1,0.2,0.3,0.4,{}", ["cat", "dog"]),
    "years": ("id,2019,2020,price", "1,10,20,{}", ["0.5", "0.25"]),
    "a known name among numbers": ("2019,2020,label", "10,20,{}", ["a", "b"]),
    "words over numbers": ("width,height,area", "1.5,2,{}", ["3", "4"]),
    "counted from 1": ("1,2,3,4,kind", "0.1,0.2,0.3,0.4,{}", ["5", "6"]),
    "all words": ("size,label", "large,{}", ["a", "b"]),
    "a known name that labels have too": ("width,y", "1,{}", ["y", "n"]),
}


@pytest.mark.parametrize(("header", "row", "targets"), TABLES.values(), ids=TABLES)
def test_a_header_is_known_for_one_though_some_of_it_looks_like_data(tmp_path, header, row, targets):
    rows = "\n".join(row.format(targets[number % 2]) for number in range(8))
    names = header.split(",")
    path = written(tmp_path, f"{header}\n{rows}\n")
    listing = read_listing(path, lambda first, below: is_header(first, below, {}))
    assert (listing.header, len(listing.rows)) == (names, 8)
    if names != ["size", "label"]:  # which are no numbers
        assert read_csv(path, {"target": len(names) - 1}).columns == {"inputs": names[:-1], "target": names[-1]}


HEADERLESS = {
    "numbers": "0,1,7,0\n3,4,5,1\n1,1,1,0\n",
    "rows that count": "0,1,2\n1,2,3\n2,3,4\n",
    "a row that counts from 1": "1,2,3\n4,5,6\n7,8,8\n",
    "a row that counts, with a class": "0,1,2,b\n4,5,6,b\n7,8,8,a\n",
    "a missing cell": ",2,0\n1,2,1\n3,2,0\n",
    "a bad cell": "oops,2,0\n1,2,1\n3,2,0\n",
    "n/a": "n/a,2,0\n1,2,1\n3,2,0\n",
    "labels called like a header": "0.5,0.3,y\n0.2,0.1,n\n0.1,0.3,y\n",
}


@pytest.mark.parametrize("text", HEADERLESS.values(), ids=HEADERLESS)
def test_a_row_of_data_is_not_taken_for_a_header(tmp_path, text):
    listing = read_listing(written(tmp_path, text), lambda first, below: is_header(first, below, {"target": 2}))
    assert listing.header is None
    assert len(listing.rows) == 3


numbers = st.floats(-1e6, 1e6).map(repr) | st.integers(1, 9).map(str)


@given(st.lists(st.tuples(numbers, numbers, st.sampled_from("abc")), min_size=1, max_size=12))
def test_no_table_of_numbers_and_letters_loses_its_first_row(tmp_path_factory, rows):
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    path = written(tmp_path_factory.getbasetemp(), file.getvalue())
    assert len(read_csv(path, {"target": 2}, "classes").parts["train"]) == len(rows)


@pytest.mark.parametrize("name", ["split", "Subset", "part", "fold"])
def test_a_split_column_is_recognised_by_its_name_and_cells_and_told(photos, name):
    rows = ["0.png,a,train", "1.png,b,Train", "2.png,a,val", "3.png,b,valid", "4.png,a,test", "5.png,b,test"]
    path = written(photos, "\n".join([f"file,label,{name}", *rows]))
    splits = open_data(path)
    assert [len(part) for _, part in splits.items()] == [2, 2, 2]
    assert splits.notes == (f"{path}: the column '{name}' says which part a row belongs to",)
    assert splits.columns == {"path": "file", "target": "label", "split": name}


@pytest.mark.parametrize(
    "cells", [["a", "b"], ["0", "1"], ["test", "test"], ["train", ""]], ids=["words", "folds", "no train", "one word"]
)
def test_a_column_that_is_only_called_so_is_none_and_is_told(photos, cells):
    rows = [f"0.png,a,{cells[0]}", f"1.png,b,{cells[1]}", f"2.png,b,{cells[1]}"]
    path = written(photos, "\n".join(["file,label,split", *rows]))
    splits = open_data(path)
    assert [len(part) for _, part in splits.items()] == [3]
    assert splits.notes == (f"{path}: columns that are not used: split",)


@pytest.mark.parametrize("slip", ["", "holdout", "tset"])
def test_one_cell_that_is_no_part_does_not_mix_the_parts(photos, slip):
    rows = ["0.png,a,train", "1.png,b,train", f"2.png,a,{slip}", "3.png,b,test"]
    path = written(photos, "\n".join(["file,label,split", *rows]))
    with pytest.raises(DataError) as caught:
        open_data(path)
    assert str(caught.value) == (
        f"line 4 of {path}: the column 'split' has '{slip}', and most of it is train, valid or test. Mend it, or give "
        "the column another name if it is about something else."
    )


def test_the_index_that_pandas_writes_is_no_input(tmp_path):
    rows = "\n".join(f"{number},{number * 2},{number % 2}" for number in range(9))
    for name in ("", "Unnamed: 0"):
        found = read_csv(written(tmp_path, f"{name},x,label\n{rows}\n"), {})
        assert found.columns["inputs"] == ["x"]
        assert found.notes[0].endswith(f"columns that are not used: {name or '(no name)'}")
    shuffled = "\n".join(f"{8 - number},{number * 2},{number % 2}" for number in range(9))
    assert read_csv(written(tmp_path, f",x,label\n{shuffled}\n"), {}).columns["inputs"] == ["", "x"]


def test_a_column_called_by_a_number_is_asked_for_in_quotes(tmp_path):
    path = written(tmp_path, "id,area,2020\n1,10,0.5\n2,20,0.25\n")
    with pytest.raises(
        DataError, match=r"has 3 columns, numbered from 0; not 2020\. The one called so is '\"2020\"'\."
    ):
        read_csv(path, {"target": 2020})
    assert read_csv(path, {"target": "2020"}).columns["target"] == "2020"


def test_columns_that_are_not_used_are_told(photos):
    path = written(photos, "id,file,when,label\n7,0.png,May,a\n8,1.png,June,b\n")
    assert open_data(path).notes == (f"{path}: columns that are not used: id, when",)


def test_a_label_that_is_no_number_among_numbers_is_asked_about(tmp_path):
    rows = [f"{number}.0,{number % 3}" for number in range(40)]
    path = written(tmp_path, "\n".join(["x,label", *rows[:17], "17.0,n/a", *rows[18:]]))
    with pytest.raises(DataError) as caught:
        read_csv(path, {})
    assert str(caught.value) == (
        f"line 19 of {path} has the label 'n/a', and nearly all others are numbers. Mend it, or say that labels are "
        "names: data.targets=classes."
    )
    assert read_csv(path, {}, "classes").parts["train"].classes == ("0", "1", "2", "n/a")
    half = written(tmp_path, "\n".join(["x,label", *rows, *(f"{n}.0,other" for n in range(20))]))
    assert read_csv(half, {}).parts["train"].classes == ("0", "1", "2", "other")


def test_of_data_that_is_not_for_training_a_part_and_a_split_column_may_be_missing(photos):
    columns = {"path": "file", "target": "label", "split": "part"}
    options = Options(columns=columns, classes=("a", "b"), training=False)
    assert len(survey(written(photos, "file,label\n0.png,b\n"), options).parts["train"]) == 1
    assert list(survey(written(photos, "file,label,part\n0.png,b,test\n"), options).parts) == ["test"]
    with pytest.raises(DataError, match=r"data\.columns\.split: there is no column 'part'"):
        survey(written(photos, "file,label\n0.png,b\n"), Options(columns=columns))


def test_suffixes_are_known_in_capitals(photos):
    Image.new("L", (4, 4)).save(photos / "X.PNG")
    path = written(photos, "X.PNG,a\n0.png,b\n", "TABLE.CSV")
    assert len(open_data(path).train) == 2
