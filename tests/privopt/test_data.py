"""Rows: dealt the same way every time, scaled by public constants, and refused with file, line and column."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privopt.setup.data import DataError, deal, load
from privopt.setup.tables import Data

CLASSES, BOUNDS = ("no", "yes"), {"age": (0.0, 100.0), "*": (-1.0, 1.0)}


def own(*paths, **more):
    table = {
        "name": "own",
        "clients": tuple(map(str, paths)),
        "target": "sick",
        "classes": CLASSES,
        "bounds": BOUNDS,
    }
    return Data(**{**table, **more})


def csv(tmp_path, text, name="north.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


GOOD = "age,dose,sick\n50,0.5,no\n75,-2,yes\n"


# --- built-in sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [("digits", 1437, 360, (1, 8, 8), 10), ("breast_cancer", 455, 114, (30,), 2)],
)
def test_built_in_sets_have_their_sizes_and_ranges(name, train, test, shape, classes):
    found = load(Data(name=name), seed=0)
    assert sum(map(len, found.clients)) == train
    assert [client.id for client in found.clients] == [f"clinic-{i}" for i in range(8)]
    assert found.test is not None
    assert found.test[0].shape == (test, *shape)
    assert (found.input_shape, found.classes, len(found.labels)) == (shape, classes, classes)
    assert found.built_in
    for x, y in [(c.x, c.y) for c in found.clients] + [found.test]:
        assert (x.dtype, y.dtype, x.shape[1:]) == (np.float32, np.int64, shape)
        assert np.abs(x).max() <= 1
        assert set(y) <= set(range(classes))


def test_the_test_split_is_stratified_and_disjoint_from_training():
    from sklearn.datasets import load_digits

    found = load(Data(), seed=0)
    every = np.concatenate([client.x for client in found.clients] + [found.test[0]]).reshape(-1, 64)
    np.testing.assert_array_equal(  # each row of the set exactly once
        np.sort(every.view("V256").ravel()),
        np.sort((load_digits().data / 16).astype(np.float32).view("V256").ravel()),
    )
    share = np.bincount(found.test[1]) / np.bincount(load_digits().target)
    assert np.abs(share - 0.2).max() < 0.01


def test_the_same_seed_deals_the_same_rows_and_another_does_not():
    first, again, other = (load(Data(), seed=s) for s in (1, 1, 2))
    for a, b in zip(first.clients, again.clients, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
    assert [len(c) for c in first.clients] != [len(c) for c in other.clients]
    np.testing.assert_array_equal(first.test[0], other.test[0])


@given(
    st.lists(st.integers(0, 4), min_size=40, max_size=200),
    st.integers(1, 8),
    st.floats(0.01, 100),
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_a_deal_gives_every_row_to_one_client_and_each_client_enough(labels, clients, alpha, seed, fewest):
    parts = deal(np.array(labels), clients, alpha, seed, min_rows=fewest)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert len(parts) == clients
    assert min(map(len, parts)) >= fewest


def test_alpha_says_how_even_the_deal_is():
    y = np.repeat(np.arange(10), 1000)

    def skew(alpha):
        parts = deal(y, 5, alpha, seed=0)
        return np.mean([np.bincount(y[p], minlength=10).max() / len(p) for p in parts])

    assert skew(0.1) > 0.2 > 0.12 > skew(1000.0)


def test_more_clients_than_rows_allow_is_told():
    with pytest.raises(DataError, match="200 clients"):
        load(Data(clients=200), seed=0)


def test_reprs_show_sizes_and_no_rows():
    found = load(Data(), seed=0)
    assert repr(found.clients[0]).endswith(" rows)")
    assert "array" not in repr(found)


# --- own files --------------------------------------------------------------------------------------------


def test_own_csv_files_are_scaled_by_the_bounds_and_clipped(tmp_path):
    north = csv(tmp_path, GOOD)
    south = csv(tmp_path, "sick;dose;age\nyes;1;0\n", "south.csv")  # other order, other delimiter
    found = load(own(north, south), seed=0)
    assert [client.id for client in found.clients] == ["north", "south"]
    np.testing.assert_allclose(found.clients[0].x, [[0, 0.5], [0.5, -1]])
    np.testing.assert_allclose(found.clients[1].x, [[-1, 1]])
    assert [client.y.tolist() for client in found.clients] == [[0, 1], [1]]
    assert not found.built_in
    assert "rows" not in found.description


def test_without_dp_labels_are_found_and_unbounded_features_stay(tmp_path):
    path = csv(tmp_path, "age,sick\n500,3\n-2,10\n")
    found = load(own(path, classes=None, bounds={}), seed=0, private=False)
    assert found.labels == ("3", "10")
    np.testing.assert_allclose(found.clients[0].x, [[500], [-2]])


def test_own_archives_keep_the_shape_of_a_row(tmp_path):
    path = tmp_path / "north.npz"
    np.savez(path, x=np.full((3, 1, 2, 2), 255, np.uint8), y=np.array([0, 1, 1]))
    found = load(own(path, classes=(0, 1), bounds={"*": (0.0, 255.0)}), seed=0)
    assert found.input_shape == (1, 2, 2)
    assert found.clients[0].x.min() == found.clients[0].x.max() == 1
    assert found.clients[0].y.tolist() == [0, 1, 1]


def test_quoted_cells_blank_lines_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "north.csv"
    path.write_text('\ufeffage,dose,sick\r\n"50",0.5,"no"\r\n\r\n75,1,"yes"\r\n', encoding="utf-8")
    assert load(own(path), seed=0).clients[0].y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("age,dose,ill\n1,1,no\n", r"'sick' in .*north\.csv, got columns age, dose, ill"),
        ("age,dose,sick\n1,,no\n", "an empty cell in .*line 2, column 'dose'"),
        ("age,dose,sick\n1,1,no\n1,nan,no\n", "NaN or infinity in .*line 3, column 'dose'"),
        ("age,dose,sick\n1,-inf,no\n", "NaN or infinity"),
        ("age,dose,sick\n1,1e300,no\n", "NaN or infinity"),
        ("age,dose,sick\n1,high,no\n", "got text in .*line 2, column 'dose'"),
        ("age,dose,sick\n1,1\n", "3 cells as in the header, got 2 in .*line 2"),
        ("age,dose,sick\n1,1,\n", "a label in column 'sick'"),
        ("age,dose,sick\n1,1,no\n1,1,maybe\n", r"labels \(no, yes\) .*line 3"),
        ("age,dose,sick\n", "rows below the header"),
        ("", "'sick' in"),
        ("age,age,sick\n1,1,no\n", "2 different names"),
        ("sick\nno\n", "at least one feature"),
        ('age,dose,sick\n"1,1,no\n', "Is a quote left open"),
    ],
)
def test_a_bad_csv_is_told_with_file_line_and_column(tmp_path, text, says):
    with pytest.raises(DataError, match=says) as caught:
        load(own(csv(tmp_path, text)), seed=0)
    assert "\n" not in str(caught.value)


def test_no_message_shows_what_a_cell_holds(tmp_path):
    for text in ("age,dose,sick\n1,secret-value,no\n", "age,dose,sick\n1,1,secret-value\n"):
        with pytest.raises(DataError) as caught:
            load(own(csv(tmp_path, text)), seed=0)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((2, 2))}, "arrays x and y in .*got x"),
        ({"x": np.zeros(2), "y": np.zeros(2)}, r"\(2,\) and \(2,\)"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, r"\(2, 2\) and \(3,\)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "with rows"),
        ({"x": np.array([["a", "b"]]), "y": np.zeros(1)}, "real numbers"),
        ({"x": np.array([[0, np.nan]]), "y": np.zeros(1)}, r"x\[0, 1\]"),
        ({"x": np.array([[0, None]]), "y": np.zeros(1)}, "pickled objects are not loaded"),
    ],
)
def test_a_bad_archive_is_told(tmp_path, arrays, says):
    path = tmp_path / "north.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=says):
        load(own(path, classes=(0, 1)), seed=0)


def test_an_archive_that_is_none_is_told(tmp_path):
    path = tmp_path / "north.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"numpy\.savez"):
        load(own(path), seed=0)


def test_unreadable_files_are_told_and_carry_the_system_error(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path / "absent.npz", tmp_path):
        with pytest.raises(DataError, match=r"relative to the folder|\.csv or \.npz") as caught:
            load(own(path), seed=0)
        assert path == tmp_path or isinstance(caught.value.__cause__, FileNotFoundError)


def test_columns_that_differ_between_clients_are_named(tmp_path):
    north, south = csv(tmp_path, GOOD), csv(tmp_path, "age,weight,sick\n1,1,no\n", "south.csv")
    with pytest.raises(DataError, match=r"south\.csv without dose and with weight"):
        load(own(north, south), seed=0)
    archive = tmp_path / "east.npz"
    np.savez(archive, x=np.zeros((2, 2)), y=np.zeros(2))
    with pytest.raises(DataError, match="without age, dose"):
        load(own(north, archive), seed=0)


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="'north' 2 times"):
        load(own(csv(tmp_path, GOOD), csv(tmp_path / "b", GOOD)), seed=0)
    with pytest.raises(DataError, match="letters, digits"):
        load(own(csv(tmp_path, GOOD, "a b.csv")), seed=0)


def test_under_dp_nothing_is_inferred_from_rows(tmp_path):
    path = csv(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"data\.classes"):
        load(own(path, classes=None), seed=0)
    with pytest.raises(DataError, match="got none for dose"):
        load(own(path, bounds={"age": (0.0, 1.0)}), seed=0)
    with pytest.raises(DataError, match="got wieght"):
        load(own(path, bounds={"wieght": (0.0, 1.0), "*": (0.0, 1.0)}), seed=0)


def test_own_public_test_rows_are_read_like_the_clients(tmp_path):
    found = load(own(csv(tmp_path, GOOD), test=str(csv(tmp_path, GOOD, "test.csv"))), seed=0)
    np.testing.assert_array_equal(found.test[0], found.clients[0].x)


# --- MNIST ------------------------------------------------------------------------------------------------


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    for split, rows in (("train", 60), ("t10k", 10)):
        images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = (np.arange(rows) % 10).astype(np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_mnist_is_read_from_its_four_files_gzip_or_not(mnist):
    found = load(Data(name="mnist", path=str(mnist), clients=3, min_rows=2), seed=0)
    assert found.input_shape == (1, 28, 28)
    assert sum(map(len, found.clients)) == 60
    assert found.test[0].shape == (10, 1, 28, 28)
    assert 0.9 < found.test[0].max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", None, "train-images-idx3-ubyte"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x01" + b"\0" * 20, "another header"),
        ("train-images-idx3-ubyte", idx(np.zeros((60, 28, 28), np.uint8))[:-1], "cut short"),
        ("train-images-idx3-ubyte", idx(np.zeros((59, 28, 28), np.uint8)), "60 and 59"),
        ("t10k-labels-idx1-ubyte.gz", b"\x1f\x8b damaged", "damaged"),
        ("t10k-labels-idx1-ubyte.gz", idx(np.full(10, 10, np.uint8)), "labels 0 to 9"),
    ],
)
def test_damaged_mnist_files_are_named(mnist, name, content, says):
    (mnist / name).unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load(Data(name="mnist", path=str(mnist), clients=3), seed=0)
