"""From a file to typed columns: every format, every kind of column, every kind of bad input."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proponent.audit.read import Table, read_like, read_table
from proponent.audit.reading import delimited, files, source
from proponent.errors import InputError, MissingExtra

JOBS = ("cook", "nurse", "smith")


def people(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 70, n),
            "job": rng.choice(JOBS, n),
            "height": rng.normal(1.7, 0.1, n).round(3),
            "paid": np.where(rng.random(n) < 0.5, "yes", "no"),
        }
    )


def write(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def save(folder: Path, frame: pd.DataFrame, name: str = "t.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def warned(table: Table, *words: str) -> bool:
    return any(all(w in sentence for w in words) for sentence in table.warnings)


# formats


@pytest.mark.parametrize(
    "suffix", ["csv", "tsv", "csv.gz", "csv.xz", "csv.bz2", "csv.zip", "zip", "parquet", "jsonl", "jsonl.xz"]
)
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    frame = people()
    path = tmp_path / f"people.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif "jsonl" in suffix:
        frame.to_json(path, orient="records", lines=True)
    elif suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside.csv", frame.to_csv(index=False))
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    table = read_table(path, label="paid")
    assert dict(table.kinds) == {"age": "number", "job": "category", "height": "number"}
    assert table.frame["age"].tolist() == frame["age"].tolist()
    assert table.frame["job"].tolist() == frame["job"].tolist()
    np.testing.assert_allclose(table.frame["height"], frame["height"])
    assert table.labels.tolist() == frame["paid"].tolist()
    assert table.classes == ("no", "yes") and table.task == "classification"
    assert table.ids.tolist() == [str(i) for i in range(60)]
    assert table.total == 60 and table.warnings == ()


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_the_delimiter_is_found_whatever_the_texts_hold(tmp_path: Path, delimiter: str) -> None:
    frame = people().assign(job=lambda f: f["job"] + ', of; sorts | many\n"quoted"')
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, sep=delimiter)
    table = read_table(path, label="paid")
    assert table.frame["job"].tolist() == frame["job"].tolist()


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-8", False), ("utf-8-sig", False), ("utf-16", False), ("cp1252", True)]
)
def test_encodings(tmp_path: Path, encoding: str, says: bool) -> None:
    rows = "\n".join(f"{i % 7},{'café' if i % 2 else 'thé'},{'oui' if i % 3 else 'non'}" for i in range(30))
    table = read_table(write(tmp_path, f"zahl,boisson,répond\n{rows}\n", encoding=encoding), label="répond")
    assert table.frame["boisson"].tolist()[:2] == ["thé", "café"]
    assert warned(table, "not UTF-8", "Windows-1252") == says


def test_wrong_encoding_far_into_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "HEAD_BYTES", 10_000)
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n" + b"1,no\n2,yes\n" * 50_000 + "3,café\n4,café\n".encode("cp1252"))
    table = read_table(path, label="y", task="classification")
    assert table.classes == ("café", "no", "yes") and warned(table, "Windows-1252")


def test_a_zip_with_several_tables_says_which_was_read(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("big.csv", people().to_csv(index=False))
        archive.writestr("codes.csv", "a,b\n1,2\n")
    assert warned(read_table(path, label="paid"), "big.csv was read", "codes.csv")


def test_json_lines_keep_nested_values_as_text(tmp_path: Path) -> None:
    lines = [json.dumps({"tags": ["a", i % 3], "x": i % 5, "y": i % 2}) for i in range(30)]
    table = read_table(write(tmp_path, "\n".join(lines) + "\n\n", "t.jsonl"), label="y")
    assert table.frame["tags"].iloc[1] == '["a", 1]' and table.classes == ("0", "1")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people().to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"proponent\[parquet\]"):
        read_table(tmp_path / "t.parquet", label="paid")


# kinds


def test_kinds_of_columns(tmp_path: Path) -> None:
    n = 100
    rng = np.random.default_rng(1)
    words = np.array(["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "goes", "home"])
    frame = pd.DataFrame(
        {
            "row": np.arange(n),
            "uuid": [f"{v:08x}" for v in rng.integers(0, 2**32, n)],
            "PassengerId": rng.permutation(n) * 7,
            "paid_by_id": rng.integers(1, 5, n),
            "zip": [f"{v:05d}" for v in rng.choice([501, 10001, 2134], n)],
            "review": [" ".join(rng.choice(words, 8)) for _ in range(n)],
            "joined": pd.date_range("2019-01-01", periods=n, freq="9D").strftime("%Y-%m-%d"),
            "seen": pd.date_range("2019-01-01", periods=n, freq="9D").strftime("%d.%m.%Y"),
            "flag": rng.random(n) < 0.5,
            "size": rng.normal(size=n),
            "one": 1,
            "none": np.nan,
            "y": rng.choice(["a", "b"], n),
        }
    )
    table = read_table(save(tmp_path, frame), label="y")
    assert dict(table.kinds) == {
        "row": "identifier",
        "uuid": "identifier",
        "PassengerId": "identifier",
        "paid_by_id": "category",
        "zip": "category",
        "review": "text",
        "joined": "date",
        "seen": "date",
        "flag": "category",
        "size": "number",
        "one": "constant",
        "none": "empty",
    }
    assert "one" not in table.frame and "none" not in table.frame
    assert warned(table, "same value", "'one'") and warned(table, "no value", "'none'")
    assert table.frame["zip"].iloc[0] in {"00501", "10001", "02134"}
    assert table.frame["joined"].iloc[1] == table.frame["seen"].iloc[1] == pd.Timestamp(2019, 1, 10)


def test_day_first_dates_are_told_from_month_first(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-05", periods=40, freq="17D")
    sure = pd.DataFrame({"d": days.strftime("%d/%m/%Y"), "y": ["a", "b"] * 20})
    assert read_table(save(tmp_path, sure), label="y").frame["d"].tolist() == days.tolist()
    early = days[days.day <= 12]
    either = pd.DataFrame(
        {"d": early.strftime("%d/%m/%Y"), "y": ["a", "b"] * (len(early) // 2) + ["a"] * (len(early) % 2)}
    )
    assert warned(read_table(save(tmp_path, either), label="y"), "'d'", "read as month/day")


def test_every_spelling_of_missing(tmp_path: Path) -> None:
    tokens = ["", "?", "NA", "n/a", "nan", "NaN", "null", "NULL", " ? ", "#N/A"]
    rows = [f"{t},{t},{'ab'[i % 2]}" for i, t in enumerate(tokens)] + [f"{i},w{i % 3},{'ab'[i % 2]}" for i in range(30)]
    table = read_table(write(tmp_path, "number,word,y\n" + "\n".join(rows) + "\n"), label="y")
    assert dict(table.kinds) == {"number": "number", "word": "category"}
    assert table.frame["number"].isna().sum() == table.frame["word"].isna().sum() == len(tokens)


def test_infinity_becomes_missing_with_a_warning(tmp_path: Path) -> None:
    frame = people()
    frame.loc[[3, 5], "height"] = [np.inf, -np.inf]
    table = read_table(save(tmp_path, frame), label="paid")
    assert np.flatnonzero(table.frame["height"].isna()).tolist() == [3, 5]
    assert warned(table, "2 values", "'height'", "inf", "missing")


def test_a_few_words_among_numbers(tmp_path: Path) -> None:
    frame = people(100).astype({"age": object})
    frame.loc[[4, 9], "age"] = ["old", "very old"]
    table = read_table(save(tmp_path, frame), label="paid")
    assert table.kinds["age"] == "number" and table.frame["age"].isna().sum() == 2
    assert warned(table, "2 values", "'age'", "'old'", "'very old'")


def test_many_words_among_numbers(tmp_path: Path) -> None:
    frame = people(100).astype({"age": object})
    frame.loc[:19, "age"] = "old"
    table = read_table(save(tmp_path, frame), label="paid")
    assert table.kinds["age"] == "category" and warned(table, "'age'", "20 words", "'old'", "category")


def test_codes_with_a_few_letters_stay_codes(tmp_path: Path) -> None:
    frame = people(100).assign(diagnosis=["V57"] * 2 + ["250.83", "401", "428"] * 32 + ["E885"] * 2)
    assert read_table(save(tmp_path, frame), label="paid").kinds["diagnosis"] == "category"


# labels


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (np.arange(200) % 10, "classification"),
        (np.arange(400) % 26, "classification"),
        (np.arange(200) * 0.37, "regression"),
        (np.arange(200) % 60, "regression"),
        ([f"c{i % 3}" for i in range(200)], "classification"),
    ],
)
def test_the_task_is_found(tmp_path: Path, labels: np.ndarray, task: str) -> None:
    table = read_table(save(tmp_path, pd.DataFrame({"x": np.arange(len(labels)) % 7, "y": labels})), label="y")
    assert table.task == task
    assert table.labels.dtype.kind == ("f" if task == "regression" else "U")


def test_the_task_can_be_said(tmp_path: Path) -> None:
    path = save(tmp_path, pd.DataFrame({"x": np.arange(90) % 7, "y": np.arange(90) % 30}))
    assert read_table(path, label="y").task == "regression"
    assert warned(read_table(path, label="y"), "30 different whole numbers", "classification")
    assert len(read_table(path, label="y", task="classification").classes) == 30
    with pytest.raises(InputError, match="task='ranking'"):
        read_table(path, label="y", task="ranking")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="numbers for regression"):
        read_table(save(tmp_path, people()), label="paid", task="regression")


def test_rows_without_a_label_are_set_aside_and_named(tmp_path: Path) -> None:
    frame = people().assign(name=[f"p{i}" for i in range(60)])
    frame.loc[[2, 7], "paid"] = [None, "?"]
    table = read_table(save(tmp_path, frame), label="paid", id="name")
    assert len(table) == 58 and "p2" not in table.ids and table.rows[2] == 3 and table.total == 60
    assert warned(table, "2 rows", "p2, p7", "'paid'")


def test_small_classes(tmp_path: Path) -> None:
    frame = people()
    frame.loc[0, "paid"] = "maybe"
    frame.loc[1:3, "paid"] = "never"
    table = read_table(save(tmp_path, frame), label="paid")
    assert table.classes == ("never", "no", "yes") and "0" not in table.ids
    assert warned(table, "'maybe'", "set aside: 0") and warned(table, "fewer than 5", "'never' (3 rows)")


def test_groups_and_ids(tmp_path: Path) -> None:
    frame = people().assign(source=["a", "b", None] * 20, code=[f"{i:04d}" for i in range(60)])
    table = read_table(save(tmp_path, frame), label="paid", group="source", id="code")
    assert table.groups is not None and table.groups[:3].tolist() == ["a", "b", "(missing)"]
    assert table.ids[:2].tolist() == ["0000", "0001"] and set(table.frame) == {"age", "job", "height"}


# bad input


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty file"),
        ("\n\n", "empty file"),
        ("a,y\n", "without a row below its header"),
        ("a,y\n1,no\n2,no\n3,no\n", "one class only, 'no'"),
        ("a,Y\n1,no\n2,yes\n", "no label column 'y'.*did you mean 'Y'"),
        ("1,2\n1,no\n2,yes\n", "numbers only: add a line with the columns' names"),
        ("a,y\n1,\n2,\n", "no value in the label column 'y'"),
        ("a,y\n1,no\n2,yes\n3,4,no\n", "line 4 .* with 3 fields.*2 fields"),
        ('a,y\n1,no\n"2,yes\n3,no\n', "quot"),
        ("y,z\nno,1\nyes,1\nno,1\nyes,1\n", "no usable column"),
        ("a,y\n1,no\n2,yes\n3,no\n4,no\n", "one class only, with two rows"),
        ("a,y\n1,no\n2,yes\n", "2 classes in 2 rows"),
        ("a,y\n" + "".join(f"{i},c{i}\n" for i in range(50)), "50 classes in 50 rows.*task=.regression"),
        ("a,y\n" + "".join(f"{i},c{i % 250}\n" for i in range(999)), "250 classes in 999 rows"),
        ("a,y\0\n1,no\n", "binary file"),
    ],
)
def test_bad_tables_are_refused_in_words(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        read_table(write(tmp_path, text), label="y")


def test_a_ragged_line_far_down_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a,y\n" + "1,no\n2,yes\n" * 15_000 + "3,4,no\n")
    with pytest.raises(InputError, match=r"line 30002 of t.csv with 3 fields"):
        read_table(path, label="y")


def test_short_lines_are_counted(tmp_path: Path) -> None:
    text = "y,a,b\n" + "no,1,2\nyes,2,3\n" * 10 + "no,4\n"
    table = read_table(write(tmp_path, text), label="y")
    assert len(table) == 21 and warned(table, "1 of the first 22 lines have fewer fields", "line 22")


def test_delimiters_at_line_ends_are_harmless(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a,y\n" + "1,no,\n2,yes,\n" * 10), label="y")
    assert table.frame["a"].tolist() == [1, 2] * 10 and table.classes == ("no", "yes")


def test_repeated_column_names(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a,a,y\n" + "1,5,no\n2,6,yes\n" * 5), label="y")
    assert list(table.frame) == ["a", "a (2)"] and table.frame["a (2)"].iloc[0] == 5
    assert warned(table, "Repeated column names", "'a'")


def test_repeated_and_missing_ids(tmp_path: Path) -> None:
    frame = people().assign(id=[f"p{i}" for i in range(60)])
    frame.loc[5, "id"] = "p4"
    with pytest.raises(InputError, match="1 repeated ids in the column 'id', such as 'p4'"):
        read_table(save(tmp_path, frame), label="paid", id="id")
    frame.loc[5, "id"] = None
    table = read_table(save(tmp_path, frame), label="paid", id="id")
    assert table.ids[5] == "row 5" and warned(table, "1 rows", "'id'")


def test_an_absent_file_names_its_sibling(tmp_path: Path) -> None:
    save(tmp_path, people(), "train.csv")
    with pytest.raises(InputError, match=r"did you mean 'train.csv'"):
        read_table(tmp_path / "trian.csv", label="paid")
    with pytest.raises(InputError, match="check the folder's name"):
        read_table(tmp_path / "nowhere" / "train.csv", label="paid")


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    whole = gzip.compress(people(500).to_csv(index=False).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.csv.xz").write_bytes(b"plain text")
    (tmp_path / "not.zip").write_bytes(b"plain text")
    (tmp_path / "not.parquet").write_bytes(b"plain text")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\3\4")
    for name, says in [("cut.csv.gz", "damaged"), ("not.csv.xz", "damaged"), ("not.zip", "damaged")]:
        with pytest.raises(InputError, match=says):
            read_table(tmp_path / name, label="paid")
    with pytest.raises(InputError, match="not Parquet"):
        read_table(tmp_path / "not.parquet", label="paid")
    with pytest.raises(InputError, match="save the sheet as CSV"):
        read_table(tmp_path / "sheet.xlsx", label="paid")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.md", "hello")
    with pytest.raises(InputError, match="without a table inside"):
        read_table(tmp_path / "empty.zip", label="paid")


@pytest.mark.parametrize(("line", "says"), [('{"x": 1', "line 2 .*not JSON"), ("[1]", "line 2 .*not a JSON object")])
def test_bad_json_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_table(write(tmp_path, f'{{"x": 1, "y": 0}}\n{line}\n', "t.jsonl"), label="y")


# memory and subsets


def test_a_file_too_large_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "HEAD_BYTES", 20_000)
    frame = people(20_000)
    for path in (save(tmp_path, frame), save(tmp_path, frame, "t.csv.gz")):
        with pytest.raises(InputError, match=r"needs about .* GB .* rows.*at most the 0.001 GB.*--rows \d+"):
            read_table(path, label="paid", max_memory=1e6)
        assert len(read_table(path, label="paid", max_memory=1e6, rows=500)) == 500
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"needs about .* for about 2e\+04 rows"):
        read_table(tmp_path / "t.parquet", label="paid", max_memory=1e6)


def test_available_memory_is_read() -> None:
    assert 1e7 < source.available_memory() < 1e15


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_subset_is_uniform_and_repeatable(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = people(5000).assign(zip=lambda f: f["age"].map("{:05d}".format))
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    table = read_table(path, label="paid", rows=300, seed=3)
    monkeypatch.setattr(delimited, "CHUNK_ROWS", 700)
    monkeypatch.setattr(files, "CHUNK_ROWS", 700)
    again = read_table(path, label="paid", rows=300, seed=3)
    pd.testing.assert_frame_equal(table.frame, again.frame, check_categorical=False)
    assert len(table) == 300 and table.total == 5000 and warned(table, "300 of 5000", "seed 3")
    assert (np.diff(table.rows) > 0).all() and table.ids.tolist() == table.rows.astype(str).tolist()
    assert table.frame["height"].tolist() == frame["height"].iloc[table.rows].tolist()
    assert dict(table.kinds) == dict(read_table(path, label="paid").kinds)
    assert set(read_table(path, label="paid", rows=300, seed=4).ids) != set(table.ids)
    assert abs(table.rows.mean() - 2500) < 4 * 5000 / np.sqrt(12 * 300)
    with pytest.raises(InputError, match="rows=0"):
        read_table(path, label="paid", rows=0)


# held-out tables


def test_a_held_out_table_takes_columns_kinds_and_classes(tmp_path: Path) -> None:
    train = read_table(save(tmp_path, people().assign(when="2020-01-01 ").iloc[:, [4, 0, 1, 2, 3]]), label="paid")
    other = people(20).astype({"age": object}).assign(extra=1)
    other.loc[0, "age"] = "unknown age"
    other.loc[1, "paid"] = "perhaps"
    other.loc[2, "paid"] = None
    other.loc[3:, "paid"] += "."
    held = read_like(save(tmp_path, other, "test.csv"), train)
    assert list(held.frame) == list(train.frame) and held.classes == train.classes and len(held) == 18
    assert np.isnan(held.frame["age"].iloc[0]) and set(held.labels) <= {"yes", "no"}
    assert warned(held, "ending in '.'") and warned(held, "perhaps", "1 row", "set aside: 1")
    assert warned(held, "without a label", "set aside: 2") and warned(held, "'unknown age'")


def test_a_held_out_table_without_a_column(tmp_path: Path) -> None:
    train = read_table(save(tmp_path, people()), label="paid")
    with pytest.raises(InputError, match=r"no feature column 'age'.*did you mean 'Age'"):
        read_like(save(tmp_path, people().rename(columns={"age": "Age"}), "test.csv"), train)
    with pytest.raises(InputError, match="no label column 'paid'"):
        read_like(save(tmp_path, people().drop(columns="paid"), "test.csv"), train)
    with pytest.raises(InputError, match=r"no row of test.csv with a usable label"):
        read_like(save(tmp_path, people().assign(paid="never"), "test.csv"), train)


def test_held_out_dates_and_numbers_are_read_alike(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-05", periods=40, freq="17D")
    train = read_table(
        save(tmp_path, pd.DataFrame({"d": days.strftime("%d/%m/%Y"), "y": np.arange(40) * 0.1})), label="y"
    )
    held = read_like(write(tmp_path, "d,y\n03/04/2021,1.5\nlater,2\n,x\n", "test.csv"), train)
    assert held.frame["d"].iloc[0] == pd.Timestamp(2021, 4, 3) and pd.isna(held.frame["d"].iloc[1])
    assert held.labels.tolist() == [1.5, 2.0] and warned(held, "1 value", "'d'", "'later'") and warned(held, "1 row")


# examples


def test_rows_texts_and_images_describe_themselves(tmp_path: Path) -> None:
    rows = read_table(save(tmp_path, people()), label="paid").examples()
    assert rows.describe("3").fields["job"] in JOBS and rows.describe("3").kind == "row"
    texts = pd.DataFrame({"text": [f"this is message number {i} to you" for i in range(30)], "y": ["a", "b"] * 15})
    table = read_table(save(tmp_path, texts.assign(row=np.arange(30))), label="y")
    assert dict(table.kinds) == {"text": "text", "row": "identifier"}
    assert table.examples().describe("7").text == "this is message number 7 to you"


def draw_images(folder: Path, n: int = 6, size: tuple[int, int] = (8, 10), mode: str = "L") -> Path:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            shape = size if mode == "L" else (*size, 3)
            image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_images(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    folder = draw_images(tmp_path / "pets", mode=mode)
    Image.new("L", (20, 20), 128).save(folder / "dog" / "big.png")
    (folder / "cat" / "broken.png").write_bytes(b"not an image")
    table = read_table(folder, label="animal")
    assert table.pixels is not None and table.image_shape == ((8, 10) if mode == "L" else (8, 10, 3))
    assert table.classes == ("cat", "dog") and len(table) == 13 and dict(table.kinds) == {"image": "image"}
    assert warned(table, "1 files", "cat/broken.png") and warned(table, "1 of 13 images", "8 × 10")
    shown = table.examples().describe("cat/3.png").image
    assert shown is not None and (shown == np.asarray(Image.open(folder / "cat" / "3.png"))).all()
    assert len(read_table(folder, label="animal", rows=8)) <= 8


def test_held_out_images_take_the_same_shape(tmp_path: Path) -> None:
    train = read_table(draw_images(tmp_path / "train"), label="animal")
    held = read_like(draw_images(tmp_path / "held", n=3, size=(16, 20), mode="RGB"), train)
    assert held.image_shape == (8, 10) and held.pixels is not None and held.pixels.shape == (6, 80)
    with pytest.raises(InputError, match="without sub-folders of images"):
        read_table(tmp_path / "train" / "cat", label="animal")


def test_xz_is_streamed_and_sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "HEAD_BYTES", 200_000)
    path = tmp_path / "t.csv.xz"
    path.write_bytes(lzma.compress(people(50_000).to_csv(index=False).encode()))
    head = source.read_head(source.File(path))
    assert head.cut and len(head.content) == source.HEAD_BYTES
    assert 0.5 < head.size / len(lzma.decompress(path.read_bytes())) < 2
