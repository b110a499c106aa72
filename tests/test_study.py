"""The notebook's side of a run, and what a study file may say."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import light_stages as light
import numpy as np
import pandas as pd
import pytest

from mstl import estimates, paths, planning, study, studyfile, templates
from mstl.errors import MstlError

TARGET = "30_target"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Light templates and a home folder of their own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "light.yml").write_text(light.STUDY)
    for stage in light.PARAMETERS:
        light.write(tmp_path, stage, light.light(stage))
    monkeypatch.setattr(paths, "share", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setenv("MSTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(study, "_LOCKS", {})
    for name in study.THREADS:
        monkeypatch.setenv(name, "1")
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- parameters


def test_types_choices_and_defaults_are_read_from_the_parameters_cell(place):
    declared = templates.parameters(TARGET)
    assert declared["folds"].kind is int and declared["folds"].default == 5
    assert declared["arm"].choices == ("scratch", "ctl", "mstl")
    assert declared["data"].choices == ()


@pytest.mark.parametrize("comment, choices", [
    ("# a | b | c", ("a", "b", "c")), ("# a | b: which", ("a", "b")), ("# a | b  which", ("a", "b")),
    ("# imagenet | none | a data set", ()), ("# share of images", ()), ("# 1e-3 | 3e-3, rates", ("1e-3", "3e-3")),
])
def test_a_comment_that_begins_with_alternatives_gives_the_allowed_values(place, comment, choices):
    light.write(place, "70_new", light.notebook("70_new", parameters=f'way: str = "a"  {comment}\n'))
    assert templates.parameters("70_new")["way"].choices == choices


@pytest.mark.parametrize("values, said", [
    ({"folsd": 3}, "30_target has no parameter 'folsd': did you mean 'folds'?"),
    ({"folds": "five"}, "Parameter 'folds' of 30_target must be of type int, but 'five' is of type str"),
    ({"folds": True}, "must be of type int, but True is of type bool"),
    ({"folds": 2.5}, "must be of type int"),
    ({"target": 5}, "pass it as text with `-r target 5`"),
    ({"test": None}, "must be of type float, but None"),
    ({"test": float("nan")}, "must be a finite number"),
    ({"arm": "mtsl"}, "must be one of scratch, ctl, mstl, but is 'mtsl': did you mean 'mstl'?"),
    ({"seeds": "0,1"}, "must be of type list"),
])
def test_a_wrong_parameter_is_one_sentence_that_names_it(place, values, said):
    with pytest.raises(MstlError) as error:
        study.start(TARGET, values)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_count_as_floats_and_tuples_as_lists(place):
    run = study.start(TARGET, {"test": 0, "seeds": (0, 1)})
    assert run.p.test == 0.0 and isinstance(run.p.test, float) and run.p.seeds == [0, 1]


def test_an_unknown_stage_names_the_nearest(place):
    with pytest.raises(MstlError, match="did you mean '30_target'"):
        study.start("30_targets", {})


def test_only_an_injected_cell_can_bring_unknown_names(place):
    cells = ["", 'arm: str = "ctl"\nstudy: str = "light"', "import numpy as np\nown = 3"]
    known = {"arm": "ctl", "own": 3, "np": np, "study": study}
    assert study.start(TARGET, known | {"In": cells}).p.arm == "ctl"
    with pytest.raises(MstlError, match="no parameter 'foldz'"):
        study.start(TARGET, known | {"foldz": 4, "In": [*cells, "# Parameters\nfoldz = 4\n"]})


def test_a_parameter_whose_name_an_import_took_keeps_its_value(place):
    cells = ['study: str = "own"', '# Parameters\nstudy = "light"\n', "from mstl import study"]
    assert study.start(TARGET, {"study": study, "In": cells}).study == "light"


def test_a_line_that_is_no_annotated_assignment_is_an_error_of_the_template(place):
    light.write(place, "70_new", light.notebook("70_new", parameters="a: int = 1\nb = 2\n"))
    with pytest.raises(MstlError, match="Line 5 of the parameters cell.*name: type = value"):
        templates.parameters("70_new")


# ------------------------------------------------------------------------------------------------------------------ a run


def test_a_run_without_out_gets_the_folder_that_its_plan_would_give_it(place):
    run = study.start(TARGET, {"study": "light", "target": "chest", "arm": "mstl", "lineage": "lite0", "bridge": "cells"})
    assert run.out == paths.home("runs", "light", TARGET, "chest-mstl-lite0-cells").resolve()
    assert run.fits == paths.home("runs", "light", "fits").resolve()
    assert study.slug(TARGET, {"target": "chest", "arm": "ctl", "lineage": "lite0", "bridge": "cells", "variant": "half"}) == "chest-ctl-lite0-half"
    assert study.slug("60_comparison", {}) == "all"


@dataclass(frozen=True)
class Score:
    auc: float
    ci: tuple


def test_finish_leaves_tables_metrics_and_the_record_last(place):
    run = study.start(TARGET, {"study": "light", "target": "chest"})
    (run.work / "checkpoint").mkdir()
    (run.work / "checkpoint" / "model.safetensors").write_text("weights")
    run.progress(1, 2, "fold 1")
    assert json.loads((run.work / "progress.json").read_text()) == {"done": 1, "total": 2, "text": "fold 1"}
    data = SimpleNamespace(name="chest", hash="abc", size=96, card=SimpleNamespace(simulated=True), __len__=lambda: 7)
    data = type("Set", (), {**vars(data), "__len__": lambda self: 7})()
    out = run.finish(metrics={"auc": Score(np.float64(0.9), (0.8, float("nan"))), "n": np.int64(3)}, history=pd.DataFrame({"step": [1]}),
                     boxes=pd.DataFrame({"x0": [1]}), lineage=[{"stage": "source"}], data=data, note="more")
    assert sorted(p.name for p in out.iterdir()) == [".lock", "boxes.csv", "checkpoint", "history.csv", "metrics.json", "run.json"]
    assert json.loads((out / "metrics.json").read_text()) == {"auc": {"auc": 0.9, "ci": [0.8, None]}, "n": 3}
    record = json.loads((out / "run.json").read_text())
    assert record["parameters"]["target"] == "chest" and record["lineage"] == [{"stage": "source"}] and record["note"] == "more"
    assert record["data"] == [{"name": "chest", "hash": "abc", "images": 7, "size": 96, "simulated": True}]
    assert record["peak_memory_mb"] > 10 and record["seconds"] >= 0 and record["device"] and record["revision"]
    assert record["versions"]["torch"] and record["finished"].endswith("+00:00")


def test_a_second_finish_replaces_what_the_first_left(place):
    run = study.start(TARGET, {"study": "light"})
    (run.work / "checkpoint").mkdir()
    (run.work / "checkpoint" / "old").write_text("")
    run.finish(boxes=pd.DataFrame({"x0": [1]}))
    (run.out / "notebook.ipynb").write_text("the notebook of the first")
    run = study.start(TARGET, {"study": "light"})
    (run.work / "checkpoint").mkdir()
    (run.work / "checkpoint" / "new").write_text("")
    run.finish()
    assert sorted(p.name for p in run.out.iterdir()) == [".lock", "checkpoint", "run.json"]
    assert [p.name for p in (run.out / "checkpoint").iterdir()] == ["new"]


def test_what_an_interrupted_run_left_in_work_is_gone_and_its_results_are_kept(place):
    run = study.start(TARGET, {"study": "light"})
    run.finish(metrics={"first": 1})
    run = study.start(TARGET, {"study": "light"})
    (run.work / "checkpoint").mkdir()
    run = study.start(TARGET, {"study": "light"})
    assert not (run.work / "checkpoint").exists() and json.loads((run.out / "metrics.json").read_text()) == {"first": 1}


def test_a_full_disk_is_one_sentence_and_loses_nothing(place, monkeypatch):
    run = study.start(TARGET, {"study": "light"})
    run.finish(metrics={"first": 1})
    run = study.start(TARGET, {"study": "light"})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MstlError, match="disk .or the quota. is full"):
        run.finish(metrics={"second": 2})
    assert json.loads((run.out / "metrics.json").read_text()) == {"first": 1} and (run.out / "run.json").is_file()


def test_a_missing_parent_says_which_command_makes_it(place):
    values = {"study": "light", "parent": "20_bridge/lite0-cells"}
    with pytest.raises(MstlError, match="The bridge run is missing .*20_bridge/lite0-cells.*run `mstl run light`"):
        study.start(TARGET, values).parent("20_bridge/lite0-cells", "the bridge run")
    values = {"study": "mine", "lineage": "r18", "backbone": "resnet18", "seeds": [0, 1], "image_size": 64}
    with pytest.raises(MstlError) as error:
        study.start(TARGET, values).parent("20_bridge/r18-cells", "the bridge run")
    command = str(error.value).split("`")[1]
    assert command.startswith("papermill ") and "20_bridge.ipynb" in command
    for words in ("-r study mine", "-r lineage r18", "-r backbone resnet18", "-p image_size 64", "-y '{\"seeds\": [0, 1]}'"):
        assert words in command


def test_a_parent_is_found_by_slug_by_path_and_as_a_table_but_not_unfinished(place):
    source = study.start("10_source", {"study": "light"})
    run = study.start(TARGET, {"study": "light"})
    with pytest.raises(MstlError, match="is not finished"):
        run.parent("10_source/lite0", "the source run")
    source.finish()
    table = place / "predictions.csv"
    table.write_text("y_true\n")
    for where in ("10_source/lite0", "runs/light/10_source/lite0", source.out):
        assert run.parent(where, "the source run") == source.out
    assert run.parent(table) == table
    run.finish()
    assert json.loads((run.out / "run.json").read_text())["parents"][0] == "10_source/lite0"


def test_a_run_in_use_by_another_process_says_so(place, monkeypatch):
    out = paths.home("runs", "light", TARGET, "busi-mstl-lite0-cells")
    code = (f"import sys, time; from pathlib import Path; from mstl.locks import Lock\n"
            f"lock = Lock(Path({str(out / '.lock')!r})).acquire('x'); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=light.ROOT)
    try:
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr(study, "WAIT", 0.3)
        with pytest.raises(MstlError, match=f"is in use by process {other.pid} on .*: wait until it ends"):
            study.start(TARGET, {"study": "light"})
    finally:
        other.kill()
        other.wait()
    assert study.start(TARGET, {"study": "light"}).out == out  # the lock died with its holder


def test_importing_the_notebooks_side_stays_light():
    code = "import sys, mstl.study; print([m for m in ('torch', 'pandas', 'numpy', 'pydantic', 'snakemake', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=light.ROOT).stdout == "[]\n"


def test_papermill_shows_the_sentence_and_no_traceback(place):
    """With real papermill: it fails, and both the notebook and the last line of the terminal are the sentence."""
    home = place / "checkout"
    light.checkout(home)
    done = subprocess.run([sys.executable, "-m", "papermill", str(home / "notebooks" / f"{TARGET}.ipynb"), str(place / "out.ipynb"), "-p", "foldz", "4",
                           "--no-progress-bar"], capture_output=True, text=True, env=light.environment(home), cwd=place)
    sentence = "MstlError: 30_target has no parameter 'foldz': did you mean 'folds'?"
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1] == sentence
    outputs = [out for cell in json.loads((place / "out.ipynb").read_text())["cells"] for out in cell.get("outputs", [])]
    assert [out["traceback"] for out in outputs if out["output_type"] == "error"] == [[sentence]]


# ------------------------------------------------------------------------------------------------------------ study files


def changed(place, old, new):
    path = place / "changed.yml"
    assert old in light.STUDY
    path.write_text(light.STUDY.replace(old, new))
    return path


@pytest.mark.parametrize("old, new, said", [
    ("seeds: [0, 1]", "sedes: [0, 1]", "sedes is not a key of a study: did you mean 'seeds'?"),
    ("folds: 3", "foldz: 3", "targets.ultrasound.foldz is not a key of a study: did you mean 'folds'?"),
    ("{name: lite0,", "{nome: lite0,", "lineages.0.nome is not a key of a study: did you mean 'name'?"),
    ("recipe: {epochs: 1}", "recipe: {optimiser: sgd}", "recipe.optimiser is not a key of a study: did you mean 'optimizer'?"),
    ("folds: 3", "variants: {half: {n_tran: 3}}", "targets.ultrasound.variants.half.n_tran is not a key of a study: did you mean 'n_train'?"),
    ("folds: 3", "folds: three", "targets.ultrasound.folds must be a whole number, but is 'three'"),
    ("folds: 3", "folds: 2", "targets.ultrasound.folds must be greater than or equal to 3, but is 2"),
    ("folds: 3", "arms: [ctl, mtsl]", "targets.ultrasound.arms.1 must be one of scratch, ctl, mstl, but is 'mtsl': did you mean 'mstl'?"),
    ("classes: [benign, malignant]", "classes: benign", "targets.ultrasound.classes must be a list"),
    ("folds: 3", "folds: 3, folds: 4", "is not valid YAML in line 9 (the key 'folds' stands twice)"),
    ("folds: 3", "recipe: {lr: 0.1}", "targets.ultrasound.recipe.lr has no effect, because targets are tuned: set lrs and steps in targets.ultrasound.tuning."),
    ("recipe: {epochs: 1}", "recipe: {epochs: 1, steps: 3}", "recipe has both epochs and steps: keep one."),
    ("recipe: {epochs: 1}", "recipe: {freeze: al}", "recipe.freeze must be none, backbone or stages:K, but is 'al'"),
    ("study: light", "title: light", "the key study is missing"),
    ("study: light", "study: My Light", "study must be lower-case letters"),
    ("data: phantom-chest", "data: phantom-chst", "targets.chest.data is 'phantom-chst', which the catalog does not have: did you mean 'phantom-chest'?"),
    ("data: phantom-chest", "data: ./nothing", "targets.chest.data is the path './nothing', but there is nothing at"),
    ("options: {n: 60}", "options: {m: 60}", "bridges.0: phantom-cells has no option 'm'"),
    ("backbone: tf_efficientnet_lite0}", "backbone: x, source: imagenett}", "lineages.0.source is 'imagenett'"),
    ("recipe: {epochs: 1}", "comparison: {family: [chst]}", "comparison.family names the target 'chst', which targets does not have: did you mean 'chest'?"),
    ("bridges:\n  - {name: cells, data: phantom-cells, options: {n: 60}}\n", "", "the arm mstl needs a bridge, but bridges is empty"),
])
def test_a_mistake_in_a_study_is_one_sentence_with_the_path_of_the_key(place, old, new, said):
    with pytest.raises(MstlError) as error:
        planning.read_study(changed(place, old, new))
    assert said in str(error.value) and str(place) in str(error.value) and "\n" not in str(error.value)


def test_a_study_that_does_not_exist_names_the_nearest(place):
    with pytest.raises(MstlError, match="There is no study 'ligth' in .*did you mean 'light'"):
        planning.read_study("ligth")


def test_yaml_is_read_as_people_write_it(place):
    path = changed(place, "recipe: {epochs: 1}", "recipe: {lr: 1e-3, precision: no}")
    recipe = planning.read_study(path).recipe
    assert recipe.lr == 0.001 and recipe.precision == "no"


def test_a_plan_runs_parents_first_and_every_chain_through_its_own_bridge(place):
    runs = planning.plan(planning.read_study("light"))
    order = [run.path for run in runs]
    assert order == ["00_data/all", "10_source/lite0", "20_bridge/lite0-cells", "30_target/ultrasound-scratch-lite0",
                     "30_target/ultrasound-ctl-lite0", "30_target/ultrasound-mstl-lite0-cells", "30_target/chest-scratch-lite0",
                     "30_target/chest-ctl-lite0", "30_target/chest-mstl-lite0-cells", "60_comparison/all"]
    needs = {run.path: run.needs for run in runs}
    assert all(order.index(need) < order.index(path) for path, each in needs.items() for need in each)
    assert needs["30_target/chest-scratch-lite0"] == [] and needs["30_target/chest-ctl-lite0"] == ["10_source/lite0"]
    assert needs["30_target/chest-mstl-lite0-cells"] == ["20_bridge/lite0-cells"] and needs["60_comparison/all"] == order[3:9]
    mstl = next(run for run in runs if run.slug == "chest-mstl-lite0-cells")
    assert mstl.parameters["seeds"] == [0, 1] and mstl.parameters["parent"] == "20_bridge/lite0-cells"
    assert mstl.parameters["out"] == "runs/light/30_target/chest-mstl-lite0-cells"
    planning.verify(runs)


def test_a_variant_changes_only_what_it_names_and_can_have_its_own_chains(place):
    path = changed(place, "n_train: 40", "n_train: 40, recipe: {class_weights: balanced}, variants: {full: {n_train: 0, seeds: [3], recipe: {batch_size: 8}}}")
    runs = {run.slug: run.parameters for run in planning.plan(planning.read_study(path))}
    plain, full = runs["chest-ctl-lite0"], runs["chest-ctl-lite0-full"]
    assert (plain["n_train"], plain["seeds"], plain["recipe"]) == (40, [0, 1], {"class_weights": "balanced"})
    assert (full["n_train"], full["seeds"], full["recipe"]) == (0, [3], {"class_weights": "balanced", "batch_size": 8})
    assert full["variant"] == "full" and {k for k in full if full[k] != plain[k]} == {"n_train", "seeds", "recipe", "variant", "out"}


def test_scratch_tries_more_steps_and_the_others_do_not(place):
    runs = {run.slug: run.parameters for run in planning.plan(planning.read_study("light"))}
    assert runs["chest-scratch-lite0"]["extra_steps"] == [8] and runs["chest-ctl-lite0"]["extra_steps"] == []
    assert runs["chest-scratch-lite0"]["lrs"] == runs["chest-mstl-lite0-cells"]["lrs"] == [0.001]


def test_scratch_can_have_fewer_chains_than_the_others(place):
    runs = planning.plan(planning.read_study(changed(place, "seeds: [0, 1]", "seeds: [0, 1]\nscratch_seeds: [1]")))
    seeds = {run.parameters["arm"]: run.parameters["seeds"] for run in runs if run.stage == "30_target"}
    assert seeds["scratch"] == [1] and seeds["ctl"] == seeds["mstl"] == [0, 1]


def test_steps_of_a_bridge_silence_the_epochs_of_the_study(place):
    path = changed(place, "options: {n: 60}", "options: {n: 60}, recipe: {steps: 5}")
    bridge = next(run for run in planning.plan(planning.read_study(path)) if run.stage == "20_bridge")
    assert bridge.parameters["recipe"] == {"steps": 5, "epochs": None}


def test_two_lineages_of_one_backbone_do_not_train_the_same_scratch_models_at_once(place):
    path = changed(place, "bridges:", "  - {name: other, backbone: tf_efficientnet_lite0, source: none}\nbridges:")
    runs = {run.slug: run for run in planning.plan(planning.read_study(path))}
    assert runs["chest-scratch-other"].needs == ["30_target/chest-scratch-lite0"]


def test_the_reference_predictions_are_compared_when_the_study_shows_them(place):
    path = changed(place, "study: light", "study: light\nshow_reference: true")
    assert "reference" not in [run.slug for run in planning.plan(planning.read_study(path))]
    table = place / "data" / "reference" / "30_target" / "chest-ctl-lite0" / "predictions.csv"
    table.parent.mkdir(parents=True)
    table.write_text("")
    run = planning.plan(planning.read_study(path))[-1]
    assert run.path == "60_comparison/reference" and run.files == [table] and not run.needs
    assert (paths.home() / run.parameters["predictions"][0]).resolve() == table


def test_an_estimate_uses_what_was_measured_and_more_jobs_end_sooner(place):
    read = planning.read_study("light")
    table = estimates.estimate(read, jobs=1)
    assert set(table["basis"]) == {"estimated"} and (table["seconds"] > 0).all() and (table["disk_mb"] > 0).all()
    assert table["ends"].max() == pytest.approx(table["seconds"].sum(), abs=0.5)
    assert estimates.estimate(read, jobs=2)["ends"].max() < table["ends"].max()
    run = study.start("10_source", next(r for r in planning.plan(read) if r.stage == "10_source").parameters)
    run._began -= 600
    run.finish()
    assert estimates.estimate(read).set_index("run")["basis"]["10_source/lite0"] == "measured"
    assert "10 runs" in estimates.describe(table, read)


def target_run(**changes):
    """A planned run of the target stage on a set whose number of images is known."""
    parameters = {"backbone": "resnet50", "data": "busi", "options": {}, "classes": [], "image_size": 224, "seeds": [0], "design": "folds", "folds": 5,
                  "lrs": [1e-3], "steps": [100], "extra_steps": [], "threads": 1, "recipe": {"batch_size": 32, "precision": "bf16"}} | changes
    return planning.PlannedRun(TARGET, "busi-ctl-x", Path("x.ipynb"), parameters)


def test_a_gpu_estimate_is_the_published_speed_and_the_augmentation_on_one_core(place):
    trained, read = 5 * 100 * 32, 5 * 2 * 780 / 5
    card = 9 + trained / 1218 + read / (3 * 1218)
    assert estimates._seconds(target_run(), gpu=True) == pytest.approx(card, rel=0.01)
    augmented = target_run(recipe={"batch_size": 32, "precision": "bf16", "augmentation": "ultrasound"})
    assert estimates._seconds(augmented, gpu=True) == pytest.approx(card + trained * 0.0034, rel=0.01)
    assert estimates._seconds(augmented) == estimates._seconds(target_run()), "the speed of a CPU was measured with all that belongs to a step"


@pytest.mark.parametrize("changes", [{"recipe": {"batch_size": 32}}, {"backbone": "vit_base_patch16_224"}, {"image_size": 448}, {"steps": [300]}])
def test_full_precision_larger_networks_and_images_and_more_steps_cost_a_gpu_more(place, changes):
    assert estimates._seconds(target_run(**changes), gpu=True) > 1.3 * estimates._seconds(target_run(), gpu=True)


def test_a_network_that_no_table_knows_counts_as_its_nearest_relative():
    assert estimates._nearest("vit_base_patch8_224", estimates.GPU_SPEED) == "vit_base_patch16_224"
    assert estimates._nearest("resnet50d", estimates.SPEED) == "resnet50"
    small, usual = (estimates._each({"backbone": f"vit_tiny_patch{n}_224", "image_size": 96, "threads": 1, "recipe": {}}, False) for n in (8, 16))
    assert small == pytest.approx(4 * usual), "four times as many patches"


def test_a_smaller_bridge_and_a_probe_are_estimated_from_the_images_they_see(place):
    bridge = {"backbone": "resnet50", "data": "busi", "options": {}, "image_size": 96, "seeds": [0], "threads": 1, "recipe": {"epochs": 4}}
    cost = {name: estimates._seconds(planning.PlannedRun("20_bridge", "x", Path("x"), bridge | more)) - estimates.STARTING
            for name, more in {"whole": {}, "half": {"images": 0.5}, "few": {"n_train": 78}}.items()}
    assert cost["half"] == pytest.approx(cost["whole"] / 2) and cost["few"] == pytest.approx(cost["whole"] / 10)
    probe = target_run().parameters | {"parents": ["10_source/a", "20_bridge/a-cells"], "seeds": [0, 1]}
    one = planning.PlannedRun("35_probe", "x", Path("x"), probe | {"parents": ["10_source/a"]})
    three = estimates._seconds(planning.PlannedRun("35_probe", "x", Path("x"), probe)) - estimates.STARTING
    assert three == pytest.approx(3 * (estimates._seconds(one) - estimates.STARTING)), "a source network and two chains of the bridge"


# --------------------------------------------------------------------------------------------------- the project's own files


@pytest.mark.parametrize("name", planning.studies())
def test_every_study_of_the_project_fits_the_notebooks(name):
    planning.verify(planning.plan(planning.read_study(name)))


def test_the_study_of_the_papers_scale_has_its_networks_optimisers_folds_and_arms_and_an_estimate_of_gpu_hours():
    paper = planning.read_study("paper")
    runs = planning.plan(paper)
    planning.verify(runs)
    targets = [run.parameters for run in runs if run.stage == TARGET]
    assert {p["backbone"] for p in targets} == {"vit_base_patch16_224", "resnet50", "tf_efficientnet_b2", "inception_v3"}
    assert {p["recipe"]["optimizer"] for p in targets} == {"adam", "adagrad", "sgd"} and {p["arm"] for p in targets} == {"scratch", "ctl", "mstl"}
    assert {(p["image_size"], p["design"], p["folds"]) for p in targets} == {(224, "folds", 5)} and len(targets) == 4 * 3 * 3 * 3 + 6 * 3, "and six more bridges of one network on one target"
    assert {p["data"] for p in targets} == {"busi", "chest-xray", "mias-regions"}, "real archives"
    table = estimates.estimate(paper)
    hours = table["gpu_seconds"].sum() / 3600
    told = float(re.search(r"about (\d+) hours of one NVIDIA", paths.share("studies", "paper.yml").read_text(encoding="utf-8"))[1])
    assert hours == pytest.approx(told, rel=0.05) and (table["gpu_seconds"] <= table["seconds"]).all()
    said = estimates.describe(table, paper)
    assert f"On one GPU about {hours:.1f} h" in said and estimates.GPU in said and "not measured here" in said


def test_the_recipe_of_a_study_has_the_keys_and_values_of_the_recipe_that_trains():
    from dataclasses import fields

    from mstl import training

    keys = studyfile.RecipeKeys.model_fields
    assert set(keys) == {field.name for field in fields(training.Recipe)} - {"seed"}
    for name, allowed in training._CHOICES.items():
        for value in allowed:
            assert studyfile.RecipeKeys.model_validate({name: value})
        with pytest.raises(ValueError):
            studyfile.RecipeKeys.model_validate({name: "other"})


def test_statistics_do_not_depend_on_training():
    used = {path.name for path in templates.modules("60_comparison")}
    assert "comparison.py" in used and not used & {"training.py", "backbones.py", "planning.py", "cli.py"}
    assert {"training.py", "backbones.py", "imageset.py", "catalog.toml"} <= {path.name for path in templates.modules(TARGET)}


def smoke_with(tmp_path, old, new):
    text = paths.share("studies", "smoke.yml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "mine.yml").write_text(text.replace(old, new), encoding="utf-8")
    return tmp_path / "mine.yml"


def test_ablations_have_runs_of_their_own_and_stay_out_of_the_comparison_of_the_arms():
    runs = {run.path: run for run in planning.plan(planning.read_study("smoke"))}
    compared = runs["60_comparison/all"].parameters["predictions"]
    assert "30_target/ultrasound-ctl-radiology" in runs and not [path for path in compared if "radiology" in path or "photographs" in path]
    assert {path for path in runs if path.startswith("20_bridge/")} == {f"20_bridge/vit-{name}" for name in ("cells", "images_1_2", "endoscopy", "random_2", "shuffled")}
    assert [path for path in runs if "-mstl-" in path and not path.endswith(("-cells", "-cells-half"))] == []  # targets: [] means probed only
    probe = runs["35_probe/ultrasound-vit"]
    assert probe.needs == probe.parameters["parents"] == ["10_source/vit", *(f"20_bridge/vit-{n}" for n in ("cells", "images_1_2", "endoscopy", "random_2", "shuffled"))]
    varied = runs["20_bridge/vit-random_2"].parameters
    assert (varied["merge"], varied["merge_to"], varied["n_train"]) == ("random", 2, 80) and runs["20_bridge/vit-cells"].parameters["merge"] == ""
    assert runs["10_source/radiology"].parameters["n_train"] == 80 and "35_probe/ultrasound-radiology" not in runs


def test_a_lineage_may_have_its_own_arms_bridges_and_tuning(tmp_path):
    own = ("""    arms: [ctl]         # [those of the study, and the lineage is compared]
    targets: [ultrasound]             # targets that are fine-tuned from it [all]
    bridges: []                       # bridges that are trained from it, for its arm mstl [all]
    tuning: {lrs: [1e-3], steps: [6, 12], scratch_extra_steps: [24]}""", """    arms: [scratch, ctl, mstl]
    targets: [ultrasound]
    bridges: [images_1_2]
    tuning: {lrs: [2.0e-4], steps: [5], scratch_extra_steps: [7]}""")
    runs = {run.path: run for run in planning.plan(planning.read_study(smoke_with(tmp_path, *own)))}
    mine = {path: run.parameters for path, run in runs.items() if "radiology" in path and path.startswith(("20", "30"))}
    assert "20_bridge/radiology-images_1_2" in mine and "20_bridge/radiology-cells" not in mine
    targets = [p for path, p in mine.items() if path.startswith("30")]
    assert {p["arm"] for p in targets} == {"scratch", "ctl"} and all((p["lrs"], p["steps"]) == ([2.0e-4], [5]) for p in targets)
    assert [p["extra_steps"] for p in targets if p["arm"] == "scratch"] == [[7]]
    assert runs["30_target/ultrasound-ctl-vit"].parameters["steps"] != [5]
    assert not [path for path in runs["60_comparison/all"].parameters["predictions"] if "radiology" in path]


def test_what_a_variant_tunes_goes_before_what_its_lineage_does():
    study = planning.read_study("smoke")
    lineage = study.lineages[0].model_copy(update={"tuning": studyfile.Tuning(lrs=[2e-4], steps=[5])})
    chest = study.targets["chest"]
    variants = {"more": studyfile.Settings(tuning=studyfile.Tuning(lrs=[1e-3], steps=[9]))}
    study = study.model_copy(update={"lineages": [lineage], "targets": {"chest": chest.model_copy(update={"variants": variants})}, "analyses": [], "probe": studyfile.Probe()})
    steps = {run.parameters["variant"]: run.parameters["steps"] for run in planning.plan(study) if run.stage == "30_target"}
    assert steps == {"": [5], "more": [9]}


def test_a_probe_with_renewed_statistics_is_a_run_of_its_own_that_ranks_nothing(tmp_path):
    found = smoke_with(tmp_path, "adapted: {} ", "adapted: {vit: [cells]} ")
    runs = {run.path: run for run in planning.plan(planning.read_study(found))}
    own, plain = runs["35_probe/ultrasound-vit-adapted"], runs["35_probe/ultrasound-vit"]
    assert own.parameters["statistics"] == "target" and own.parameters["sizes"] == [] and plain.parameters.get("statistics", "kept") == "kept"
    assert own.needs == ["10_source/vit", "20_bridge/vit-cells"] and "transferability.csv" not in own.outputs


def test_an_analysis_is_given_what_it_declares_of_the_runs_it_reads():
    runs = {run.path: run for run in planning.plan(planning.read_study("smoke"))}
    found = runs["40_transferability/all"].parameters
    assert found["scores"] == ["35_probe/ultrasound-vit", "35_probe/chest-vit"] and set(found["scores"]) < set(found["predictions"])
    half = runs["50_ablation_half_cells/all"].parameters
    assert half["bridges"]["images_1_2"]["images"] == 0.5 and "n_train" not in half["bridges"]["cells"] and half["simulated"] is True
    assert half["n_resamples"] == 200 and runs["50_ablation_half_cells/all"].needs == half["predictions"]
    assert runs["53_leakage/all"].needs == ["10_source/vit"] and runs["53_leakage/all"].parameters["image_size"] == 32


@pytest.mark.parametrize(("old", "new", "said"), [
    ("reads: [\"36_first_hop/*\", \"35_probe/*\", \"30_target/*-vit*\"]", "reads: [\"36_probe/*\"]", "reads 36_probe/\\*, which no run"),
    ("notebook: 50_ablation_half_cells", "notebook: 50_ablation_half", "'50_ablation_half'.*did you mean"),
    ("merge_to: 2  ", "merge_to: 0  ", "random_2 needs both merge"),
    ("lineages: [vit]     #", "lineages: [vid]     #", "lineages names the lineage 'vid'.*did you mean 'vit'"),
    ("adapted: {} ", "adapted: {vit: [cell]} ", "probe.adapted.vit names the bridge 'cell'.*did you mean 'cells'"),
    ("    arms: [ctl]         #", "    arms: [mstl]         #", "radiology has the arm mstl and no bridges"),
    ("bridges: []  ", "bridges: [endoscop]  ", "lineages.radiology.bridges names the bridge 'endoscop'"),
    ("  targets: [ultrasound, chest]\n", "  targets: [ultrasond]\n", "probe.targets names the target 'ultrasond'"),
    ("images: 0.5  ", "images: 1.5  ", "bridges.1.images must be less than or equal to 1"),
])
def test_a_mistake_in_an_ablation_is_one_sentence(tmp_path, old, new, said):
    with pytest.raises(MstlError, match=said):
        planning.plan(planning.read_study(smoke_with(tmp_path, old, new)))


def test_analyses_of_the_reference_study_are_planned_once_all_their_tables_are_there(tmp_path, monkeypatch):
    committed = tmp_path / "data" / "reference"
    reference = planning.read_study("reference")
    analysis = next(run for run in planning.plan(reference) if run.stage == "50_ablation_half_cells")
    probes = [run.path for run in planning.plan(reference) if run.stage == "35_probe"]
    share = paths.share
    monkeypatch.setattr(paths, "share", lambda *parts: tmp_path.joinpath(*parts) if parts[:2] == ("data", "reference") else share(*parts))
    for path in {*probes, *analysis.needs}:
        (committed / path).mkdir(parents=True)
        for name in ("predictions.csv", "transferability.csv") if path in probes else ("predictions.csv",):
            (committed / path / name).write_text("")
    runs = {run.path: run for run in planning.plan(planning.read_study("smoke"))}
    run = runs["50_ablation_half_cells/reference"]
    own = [path for path in probes if path in analysis.needs]
    assert own == [path for path in probes if path.endswith("-lite0")] and own[0] == probes[0] and len(own) < len(probes)
    assert not run.needs and len(run.files) == len(analysis.needs) + len(own)
    assert run.parameters["study"] == "smoke" and run.parameters["simulated"] is False and "40_transferability/reference" not in runs
    (committed / probes[0] / "predictions.csv").unlink()
    assert "50_ablation_half_cells/reference" not in {run.path for run in planning.plan(planning.read_study("smoke"))}


@pytest.mark.parametrize("name", ["smoke", "workshop", "own"])
def test_the_simulated_targets_and_bridges_of_a_study_have_the_images_that_it_asks_for(name, tmp_path):
    from mstl.datasets import load, splits, subsets

    read = planning.read_study(name)
    for target in read.targets.values():
        images = load(target.data, size=32, root=tmp_path, progress=False, **target.options)
        images = images.select(target.classes) if target.classes else images
        for part in splits.design(images, target.design, k=target.folds, draws=target.draws, test=target.test,
                                  n_train=target.n_train or None, n_val=target.n_val or None):
            assert min(len(part.train), len(part.val), len(part.test)) >= 10
    for bridge in read.bridges:
        images = load(bridge.data, size=32, root=tmp_path, progress=False, **bridge.options)
        _, train, _ = subsets.varied(images, images=bridge.images, lines=bridge.lines, n_train=bridge.n_train, merge_how=bridge.merge, merge_to=bridge.merge_to)
        assert not bridge.n_train or len(train) == bridge.n_train


def test_a_chapter_with_committed_tables_reads_them_in_place_of_training(tmp_path, monkeypatch):
    committed = tmp_path / "data" / "reference" / "74_two_views" / "all"
    share = paths.share
    monkeypatch.setattr(paths, "share", lambda *parts: tmp_path.joinpath(*parts) if parts[:2] == ("data", "reference") else share(*parts))
    committed.mkdir(parents=True)
    (committed / "predictions.csv").write_text("")
    assert "74_two_views/reference" not in {run.path for run in planning.plan(planning.read_study("smoke"))}, "no record, no result"
    (committed / "run.json").write_text("{}")
    runs = {run.path: run for run in planning.plan(planning.read_study("smoke"))}
    run = runs["74_two_views/reference"]
    assert (paths.home() / run.parameters["results"]).resolve() == committed.resolve() and run.files == [committed / "predictions.csv"] and not run.needs
    assert run.parameters["data"] == "mias-whole" and not runs["74_two_views/all"].parameters.get("results")


def test_what_is_kept_of_a_study_is_tables_and_records_of_its_finished_runs(place, tmp_path, monkeypatch):
    from dataclasses import replace

    from mstl import reference

    study = planning.read_study(str(changed(place, "study: light", "study: light")))
    runs = [run for run in planning.plan(study) if run.stage == "30_target"][:2]
    for run in runs:
        folder = planning.folder(study) / run.path
        (folder / "checkpoint").mkdir(parents=True)
        for name in ("run.json", "notebook.ipynb", "metrics.json"):
            (folder / name).write_text("{}")
        rows = [f"i{i},{'ill' if i % 2 else 'well'},m,{split},{0.123456789012:.12f},{1 - 0.123456789012:.12f}" for split in ("val", "test") for i in range(4)]
        (folder / "predictions.csv").write_text("\n".join(["image_id,y_true,model,split,p_well,p_ill", *rows[:4], *(r.replace("i", "t", 1) for r in rows[4:])]))
    (planning.folder(study) / runs[1].path / "run.json").unlink()
    to = tmp_path / "kept"
    assert reference.keep(study, to) == [runs[0].path]
    assert sorted(path.name for path in (to / runs[0].path).iterdir()) == ["metrics.json", "predictions.csv", "run.json"] and not (to / runs[1].path).exists()
    monkeypatch.setattr(reference, "LARGE", 100)
    reference.keep(study, to)
    assert (to / runs[0].path / "predictions.csv").is_file(), "thresholds are fixed on validation rows: those of a target stay"
    probe = replace(runs[0], stage="35_probe")
    (planning.folder(study) / "35_probe").mkdir()
    (planning.folder(study) / runs[0].path).rename(planning.folder(study) / probe.path)
    monkeypatch.setattr(planning, "plan", lambda _: [probe])
    reference.keep(study, to)
    assert sorted(path.name for path in (to / probe.path).iterdir()) == ["metrics.json", "predictions.csv.xz", "run.json"]
    from mstl import predictions

    assert set(predictions.read(to / probe.path)["split"]) == {"test"}
