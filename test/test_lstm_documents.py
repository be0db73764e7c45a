"""The readers of labelled documents and the classifier of the LSTM example."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples" / "lstm"))

from classifier import classify
from documents import cleaned, read_documents


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# ---- tables ----


def test_csv_with_quotes_line_breaks_and_entities(tmp_path):
    path = write(
        tmp_path / "reviews.csv",
        '\ufefflabel,id,text\r\n1,7,"It\'s ""good"",\nvery<br />good &amp; long"\r\n\r\n'
        "0,8,Bää\u2028\r\n",
    )
    (documents,) = read_documents(path).values()
    assert documents.texts == (b'It\'s "good", very good & long', "Bää".encode())
    assert documents.labels == ("1", "0")


def test_tsv_takes_quotes_as_they_are(tmp_path):
    path = write(tmp_path / "train.tsv", 'sentence\tlabel\n" hide new\t0\nfine\t1\n')
    assert read_documents(path)["all"].texts == (b'" hide new', b"fine")


def test_columns_are_chosen_by_name(tmp_path):
    path = write(tmp_path / "a.csv", "text,body,stars\nx,long,5\n")
    documents = read_documents(path, text_column="body", label_column="stars")["all"]
    assert (documents.texts, documents.labels) == ((b"long",), ("5",))


def test_long_fields(tmp_path):
    path = write(tmp_path / "a.csv", f"text,label\n{'x' * 300_000},1\n")
    assert len(read_documents(path)["all"].texts[0]) == 300_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "must have a column text or sentence or review. Received: a, b"),
        ("text,b\n1,2\n", "must have a column label or sentiment. Received: text, b"),
        ("", "must have a column text .* Received: an empty file"),
        ("text,label\n", "one document or more. Received: none"),
        ("text,label\nx,1\ny,1,2\n", "line 3: there must be 2 fields, .* Received: 3"),
        ("text,label\nx,\n", "line 2: the label is empty"),
        ('text,label\n"x,1\n', "line 2: not a table: unexpected end of data"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_documents(write(tmp_path / "a.csv", text))


# ---- trees ----

TREES = """\
(3 (2 (2 The) (2 Rock)) (4 (3 -LRB-) (2 and\\/or)))
(2 (2 Neutral) (2 .))

(0 (1 Bad) (2 :-RRB-))
(1 Poor)
(4 (4 Great))
"""


def test_trees(tmp_path):
    path = write(tmp_path / "trees.txt", TREES)
    documents = read_documents(path)["all"]
    assert documents.texts == (b"The Rock ( and/or", b"Bad :-RRB-", b"Poor", b"Great")
    assert documents.labels == ("pos", "neg", "neg", "pos")
    fine = read_documents(path, fine_grained=True)["all"]
    assert fine.labels == ("3", "2", "0", "1", "4")


@pytest.mark.parametrize(
    "tree", ["Good", "(3 Good", "(3 Good))", "(3 Good) (2 x)", "(7 Good)", "((3 x))", "(3 )", "(3)"]
)
def test_what_is_no_tree_is_refused(tmp_path, tree):
    path = write(tmp_path / "trees.txt", f"(3 Fine)\n{tree}\n")
    with pytest.raises(ValueError, match=r"trees\.txt, line 2: there must be a tree such as"):
        read_documents(path)


# ---- folders ----


def test_reviews_in_folders(tmp_path):
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            for number in range(2):
                write(tmp_path / part / label / f"{number}.txt", f"{part} {label}\n{number}")
        write(tmp_path / part / "unsup" / "0.txt", "unlabelled")
    write(tmp_path / "README", "not data")
    parts = read_documents(tmp_path)
    assert list(parts) == ["train", "test"]
    assert parts["test"].texts == (b"test neg 0", b"test neg 1", b"test pos 0", b"test pos 1")
    assert parts["train"].labels == ("neg", "neg", "pos", "pos")
    assert read_documents(tmp_path / "train")["all"] == parts["train"]


def test_treebanks_in_folders(tmp_path):
    for part in ("train", "dev", "test"):
        write(tmp_path / f"{part}.txt", f"(3 {part})\n")
    parts = read_documents(tmp_path)
    assert {part: documents.texts for part, documents in parts.items()} == {
        "train": (b"train",),
        "validation": (b"dev",),
        "test": (b"test",),
    }


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must hold neg and pos, .* Received: nothing"):
        read_documents(tmp_path)
    write(tmp_path / "pos" / "0.txt", "x")
    with pytest.raises(ValueError, match="must hold neg and pos, .* Received: pos"):
        read_documents(tmp_path)
    write(tmp_path / "valid.csv", "text,label\n")
    write(tmp_path / "dev.csv", "text,label\n")
    with pytest.raises(ValueError, match="must be one validation part. Received: dev.csv and val"):
        read_documents(tmp_path)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of .csv, .tsv, .txt. Received: .json"):
        read_documents(write(tmp_path / "a.json", "{}"))
    path = write(tmp_path / "a.csv", "text,label\nBä,1\n", "latin-1")
    with pytest.raises(ValueError, match=r"a\.csv: the text must be UTF-8. .*0xe4 at position 12"):
        read_documents(path)


def test_cleaned():
    assert cleaned(" a<BR/><br>b\n\n c &lt;3 ") == b"a b c <3"


# ---- the classifier ----

QUICKLY = {"strengths": (2.0**-8, 1.0), "folds": 2}


def vectors(rng, n=120, num_features=12, noise=0.1):
    """Labels that feature 5 decides, and feature 2 to a lesser degree."""
    labels = np.array(["neg", "pos"])[np.arange(n) % 2]
    features = rng.standard_normal((n, num_features)).astype(np.float32)
    sign = np.where(labels == "pos", 1, -1)
    features[:, 5] = 100 * (sign + noise * features[:, 5])
    features[:, 2] += 0.5 * sign
    return features, labels


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_deciding_feature_is_found(rng, penalty):
    result = classify(vectors(rng), vectors(rng), penalties=[penalty], **QUICKLY)
    assert (result.train_error, result.test_error, result.top_feature_error) == (0, 0, 0)
    assert (result.top_feature, result.penalty, result.num_weights) == (5, penalty, 12)
    assert result.num_nonzero == 12 if penalty == "l2" else 1 <= result.num_nonzero < 12
    assert (result.classes, result.test_size) == (("neg", "pos"), 120)
    assert "feature 5 alone: test error 0.00%" in str(result)


def test_errors_are_shares_of_wrong_labels(rng):
    features, labels = vectors(rng)
    wrong = labels.copy()
    wrong[:30] = np.where(wrong[:30] == "pos", "neg", "pos")
    result = classify((features, labels), (features, wrong), **QUICKLY)
    assert (result.train_error, result.test_error) == (0, 0.25)


def test_noise_wants_strong_regularisation(rng):
    labels = np.arange(80) % 2
    result = classify((rng.standard_normal((80, 60)), labels), **QUICKLY)
    assert result.strength == 2.0**-8 and result.validation_error > 0.3
    assert result.test_error is None and "test none" in str(result)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_many_classes(rng, penalty):
    labels = np.arange(90) % 3
    features = np.eye(3)[labels] + 0.1 * rng.standard_normal((90, 3))
    result = classify((features, labels), penalties=[penalty], **QUICKLY)
    assert (result.train_error, result.num_weights) == (0, 9)


def test_a_run_repeats(rng):
    train = vectors(rng, noise=2.0)
    assert classify(train, seed=3, **QUICKLY) == classify(train, seed=3, **QUICKLY)


def test_vectors_that_are_refused(rng):
    x, y = vectors(rng, 20)
    few = np.array(["neg"] * 19 + ["pos"])
    refused = [
        ((x[:, 0], y), None, r"must be numbers \[n, d\]. Received: float32\[20\]"),
        ((x, y[:3]), None, "must have 20 labels, .* Received: shape"),
        ((np.where(x > 0, np.nan, x), y), None, "features of the train set must be finite"),
        ((x, few), None, "two vectors or more each. Received: 19 of neg, 1 of pos"),
        ((x[:2], y[[0, 0]]), None, "two classes or more .* Received: 2 of neg"),
        ((x, y), (x[:, 1:], y), "must have 12 features, .* Received: 11"),
        ((x, y), (x, np.full(20, "meh")), r"labels of the training set. Received: \['meh'\]"),
    ]
    for train, test, message in refused:
        with pytest.raises(ValueError, match=message):
            classify(train, test)
    for kwargs in ({"penalties": ["l0"]}, {"strengths": [0.0]}, {"folds": 1}):
        with pytest.raises(ValueError, match="there must be penalties of l1 and l2, positive"):
            classify((x, y), **kwargs)
