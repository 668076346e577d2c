from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data import csv, parquet

TEXT = """age, colour ,dose,outcome
30,red,1.5,yes
41,blue,?,no

52,red,-2e1,no
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.csv"
    path.write_text(TEXT, encoding="utf-8-sig")  # as spreadsheets write it
    return str(path)


USUAL = {"label": "outcome", "labels": {"no": 0, "yes": 1}, "categories": {"colour": ["blue", "red"]}}


def test_one_hot_mapping_and_dropped_rows(table: str) -> None:
    found = csv(table, **USUAL, drop_missing=True)
    assert torch.equal(found.inputs, torch.tensor([[30, 0, 1, 1.5], [52, 0, 1, -20.0]]))
    assert found.inputs.dtype == torch.float32
    assert torch.equal(found.targets, torch.tensor([1, 0]))


def test_features_are_taken_in_the_order_given_by_name_or_number(table: str) -> None:
    found = csv(table, label=-1, labels=USUAL["labels"], features=["colour", 0], categories=USUAL["categories"])
    assert torch.equal(found.inputs, torch.tensor([[0, 1, 30], [1, 0, 41], [0, 1, 52.0]]))


def test_where_keeps_and_leaves_out_its_column(table: str) -> None:
    found = csv(table, label="age", where={"colour": "red"}, drop=["outcome"])
    assert torch.equal(found.inputs, torch.tensor([[1.5], [-20.0]]))
    assert found.targets.tolist() == [30, 52]


def test_without_a_header_columns_have_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes("1;2;Ä\n3;4;B\n".encode("latin-1"))
    found = csv(str(path), label=2, header=False, delimiter=";", labels={"Ä": 0, "B": 1}, encoding="latin-1", drop=[0])
    assert found.inputs.tolist() == [[2.0], [4.0]]
    assert found.targets.tolist() == [0, 1]
    with pytest.raises(DataError, match="utf-8"):
        csv(str(path), label=2, header=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ["Row 3", "dose"]),  # missing; its line in the file
        ({"drop_missing": True, "labels": {"yes": 1}}, ["Row 5", "outcome"]),
        ({"drop_missing": True, "labels": None}, ["Row 2", "outcome", "labels"]),
        ({"drop_missing": True, "categories": {}}, ["Row 2", "colour", "categories"]),
        ({"drop_missing": True, "categories": {"colour": ["blue"]}}, ["Row 2", "colour"]),
        ({"missing": []}, ["Row 3", "dose"]),
        ({"label": "result"}, ["'result'", "outcome"]),
        ({"label": 7}, ["7"]),
        ({"drop": ["weight"]}, ["'weight'"]),
        ({"where": {"colour": "green"}}, ["where"]),
        ({"delimiter": ";"}, ["outcome"]),
    ],
)
def test_each_fault_names_row_and_column_and_no_cell(table: str, change, said: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        csv(table, **{**USUAL, **change})
    for part in said:
        assert part in str(caught.value)
    for cell in ("blue", "-2e1", "41"):
        assert cell not in str(caught.value)


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity", "1e39"])
def test_what_is_not_finite_is_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"a,y\n1,0\n{cell},1\n")
    with pytest.raises(DataError, match=r"Row 3 .* column a"):
        csv(str(path), label="y")


@pytest.mark.parametrize("text", ["", "a,y\n", "a,y\n1,2,3\n", "a,a\n1,2\n", 'a,y\n"1,2\n'])
def test_files_that_are_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError):
        csv(str(path), label="y" if "y" in text else "a")


def test_parquet_gives_what_csv_gives(tmp_path: Path, table: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {
        "age": arrow.array([30, 41, 52]),
        "colour": ["red", "blue", "red"],
        "dose": arrow.array([1.5, None, -20.0]),
        "outcome": ["yes", "no", "no"],
        "late": [True, False, True],
    }
    path = str(tmp_path / "table.parquet")
    pyarrow.parquet.write_table(arrow.table(columns), path)
    found, expected = parquet(path, **USUAL, drop=["late"], drop_missing=True), csv(table, **USUAL, drop_missing=True)
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.targets, expected.targets)
    assert parquet(path, label="late", features=["age"]).targets.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"Row 2 .* dose"):
        parquet(path, **USUAL, drop=["late"])
    with pytest.raises(DataError, match="not a Parquet file"):
        parquet(table, **USUAL)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install"):
        parquet(table, label="age")
