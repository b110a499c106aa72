"""The catalog of data sets: what each is, where it comes from and what is known to be wrong with it.

The facts are data (`catalog.toml`); this module only looks them up.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources

from ..errors import MstlError


@dataclass(frozen=True)
class Card:
    """One entry of the catalog.

    role        "source", "bridge" or "target";  simulated: true for phantoms
    classes     in the order of the labels, the positive class last where the task is binary
    group_rule  what a group is, in words
    archive     the stem of the file (BUSI: "Dataset_BUSI" for Dataset_BUSI.zip, .tar.gz or a folder);  also: other stems it is found under
    checksum    file name -> "sha256:…" or "md5:…" of the file as it is published, where that is known
    known       file name -> "sha256:…" of reduced copies that this project was developed on
    reader      which layout reads it (`archives.READERS`); layout: its settings
    options     what a caller of `load` may set, with the defaults
    channels    1 grey, 3 colour
    origin      class -> tissue that it comes from, where the classes are cell lines
    """

    name: str
    title: str
    modality: str
    role: str
    task: str
    classes: tuple[str, ...]
    group_rule: str
    licence: str
    doi: str
    url: str
    archive: str
    citation: str
    reader: str
    channels: int = 1
    notes: str = ""
    checksum: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)
    also: tuple[str, ...] = ()
    layout: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    simulated: bool = False
    origin: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "also", tuple(self.also))


def _whole(table: dict, tables: dict) -> dict:
    rest = {key: value for key, value in table.items() if key != "from"}
    return {**_whole(tables[table["from"]], tables), **rest} if "from" in table else rest


@cache
def catalog() -> dict[str, Card]:
    """All cards by name, in the order of the file. A `[set.NAME]` table may start `from = "OTHER"` and say only what differs."""
    text = resources.files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)["set"]
    allowed = {f.name for f in fields(Card)}
    cards: dict[str, Card] = {}
    for name, own in tables.items():
        if name.startswith("_"):  # only there to be copied from
            continue
        table = {**_whole(own, tables), "name": name}
        unknown = set(table) - allowed
        if unknown:
            raise MstlError(
                f"catalog.toml: [set.{name}] has the unknown key {sorted(unknown)[0]!r}{nearest(sorted(unknown)[0], allowed)}"
            )
        cards[name] = Card(**table)
    return cards


def card(name: str) -> Card:
    """The card of the data set `name`; an unknown name is an error that names the nearest."""
    cards = catalog()
    if name not in cards:
        raise MstlError(
            f"there is no data set {name!r} in the catalog{nearest(name, cards)}; "
            "`mstl data list` shows all, and a folder with manifest.csv may be named by its path"
        )
    return cards[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean …?"` where something similar is known, else an empty string."""
    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def readme() -> str:
    """The text of data/README.md, made of the catalog (a test holds the file to it)."""
    lines = [_HEAD]
    for title, chosen in (
        ("Published archives", [c for c in catalog().values() if not c.simulated and c.reader != "npz"]),
        ("MedMNIST", [c for c in catalog().values() if c.reader == "npz"]),
        ("Simulated", [c for c in catalog().values() if c.simulated]),
    ):
        lines.append(f"## {title}\n")
        lines.append("| name | what | classes | channels | licence | file |\n|---|---|---|---|---|---|")
        for c in chosen:
            source = "made on the spot" if c.simulated else f"`{c.archive}`"
            classes = ", ".join(c.classes) if len(c.classes) <= 11 else f"{len(c.classes)} classes"
            lines.append(f"| `{c.name}` | {c.title} | {classes} | {c.channels} | {c.licence} | {source} |")
        lines.append("")
        for c in chosen:
            lines.append(f"### {c.name}\n")
            lines.append(f"{c.title}. {c.modality.capitalize()}; role: {c.role}; task: {c.task}.\n")
            lines.append(f"- Groups: {c.group_rule}.")
            if c.options:
                lines.append(
                    "- Options of `load`: " + ", ".join(f"`{key}={value!r}`" for key, value in c.options.items()) + "."
                )
            if c.notes:
                lines.append(f"- Known: {c.notes}")
            if c.origin:
                lines.append(f"- Tissue of origin: {_origins(c)}.")
            if not c.simulated:
                lines.append(
                    f"- Address: <{c.url}>" + (f"; DOI [{c.doi}](https://doi.org/{c.doi})" if c.doi else "") + "."
                )
                lines.extend(f"- Published `{file}`: {value}." for file, value in c.checksum.items())
            lines.append(f"- Cite: {c.citation}\n")
    return "\n".join(lines).rstrip() + "\n"


def _origins(card: Card) -> str:
    tissues = sorted(set(card.origin.values()), key=lambda tissue: (-list(card.origin.values()).count(tissue), tissue))
    return "; ".join(f"{tissue} ({', '.join(name for name in card.origin if card.origin[name] == tissue)})" for tissue in tissues)


def write_readme() -> None:
    """Writes data/README.md of the checkout anew."""
    from .. import paths

    paths.share("data", "README.md").write_text(readme(), encoding="utf-8")


_HEAD = """# Data

*Generated from `mstl/datasets/catalog.toml` by `python -c "from mstl.datasets import catalog; catalog.write_readme()"`; edit the catalog, not this page.*

`raw/` is where you drop the archives, as they were downloaded (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) or as an unpacked folder of
that name; folders named in the environment variable `MSTL_DATA` (joined by `:`, on Windows by `;`) are searched too.
`prepared/` is the cache that `mstl.datasets.load(name, size)` writes; delete from it what you like.
`reference/` holds the predictions of the reference study; no image.

```python
from mstl import datasets
data = datasets.load("busi", size=96)         # a name below, a folder with manifest.csv, or a MedMNIST .npz
```

Only MedMNIST files are ever downloaded, by the `medmnist` package, which checks their MD5. Everything else you fetch yourself, after reading its licence.
The checksum of a file is compared with the catalog's; another copy is accepted, and its SHA-256 and that fact are written into the prepared set.

An own data set is a folder with `manifest.csv`: `path,label` and, where you know them, `group,center,split,view,case,x0,y0,x1,y1`
(PNG, JPEG, TIFF or DICOM of 8 to 16 bits; several rows of one path are several boxes, in pixels of the original image).
"""
