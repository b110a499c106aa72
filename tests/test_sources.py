"""Sources compared: the arm ctl by its source, paired on the same images, with the budget that the records tell."""

import json

import numpy as np
import pandas as pd
import pytest

from mstl import predictions, sources
from mstl.errors import MstlError


def table(source, *, arm="ctl", separation=1.0, chains=(0, 1), backbone="net", images=80, folds=2):
    """Predictions of one run whose scores part the classes by ``separation`` standard deviations."""
    rows = []
    for chain in chains:
        rng = np.random.default_rng([len(source), chain])
        for i in range(images):
            ill = i % 2
            score = 1 / (1 + np.exp(-(separation * (ill - 0.5) + 0.5 * rng.normal())))
            rows.append({"run": source, "model": arm, "arm": arm, "source": source if arm == "ctl" else "", "target": "chest", "variant": "",
                         "backbone": backbone, "seed": chain, "fold": i // 4 % folds, "split": "test", "image_id": f"i{i}", "group": f"g{i // 4}",
                         "y_true": "ill" if ill else "well", "p_well": 1 - score, "p_ill": score})
    return pd.DataFrame(rows)


@pytest.fixture
def runs(tmp_path):
    """Runs of four arms as a study leaves them, with the records of two sources that were trained here."""
    made = {"chest-ctl-a": table("mednist", separation=2.0), "chest-ctl-b": table("cifar10", separation=0.2),
            "chest-ctl-c": table("./weights/RadImageNet/ResNet50.pt", separation=2.0), "chest-scratch-a": table("", arm="scratch", separation=0.1),
            "chest-scratch-b": table("", arm="scratch", separation=0.1)}
    for slug, content in made.items():
        place = tmp_path / "30_target" / slug
        predictions.write(content, place / "predictions.csv")
        source, arm = content["source"].iloc[0], content["arm"].iloc[0]
        lineage = [{"stage": "source", "data": source, "images": 900 if source in ("mednist", "cifar10") else None, "score": 0.9}]
        parameters = {"backbone": "net", "source": source, "arm": arm, "parent": f"10_source/{slug[-1]}" if arm == "ctl" else ""}
        (place / "run.json").write_text(json.dumps({"parameters": parameters, "lineage": lineage if arm == "ctl" else []}))
    for name, recipe in (("a", {"steps": 60, "batch_size": 16}), ("b", {"epochs": 1, "batch_size": 15}), ("c", {})):
        place = tmp_path / "10_source" / name
        place.mkdir(parents=True)
        (place / "run.json").write_text(json.dumps({"parameters": {"recipe": recipe}}))
    return {slug: tmp_path / "30_target" / slug for slug in made}


def test_a_weights_file_is_called_by_its_name_and_radimagenet_by_its_folder():
    assert [sources.name(s) for s in ("imagenet", "cifar10", "./w/RadImageNet/ResNet50.pt", "/x/radimagenet_densenet.pth", "w/Own.pt")] == [
        "imagenet", "cifar10", "radimagenet", "radimagenet", "own"]
    assert sources.is_radimagenet(["scratch", "radimagenet"]) and not sources.is_radimagenet(["imagenet", "mednist"])


def test_models_are_sources_and_scratch_counts_once(runs):
    read = sources.read(runs.values())
    assert set(read["model"]) == {"mednist", "cifar10", "radimagenet", "scratch"}
    assert (read.groupby("model").size() == 160).all()


def test_the_source_that_parts_the_classes_better_is_higher_within_folds(runs):
    rows = sources.differences(sources.read(runs.values()), ("mednist", "cifar10"), n_resamples=400)
    first = rows.iloc[0]
    assert (first.a, first.b) == ("mednist", "cifar10") and first.primary and not rows["primary"].iloc[1:].any()
    assert first.low > 0 and first.mean_a - first.mean_b == pytest.approx(first.estimate)
    assert len(rows) == 6 and set(rows.loc[rows["b"] == "scratch", "a"]) == {"mednist", "cifar10", "radimagenet"}
    assert (rows["n_images"] == 80).all() and (rows["n_chains"] == 2).all()


def test_the_asked_pair_turns_round_with_its_order(runs):
    read = sources.read(runs.values())
    there, back = (sources.differences(read, pair, n_resamples=200).iloc[0] for pair in (("mednist", "cifar10"), ("cifar10", "mednist")))
    assert there.estimate == pytest.approx(-back.estimate)


def test_chains_that_one_source_lacks_are_left_out(runs):
    predictions.write(table("cifar10", separation=0.2, chains=(0,)), runs["chest-ctl-b"] / "predictions.csv")
    assert sources.differences(sources.read([runs["chest-ctl-a"], runs["chest-ctl-b"]]), n_resamples=200)["n_chains"].tolist() == [1]


def test_budgets_come_from_the_records_and_say_whether_they_are_equal(runs):
    found = sources.budgets(runs.values()).set_index("source")
    assert found.loc["mednist", ["images", "steps", "batch", "seen"]].tolist() == [900, 60, 16, 960]
    assert found.loc["cifar10", ["images", "steps", "batch", "seen"]].tolist() == [900, 60, 15, 900]
    assert "did not have equal budgets" in sources.equal_budget(found.reset_index(), ("mednist", "cifar10"))
    assert "is not recorded" in sources.equal_budget(found.reset_index(), ("radimagenet", "cifar10"))
    place = runs["chest-ctl-b"].parent.parent / "10_source" / "b" / "run.json"
    place.write_text(json.dumps({"parameters": {"recipe": {"steps": 60, "batch_size": 16}}}))
    assert "had equal images and steps (mednist 900 images, 60 steps of 16" in sources.equal_budget(sources.budgets(runs.values()), ("mednist", "cifar10"))


def test_of_a_source_that_was_left_before_its_first_epoch_ended_only_the_images_shown_count(runs):
    for name in "ab":
        (runs["chest-ctl-a"].parent.parent / "10_source" / name / "run.json").write_text(json.dumps({"parameters": {"recipe": {"steps": 10, "batch_size": 8}}}))
    record = runs["chest-ctl-b"] / "run.json"
    record.write_text(record.read_text().replace("900", "5000"))
    assert sources.budgets(runs.values()).set_index("source").loc[["mednist", "cifar10"], "images"].tolist() == [80, 80]
    assert "had equal images and steps" in sources.equal_budget(sources.budgets(runs.values()), ("mednist", "cifar10"))


def test_a_bare_table_has_no_budget_and_is_compared_all_the_same(runs, tmp_path):
    for slug in ("a", "b"):
        (runs[f"chest-ctl-{slug}"] / "run.json").unlink()
    two = [runs["chest-ctl-a"] / "predictions.csv", runs["chest-ctl-b"] / "predictions.csv"]
    assert sources.budgets(two).empty and "not known" in sources.equal_budget(sources.budgets(two), ("mednist", "cifar10"))
    assert len(sources.differences(sources.read(two), n_resamples=200)) == 1


def test_the_answer_says_that_radimagenet_was_not_tested_unless_it_was(runs):
    stand_in = sources.read([runs["chest-ctl-a"], runs["chest-ctl-b"]])
    said = sources.answer(sources.differences(stand_in, ("mednist", "cifar10"), n_resamples=200), {"chest": "Chest"}, simulated=True)
    assert said.startswith("Difference in AUC, mednist − cifar10, on simulated images") and "Chest: +0." in said and "higher" in said
    assert said.endswith("RadImageNet itself was not tested.")
    real = sources.differences(sources.read([runs["chest-ctl-c"], runs["chest-ctl-b"]]), ("radimagenet", "cifar10"), n_resamples=200)
    assert "not tested" not in sources.answer(real, {})
    minus = sources.answer(real.assign(a="phantom-chest", estimate=-0.5), {})
    assert "phantom-chest − cifar10" in minus and ": −0.500 (" in minus, "a hyphen of a name is no minus"


@pytest.mark.parametrize(("which", "words"), [
    (("chest-ctl-a", "chest-ctl-a"), "was read before"),
    (("chest-scratch-a",), "no source to compare"),
])
def test_what_cannot_be_compared_is_one_sentence(runs, which, words):
    with pytest.raises(MstlError, match=words) as error:
        sources.read([runs[slug] for slug in which])
    assert "\n" not in str(error.value)


def test_one_source_alone_is_one_sentence(runs):
    with pytest.raises(MstlError, match="nothing to compare"):
        sources.differences(sources.read([runs["chest-ctl-a"]]))
