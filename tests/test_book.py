"""The book: its contents, the rules of its prose, and the build on stub notebooks that hold just what the prose asks for."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mstl import paths, report
from mstl.errors import MstlError

BOOK = paths.share("book")
PROSE = sorted(BOOK.rglob("*.md"))
GENERATED = {f"book/executed/{name}" for name in [*report.STAGES, *report.TITLES, "colophon", "cards"]}
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg==")
EVERY_PAGE = pytest.mark.parametrize("path", PROSE, ids=lambda p: p.relative_to(BOOK).as_posix())


def fenceless(text: str) -> list[str]:
    """The lines of running prose: outside fences, tables, comments, targets and directive options."""
    lines, fence = [], ""
    for line in text.splitlines():
        mark = re.match(r"\s*(`{3,})", line)
        if mark and not fence and not re.match(r"\s*`{3,}\{(exercise|solution|figure|card-footer)", line):
            fence = mark[1]
        elif fence:
            fence = "" if line.strip() == fence else fence
        elif not mark:
            lines.append(line)
    return [line for line in lines if line.strip() and not re.match(r"\s*(\||:|\$\$|#|\(|>|!\[|---|[-*]? ?:{3})", line) and not line.startswith("    ")]


def figures_of(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r"executed/figures/(\w+)-(\w+)\.png", text))


FIGURES = {key for path in PROSE for _, key in figures_of(path.read_text(encoding="utf-8"))}


def asked_for() -> set[tuple[str, str]]:
    """Every (page, key) that the prose takes from an executed notebook."""
    found: set[tuple[str, str]] = set()
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"executed/(\w+)\.ipynb::(\w+)", text))
        found |= figures_of(text)
        found |= {(page, key) for key, page in re.findall(r"\{glue\} (\w+)\n:doc: (?:\.\./)?executed/(\w+)\.ipynb", text)}
    return found


# ------------------------------------------------------------------------------------------------------------------- prose


def test_the_table_of_contents_names_pages_that_exist_or_are_generated_each_once():
    pages = report.toc_pages(paths.share("_toc.yml"))
    assert len(pages) == len(set(pages))
    for page in pages:
        assert page in GENERATED or paths.share(f"{page}.md").is_file(), page
    written = {path.relative_to(BOOK.parent).with_suffix("").as_posix() for path in PROSE}
    assert written | GENERATED == set(pages)


def test_the_configuration_executes_nothing_and_builds_only_what_the_contents_name():
    config = yaml.safe_load(paths.share("_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off" and config["only_build_toc_files"] is True
    assert config["copyright"] and config["launch_buttons"]["thebe"] is False and not config["launch_buttons"]["binderhub_url"]
    for name in (config["logo"], config["html"]["favicon"], *config["sphinx"]["config"]["bibtex_bibfiles"]):
        assert paths.share(name).is_file(), name


@EVERY_PAGE
def test_a_page_has_one_title_no_code_cells_and_loads_nothing_from_outside(path):
    text = path.read_text(encoding="utf-8")
    assert len([line for line in fenceless_headings(text) if line.startswith("# ")]) == 1
    assert "{code-cell}" not in text and "{raw}" not in text and "jupytext" not in text
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|iframe|link)\b|\{(?:figure|image)\} https?:", text)


def fenceless_headings(text: str) -> list[str]:
    return [line for line in re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines() if line.startswith("#")]


@EVERY_PAGE
def test_the_prose_has_one_sentence_a_line(path):
    for line in fenceless(path.read_text(encoding="utf-8")):
        if not line.startswith(("- ", "  ")):
            assert not re.search(r"[a-z)`*\"][.?!] [A-Z]", line), line


@EVERY_PAGE
def test_the_prose_uses_the_words_of_the_vocabulary(path):
    text = path.read_text(encoding="utf-8")
    for pattern, better in [(r"\b(?:MSTL|CTL)\b(?! authors)", "mstl, ctl"), (r"\bintermediate (?:stage|domain)", "bridge"), (r"\bpipeline", "study or stages"),
                            (r"\bpre-?trained on the bridge", "bridge stage"), (r"\bimage level split", "group"),
                            (r"authors leaked|ViTs? loses?\b", "what was shown, or: not tested"), (r"\bsignificantly\b", "the interval")]:
        assert not re.search(pattern, text), f"{path.name}: {better} instead of {re.search(pattern, text)[0]}"


def test_the_glossary_explains_every_word_of_the_vocabulary():
    glossary = (BOOK / "glossary.md").read_text(encoding="utf-8")
    for word in ("stage", "source", "bridge", "target", "arm", "backbone", "head", "fold", "seed", "group", "center", "chain", "run", "study",
                 "predictions", "checkpoint"):
        assert re.search(rf"^{word}$", glossary, re.MULTILINE), word


def test_every_exercise_has_a_folded_solution():
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        asked = re.findall(r"\{exercise-start\}[^\n]*\n:label: (\S+)", text)
        assert re.findall(r"\{solution-start\} (\S+)\n:class: dropdown", text) == asked, path.name


def test_every_citation_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    cited = {key for path in PROSE for keys in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", path.read_text(encoding="utf-8")) for key in keys.split(",")}
    assert cited == known


def test_what_the_prose_takes_from_a_notebook_is_what_its_template_glues():
    study = yaml.safe_load(paths.share("studies", "reference.yml").read_text(encoding="utf-8"))
    targets, family = "|".join(study["targets"]), "|".join(study["comparison"]["family"])
    numbers = rf"(?:n_test|n_groups|diff|detectable)_(?:{targets})(?:_low|_high)?|auc_(?:{targets})_(?:scratch|ctl|mstl)(?:_low|_high)?|p_holm_(?:{family})"
    for page, key in asked_for():
        stage = next((stage for stage, name in report.NAMED if page.startswith(f"{stage}_{name}")), page.removesuffix("_reference"))
        template = paths.share("notebooks", "60_comparison.ipynb" if page == "reference" else f"{stage}.ipynb").read_text(encoding="utf-8")
        glued_names = re.findall(r'glue\(f?\\"([^"\\]+)\\"', template)  # with {…} where a name is made
        written = any(re.fullmatch(re.sub(r"\\{.+?\\}", r"\\w*", re.escape(name)), key) for name in glued_names)
        counted = "glue(key, value" in template and any(target in key for target in targets.split("|"))  # the study's build knows the rest
        assert written or (re.fullmatch(numbers, key) if page == "reference" else counted), f"{page}: {key}"


def test_the_readme_opens_with_exactly_two_commands():
    text = paths.share("README.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in block.strip().splitlines()] == ["make book", "make test"]
    assert text.count("![") == 1 and paths.share(re.search(r"!\[.+?\]\((.+?)\)", text, re.DOTALL)[1]).is_file()


@pytest.mark.skipif(shutil.which("make") is None or not paths.share("Makefile").is_file(), reason="needs make and a checkout")
def test_make_refuses_an_old_python_in_one_sentence(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "--silent", "test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"], cwd=paths.share(), capture_output=True, text=True)
    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr and "Python 3.9.2" in done.stderr


# ------------------------------------------------------------------------------------------------------- stubs of executed runs


def code(source: str, outputs: list[dict] = (), tags: list[str] = (), **metadata) -> dict:
    return {"cell_type": "code", "execution_count": 1, "id": "c", "metadata": {"tags": list(tags), **metadata}, "source": source, "outputs": list(outputs)}


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": source}


def notebook(*cells: dict) -> dict:
    numbered = [cell | {"id": f"cell{number}"} for number, cell in enumerate(cells)]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}, "cells": numbered}


def picture(**metadata) -> dict:
    return {"output_type": "display_data", "metadata": metadata, "data": {"image/png": base64.b64encode(DOT).decode(), "text/plain": "<Figure>"}}


def glued(key: str) -> dict:
    """A glued value as myst_nb stores it: a figure, a table, a sentence or a number, by the key's name."""
    prefix = "application/papermill.record/"
    if key in FIGURES:
        data = {"image/png": base64.b64encode(DOT).decode(), "text/plain": "<Figure>"}
    elif "table" in key:
        data = {"text/html": "<table class='dataframe'><tr><td>1</td></tr></table>", "text/plain": "1"}
    else:
        data = {"text/plain": repr("Nothing is shown.") if key.startswith(("answer", "name_")) else "647" if key.startswith("n_") else "-0.0123"}
    return {"output_type": "display_data", "metadata": {"scrapbook": {"name": key, "mime_prefix": prefix}}, "data": {prefix + k: v for k, v in data.items()}}


def stub(page: str) -> dict:
    keys = sorted(key for wanted, key in asked_for() if wanted == page)
    keys += sorted(key for wanted, key in asked_for() if wanted == f"{page}_reference" and key not in keys)  # it may stand in
    return notebook(markdown(f"# Page {page}\n\nWhat is seen?"), code('arm: str = "mstl"', tags=["parameters"]), code('arm = "ctl"', tags=["injected-parameters"]),
                    markdown("How does it look?"), code("figure", [picture()]), code("glue", [glued(key) for key in keys], tags=["remove-cell"]))


RECORD = {"stage": "30_target", "seconds": 12.5, "peak_memory_mb": 512.0, "device": "CPU (stub)", "threads": 1, "platform": "Linux", "python": "3.11.7",
          "versions": {"torch": "2.12.0"}, "revision": "abcdef123456", "finished": "2026-01-02T03:04:05+00:00",
          "data": [{"name": "phantom-chest", "hash": "0123456789abcdef00", "images": 10, "size": 64, "simulated": True}]}


def finished_run(folder: Path, stage: str, slug: str, content: dict | None = None, **parameters) -> report.BookRun:
    place = folder / stage / slug
    place.mkdir(parents=True)
    (place / "notebook.ipynb").write_text(json.dumps(content or notebook(markdown(f"# {stage}"))), encoding="utf-8")
    (place / "run.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return report.BookRun(stage, slug, place, parameters)


@pytest.fixture
def runs(tmp_path):
    made = [finished_run(tmp_path, stage, "all") for stage in report.STAGES if stage not in ("30_target", "60_comparison")]
    made += [finished_run(tmp_path, stage, "reference") for stage in report.RECOMPUTED]
    made += [finished_run(tmp_path, "30_target", f"{target}-{arm}", arm=arm) for target in ("chest", "busi") for arm in ("scratch", "ctl", "mstl")]
    made += [finished_run(tmp_path, stage, f"{before}{name}") for stage, name in report.NAMED for before in ("", "reference-")]
    return made + [finished_run(tmp_path, "60_comparison", slug) for slug in ("all", "reference")]


# ---------------------------------------------------------------------------------------------------- which runs, what is copied


def test_the_book_shows_the_first_run_of_a_stage_and_of_the_target_stage_the_first_of_mstl(runs):
    pages = report.choose(runs, "workshop")
    assert pages["30_target"].parent.name == "chest-mstl"
    assert pages["60_comparison"].parent.name == "all" and pages["reference"].parent.name == "reference"
    assert set(pages) == {*report.STAGES, *report.TITLES}
    assert pages["40_transferability"].parent.name == "all" and pages["40_transferability_reference"].parent.name == "reference"


def test_a_run_that_has_not_finished_is_named_with_the_command_that_makes_it(runs):
    (runs[2].folder / "run.json").unlink()
    with pytest.raises(MstlError, match=r"20_bridge/all of study workshop.*`mstl run workshop`"):
        report.choose(runs, "workshop")


def test_a_study_without_the_reference_results_is_told_which_key_asks_for_them(runs):
    with pytest.raises(MstlError, match="show_reference: true"):
        report.choose(runs[:-1], "mine")
    assert report.choose(runs[:-1], "reference")["reference"].parent.name == "all"


def test_a_table_without_a_record_of_the_reference_study_is_not_shown_as_results_on_real_images(tmp_path):
    (table := tmp_path / "predictions.csv").touch()
    real = RECORD | {"study": "reference", "data": [RECORD["data"][0] | {"simulated": False}]}
    for record in (None, real | {"study": "fake"}, real | {"data": RECORD["data"]}, real | {"data": []}):
        if record:
            (tmp_path / "run.json").write_text(json.dumps(record))
        with pytest.raises(MstlError, match="no record of a run of the reference study"):
            report.check_reference([table])
    (tmp_path / "run.json").write_text(json.dumps(real))
    report.check_reference([table])


@pytest.fixture
def copied(tmp_path):
    def copy(*cells: dict, page: str = "30_target") -> dict:
        path = tmp_path / "notebook.ipynb"
        path.write_text(json.dumps(notebook(*cells)), encoding="utf-8")
        (tmp_path / "figures").mkdir(exist_ok=True)
        report._copy_notebook(path, tmp_path, page)
        return json.loads((tmp_path / f"{page}.ipynb").read_text(encoding="utf-8"))
    return copy


def test_a_copied_notebook_hides_its_parameters_and_loses_log_noise_and_this_machines_folders(copied):
    warning = {"output_type": "stream", "name": "stderr", "text": "UserWarning: noise\n"}
    said = {"output_type": "stream", "name": "stdout", "text": [" 10%|#\r 99%|###\r", f"saved {paths.home('runs', 'x')}\n"]}
    cells = copied(code("a: int = 1", tags=["parameters"]), code("a = 2", tags=["injected-parameters"]), code("fit()", [warning, said]))["cells"]
    assert "remove-cell" in cells[0]["metadata"]["tags"] and "hide-input" in cells[1]["metadata"]["tags"]
    assert [output["text"] for output in cells[2]["outputs"]] == ["saved runs/x\n"]


def test_a_copied_figure_has_an_alternative_text_its_own_or_the_question_above_it(copied):
    own = {"mystnb": {"image": {"alt": "Two curves."}}}
    cells = copied(markdown("## Training\n\nHow did the **loss** fall?"), code("plot()", [picture()]), code("plot()", [picture()], **own))["cells"]
    assert cells[1]["metadata"]["mystnb"]["image"]["alt"] == "Figure to: How did the loss fall?"
    assert cells[2]["metadata"]["mystnb"]["image"]["alt"] == "Two curves."


def test_a_figure_that_a_cell_shows_twice_is_copied_once(copied):
    cells = copied(code("figure = plot()\nfigure", [picture(), picture()]))["cells"]
    assert len(cells[0]["outputs"]) == 1


def test_a_glued_figure_is_saved_for_the_prose(copied, tmp_path):
    copied(code("glue", [glued("forest")]), page="reference")
    assert (tmp_path / "figures" / "reference-forest.png").read_bytes() == DOT


def test_a_notebook_that_ended_in_an_error_is_refused_in_one_sentence(copied):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no images\nat all", "traceback": []}
    with pytest.raises(MstlError, match=r"Cell 0 of .*ValueError \(no images\)"):
        copied(code("load()", [error]))


def test_the_colophon_tells_study_seconds_device_versions_and_data(runs):
    page = report.colophon("workshop", runs, [("30_target/busi-mstl", RECORD | {"revision": "fedcba"})])
    n = len(runs)
    for words in (f"this book: workshop\n\n{n} of {n} runs", "`fedcba`", "| `30_target/busi-mstl` |", "CPU (stub)", "torch 2.12.0", "abcdef123456", "| `30_target/chest-mstl` | 12.5 | 512 | 1 | 2026-01-02 03:04 |",
                  "| `phantom-chest` | 10 | 64 | yes | `0123456789abcdef` |", f"{n * 12.5 / 60:.0f} min"):
        assert words in page, words


def test_every_data_set_of_the_catalog_has_a_card():
    from mstl.datasets.catalog import catalog

    page = report.cards()
    for name, card in catalog().items():
        assert f"\n`{name}`\n" in page and card.licence.split("$")[0] in page, name


# ------------------------------------------------------------------------------------------------------------ the whole build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The whole book, built by ``build_book`` from stub runs of a study without a bridge."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "runs" / "smoke"
    runs = [finished_run(folder, stage, "all", stub(stage)) for stage in report.STAGES if stage not in ("20_bridge", "30_target", "60_comparison", "51_ablation_bridge")]
    runs += [finished_run(folder, stage, "reference", stub(f"{stage}_reference"), predictions=[]) for stage in report.RECOMPUTED
             if stage not in ("51_ablation_bridge", "54_when_does_a_bridge_help")]
    runs += [finished_run(folder, "30_target", "chest-ctl", stub("30_target"), arm="ctl"), finished_run(folder, "60_comparison", "all", stub("60_comparison")),
             finished_run(folder, "60_comparison", "reference", stub("reference"), predictions=[])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTL_HOME", str(home))
        patch.setattr("mstl.planning.plan", lambda study: runs)
        return report.build_book("smoke")


@pytest.mark.slow
def test_the_book_is_built_from_executed_runs_and_ends_where_the_address_says(built):
    assert built.name == "index.html" and built.parts[-3:-1] == ("_build", "html")
    landing = (built.parent / "book" / "index.html").read_text(encoding="utf-8")
    assert "Nothing is shown." in landing and ">647<" in landing
    assert "-0.012" in (built.parent / "book" / "reference-results.html").read_text(encoding="utf-8")
    assert "is not part of this study" in (built.parent / "book" / "executed" / "20_bridge.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_chapter_without_its_runs_says_so_and_the_others_are_whole(built):
    chapter = (built.parent / "book" / "ablations.html").read_text(encoding="utf-8")
    assert "Is it the cells?" in chapter and "left out here" in chapter and "51_ablation_bridge_reference" in chapter
    standing_in = (built.parent / "book" / "atlas.html").read_text(encoding="utf-8")
    assert "the reference study has no such runs yet: When does a bridge help?" in " ".join(standing_in.split()) and "figures/54_when_does_a_bridge_help-atlas" in standing_in.replace("_images/", "figures/")
    assert "left out here" not in (built.parent / "book" / "transferability.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_built_book_brings_its_mathematics_along_and_loads_nothing_from_outside(built):
    method = report.PageReader.read(built.parent / "book" / "method.html")
    scripts = [url for url in method.loads if "mathjax" in url]
    assert scripts and all((built.parent / "book" / url.split("?")[0]).is_file() for url in scripts)
    assert report.outside_urls(built.parent) == []


def small_book(folder: Path, page: str) -> Path:
    (folder / "book" / "executed").mkdir(parents=True)
    shutil.copytree(BOOK / "_static", folder / "book" / "_static")
    config = yaml.safe_load(paths.share("_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"]["bibtex_bibfiles"] = []
    config["sphinx"]["config"]["extensions"] = [e for e in config["sphinx"]["config"]["extensions"] if "mathjax" not in e and "bibtex" not in e]
    config["sphinx"]["config"] = {k: v for k, v in config["sphinx"]["config"].items() if not k.startswith(("bibtex", "mathjax"))}
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n- file: book/executed/reference\n", encoding="utf-8")
    (folder / "book" / "index.md").write_text(page, encoding="utf-8")
    (folder / "book" / "executed" / "reference.ipynb").write_text(json.dumps(notebook(markdown("# Reference"), code("glue", [glued("diff")]))), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_number_that_no_run_produced_fails_the_build_and_leaves_the_book_before_it(tmp_path):
    out = tmp_path / "html"
    out.mkdir()
    (out / "index.html").write_text("before")
    source = small_book(tmp_path / "source", "# Title\n\n{glue:text}`executed/reference.ipynb::diff:.2f` and {glue:text}`executed/reference.ipynb::diff_nowhere:.2f`.\n")
    with pytest.raises(MstlError, match=r"did not build: book/index\.md.*diff_nowhere"):
        report.render(source, out)
    assert (out / "index.html").read_text() == "before"


@pytest.mark.slow
def test_a_page_that_would_load_from_outside_is_not_published(tmp_path):
    source = small_book(tmp_path / "source", "# Title\n\n![A far picture](https://example.org/far.png)\n")
    with pytest.raises(MstlError, match=r"book/index\.html loads https://example\.org/far\.png from outside"):
        report.render(source, tmp_path / "html")
    assert not (tmp_path / "html").exists()


@pytest.mark.parametrize("loaded", [
    '<script src="https://cdn.org/x.js"></script>', '<link rel="stylesheet" href="//cdn.org/x.css">', '<img src="a.png" srcset="https://cdn.org/x.png 2x">',
    '<iframe src="https://cdn.org/"></iframe>', '<p style="background: url(https://cdn.org/x.png)"></p>', "<style>@import 'https://cdn.org/x.css';</style>",
    '<script>const url = "https://cdn.org/x.js"</script>', '<link rel="preconnect" href="https://cdn.org">'])
def test_whatever_a_browser_would_fetch_from_another_host_is_found(tmp_path, loaded):
    (tmp_path / "page.html").write_text(f"<article><h1>Title</h1>{loaded}</article>")
    assert [(name, "cdn.org" in url) for name, url in report.outside_urls(tmp_path)] == [("page.html", True)]


def test_fonts_of_another_host_in_a_style_sheet_are_found_and_links_to_follow_are_not(tmp_path):
    (tmp_path / "page.html").write_text('<a href="https://doi.org/10.1/x">read</a><svg xmlns="http://www.w3.org/2000/svg"></svg><img src="data:image/png;base64,AA==">')
    (tmp_path / "style.css").write_text("/* https://example.org */ @font-face { src: url('https://fonts.org/a.woff2') } p { background: url(local.png) }")
    assert report.outside_urls(tmp_path) == [("style.css", "https://fonts.org/a.woff2")]


def test_what_needs_a_page_that_is_absent_goes_and_the_rest_of_the_chapter_stays(tmp_path):
    chapter = tmp_path / "chapter.md"
    text = "# A chapter\n\nFirst.\n\n% only with 74_two_views_reference\n{glue:text}`executed/74_two_views_reference.ipynb::answer:s`\n% end\n\nLast.\n"
    chapter.write_text(text)
    report._fit_chapters(tmp_path, {"74_two_views_reference"})
    assert chapter.read_text() == "# A chapter\n\nFirst.\n\n\nLast.\n"
    chapter.write_text(text)
    report._fit_chapters(tmp_path, set())
    assert "% only" not in chapter.read_text() and "74_two_views_reference.ipynb::answer" in chapter.read_text()
