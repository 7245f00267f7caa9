"""Records of a data set: JSON, JSON lines, CSV, Parquet, a folder of them, or a hub id; and the
question that each asks. What is wrong with the data is a ValueError of one line.
"""

import csv
import json
from pathlib import Path

QUESTIONS = ("problem", "question", "Question", "prompt")


def records(name, folder=None, split="train", hub="", config=None):
    """Dictionaries, one per record, from a local place if there is one, else from the hub. In place
    of a record that cannot be read comes a ValueError that says why.

    name: a file, a folder, or a hub id OWNER/NAME; with `hub`, its id, the short name of a set.
    folder: where to look for FOLDER/NAME or FOLDER/NAME.* first, for machines without network.
    """
    places = [] if hub else [Path(name)]
    hub = hub or name
    if folder:
        places += [Path(folder) / stem for stem in (name, hub.split("/")[-1])]
    for place in places:
        files = [place]
        if not place.is_file():
            files = sorted(f for f in place.rglob("*") if f.suffix in READERS)
        beside = (place.with_name(place.name + suffix) for suffix in READERS)
        files = files or [f for f in beside if f.exists()]
        if files:  # train.jsonl, or MATH/train/...
            of_split = [f for f in files if split in str(f.relative_to(place.parent))]
            for file in of_split or files:
                yield from _read(file)
            return
    if folder or "/" not in hub or Path(name).suffix in READERS:
        raise ValueError(
            f"{folder or name}: no {name} there; expected a .json, .jsonl, .csv or .parquet file, "
            "a folder of them, a hub id OWNER/NAME, or the name of a known set"
        )
    import datasets

    try:
        table = datasets.load_dataset(hub, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{hub}: cannot be loaded ({str(error).splitlines()[0][:150]}); without network, give "
            "a folder that holds it"
        ) from error
    yield from _rows(table)


def column(record, given, known, what, where):
    """The value of the column that was given, or of the first known one that holds something."""
    name = given or next((name for name in known if not missing(record.get(name))), None)
    if missing(record.get(name)):
        raise ValueError(
            f"{where}: no {what} in column {given or ' or '.join(known)}; it has "
            f"{', '.join(map(str, record))}; name the {what} column"
        )
    return record[name]


def missing(value):
    return value is None or value != value or not str(value).strip()  # NaN is not itself


def question(record, given, where):
    """The text of a record's question; of chat messages the last, after what the system says."""
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {str(record)[:40]!r} is not a record with columns")
    asked = column(record, given, QUESTIONS, "question", where)
    if not isinstance(asked, list):
        return str(asked)
    if not asked or not all(isinstance(one, dict) and one.get("content") for one in asked):
        raise ValueError(f"{where}: its chat messages have no content")
    *before, last = asked
    told = [one["content"] + "\n\n" for one in before if one.get("role") == "system"]
    return "".join(told) + last["content"]


def _rows(table):
    for batch in table.iter(10_000):
        for row in zip(*batch.values(), strict=True):
            yield dict(zip(batch, row, strict=True))


def _read_json(path):
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except ValueError:
        return _read_lines(path)
    if isinstance(found, list):
        return found
    return [found]  # MATH has a file a problem


def _read_lines(path):
    """A line that is not JSON becomes the error that _fields raises. Only \\n ends a line:
    splitlines() would also cut at the U+2028 of a text.
    """
    for i, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            yield ValueError(f"{path}, line {i}: is not JSON ({error})")


def _read_csv(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _read_parquet(path):
    import datasets

    return _rows(datasets.load_dataset("parquet", data_files=str(path), split="train"))


READERS = {".json": _read_json, ".jsonl": _read_lines, ".csv": _read_csv, ".parquet": _read_parquet}


def _read(path):
    if path.suffix not in READERS:
        raise ValueError(
            f"{path}: a {path.suffix or 'nameless'} file; expected {', '.join(READERS)}"
        )
    with open(path, "rb") as file:
        start = file.read(40)
    if not start:
        raise ValueError(f"{path}: is empty (0 bytes)")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: is a Git LFS pointer, not the data; fetch it with git lfs pull")
    return READERS[path.suffix](path)
