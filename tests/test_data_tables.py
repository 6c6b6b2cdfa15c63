"""Tables as people write them: rows without a label, group or text; an index; names that are there twice."""

from __future__ import annotations

import unicodedata
import warnings

import pytest
import torch
from test_data_any import write_tokenizer

from ucmkd_fast.data import UNLABELLED, open_data

MISSING = ["None", "nan", "", "NA", "-1", "  ", "NaN", "<NA>", "n/a", "null", "-1.0"]
KINDS = ["cat", "dog", "cat", "dog"]


@pytest.fixture(params=["csv", "tsv", "parquet", "features"])
def table(request, tmp_path):
    """Writes columns of texts or numbers and opens them, by each reader."""
    kind = request.param

    def write_and_open(cells, **options):
        suffix = "parquet" if kind == "features" else kind
        path = tmp_path / f"table.{suffix}"
        if suffix == "parquet":
            pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(cells), path)
        else:
            mark = "," if kind == "csv" else "\t"
            rows = zip(*([name, *column] for name, column in cells.items()), strict=True)
            lines = (mark.join("" if cell is None else str(cell) for cell in row) for row in rows)
            path.write_text("\n".join(lines) + "\n")
        name = "features" if kind == "features" else "table"
        return open_data({"name": name, "root": path, "label": "kind", **options})

    return write_and_open


def numbers(n):
    return [float(k) for k in range(n)]


@pytest.mark.parametrize("missing", [*MISSING, None])
def test_a_row_without_a_label_is_unlabelled(table, missing):
    with pytest.warns(UserWarning, match="column 'kind': 1 of 5 rows have no label"):
        data = table({"a": numbers(5), "kind": [*KINDS, missing]})
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 0, 1, UNLABELLED]
    assert data.x[:, 0].tolist() == numbers(5)


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 0, 1, -1], [0.0, 1.0, 0.0, 1.0, float("nan")], [0.0, 1.0, 0.0, 1.0, None], [0, 1, 0, 1, None]],
)
def test_numbers_are_labels_without_the_decimals_that_pandas_adds(table, labels):
    with pytest.warns(UserWarning, match="1 of 5 rows have no label"):
        data = table({"a": numbers(5), "kind": labels})
    assert data.classes == ["0", "1"] and data.labels.tolist() == [0, 1, 0, 1, UNLABELLED]


def test_a_class_that_is_listed_is_one_whatever_its_name(table):
    data = table({"a": numbers(4), "kind": ["NA", "EU", "None", "EU"]}, classes=["EU", "NA", "None"])
    assert data.labels.tolist() == [1, 0, 2, 0]


def test_minus_one_and_one_are_no_class_and_a_missing_one(table):
    with pytest.raises(ValueError, match=r"table\.\w+: column 'kind' holds -1 and 1 alone"):
        table({"a": numbers(4), "kind": [-1, 1, 1, -1]})


def test_a_column_without_any_label_is_refused(table):
    with pytest.raises(ValueError, match=r"table\.\w+: column 'kind' has no label: 2 empty, 1 'nan'"):
        table({"a": numbers(3), "kind": ["", "nan", None]})


def test_blanks_around_a_classs_name_do_not_count(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = table({"a": numbers(4), "kind": ["cat", "dog", " cat", "dog "]})
        given = table({"a": numbers(4), "kind": ["cat", "dog", " cat", "dog "]}, classes=[" dog", "cat "])
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 0, 1]
    assert given.classes == ["dog", "cat"] and given.labels.tolist() == [1, 0, 1, 0]


def test_classes_that_look_alike_are_refused(table):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    with pytest.raises(ValueError, match=r"two classes look alike: .*U\+0065 U\+0301.*U\+00E9"):
        table({"a": numbers(2), "kind": names})
    with pytest.raises(ValueError, match="'New  York' and 'New York' differ in blanks"):
        table({"a": numbers(2), "kind": ["New York", "New  York"]})
    assert table({"a": numbers(2), "kind": ["A", "a"]}).classes == ["A", "a"]  # letters, say
    with pytest.raises(ValueError, match="class 'cat' is named twice"):
        table({"a": numbers(2), "kind": ["cat", "cat"]}, classes=["cat", "cat "])


@pytest.mark.parametrize("nobody", [None, "", "None", "nan", "  "])
def test_a_row_without_a_group_is_refused(table, nobody):
    with pytest.raises(
        ValueError, match=r"column 'who' must say who made each row; 1 of 4 are empty, .* row 3"
    ):
        table({"a": numbers(4), "kind": KINDS, "who": ["ann", "bob", nobody, "ann"]}, group="who")


def test_blanks_around_a_groups_name_do_not_count(table):
    data = table({"a": numbers(4), "kind": KINDS, "who": ["ann", "ann ", "bob", " bob"]}, group="who")
    assert data.groups == ["ann", "ann", "bob", "bob"]
    data = table({"a": numbers(4), "kind": KINDS, "who": [1.0, 2.0, 2.0, 1.0]}, group="who")
    assert data.groups == ["1", "2", "2", "1"]


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__"])
def test_an_index_is_no_feature(table, index):
    columns = {index: numbers(4), "a": [5.0] * 4, "kind": KINDS}
    with pytest.warns(UserWarning, match="left out of the samples"):
        assert table(columns).x.tolist() == [[5.0]] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table(columns, columns=[index, "a"]).x[:, 0].tolist() == numbers(4)


@pytest.mark.parametrize("name", ["table", "features"])
@pytest.mark.parametrize("index", [None, "id"])
def test_the_index_that_pandas_writes_into_parquet_is_no_feature(tmp_path, name, index):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"a": numbers(4), "kind": KINDS}, index=pandas.Index([9, 3, 5, 7], name=index))
    frame.to_parquet(tmp_path / "a.parquet")
    spec = {"name": name, "root": tmp_path / "a.parquet", "label": "kind"}
    assert open_data(spec).x.shape == (4, 1)
    if index is not None:
        assert open_data({**spec, "columns": ["id", "a"]}).x[:, 0].tolist() == [9, 3, 5, 7]


def test_two_columns_of_one_name_are_refused_where_they_are_used(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,b,kind\n1,2,3,cat\n4,5,6,dog\n")
    spec = {"name": "table", "root": tmp_path / "a.csv", "label": "kind"}
    for change in (
        {},
        {"columns": ["b"]},
        {"label": "b", "columns": ["a"]},
        {"group": "b", "columns": ["a"]},
    ):
        with pytest.raises(ValueError, match=r"a\.csv: 2 columns are named 'b'"):
            open_data({**spec, **change})
    assert open_data({**spec, "columns": ["a"]}).x.tolist() == [[1.0], [4.0]]


@pytest.mark.parametrize("name", ["table", "features"])
def test_two_columns_of_one_name_in_parquet(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    columns = [pyarrow.array(cells) for cells in ([1.0, 4.0], [2.0, 5.0], [3.0, 6.0], ["cat", "dog"])]
    parquet.write_table(pyarrow.table(columns, names=["a", "b", "b", "kind"]), tmp_path / "a.parquet")
    spec = {"name": name, "root": tmp_path / "a.parquet", "label": "kind"}
    with pytest.raises(ValueError, match=r"a\.parquet: 2 columns are named 'b'"):
        open_data(spec)
    assert open_data({**spec, "columns": ["a"]}).x.tolist() == [[1.0], [4.0]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_row_without_a_text_is_named_or_passed_over(tmp_path, kind):
    pytest.importorskip("transformers", reason="transformers is not installed")
    said = ["a dog barks", None, "nan", "a cat"]
    path = tmp_path / f"said.{kind}"
    if kind == "csv":
        path.write_text("what,kind\n" + "".join(f"{one or ''},cat\n" for one in said))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"what": said, "kind": ["cat"] * 4}), path)
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer"))
    spec = {
        "name": "text",
        "root": path,
        "text": "what",
        "label": "kind",
        "tokenizer": tokenizer,
        "length": 3,
    }
    with pytest.raises(
        ValueError, match=r"column 'what' has no text in 1 of 4 rows, the first is row 2; skip_bad"
    ):
        open_data(spec)
    data = open_data({**spec, "skip_bad": True})
    with pytest.warns(UserWarning, match="row 2: expected a text, there is none; another sample"):
        x, _ = data.batch(torch.arange(4))
    assert x.tolist() == [[2, 3, 5], [1, 0, 0], [1, 0, 0], [2, 4, 0]]  # "nan" is a word


def test_a_run_trains_and_measures_on_rows_with_a_label(tmp_path):
    from ucmkd_fast.run.sources import DataSpec, open_parts

    for name, kinds in (("train", ["cat", "dog", "NA", ""]), ("val", ["dog", "-1"]), ("none", ["nan"])):
        lines = [f"{k},{kind}" for k, kind in enumerate(kinds)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,kind", *lines]) + "\n")
    specs = {
        name: {"name": "table", "root": str(tmp_path / f"{name}.csv"), "label": "kind"}
        for name in ("train", "val", "none")
    }
    with pytest.warns(UserWarning, match=r"train\.csv, column 'kind': 2 of 4 rows have no label"):
        parts = open_parts(DataSpec.read({"train": specs["train"], "val": specs["val"]}), 0)
    assert parts.train.labels.tolist() == [0, 1] and parts.train.x.flatten().tolist() == [0, 1]
    assert parts.unlabelled.x.flatten().tolist() == [2, 3]
    assert parts.val.labels.tolist() == [1] and parts.val.classes == ["cat", "dog"]  # its own are "dog" alone
    with pytest.raises(ValueError, match="column 'kind' has no label: 1 'nan'"):
        open_parts(DataSpec.read({"train": specs["train"], "val": specs["none"]}), 0)


def test_endings_of_any_case(tmp_path):
    (tmp_path / "A.CSV").write_text("a,kind\n1,cat\n2,dog\n")
    assert open_data({"name": "table", "root": tmp_path / "A.CSV", "label": "kind"}).x.tolist() == [
        [1.0],
        [2.0],
    ]


@pytest.mark.parametrize("wrong", ["", "two", "1,5"])
def test_a_cell_that_is_no_number_is_named_by_its_row(tmp_path, wrong):
    (tmp_path / "a.tsv").write_text(f"a\tkind\n1\tcat\n{wrong}\tdog\n")
    with pytest.raises(ValueError, match=rf"a\.tsv: column 'a' must hold numbers; row 2 holds '{wrong}'"):
        open_data({"name": "table", "root": tmp_path / "a.tsv", "label": "kind"})


def test_labels_of_minus_one_in_arrays(tmp_path):
    import numpy as np
    from safetensors.torch import save_file

    np.save(tmp_path / "x.npy", np.ones((4, 2), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, -1, 1, -1], np.int8))
    save_file({"x": torch.ones(4, 2), "y": torch.tensor([0, -1, 1, -1])}, tmp_path / "x.safetensors")
    for root, labels in (("x.npy", tmp_path / "y.npy"), ("x.safetensors", None)):
        data = open_data({"name": "features", "root": tmp_path / root, "labels": labels})
        assert data.labels.tolist() == [0, UNLABELLED, 1, UNLABELLED]


def test_names_in_a_column_of_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    cells = {"kind": [b"cat", b"d\xc3\xb6g ", None], "by": [b"ann", b"bob", b"ann"], "a": [1.0, 2.0, 3.0]}
    parquet.write_table(pyarrow.table(cells), tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="1 of 3 rows have no label"):
        data = open_data({"name": "table", "root": tmp_path / "a.parquet", "label": "kind", "group": "by"})
    assert data.classes == ["cat", "dög"] and list(data.groups) == ["ann", "bob", "ann"]
