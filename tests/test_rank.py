"""Ranking candidates without training: what may be a candidate, what the order and its firmness mean."""

import numpy as np
import pandas as pd
import pytest

from mstl import checkpoints, cli, rank
from mstl.datasets import load
from mstl.errors import MstlError
from mstl.models import backbones


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two checkpoints and a run with two chains."""
    place = tmp_path_factory.mktemp("home")
    for name, seed in (("a", 0), ("b", 1), ("run/checkpoint/seed0", 2), ("run/checkpoint/seed1", 3)):
        checkpoints.save(place / name, backbones.create("test_vit", 4, image_size=32, seed=seed), lineage=[], extra={"head": "trained"})
    return place


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    images = load("phantom-ultrasound", size=32, root=tmp_path_factory.mktemp("data"), n=60, progress=False)
    return lambda size: images


def test_a_run_is_a_candidate_a_chain_and_a_checkpoint_is_one(home):
    found = rank.candidates([str(home / "a"), str(home / "run")])
    assert [c.name for c in found] == ["a", "run/seed0", "run/seed1"] and {c.image_size for c in found} == {32}


@pytest.mark.parametrize(("words", "said"), [
    (["a"], "at least two"), (["a", "a"], "named twice"), (["a", "vit=none.pt"], "none.pt of the candidate vit=none.pt do not exist"), (["a", "."], "no checkpoint")])
def test_what_is_no_ranking_ends_in_one_sentence(home, monkeypatch, words, said):
    monkeypatch.chdir(home / "a" if words[-1] == "." else home)
    (home / "a" / "empty").mkdir(exist_ok=True)
    words = [str(home / w) if w == "a" else str(home / "a" / "empty") if w == "." else w for w in words]
    with pytest.raises(MstlError, match=said):
        rank.candidates(words)


def test_the_order_follows_the_measure_and_the_same_candidate_twice_is_a_tie(home, target, tmp_path):
    import shutil

    shutil.copytree(home / "a", tmp_path / "copy")
    table = rank.rank(target, rank.candidates([str(home / "a"), str(home / "b"), str(tmp_path / "copy")]), measures=["logme", "leep"], n_resamples=20)
    for _, rows in table.groupby("measure"):
        assert rows["value"].is_monotonic_decreasing and list(rows["rank"]) == [1, 2, 3]
        own = rows.set_index("candidate")
        assert own.loc["a", "value"] == own.loc["copy", "value"] and (rows["low"] <= rows["high"]).all() and rows["first"].sum() == pytest.approx(1)
    assert (table.loc[table["measure"] == "LEEP", "high"] <= 0).all()


def test_measures_of_a_head_are_left_out_where_heads_differ(home, target, tmp_path):
    checkpoints.save(tmp_path / "six", backbones.create("test_vit", 6, image_size=32, seed=5), lineage=[], extra={"head": "trained"})
    found = rank.candidates([str(home / "a"), str(tmp_path / "six")])
    assert set(rank.rank(target, found, measures=["leep", "logme"], n_resamples=20)["measure"]) == {"LogME"}
    with pytest.raises(MstlError, match="None of the measures exists"):
        rank.rank(target, found, measures=["leep", "nce"], n_resamples=20)
    with pytest.raises(MstlError, match="'logne' does not exist"):
        rank.rank(target, found, measures=["logne"])


def test_the_command_leaves_a_table_and_a_figure_and_says_how_reliable_it_was(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MSTL_HOME", str(tmp_path))
    folder = tmp_path / "own"
    folder.mkdir()
    from PIL import Image

    random = np.random.default_rng(0)
    rows = [{"path": f"{i}.png", "label": "ill" if i % 2 else "well", "group": f"p{i // 2}", "split": "test" if i > 35 else "train"} for i in range(40)]
    for i, row in enumerate(rows):
        Image.fromarray(random.integers(0, 120 + 100 * (i % 2), (32, 32), dtype=np.uint8)).save(folder / row["path"])
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    code = cli.main(["rank", str(folder), str(home / "a"), str(home / "b"), "--measures", "logme", "h_score", "--resamples", "20", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert code == 0 and "LogME" in said and "reference study" in said
    table = pd.read_csv(tmp_path / "out" / "ranking.csv")
    assert set(table["candidate"]) == {"a", "b"} and (tmp_path / "out" / "ranking.png").stat().st_size > 5000
    assert cli.main(["rank", str(folder), str(home / "a"), str(home / "b"), "--resamples", "3"]) == 2


def test_a_ranking_sees_the_training_part_alone(tmp_path, monkeypatch):
    loaded = load("phantom-chest", size=32, root=tmp_path, n=40, progress=False)
    split = loaded._derive("split", splits=np.array(["train", "test"] * 20))
    monkeypatch.setattr("mstl.datasets.load", lambda name, size: split)
    assert list(rank.training_part("phantom-chest")(32).ids) == list(split.ids[::2])
