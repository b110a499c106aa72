"""The command line: help that teaches, honest exit codes, one sentence for a mistake."""

import subprocess
import sys
from types import SimpleNamespace

import light_stages as light
import numpy as np
import pytest
from PIL import Image

from mstl import __version__, cli, planning
from mstl.datasets.catalog import catalog
from mstl.errors import MstlError


def test_help_teaches_with_examples_and_names_the_folders(capsys):
    for words, said in (["--help"], ("mstl run workshop", "$MSTL_DATA", "data/raw/")), (["run", "--help"], ("--estimate", "Snakemake", "--jobs 1 -n")), (
            ["data", "--help"], ("list", "prepare", "audit")), (["book", "--help"], ("workshop",)):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        text = capsys.readouterr().out
        assert end.value.code == 0 and all(each in text for each in said), words


def test_every_example_of_the_help_is_understood():
    parser = cli._parser()
    lines = [line.split("   ")[0].split() for line in (cli._MAIN + cli._RUN).splitlines() if line.startswith("  mstl ")]
    assert len(lines) >= 10
    for line in lines:
        given, _ = parser.parse_known_args(line[1:])
        assert callable(given.action), line


def test_version_is_the_packages():
    done = subprocess.run([sys.executable, "-m", "mstl.cli", "--version"], capture_output=True, text=True, cwd=light.ROOT)
    assert done.stdout == f"mstl {__version__}\n"


def test_help_starts_without_the_heavy_packages():
    code = "import sys, mstl.cli\ntry: mstl.cli.main(['--help'])\nexcept SystemExit: pass\n" \
           "print([m for m in ('torch', 'pandas', 'numpy', 'snakemake', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=light.ROOT).stdout.endswith("[]\n")


@pytest.mark.parametrize("words", [[], ["runn"], ["data"], ["data", "prepare"], ["book", "a", "b"], ["data", "list", "--frobnicate"]])
def test_a_command_that_does_not_exist_ends_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2 and "usage: mstl" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["run", "smok"], "There is no study 'smok' in "), (["run", "smoke", "--jobs", "0"], "--jobs is the number of runs at a time"),
    (["data", "prepare", "bussi"], "bussi"),
    (["run", "smoke", "--config", "study=x"], "The option --config is set by mstl run itself"), (["run", "nowhere.yml"], "There is no study file "),
])
def test_a_mistake_is_one_sentence_on_stderr_and_code_2(words, said, capsys):
    assert cli.main(words) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.startswith("mstl: ") and said in streams.err and streams.err.count("\n") == 1


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(MstlError):
        cli.main(["--debug", "run", "smok"])


def test_data_list_names_every_set_of_the_catalog_and_marks_the_simulated(capsys):
    assert cli.main(["data", "list"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for name, card in catalog().items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{name} "))
        assert card.title in lines[place] and card.licence in lines[place + 1]
        assert ("simulated" in lines[place + 1]) == card.simulated
        assert card.simulated or card.url in lines[place + 2] and ("here" in lines[place + 2] or "downloaded" in lines[place + 2])


def test_an_own_folder_is_prepared_and_audited_by_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MSTL_HOME", str(tmp_path / "home"))
    own = tmp_path / "own"
    own.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40), dtype=np.uint8)
    noise[5] = noise[0]  # a copy, under the other label
    for i, image in enumerate(noise):
        Image.fromarray(image).save(own / f"{i}.png")
    (own / "manifest.csv").write_text("path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
    assert cli.main(["data", "prepare", str(own), "--size", "32"]) == 0
    assert "6 images of 32 px, 2 classes" in capsys.readouterr().out
    assert cli.main(["data", "audit", str(own), "--size", "32"]) == 0
    text = capsys.readouterr().out
    assert "1 cluster of copies (1 redundant exact copy), 1 with more than one label" in text and "conflicts" in text


def test_an_estimate_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MSTL_HOME", str(tmp_path))
    assert cli.main(["run", "smoke", "--estimate"]) == 0
    text = capsys.readouterr().out
    runs = len(planning.plan(planning.read_study("smoke")))
    assert f"Study smoke: {runs} runs, 0 of them finished, about " in text and "MB of disk" in text and " with 2 jobs." in text
    assert not (tmp_path / "runs").exists()


def test_book_asks_for_the_book_of_that_study(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "mstl.report", SimpleNamespace(build_book=asked.append))
    monkeypatch.setattr("mstl.report", sys.modules["mstl.report"], raising=False)
    assert cli.main(["book", "reference"]) == 0 and cli.main(["book"]) == 0
    assert asked == ["reference", "workshop"]


def test_an_interruption_ends_with_code_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "read_study", interrupted)
    assert cli.main(["run", "smoke"]) == 130 and "the same command continues" in capsys.readouterr().err


def test_a_reader_that_leaves_early_sees_no_traceback():
    process = subprocess.Popen([sys.executable, "-m", "mstl.cli", "data", "list"], cwd=light.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=120) == 1 and process.stderr.read() == b""
