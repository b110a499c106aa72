"""The book: the executed notebooks of a study between pages of prose, rendered by Jupyter Book.

``build_book`` copies the prose and the notebooks that the study left in ``runs/`` into ``_build/book-source/<study>``, renders that
folder with every warning an error, checks what came out (each page there, with its title, its images and their alternative text;
nothing loaded from outside) and only then puts it in the place of the book before it.

Numbers and figures of the prose are *glued*: a page names a key of an executed notebook, and a key that no run produced fails
the build.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from mstl import paths
from mstl.errors import MstlError
from mstl.study import RECORD

#: The stages whose executed notebook the book shows, with the title of the page that stands in where a study has no such run.
STAGES = {"00_data": "Data", "10_source": "Source stage", "20_bridge": "Bridge stage", "30_target": "Target stage", "35_probe": "Probe stage",
          "36_first_hop": "The first hop", "40_transferability": "Transferability", "50_ablation_half_cells": "Fewer cell images, fewer cell lines",
          "51_ablation_bridge": "Cells, or anything?", "52_ablation_radimagenet": "Radiology or photographs as the source", "53_leakage": "Leakage",
          "54_when_does_a_bridge_help": "When does a bridge help?", "60_comparison": "Comparison", "61_operating_points": "Operating points",
          "70_detection": "Detection", "71_bone_tumours": "Bone tumours", "72_robustness": "Robustness", "73_backbones": "The classic backbones",
          "74_two_views": "Two views"}
#: Analyses that the book shows once more, of another lineage's or chapter's predictions: (stage, name).
NAMED = {("60_comparison", "vit"): "Comparison of the vision transformers",
         ("60_comparison", "detection"): "Comparison of the detectors",
         ("61_operating_points", "detection"): "Operating points of the detectors"}
#: Those of them that the reference study alone has.
_REFERENCE_ONLY = {("60_comparison", "vit")}
#: Analyses that the book shows twice: of the study's own runs, and of the committed tables of the reference study.
RECOMPUTED = ("40_transferability", "50_ablation_half_cells", "51_ablation_bridge", "52_ablation_radimagenet", "54_when_does_a_bridge_help",
              "61_operating_points", "70_detection", "71_bone_tumours", "72_robustness", "73_backbones", "74_two_views")
#: A page whose notebook is another page's template has a title of its own.
TITLES = {"60_comparison": "The comparison of this study", "reference": "The comparison of the reference study, recomputed"} | {
    f"{stage}_reference": f"{STAGES[stage]}: the reference study, recomputed" for stage in RECOMPUTED} | {
    f"{stage}_{name}": title for (stage, name), title in NAMED.items() if (stage, name) not in _REFERENCE_ONLY} | {
    f"{stage}_{name}_reference": f"{title}: the reference study, recomputed" for (stage, name), title in NAMED.items()}
_GLUE_PREFIX = "application/papermill.record/"
_ONLY_WITH = re.compile(r"^% only with (\w+)\n(.*?)^% end\n", re.MULTILINE | re.DOTALL)
_NOISE = re.compile(r"\x1b\[[0-9;]*m|^.*\r(?!\n)", re.MULTILINE)


def build_book(study: str = "workshop", *, out: str | Path | None = None) -> Path:
    """Build the book of a study that has run; returns the path of its first page.

    ``study`` is the name of a study or the path of its YAML file, ``out`` the folder of the HTML (default ``_build/html``).
    Raises :class:`MstlError` in one sentence when a run is missing, when a page takes a number that no run produced, and when a page
    would load anything from outside.
    """
    from mstl.study import plan, read_study

    chosen = read_study(study)
    runs = [BookRun(run.stage, run.slug, paths.home("runs", chosen.name, run.stage, run.slug), run.parameters) for run in plan(chosen)]
    check_reference([paths.home(table) for run in runs if run.slug.startswith("reference")
                     for table in [*run.parameters.get("predictions", []), *([f"{run.parameters['results']}/{RECORD}"] if run.parameters.get("results") else [])]])
    source = assemble(paths.home("_build", "book-source", chosen.name), notebooks=choose(runs, study),
                      pages={"colophon": colophon(chosen.name, runs, reference_records()), "cards": cards()})
    index = render(source, Path(out) if out else paths.home("_build", "html")) / "index.html"
    print(f"The book of study {chosen.name}: {index.as_uri()}")
    return index


@dataclass(frozen=True)
class BookRun:
    """A run of the study as the book sees it: its stage, its folder under ``runs/`` and the parameters it was planned with."""

    stage: str
    slug: str
    folder: Path
    parameters: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"{self.stage}/{self.slug}"

    @property
    def notebook(self) -> Path:
        return self.folder / "notebook.ipynb"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of the finished run; empty when it has not finished."""
        path = self.folder / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ---------------------------------------------------------------------------------------------------------- which notebooks


def choose(runs: Sequence[BookRun], study: str) -> dict[str, Path]:
    """The executed notebook behind each page: the first run of a stage, of the target stage the first of arm ``mstl``."""
    pages: dict[str, Path] = {}
    for stage in STAGES:
        candidates = [run for run in runs if run.stage == stage and not run.slug.startswith("reference") and (stage, run.slug) not in NAMED]
        if stage == "30_target":
            candidates = [run for run in candidates if run.parameters.get("arm") == "mstl"] or candidates
        if candidates:
            pages[stage] = candidates[0].notebook
    for run in runs:
        if run.slug == "reference" and run.stage in RECOMPUTED:
            pages[f"{run.stage}_reference"] = run.notebook
        elif study == "reference" and run.stage in RECOMPUTED and run.stage in pages:
            pages[f"{run.stage}_reference"] = pages[run.stage]
        if (run.stage, name := run.slug.removeprefix("reference-")) in NAMED:
            if run.slug != name or (run.stage, name) not in _REFERENCE_ONLY:
                pages[f"{run.stage}_{name}" + ("_reference" if run.slug != name else "")] = run.notebook
            if study == "reference":
                pages[f"{run.stage}_{name}_reference"] = run.notebook
    recomputed = [run for run in runs if run.path == "60_comparison/reference"]
    if recomputed:
        pages["reference"] = recomputed[0].notebook
    elif study == "reference" and "60_comparison" in pages:
        pages["reference"] = pages["60_comparison"]
    else:
        raise MstlError(f"The book shows the reference results beside those of study {study}, which has none: put `show_reference: true` "
                        f"into its file, see that data/reference/ holds the tables of the reference study, and run `mstl run {study}`.")
    for page, notebook in pages.items():
        if not notebook.is_file() or not (notebook.parent / "run.json").is_file():
            raise MstlError(f"The book's page {page} needs the run {notebook.parent.parent.name}/{notebook.parent.name} of study {study}, "
                            f"which has not finished: run `mstl run {study}` first.")
    return pages


def check_reference(tables: Iterable[Path]) -> None:
    """Refuse to show as results on real images what has no record of the reference study, or was simulated."""
    for table in tables:
        path = table.with_name("run.json")
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if record.get("study") != "reference" or not record["data"] or any(entry["simulated"] for entry in record["data"]):
            raise MstlError(f"{table} has no record of a run of the reference study on real images beside it (run.json), so the book cannot "
                            "show it as one: renew data/reference/ with `make reference`.")


# ------------------------------------------------------------------------------------------------------- the book's source


def assemble(source: Path, *, notebooks: Mapping[str, Path], pages: Mapping[str, str]) -> Path:
    """Write the whole source of the book into ``source`` (emptied first): prose, configuration, notebooks and generated pages.

    ``notebooks``: page name -> executed notebook;  ``pages``: page name -> MyST markdown.
    """
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copytree(paths.share("book"), source / "book", ignore=shutil.ignore_patterns("executed", ".ipynb_checkpoints", "__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copyfile(paths.share(name), source / name)
    executed = source / "book" / "executed"
    (executed / "figures").mkdir(parents=True)
    for page, notebook in notebooks.items():
        _copy_notebook(notebook, executed, page)
    absent = {page: title for page, title in (STAGES | TITLES).items() if page not in notebooks and page != "reference"}
    for page, title in absent.items():
        (executed / f"{page}.md").write_text(_absent_page(title), encoding="utf-8")
    _fit_chapters(source / "book", set(absent))
    for page, text in pages.items():
        (executed / f"{page}.md").write_text(text, encoding="utf-8")
    return source


def _absent_page(title: str) -> str:
    return (f"# {title}: none here\n\nThis page is not part of this study: it has no such run, because its chains "
            "start from weights that were trained elsewhere, its arms do without it, or nobody asked for it.\n[](colophon.md) lists the runs that it has.\n")


def _fit_chapters(book: Path, absent: set[str]) -> None:
    """Chapters that take numbers or figures from pages that this book does not have: where the reference study's page is absent and
    the study's own is there, that stands in and the chapter says so; else the chapter says that it is left out. What stands between
    the lines ``% only with PAGE`` and ``% end`` goes where the page is absent."""
    for path in sorted(book.rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        text = _ONLY_WITH.sub(lambda block: "" if block[1] in absent else block[2], before)
        if text != before:
            path.write_text(text, encoding="utf-8")
        wanted = set(re.findall(r"executed/(?:figures/)?(\w+?)(?:\.ipynb|-\w+\.png)", text)) & absent
        if not wanted or path.parent.name == "executed":
            continue
        title = re.search(r"^# .+$", text, re.MULTILINE)
        if title and all(page.endswith("_reference") and page.removesuffix("_reference") not in absent for page in wanted):
            for page in wanted:
                text = re.sub(rf"\b{page}\b", page.removesuffix("_reference"), text)
            titles = STAGES | TITLES
            parts = "; ".join(dict.fromkeys(titles[page.removesuffix("_reference")] for page in sorted(wanted)))
            box = _STAND_IN.replace("PARTS", parts)
            text = text.replace(title[0], f"{title[0]}\n\n{box}", 1)
        else:
            text = (f"{title[0] if title else path.stem}\n\nThis chapter takes its numbers from runs that the study of this book does not have "
                    f"({', '.join(sorted(wanted))}), so it is left out here.\n")
        path.write_text(text, encoding="utf-8")


_STAND_IN = """:::{warning}
Of what stands below, this comes from the study of this book, because the reference study has no such runs yet: PARTS.
Where that study's images are simulated, it checks the machinery and not the claim.
:::"""


def _copy_notebook(path: Path, executed: Path, page: str) -> None:
    """Copy an executed notebook as page ``page``: parameters hidden, log noise removed, glued figures also as files."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"] = {k: v for k, v in notebook["metadata"].items() if k in {"kernelspec", "language_info"}}
    heading = page
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = _last_sentence(text) or heading
            if text.startswith("# ") and page in TITLES:
                cell["source"] = f"# {TITLES[page]}\n" + text.partition("\n")[2]
            continue
        if cell["cell_type"] != "code":
            continue
        tags = cell["metadata"].setdefault("tags", [])
        for tag, hidden in (("injected-parameters", "hide-input"), ("parameters", "remove-cell")):
            if tag in tags and hidden not in tags:
                tags.append(hidden)
        cell["outputs"] = _once([kept for output in cell["outputs"] if (kept := _clean_output(output, path, number)) is not None])
        _name_figures(cell, heading)
        _save_glued_figures(cell["outputs"], executed / "figures", page)
    (executed / f"{page}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def _clean_output(output: dict[str, Any], path: Path, number: int) -> dict[str, Any] | None:
    """The output without progress bars, warnings on the error stream and folders of this machine; ``None`` when nothing is left."""
    if output["output_type"] == "error":
        raise MstlError(f"Cell {number} of {path} ended in {output['ename']} ({output['evalue'].splitlines()[0] if output['evalue'] else ''}): "
                        "mend it and run the study again before building the book.")
    if output["output_type"] == "stream":
        text = _portable(_NOISE.sub("", "".join(output["text"])))
        return {**output, "text": text} if output["name"] == "stdout" and text.strip() else None
    data = {mime: _portable(value) for mime, value in output["data"].items() if "widget" not in mime}
    if set(data) == {"text/plain"} and re.match(r"(Posix|Windows)Path\(", data["text/plain"]):  # where a run left its results
        return None
    return {**output, "data": data} if data else None


def _once(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs without a figure's repetition: Jupyter shows a figure that a cell returns, and again as the cell's open figure."""
    seen: set[str] = set()
    kept = []
    for output in outputs:
        image = "".join(output.get("data", {}).get("image/png", ""))
        if not image or image not in seen:
            kept.append(output)
        seen.add(image)
    return kept


def _portable(value: Any) -> Any:
    """Text without this machine's folders (results are named relative to the project)."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "".join(value)
    if not isinstance(value, str):
        return value
    for folder in (paths.home(), paths.share()):
        value = value.replace(f"{folder}{os.sep}", "")
    return value


def _name_figures(cell: dict[str, Any], heading: str) -> None:
    """Give the images of a cell an alternative text: the cell's own, else the question that stands above it."""
    if any(mime.startswith("image/") for output in cell["outputs"] for mime in output.get("data", {})):
        options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
        options.setdefault("alt", f"Figure to: {heading}")


def _last_sentence(markdown: str) -> str:
    """The last line of prose of a markdown cell, as plain words."""
    lines = [line for line in markdown.splitlines() if line.strip() and not line.startswith(("```", ":::", "|", "    "))]
    return re.sub(r"\{[^}]*\}|[`*_#$\[\]]|\([^)]*\)", "", lines[-1]).strip(" >-").replace('"', "'") if lines else ""


def _save_glued_figures(outputs: Iterable[dict[str, Any]], folder: Path, page: str) -> None:
    """Write each glued image as ``<page>-<key>.png``: so a page of prose can give it a caption and an alternative text."""
    for output in outputs:
        key = output.get("metadata", {}).get("scrapbook", {}).get("name")
        data = output.get("data", {})
        image = data.get("image/png") or data.get(_GLUE_PREFIX + "image/png")
        if key and image:
            (folder / f"{page}-{key}.png").write_bytes(base64.b64decode("".join(image)))


# ------------------------------------------------------------------------------------------------------- generated pages


def colophon(study: str, runs: Sequence[BookRun], reference: Sequence[tuple[str, dict[str, Any]]] = ()) -> str:
    """The page that says what made the book (MyST markdown), from the ``run.json`` of every finished run.

    ``reference``: the committed records of the reference study, as (run, record).
    """
    records = [(run.path, record) for run in runs if (record := run.record())]
    lines = ["# Colophon", "", "Everything on these pages was computed by the runs below; this page is written from their records when the book is built.", "",
             f"## The study of this book: {study}", "", f"{len(records)} of {len(runs)} runs finished.", *_made_by(records), ""]
    lines += _runs_table(records) + _data_table(records)
    if reference:
        lines += ["## The reference study", "", "It ran on real images, before this book was built; these are its committed records.", *_made_by(reference), ""]
        lines += _runs_table(reference) + _data_table(reference)
    return "\n".join(lines)


def reference_records() -> list[tuple[str, dict[str, Any]]]:
    """The committed records of the reference study, as (run, record)."""
    return [(f"{path.parent.parent.name}/{path.parent.name}", json.loads(path.read_text(encoding="utf-8")))
            for path in sorted(paths.share("data", "reference").glob("*/*/run.json"))]


def _made_by(records: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    versions: dict[str, list[str]] = {}
    for _, record in records:
        for name, version in record["versions"].items():
            versions[name] = _distinct([*versions.get(name, []), version])
    systems = _distinct(f"Python {record['python']} on {record['platform']}" for _, record in records)
    revisions = _distinct(f"`{record['revision']}`" for _, record in records)
    return ["", f"- **Device**: {'; '.join(_distinct(record['device'] for _, record in records)) or 'unknown'}",
            f"- **System**: {'; '.join(systems) or 'unknown'}",
            f"- **Revision**: {', '.join(revisions) or 'unknown'}",
            f"- **Time**: {_duration(sum(record['seconds'] for _, record in records))} of notebook time in all, summed over runs that may have gone "
            "side by side; a fit that was finished before is loaded and not trained again",
            f"- **Versions**: {', '.join(name + ' ' + ' or '.join(found) for name, found in sorted(versions.items())) or 'unknown'}"]


def _runs_table(records: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    return [*_table(["run", "seconds", "peak memory (MB)", "threads", "finished (UTC)"], [
        [f"`{path}`", f"{record['seconds']:.1f}", f"{record['peak_memory_mb']:.0f}", str(record["threads"] or "default"), record["finished"][:16].replace("T", " ")]
        for path, record in records]), ""]


def _data_table(records: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    data = {(entry["name"], entry["hash"]): entry for _, record in records for entry in record["data"]}
    return ["The hash is over the prepared images, their labels and their groups: the same hash is the same data.", "",
            *_table(["data set", "images", "side (px)", "simulated", "hash"], [
                [f"`{entry['name']}`", str(entry["images"]), str(entry["size"]), "yes" if entry["simulated"] else "no", f"`{entry['hash'][:16]}`"]
                for _, entry in sorted(data.items())]), ""]


def cards() -> str:
    """The page of data cards (MyST markdown), one a data set, from the catalog."""
    from mstl.datasets.catalog import catalog

    lines = ["# Data cards", "", "One card a data set, written from the package's catalog, which the code reads too.",
             "`mstl data list` prints the same.", ""]
    for role, heading in (("target", "Targets"), ("bridge", "Bridges"), ("source", "Sources")):
        lines += [f"## {heading}", ""]
        for card in catalog().values():
            if card.role == role:
                lines += _card(card)
    return "\n".join(lines)


def _card(card: Any) -> list[str]:
    from mstl.datasets.catalog import _origins

    where = [f"<https://doi.org/{card.doi}>"] if card.doi else []
    where += [f"<{card.url}>"] if card.url and not (card.doi and card.doi in card.url) else []
    classes = ", ".join(card.classes) if card.classes else "set by the caller"
    fields = {"Modality": card.modality + (", **simulated**" if card.simulated else ""), "Task": card.task, "Classes": classes, "Tissue of origin": _origins(card), "Group": card.group_rule,
              "Known faults": card.notes, "Licence": card.licence, "From": " · ".join(where), "Cite": card.citation}
    return [f"### {card.title}", "", f"`{card.name}`", "",
            *[line for name, value in fields.items() if value for line in (f":{name}: {_escaped(value)}",)], ""]


def _escaped(text: str) -> str:
    """Text for a field of MyST markdown: on one line, with its asterisks and dollars as they are."""
    return " ".join(text.split()).replace("$", "\\$")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(header)), line(" | ".join("---" for _ in header)), *(line(" | ".join(row)) for row in rows)]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --------------------------------------------------------------------------------------------------------- render and check


def render(source: Path, out: Path) -> Path:
    """Render the assembled ``source`` with Jupyter Book and, when every check passes, put the pages at ``out``."""
    build = source.parent / f"{source.name}-build"
    shutil.rmtree(build, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source), "--path-output", str(build),
               "--all", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source,
                          env={**os.environ, "NO_COLOR": "1", "SPHINX_THEME_CACHE": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    log = build / "build.log"
    build.mkdir(parents=True, exist_ok=True)
    log.write_text(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr), encoding="utf-8")
    html = build / "_build" / "html"
    if done.returncode != 0 or not (html / "index.html").is_file():
        raise MstlError(_first_complaint(log, source))
    problems = check_pages(html, source)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise MstlError(f"The book was rendered but is not fit to publish: {problems[0]}{more}; the pages are in {html}.")
    _swap(html, out)
    return out


def _first_complaint(log: Path, source: Path) -> str:
    lines = [line.replace(f"{source}{os.sep}", "") for line in log.read_text(encoding="utf-8").splitlines()]
    found = list(dict.fromkeys(line.strip() for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b:", line)))
    first = found[0] if found else next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"The book did not build: {first}{more}; the whole log is {log}."


def _swap(new: Path, old: Path) -> None:
    """Put the folder ``new`` in the place of ``old``, which is never half written."""
    old.parent.mkdir(parents=True, exist_ok=True)
    aside = old.with_name(f"{old.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        os.replace(old, aside)
    shutil.move(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def toc_pages(toc: Path) -> list[str]:
    """The pages of a table of contents, in reading order, without suffix."""
    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            for key in ("root", "file"):
                if key in node:
                    yield node[key]
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key, []))
    return list(walk(yaml.safe_load(toc.read_text(encoding="utf-8"))))


def check_pages(html: Path, source: Path) -> list[str]:
    """What is wrong with the rendered pages, a phrase each: a page missing, without title or images, or loading from outside."""
    problems: list[str] = []
    for name in toc_pages(source / "_toc.yml"):
        page = html / f"{name}.html"
        if not page.is_file():
            problems.append(f"the page {name} is missing")
            continue
        seen = PageReader.read(page)
        if seen.titles != 1:
            problems.append(f"the page {name} has {seen.titles} titles instead of one")
        if "Traceback (most recent call last)" in seen.text:
            problems.append(f"the page {name} shows a traceback")
        wanted = _figures_in(source, name)
        if len(seen.images) < wanted:
            problems.append(f"the page {name} shows {len(seen.images)} of its {wanted} figures")
        problems += [f"the page {name} shows {src} without an alternative text" for src, alt in seen.images if not alt.strip()]
        problems += [f"the image {src} of the page {name} is missing" for src, _ in seen.images
                     if "://" not in src and not src.startswith("data:") and not (page.parent / src.split("?")[0]).is_file()]
    return problems + [f"{where} loads {url} from outside" for where, url in outside_urls(html)]


def _figures_in(source: Path, name: str) -> int:
    """How many figures the source of a page holds."""
    prose, notebook = source / f"{name}.md", source / f"{name}.ipynb"
    if prose.is_file():
        return len(re.findall(r"^(?:```|:::+)\{(?:figure|image)\}", prose.read_text(encoding="utf-8"), re.MULTILINE))
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum("image/png" in output.get("data", {}) for cell in cells if cell["cell_type"] == "code"
               and not {"remove-cell", "remove-output"} & set(cell["metadata"].get("tags", [])) for output in cell["outputs"])


def outside_urls(html: Path) -> list[tuple[str, str]]:
    """Each ``(file, url)`` that a browser would fetch from another host when it opens the pages in folder ``html``.

    Links that a reader may follow do not count; scripts, style sheets, fonts, images, frames and inline scripts do.
    """
    found = []
    for page in sorted(html.rglob("*.html")):
        if "_static" not in page.relative_to(html).parts:
            found += [(page.relative_to(html).as_posix(), url) for url in PageReader.read(page).loads if _is_outside(url)]
    for sheet in sorted(html.rglob("*.css")):
        found += [(sheet.relative_to(html).as_posix(), url) for url in _css_loads(sheet.read_text(encoding="utf-8", errors="replace")) if _is_outside(url)]
    return found


def _is_outside(url: str) -> bool:
    return re.match(r"(?:[a-z]+:)?//", url.strip(), re.IGNORECASE) is not None and "//www.w3.org/" not in url


def _css_loads(css: str) -> list[str]:
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return [a or b for a, b in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", css)]


class PageReader(HTMLParser):
    """Collects from one page its titles, its images with their alternative texts, its text, and what it loads."""

    _LOADING = {"script": ("src",), "img": ("src", "srcset"), "source": ("src", "srcset"), "iframe": ("src",), "video": ("src", "poster"),
                "audio": ("src",), "embed": ("src",), "object": ("data",), "track": ("src",), "use": ("href", "xlink:href"), "image": ("href", "xlink:href")}
    _LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest", "apple-touch-icon"}

    def __init__(self) -> None:
        super().__init__()
        self.titles = 0
        self.images: list[tuple[str, str]] = []
        self.loads: list[str] = []
        self.text = ""
        self._inside = ""
        self._article = False

    @classmethod
    def read(cls, page: Path) -> PageReader:
        reader = cls()
        reader.feed(page.read_text(encoding="utf-8"))
        return reader

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in ("script", "style") else self._inside
        self._article |= tag == "article"
        self.titles += tag == "h1" and self._article
        if tag == "img" and "logo" not in values.get("class", ""):
            self.images.append((values.get("src", ""), values.get("alt", "")))
        self.loads += [part.strip().split(" ")[0] for name in self._LOADING.get(tag, ()) for part in values.get(name, "").split(",") if part]
        if tag == "link" and self._LINKS & set(values.get("rel", "").lower().split()):
            self.loads.append(values.get("href", ""))
        self.loads += _css_loads(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside
        self._article &= tag != "article"

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.loads += _css_loads(data)
        elif self._inside == "script":
            self.loads += re.findall(r"['\"`]((?:https?:)?//[\w.-]+\.[a-z]{2,}[^'\"`\s]*)", data)
        else:
            self.text += data
