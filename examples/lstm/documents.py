"""Labelled documents for a classifier: from tables, sentiment treebanks and folders of reviews.

  a file .csv or .tsv        a table with a header, one document in a row
  a file .txt                one tree of the Stanford Sentiment Treebank in a line
  a folder                   neg/*.txt and pos/*.txt, as the IMDB reviews have it; or parts called
                             train, dev (or valid, validation) and test, each a folder of this kind
                             or a file of the kinds above

Every wrong file ends in a ValueError that names the file and the line.
"""

import csv
import dataclasses
import html
import io
import pathlib
import re

TEXT_COLUMNS = ("text", "sentence", "review")
LABEL_COLUMNS = ("label", "sentiment")
PARTS = {
    "train": "train",
    "dev": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
SUFFIXES = (".csv", ".tsv", ".txt")
CLASS_FOLDERS = ("neg", "pos")
TREE_LABELS = {"0": "neg", "1": "neg", "3": "pos", "4": "pos"}  # 2 is neutral
TREE_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


@dataclasses.dataclass(frozen=True)
class Documents:
    """Texts and their labels, in the order of the source.

    Attributes:
      texts: tuple of bytes, UTF-8 without markup and line breaks, as `cleaned` makes them.
      labels: tuple of str, one for each text.
    """

    texts: tuple
    labels: tuple

    def __len__(self):
        return len(self.texts)


def read_documents(path, text_column=None, label_column=None, fine_grained=False):
    """Reads labelled documents.

    Args:
      path: file or folder of the kinds above.
      text_column, label_column: of tables: names in the header. By default the first that is there
        of text, sentence, review, and of label, sentiment.
      fine_grained: of trees: True gives labels 0 to 4; False gives neg for 0 and 1, pos for 3 and
        4, and leaves out the neutral 2.
    Returns:
      dict of Documents by part: "train", "validation", "test" as far as they are there, or "all"
      where the path has no parts.
    Raises:
      FileNotFoundError: there is nothing at path.
      ValueError: it is none of these kinds, a file is not as it should be, or there is no document.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    columns = {"text": text_column, "label": label_column}
    parts = _parts(path) if path.is_dir() else {}
    sources = parts or {"all": path}
    return {part: _read(source, columns, fine_grained) for part, source in sources.items()}


def cleaned(text):
    """The text as a byte-level model should see it: no entities, line breaks, `<br />`; UTF-8."""
    text = html.unescape(re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE))
    return " ".join(text.split()).encode()


# ---- what is where ----


def _parts(folder):
    """The sources in a folder by part; empty if it has no parts."""
    found = {}
    for entry in sorted(folder.iterdir()):
        name = PARTS.get(entry.stem if entry.is_file() else entry.name)
        if name is None or entry.is_file() and entry.suffix not in SUFFIXES:
            continue
        if name in found:
            raise ValueError(
                f"{folder}: there must be one {name} part. Received: {found[name].name} and "
                f"{entry.name}"
            )
        found[name] = entry
    return dict(sorted(found.items(), key=lambda item: list(PARTS.values()).index(item[0])))


def _read(source, columns, fine_grained):
    if source.is_dir():
        pairs = _folder_pairs(source)
    elif source.suffix in (".csv", ".tsv"):
        pairs = _table_pairs(source, columns)
    elif source.suffix == ".txt":
        pairs = _tree_pairs(source, fine_grained)
    else:
        raise ValueError(
            f"{source}: the file must be one of {', '.join(SUFFIXES)}. Received: "
            f"{source.suffix or 'no suffix'}"
        )
    if not pairs:
        raise ValueError(f"{source}: there must be one document or more. Received: none")
    texts, labels = zip(*pairs, strict=True)
    return Documents(tuple(map(cleaned, texts)), labels)


def _decoded(path):
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: the text must be UTF-8. Received: byte {error.object[error.start]:#04x} at "
            f"position {error.start}"
        ) from error


# ---- the kinds of source ----


def _folder_pairs(folder):
    missing = [name for name in CLASS_FOLDERS if not (folder / name).is_dir()]
    if missing:
        entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder}: the folder must hold {' and '.join(CLASS_FOLDERS)}, or parts such as "
            f"train and test. Received: {entries}"
        )
    paths = [(path, name) for name in CLASS_FOLDERS for path in (folder / name).glob("*.txt")]
    return [(_decoded(path), name) for path, name in sorted(paths)]


def _table_pairs(path, columns):
    is_csv = path.suffix == ".csv"
    csv.field_size_limit(2**31 - 1)  # a document may be long
    reader = csv.reader(
        io.StringIO(_decoded(path), newline=""),
        delimiter="," if is_csv else "\t",
        quoting=csv.QUOTE_MINIMAL if is_csv else csv.QUOTE_NONE,
        strict=True,
    )
    pairs = []
    try:
        header = next(reader, [])
        text = _column(path, header, columns["text"], TEXT_COLUMNS)
        label = _column(path, header, columns["label"], LABEL_COLUMNS)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: there must be {len(header)} fields, as in "
                    f"the header. Received: {len(row)}"
                )
            if not row[label]:
                raise ValueError(f"{path}, line {reader.line_num}: the label is empty")
            pairs.append((row[text], row[label]))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a table: {error}") from error
    return pairs


def _column(path, header, wanted, defaults):
    names = [wanted] if wanted else defaults
    for name in names:
        if name in header:
            return header.index(name)
    raise ValueError(
        f"{path}: the header must have a column {' or '.join(names)}. Received: "
        f"{', '.join(header) or 'an empty file'}"
    )


def _tree_pairs(path, fine_grained):
    pairs = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        label, words = _tree(line.strip())
        if label is None:
            raise ValueError(
                f"{path}, line {number}: there must be a tree such as (3 (2 Good) (3 .)). "
                f"Received: {line.strip()[:60]}"
            )
        if fine_grained or label in TREE_LABELS:
            pairs.append((" ".join(words), label if fine_grained else TREE_LABELS[label]))
    return pairs


def _tree(line):
    """The label at the root and the words at the leaves; (None, []) if `line` is no tree."""
    tokens = re.findall(r"\([0-4](?= )|\)|[^()\s]+|\S", line)
    depth, words, is_tree = 0, [], True
    for position, token in enumerate(tokens):
        is_open = token[0] == "(" and len(token) == 2
        is_tree &= depth > 0 if position else is_open
        if is_open or token == ")":
            depth += 1 if is_open else -1
        else:
            is_tree &= token not in "()"
            words.append(TREE_ESCAPES.get(token, token.replace("\\/", "/").replace("\\*", "*")))
    if not is_tree or depth or not words:
        return None, []
    return tokens[0][1], words
