"""What a stage notebook declares: its parameters, with their types and allowed values, and the modules it imports.

A template has one cell tagged ``parameters`` whose lines are annotated assignments with a comment::

    folds: int = 5         # number of folds
    arm: str = "mstl"      # scratch | ctl | mstl

The annotation is one of int, float, str, bool, list, dict. Where the comment begins with words joined by `` | `` (and
then ends, or goes on after a punctuation mark or two blanks), these and the default are the allowed values.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mstl import paths
from mstl.errors import MstlError

KINDS = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)}
_CHOICES = re.compile(r"#\s*([\w.+-]+(?: \| [\w.+-]+)+)(?=$|\s*[:;,.(—–]|\s{2,})")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell; ``choices`` is empty where every value of the type is allowed."""

    name: str
    kind: type
    default: Any
    choices: tuple[str, ...] = ()
    comment: str = ""


def stages() -> list[str]:
    """Names of the stage notebooks, in order."""
    return sorted(path.stem for path in paths.share("notebooks").glob("*.ipynb"))


def template(stage: str) -> Path:
    """The notebook of a stage."""
    path = paths.share("notebooks", f"{stage}.ipynb")
    if not path.is_file():
        raise MstlError(f"There is no stage notebook '{stage}' in {path.parent}: {suggestion(stage, stages())}")
    return path


def parameters(stage: str) -> dict[str, Parameter]:
    """The declared parameters of a stage, in the order of its parameters cell."""
    path = template(stage)
    return _parameters(path, path.stat().st_mtime_ns)


def check(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the stage, ``values`` over the defaults; an unknown name, a wrong type or a value that is not
    allowed is an :class:`MstlError` that names it."""
    declared = parameters(stage)
    for name in values:
        if name not in declared:
            raise MstlError(f"{stage} has no parameter '{name}': {suggestion(name, declared)}")
    return {name: _checked(stage, known, values[name]) if name in values else known.default
            for name, known in declared.items()}


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: ``did you mean 'x'?``, or the list of what there is."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"there {'are' if len(known) > 1 else 'is'} {', '.join(known) or 'none'}."


def modules(stage: str) -> list[Path]:
    """The files of this package that the stage imports, also indirectly and inside functions, with the tables beside
    them (``catalog.py`` → ``catalog.toml``): what a run depends on apart from its parents. Imports under
    ``if TYPE_CHECKING:`` do not count."""
    path = template(stage)
    return _modules(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _parameters(path: Path, _mtime: int) -> dict[str, Parameter]:
    sources = [source for tags, source in _cells(path) if "parameters" in tags]
    if len(sources) != 1:
        raise MstlError(f"{path} has {len(sources)} cells tagged 'parameters': a stage notebook needs exactly one.")
    comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(sources[0]).readline)
                if token.type == tokenize.COMMENT}
    return {p.name: p for p in (_parameter(path, line, comments) for line in ast.parse(sources[0]).body)}


@lru_cache(maxsize=64)
def _modules(notebook: Path, _mtime: int) -> list[Path]:
    found: set[Path] = set()
    queue = [module for _, tree in _code_cells(notebook) for module in _imports(tree, "")]
    while queue:
        name = queue.pop()
        if "." in name:
            queue.append(name.rpartition(".")[0])
        path = _module_file(name)
        if path is None or path in found:
            continue
        found.add(path)
        if path.with_suffix(".toml").is_file():
            found.add(path.with_suffix(".toml"))
        queue += _imported_by(path)
    return sorted(found)


@lru_cache(maxsize=None)
def _imported_by(path: Path) -> list[str]:
    return _imports(ast.parse(path.read_text(encoding="utf-8")), _package_of(path))


def _parameter(path: Path, line: ast.stmt, comments: Mapping[int, str]) -> Parameter:
    kind = KINDS.get(getattr(getattr(line, "annotation", None), "id", ""))
    if not isinstance(line, ast.AnnAssign) or kind is None or line.value is None:
        raise MstlError(f"Line {line.lineno} of the parameters cell in {path} is not of the form 'name: type = value' "
                        f"with a type among {', '.join(KINDS)}: write it so.")
    comment = comments.get(line.end_lineno, "")
    match = _CHOICES.match(comment)
    choices = tuple(match.group(1).split(" | ")) if match else ()
    return Parameter(line.target.id, kind, ast.literal_eval(line.value), choices, comment.lstrip("# "))


def _checked(stage: str, known: Parameter, value: Any) -> Any:
    if known.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if known.kind is list and isinstance(value, tuple):
        value = list(value)
    where = f"Parameter '{known.name}' of {stage}"
    if not isinstance(value, known.kind) or (isinstance(value, bool) and known.kind is not bool):
        hint = f"pass it as text with `-r {known.name} {value}`" if known.kind is str else f"the default is {known.default!r}"
        raise MstlError(f"{where} must be of type {known.kind.__name__}, but {value!r} is of type {type(value).__name__}: {hint}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise MstlError(f"{where} must be a finite number, but is {value}: the default is {known.default!r}.")
    if known.choices and value != known.default:
        for item in value if isinstance(value, list) else [value]:
            if str(item) not in known.choices:
                raise MstlError(f"{where} must be one of {', '.join(known.choices)}, but is {item!r}: "
                                f"{suggestion(item, known.choices)}")
    return value


def _cells(path: Path) -> list[tuple[list[str], str]]:
    """Tags and source of each code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def _code_cells(path: Path) -> list[tuple[list[str], ast.Module]]:
    plain = [(tags, re.sub(r"(?m)^\s*[%!].*$", "", source)) for tags, source in _cells(path)]
    return [(tags, ast.parse(source)) for tags, source in plain]


def _imports(tree: ast.AST, package: str) -> list[str]:
    """Dotted names below ``mstl`` that ``tree`` may import; an attribute among them is harmless: it has no file."""
    names: list[str] = []
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "mstl"]


def _walk(node: ast.AST):
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def _module_file(name: str) -> Path | None:
    base = Path(__file__).parent.joinpath(*name.split(".")[1:])
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _package_of(path: Path) -> str:
    return ".".join(path.relative_to(Path(__file__).parent.parent).parent.parts)
