"""Executed notebooks as one HTML page that needs nothing else: images inlined, code folded away, no script or font from outside."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, its HTML body, and the headings in it as (anchor, text)."""

    title: str
    body: str
    headings: tuple[tuple[str, str], ...] = ()

    @property
    def anchor(self) -> str:
        return _anchor(self.title)


def from_markdown(title: str, text: str) -> Section:
    """A section of prose; its headings are ``##`` and below."""
    return Section(title, *_headed(_MARKDOWN.render(text), _anchor(title)))


def from_notebook(path: Path, *, title: str, without: Collection[str] = ()) -> Section:
    """An executed notebook: prose, figures and tables, with its code folded away. Cells tagged with one of ``without`` are left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts, alt, first, pending = [], title, True, []
    for cell in cells:
        text, tags = "".join(cell["source"]), set(cell["metadata"].get("tags", []))
        if tags & {"parameters", "injected-parameters", *without}:
            continue
        if cell["cell_type"] == "markdown":
            parts, pending = [*parts, _code(pending)], []
            if first:  # its own title stands above, and the command belongs to the notebook
                text, first = re.split(r"(?m)^Run this page again", text.partition("\n")[2])[0], False
            parts.append(_MARKDOWN.render(text))
            alt = _last_sentence(text) or alt
        elif cell["cell_type"] == "code":
            pending.append(text)
            if shown := _outputs(cell["outputs"], alt):
                parts, pending = [*parts, _code(pending), shown], []
    return Section(title, *_headed("\n".join(parts), _anchor(title)))


def render(title: str, lead: str, sections: Sequence[Section], *, footer: str = "") -> str:
    """The whole page. ``lead`` is HTML that stands above the first section."""
    contents = "".join(
        f'<li><a href="#{part.anchor}">{html.escape(part.title)}</a>'
        + (
            f"<ol>{''.join(f'<li><a href=#{anchor}>{text}</a></li>' for anchor, text in part.headings)}</ol>"
            if part.headings
            else ""
        )
        + "</li>"
        for part in sections
    )
    body = "\n".join(
        f'<section aria-labelledby="{part.anchor}"><h2 id="{part.anchor}">{html.escape(part.title)}</h2>\n{part.body}</section>'
        for part in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<nav aria-label="Contents"><details open><summary>Contents</summary><ol>{contents}</ol></details>
<button type="button" id="code" aria-pressed="false">Show all code</button></nav>
<main>
<header><h1>{html.escape(title)}</h1>
{lead}</header>
{body}
<footer>{footer}</footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """A plain HTML table of texts, which are escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="table text"><table><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def _code(cells: Sequence[str]) -> str:
    """The code of one or several cells, folded away."""
    source = "\n\n".join(cell for cell in cells if cell.strip())
    return (
        f'<details class="code"><summary>Code</summary><pre class="source">{html.escape(source)}</pre></details>'
        if source
        else ""
    )


def _outputs(outputs: Sequence[dict], alt: str) -> str:
    parts: list[str] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                parts += [
                    f'<p class="said">{html.escape(line)}</p>' for line in "".join(output["text"]).splitlines() if line.strip()
                ]
            continue
        data = output.get("data", {})
        if "image/png" in data:
            image = "".join("".join(data["image/png"]).split())
            figure = f'<figure><img src="data:image/png;base64,{image}" alt="{html.escape(f"Figure to: {alt}", quote=True)}"></figure>'
            if figure not in parts:  # Jupyter shows a figure that a cell returns, and again as the cell's open figure
                parts.append(figure)
        elif "text/html" in data:
            parts.append(f'<div class="table">{_clean_table("".join(data["text/html"]))}</div>')
    return "\n".join(parts)


def _clean_table(text: str) -> str:
    """A table of pandas: one header row, long texts that may wrap."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (border="1"|class="dataframe"|style="[^"]*"|valign="top")', "", text)
    head = re.search(r"<thead>(.*?)</thead>", text, flags=re.DOTALL)
    rows = (
        [
            re.findall(r"<th[^>]*>(.*?)</th>", row, flags=re.DOTALL)
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", head[1], flags=re.DOTALL)
        ]
        if head
        else []
    )
    if len(rows) == 2 and len(rows[0]) == len(rows[1]) and all(not a or not b for a, b in zip(*rows, strict=True)):
        index = sum(bool(name) for name in rows[1])
        named = [(a or b, i < index or a == "note") for i, (a, b) in enumerate(zip(*rows, strict=True))]
        cells = "".join(
            f"<th{' class=key' if left else ''}>{re.sub('^n_', '', name).replace('_', ' ')}</th>" for name, left in named
        )
        text = text.replace(head[0], f"<thead><tr>{cells}</tr></thead>")
    text = re.sub(r"<(th|td)>([^<]{45,})</\1>", r'<\1 class="long">\2</\1>', text)
    return re.sub(r"<td>(None|NaN|nan|&lt;NA&gt;)</td>", "<td></td>", text)


def _headed(body: str, prefix: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Headings of the body one level down, with anchors."""
    found: list[tuple[str, str]] = []

    def replaced(match: re.Match) -> str:
        level, text = int(match[1]) + 1, match[2]
        anchor = f"{prefix}-{_anchor(re.sub('<[^>]*>', '', text))}"
        if level == 3:
            found.append((anchor, text))
        return f'<h{level} id="{anchor}">{text}</h{level}>'

    body = re.sub(r"<h([1-5])>(.*?)</h\1>", replaced, body)
    return body, tuple(found)


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def _last_sentence(text: str) -> str:
    lines = [line.strip("# >-") for line in text.splitlines() if line.strip() and not line.startswith(("```", "|"))]
    return re.sub(r"[`*_]", "", lines[-1]) if lines else ""


_SCRIPT = """
const button = document.getElementById('code');
button.addEventListener('click', () => {
  const open = button.getAttribute('aria-pressed') !== 'true';
  button.setAttribute('aria-pressed', open);
  button.textContent = open ? 'Hide all code' : 'Show all code';
  document.querySelectorAll('details.code').forEach(part => part.open = open);
});
if (window.matchMedia('(max-width: 70rem)').matches) document.querySelector('nav details').open = false;
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2530; --soft: #5a6672; --rule: #d8dee4; --tint: #f3f7fa; --link: #00568a; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #a3afba; --rule: #3a4550; --tint: #1c2630; --link: #7cc0ee; --paper: #12181e; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); line-height: 1.2; margin: 0.5rem 0 1rem; text-wrap: balance; }
h2 { font-size: 1.55rem; line-height: 1.25; margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; }
h4 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
p, ul, ol { max-width: 44rem; }
a { color: var(--link); }
code { font-size: 0.9em; overflow-wrap: anywhere; }
header > div { max-width: 46rem; }
.answer { border: 1px solid var(--rule); border-left: 4px solid #0072b2; background: var(--tint); border-radius: 4px; padding: 0.2rem 1.1rem; }
.answer p { font-size: 1.06rem; }
.mind { border-left: 4px solid #b36b00; padding: 0 0 0 1.1rem; }
.said { border-left: 3px solid var(--rule); padding-left: 0.8rem; margin: 0.5rem 0; }
figure { margin: 1.4rem 0; }
figure img { max-width: min(100%, 54rem); height: auto; background: #fff; border-radius: 4px; padding: 0.4rem; }
.table { overflow-x: auto; margin: 1rem 0 1.6rem; }
table { border-collapse: collapse; font-size: 0.82rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.3rem 0.5rem; text-align: right; vertical-align: top; }
tbody th { text-align: left; font-weight: 600; }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; }
thead tr:last-child th { border-bottom: 2px solid var(--soft); }
td, tbody th { white-space: nowrap; }
th.key { text-align: left; }
td.long, th.long { white-space: normal; min-width: 16rem; text-align: left; }
.table.text td, .table.text th { text-align: left; white-space: normal; }
.table.text td:first-child { white-space: nowrap; }
details.code { margin: 0.3rem 0; }
details.code summary, nav summary { color: var(--soft); font-size: 0.8rem; cursor: pointer; }
.source { overflow-x: auto; background: var(--tint); border: 1px solid var(--rule); border-radius: 4px; padding: 0.7rem 0.9rem; margin: 0.4rem 0; font: 0.82rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
nav { font-size: 0.86rem; padding: 1rem 1.25rem 0; max-width: 54rem; margin: 0 auto; }
nav ol { list-style: none; padding-left: 0; margin: 0.5rem 0; }
nav ol ol { padding-left: 0.9rem; margin: 0.2rem 0 0.5rem; }
nav li { margin: 0.2rem 0; line-height: 1.35; }
nav a { text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
button { font: inherit; font-size: 0.8rem; color: var(--link); background: none; border: 1px solid var(--rule); border-radius: 4px; padding: 0.3rem 0.7rem; cursor: pointer; margin: 0.4rem 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: 0.85rem; }
@media (min-width: 70rem) {
  body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 2rem 0.5rem 2rem 1.5rem; margin: 0; border-right: 1px solid var(--rule); min-height: 100vh; }
  main { margin: 0 auto 0 3rem; padding-top: 2rem; width: 100%; }
}
@media (max-width: 40rem) { figure { overflow-x: auto; } figure img { min-width: 38rem; max-width: none; } }
@media print { nav, details.code { display: none; } main { max-width: none; } h2 { break-before: page; } figure, tr { break-inside: avoid; } }
"""
