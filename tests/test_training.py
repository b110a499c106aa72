"""Training: what a recipe means, and that nothing which happens on the way changes the result."""

import dataclasses
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mstl import augmentation, training
from mstl.errors import MstlError
from mstl.models.backbones import create
from mstl.training import Recipe, fit, fit_key, predict, tune

TRAIN, VAL = np.arange(0, 49), np.arange(49, 72)
RECIPE = Recipe(epochs=3, lr=3e-3, batch_size=16, augmentation="ultrasound", seed=1)
KINDS = {"test_vit": RECIPE, "test_efficientnet": replace(RECIPE, optimizer="sgd", epochs=None, steps=11, augmentation="microscopy")}


@dataclass(frozen=True)
class Images:
    """What training reads of an ImageSet."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...] = ("normal", "lesion")
    hash: str = "0" * 64


def images(n=72, n_classes=2, channels=1, seed=0) -> Images:
    """Noise with a ramp whose direction is the class: easy, but not solved at once."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    ramp = np.linspace(-20, 20, 32)[None, :, None, None] * (labels - (n_classes - 1) / 2)[:, None, None, None]
    pixels = (rng.normal(120, 35, (n, 32, 32, channels)) + ramp).clip(0, 255).astype(np.uint8)
    return Images(pixels, labels, np.array([f"image{i}" for i in range(n)]), tuple("abcdefgh"[:n_classes]))


DATA = images()


def build(backbone="test_vit", data=DATA, **options):
    return create(backbone, data.classes, image_size=32, channels=data.images.shape[3], **options)


def train(backbone="test_vit", recipe=RECIPE, data=DATA, **options):
    return fit(build(backbone, data), data, TRAIN, VAL, recipe, quiet=True, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in Path(folder).iterdir() if f.name != "fit.json"}


@pytest.fixture(scope="module", autouse=True)
def server():
    """A server process that imports torch while the first tests run; children fork from it and start at once."""
    if sys.platform == "win32":
        return None
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "accelerate", "sklearn.metrics", "mstl.training", "mstl.augmentation"])
    forkserver.ensure_running()
    return context


# --- Finished fits


def test_a_finished_fit_is_loaded_and_predicts_the_same_bits(tmp_path):
    for backbone in ("test_vit", "test_efficientnet"):
        first = train(backbone, folder=tmp_path / backbone)
        again = train(backbone, folder=tmp_path / backbone)
        assert again.loaded and again.resumed and not first.resumed
        assert again.history.equals(first.history) and again.best == first.best and again.key == first.key
        assert np.array_equal(predict(again.model, DATA, VAL), predict(first.model, DATA, VAL))


def test_another_key_in_the_same_folder_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY_SECONDS", 0)
    train(folder=tmp_path)
    other = train(recipe=replace(RECIPE, seed=2), folder=tmp_path)
    assert not other.resumed
    assert files(tmp_path)["model.safetensors"] != b"" and train(recipe=replace(RECIPE, seed=2), folder=tmp_path).loaded
    assert not train(folder=tmp_path).loaded


def test_a_damaged_result_is_trained_again(tmp_path, capsys):
    first = train(folder=tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + b"x")
    again = train(folder=tmp_path)
    assert not again.loaded and "damaged" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == weights and again.best == first.best


def test_a_damaged_saved_state_starts_anew_with_a_word(tmp_path, capsys):
    (tmp_path / "resume.safetensors").write_bytes(b"not a state")
    assert not train(folder=tmp_path).resumed
    assert "starts anew" in capsys.readouterr().err


def test_the_key_follows_everything_that_determines_the_numbers():
    def key(model=None, data=DATA, rows=TRAIN, val=VAL, recipe=RECIPE, parent=""):
        return fit_key(model or build(), data, rows, val, recipe, parent)

    relabelled = replace(DATA, labels=1 - DATA.labels)
    others = [key(build(seed=1)), key(build(drop_rate=0.1)), key(data=replace(DATA, hash="1" * 64)), key(data=relabelled),
              key(rows=TRAIN[:-1]), key(rows=TRAIN[::-1]), key(val=None), key(recipe=replace(RECIPE, lr=1e-3)), key(parent="p")]
    assert key() == key() and len({key(), *others}) == len(others) + 1


def test_the_key_ignores_words_and_notices_arithmetic():
    source = Path(training.__file__).read_text(encoding="utf-8")
    names = set(training.NUMERICS)
    code = training._bare_code(source, names)
    for words in [('"""One pass over', '"""A pass over'), ("# accelerate fixes", "# it fixes"), ("needs a GPU and", "wants a GPU and"),
                  ("a bar in a terminal", "a line in a terminal")]:
        assert training._bare_code(source.replace(*words), names) == code
    for arithmetic in [("losses + value * len(rows)", "losses + value"), ("(step + 1) / warmup", "step / warmup")]:
        assert source.count(arithmetic[0]) == 1
        assert training._bare_code(source.replace(*arithmetic), names) != code


def test_whatever_the_loop_calls_is_part_of_the_key():
    import ast

    tree = ast.parse(Path(training.__file__).read_text(encoding="utf-8"))
    defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used = {name.id for n in training.NUMERICS for name in ast.walk(defined[n]) if isinstance(name, ast.Name)} & set(defined)
    assert used - set(training.NUMERICS) <= {"Recipe", "NonFiniteLoss", "_not_finite"}, "values and words only"


# --- The arithmetic


def test_fit_is_a_plain_pytorch_loop():
    recipe = Recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.05, schedule="constant", warmup=0.0, epochs=2,
                    batch_size=16, keep="last", class_weights="balanced", label_smoothing=0.1, seed=4)
    result = fit(build("test_resnet"), DATA, TRAIN, VAL, recipe, quiet=True)
    model = build("test_resnet")
    x = (torch.from_numpy(DATA.images).permute(0, 3, 1, 2).float() / 255).repeat(1, 3, 1, 1)
    x = (x - torch.tensor(model.spec.mean).view(3, 1, 1)) / torch.tensor(model.spec.std).view(3, 1, 1)
    y = torch.from_numpy(DATA.labels)
    weight = len(TRAIN) / (2 * torch.bincount(y[TRAIN])).float()
    model.train()
    for epoch in (1, 2):
        order = TRAIN[np.random.default_rng([4, epoch]).permutation(len(TRAIN))]
        for start in (0, 16, 32):  # the 49th image alone is left out
            rows = torch.from_numpy(order[start:start + 16])
            model.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows], weight=weight, label_smoothing=0.1).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.05 * p.grad
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    model.eval()
    with torch.no_grad():
        expected = torch.softmax(model(x[VAL]), dim=1)
    np.testing.assert_allclose(predict(result.model, DATA, VAL), expected.numpy(), atol=1e-4)


def test_the_schedule_rises_linearly_and_falls_to_zero_by_step():
    def factors(schedule, warmup=0.25):
        return [training._schedule(t, 8, Recipe(epochs=1, schedule=schedule, warmup=warmup)) for t in range(8)]

    assert factors("constant") == [0.5] + [1.0] * 7
    assert factors("linear") == pytest.approx([0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert factors("cosine", 0)[0] == 1 and factors("cosine", 0)[4] == pytest.approx(0.5)
    assert training._schedule(8, 8, Recipe(epochs=1)) == pytest.approx(0)


def test_steps_are_counted_exactly_and_validated_at_every_epoch_end_and_the_last():
    history = train("test_resnet", replace(RECIPE, epochs=None, steps=8)).history
    assert history.step.tolist() == [3, 6, 8] and history.val_auc.notna().all()


def test_a_last_batch_of_one_image_is_left_out_and_a_small_part_is_one_batch():
    assert [training._steps_per_epoch(n, 16, 1) for n in (2, 15, 16, 17, 18, 33)] == [1, 1, 1, 1, 2, 2]
    history = fit(build("test_efficientnet"), DATA, TRAIN[:17], VAL, replace(RECIPE, epochs=1), quiet=True).history
    assert history.step.tolist() == [1] and math.isfinite(history.train_loss[0])


def test_the_best_epoch_is_kept_and_ties_go_to_the_lower_loss():
    for monitor, columns, up in [("auc", ["val_auc", "val_loss"], [False, True]), ("loss", ["val_loss"], [True]),
                                 ("accuracy", ["val_accuracy", "val_loss"], [False, True])]:
        result = train("test_efficientnet", replace(RECIPE, epochs=5, monitor=monitor))
        best = result.history.sort_values(columns, ascending=up).iloc[0]
        assert result.best["epoch"] == best.epoch
        labels, p = DATA.labels[VAL], predict(result.model, DATA, VAL)
        assert -np.log(p[np.arange(len(VAL)), labels]).mean() == pytest.approx(best.val_loss, rel=1e-6)


def test_keep_last_returns_the_last_state():
    result = train("test_efficientnet", replace(RECIPE, keep="last"))
    assert result.best["epoch"] == 3
    p = predict(result.model, DATA, VAL)
    assert -np.log(p[np.arange(len(VAL)), DATA.labels[VAL]]).mean() == pytest.approx(result.history.val_loss.iloc[-1], rel=1e-6)


def test_patience_stops_after_as_many_epochs_without_improvement():
    recipe = replace(RECIPE, epochs=30, patience=2, monitor="loss", lr=1e-2, schedule="constant", augmentation="none")
    history = train("test_efficientnet", recipe).history
    assert len(history) < 30 and len(history) - 1 - int(history.val_loss.argmin()) == 2


def test_without_validation_the_last_state_is_kept():
    result = fit(build(), DATA, TRAIN, None, RECIPE, quiet=True)
    assert result.best["epoch"] == 3 and "val_loss" not in result.history


def test_a_frozen_backbone_does_not_change_in_weights_or_statistics():
    model = build("test_efficientnet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = fit(model, DATA, TRAIN, VAL, replace(RECIPE, freeze="backbone", keep="last"), quiet=True).model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"classifier.weight", "classifier.bias"}
    assert all(p.requires_grad for p in model.parameters()), "the freeze belongs to the recipe, not to the model"


@pytest.mark.parametrize("change", [dict(optimizer="adam"), dict(optimizer="adagrad"), dict(layer_decay=0.7),
                                    dict(precision="bf16"), dict(freeze="stages:1"), dict(schedule="linear")])
def test_every_kind_of_recipe_trains_and_repeats_itself(change):
    a, b = (train("test_vit", replace(RECIPE, epochs=2, **change)) for _ in range(2))
    assert a.history.equals(b.history) and np.isfinite(a.history.to_numpy(float)).all()


def test_training_learns_and_three_classes_have_a_macro_auc():
    data = images(90, 3, channels=3)
    result = fit(build("test_efficientnet", data), data, np.arange(60), np.arange(60, 90),
                 Recipe(epochs=8, lr=5e-3, batch_size=16), quiet=True)
    from sklearn.metrics import roc_auc_score

    p = predict(result.model, data, np.arange(60, 90))
    assert result.best["val_auc"] == pytest.approx(roc_auc_score(data.labels[60:], p, multi_class="ovr"))
    assert result.best["val_auc"] > 0.8


def test_the_callers_random_numbers_and_settings_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(recipe=replace(RECIPE, epochs=1))
    assert torch.equal(torch.rand(1), expected) and not torch.are_deterministic_algorithms_enabled()


# --- What goes wrong


@pytest.mark.parametrize(("change", "words"), [
    (dict(optimizer="adamv"), "did you mean 'adam'"), (dict(epochs=1, steps=3), "exactly one of epochs and steps"),
    (dict(epochs=None), "exactly one"), (dict(freeze="stages:0"), "freeze='stages:0'"), (dict(lr=0.0), "lr=0.0"),
    (dict(lr=math.nan), "lr=nan"), (dict(augmentation="xray"), "use one of none, natural"), (dict(batch_size=0), "batch_size=0"),
])
def test_a_recipe_that_is_not_possible_is_one_sentence(change, words):
    with pytest.raises(MstlError, match=words) as error:
        replace(RECIPE, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arguments", "words"), [
    (dict(train=np.flatnonzero(DATA.labels == 0)[:20], val=VAL), "training part has no image of the class 'b'"),
    (dict(train=TRAIN, val=VAL[DATA.labels[VAL] == 1]), "validation part has no image of the class 'a'"),
    (dict(train=TRAIN, val=np.arange(48, 72)), "1 images are in both"),
    (dict(train=TRAIN[:1], val=VAL), "at least two images"),
    (dict(train=TRAIN, val=VAL[:0]), "give val=None"),
    (dict(model=create("test_vit", ["x", "y"], image_size=32, channels=1)), "create the model with data.classes"),
    (dict(model=create("test_vit", DATA.classes, image_size=48, channels=1)), "prepare the data with size=48"),
])
def test_data_that_cannot_be_trained_on_is_one_sentence(arguments, words):
    arguments = {"model": build(), "train": TRAIN, "val": VAL, **arguments}
    if "validation" not in words and "no image" in words:
        arguments["val"] = np.setdiff1d(VAL, arguments["train"])
    with pytest.raises(MstlError, match=words) as error:
        fit(data=DATA, recipe=RECIPE, quiet=True, **arguments)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_with_a_sentence_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY_SECONDS", 0)
    bad = replace(RECIPE, lr=1e20, warmup=0.9, epochs=3)
    model = build()

    def explode(row):
        if row["epoch"] == 1:
            with torch.no_grad():
                model.head.weight.mul_(float("inf"))

    with pytest.raises(MstlError, match=r"not finite at epoch 2, step 4, learning rate .*a lower lr") as error:
        fit(model, DATA, TRAIN, VAL, replace(bad, lr=1e-4), folder=tmp_path, on_epoch=explode, quiet=True)
    assert "\n" not in str(error.value)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    state = training._read_resume(tmp_path, fit_key(build(), DATA, TRAIN, VAL, replace(bad, lr=1e-4)))
    assert state.epoch == 1 and all(torch.isfinite(t).all() for t in state.model.values())
    with pytest.raises(MstlError, match="not finite"):
        fit(build(), DATA, TRAIN, VAL, bad, quiet=True)


def test_half_precision_without_a_gpu_is_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MstlError, match="needs a GPU"):
        train(recipe=replace(RECIPE, precision="fp16"))
    assert len(train(recipe=replace(RECIPE, epochs=1)).history) == 1, "and the next fit is not disturbed"


def test_images_of_another_size_or_none_at_all_are_not_predicted():
    with pytest.raises(MstlError, match="32×32 pixels but the model was created for 48"):
        predict(create("test_vit", 2, image_size=48, channels=1), DATA)
    with pytest.raises(MstlError, match="index is empty"):
        predict(build(), DATA, VAL[:0])


# --- Tuning


def tuned(folder, build=build, **options):
    recipe = replace(RECIPE, augmentation="none")
    return tune(build, DATA, TRAIN, VAL, recipe, **{"lrs": [1e-4, 3e-3], "steps": [3, 6], "folder": folder, "quiet": True, **options})


def test_tuning_selects_on_validation_and_a_second_call_trains_nothing(tmp_path, monkeypatch):
    result = tuned(tmp_path, extra_steps=[9])
    table = result.table
    assert list(zip(table.lr, table.steps, table.kind, strict=True))[:4] == [(1e-4, 3, "grid"), (1e-4, 6, "grid"), (3e-3, 3, "grid"), (3e-3, 6, "grid")]
    grid = table[table.kind == "grid"].sort_values(["val_auc", "val_loss"], ascending=[False, True])
    assert table[table.kind == "extra"].lr.tolist() == [grid.lr.iloc[0]] and table.steps.iloc[-1] == 9
    best = table.sort_values(["val_auc", "val_loss"], ascending=[False, True]).iloc[0]
    assert table.chosen.sum() == 1 and best.chosen
    assert (result.recipe.lr, result.recipe.steps, result.recipe.epochs) == (best.lr, best.steps, None)
    assert result.fit.best["val_loss"] == best.val_loss
    assert [f.parent.name for f in tmp_path.glob("*/model.safetensors")] == [best.key[:16]], "losers keep no weights"
    assert len(list(tmp_path.glob("*/fit.json"))) == len(list(tmp_path.glob("*/history.csv"))) == 5
    monkeypatch.setattr(training, "_train", lambda *a: pytest.fail("trained again"))
    again = tuned(tmp_path, extra_steps=[9])
    assert again.table.equals(table) and np.array_equal(predict(again.fit.model, DATA, VAL), predict(result.fit.model, DATA, VAL))


def test_a_learning_rate_that_explodes_loses_and_is_not_tried_again(tmp_path, monkeypatch):
    result = tuned(tmp_path, lrs=[1e20, 1e-3], steps=[6])
    assert result.recipe.lr == 1e-3 and "not finite" in result.table.failed[0]
    monkeypatch.setattr(training, "_train", lambda *a: pytest.fail("trained again"))
    assert tuned(tmp_path, lrs=[1e20, 1e-3], steps=[6]).table.equals(result.table)
    with pytest.raises(MstlError, match="not finite"):
        tuned(tmp_path, lrs=[1e20], steps=[6])


def test_tuning_without_validation_or_candidates_is_one_sentence(tmp_path):
    with pytest.raises(MstlError, match="needs a validation part"):
        tune(build, DATA, TRAIN, None, RECIPE, lrs=[1e-3], steps=[3], folder=tmp_path)
    with pytest.raises(MstlError, match="at least one learning rate"):
        tuned(tmp_path, lrs=[])


# --- Augmentation


def test_recipes_and_presets_have_the_same_names():
    assert training._CHOICES["augmentation"] == augmentation.NAMES


@pytest.mark.parametrize("name", augmentation.NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_preset_keeps_shape_and_type_and_evaluation_changes_nothing(name, channels):
    preset = augmentation.preset(name, 32)
    image = torch.from_numpy(np.ascontiguousarray(images(2, channels=channels).images[0].transpose(2, 0, 1)))
    changed = [preset.train(image) for _ in range(8)]
    assert all(c.shape == image.shape and c.dtype == torch.uint8 for c in changed)
    assert torch.equal(preset.evaluate(image), image) and len(preset.why) > 20
    assert (name == "none") == all(torch.equal(c, image) for c in changed)
    assert name == "none" or not all(torch.equal(c, changed[0]) for c in changed), "each image gets its own draw"


@pytest.mark.parametrize("name", ["natural", "ultrasound", "mammogram", "radiograph", "microscopy"])
def test_no_preset_draws_a_black_corner(name):
    white = torch.full((1, 96, 96), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    assert min(int(augmentation.preset(name, 96).train(white).min()) for _ in range(300)) >= 255 * 0.7


def test_what_carries_meaning_is_not_flipped():
    left = torch.zeros((1, 64, 64), dtype=torch.uint8)
    left[:, :, :16] = 200  # bright on the left
    top = left.transpose(1, 2).contiguous()
    for name, image, side in [("radiograph", left, np.s_[:, :, 40:]), ("ultrasound", top, np.s_[:, 40:]), ("natural", top, np.s_[:, 40:])]:
        assert max(augmentation.preset(name, 64).train(image)[side].max() for _ in range(100)) < 50
    flipped = [augmentation.preset("ultrasound", 64).train(left)[:, 20:44, 60].max() > 50 for _ in range(60)]
    assert 10 < sum(flipped) < 50


# --- What is shown


def test_without_a_terminal_there_is_one_clean_line_an_epoch(capsys):
    rows = []
    fit(build(), DATA, TRAIN, VAL, RECIPE, label="scratch", on_epoch=rows.append)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"scratch: epoch {e}/3" for e in (1, 2, 3)] and err == ""
    assert "AUC" in lines[0] and [(r["epoch"], r["epochs"], r["step"], r["steps"]) for r in rows] == [(1, 3, 3, 9), (2, 3, 6, 9), (3, 3, 9, 9)]


def test_in_a_terminal_there_is_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(build(), DATA, TRAIN, VAL, RECIPE, label="mstl")
    assert "mstl" in terminal.getvalue() and "9/9" in terminal.getvalue()


def test_the_record_of_a_fit_says_what_was_done(tmp_path):
    result = train(folder=tmp_path)
    record = json.loads((tmp_path / "fit.json").read_text())
    assert record["key"] == result.key and record["best"] == result.best and record["recipe"] == dataclasses.asdict(RECIPE)
    assert record["seconds"] > 0 and training.peak_memory()["host"] > 50


# --- Killed at any moment


def child(folder, backbone, die=None, limit=None) -> None:
    """Fits in ``folder``; ``die=(n, before)`` kills the process right before or after the n-th file is put in place;
    ``limit`` bytes is the largest file that can be written once the first state is saved."""
    torch.set_num_threads(1)
    training._SAVE_EVERY_SECONDS = 0
    put, count = os.replace, 0

    def replace_or_die(source, target):
        nonlocal count
        count += 1
        if die == (count, True):
            os.kill(os.getpid(), signal.SIGKILL)
        put(source, target)
        if die == (count, False):
            os.kill(os.getpid(), signal.SIGKILL)

    def fill_disk(row):
        if limit and row["epoch"] == 1:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    os.replace = replace_or_die
    try:
        result = train(backbone, KINDS[backbone], folder=folder, on_epoch=fill_disk)
    except MstlError as error:
        Path(f"{folder}.log").write_text(str(error))
        sys.exit(1)
    Path(f"{folder}.log").write_text(f"{result.resumed} {count}")


@pytest.fixture(scope="module")
def start(server):
    def start(*arguments, **options):
        process = server.Process(target=child, args=arguments, kwargs=options)
        process.start()
        return process

    return start


def finish(process) -> int:
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """Folder of the whole fit of each backbone, and the number of files it puts in place."""
    base = tmp_path_factory.mktemp("whole")
    processes = {name: start(base / name, name) for name in KINDS}
    assert [finish(p) for p in processes.values()] == [0, 0]
    return {name: (base / name, int((base / f"{name}.log").read_text().split()[1])) for name in KINDS}


posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and forkserver are POSIX")


@posix
def test_killed_around_any_write_and_run_again_gives_the_same_bytes(start, uninterrupted, tmp_path):
    whole, writes = uninterrupted["test_vit"]
    assert writes == 7, "three states, the weights, their record, the history, the record of the fit"
    for n, before in [(1, True), (1, False), (2, True), (3, False), (4, False), (5, True), (6, False), (7, True), (7, False)]:
        folder = tmp_path / f"{n}{before}"
        assert finish(start(folder, "test_vit", die=(n, before))) == -signal.SIGKILL
        assert finish(start(folder, "test_vit")) == 0
        resumed = Path(f"{folder}.log").read_text().split()[0]
        assert resumed == str((n, before) != (1, True))
        assert files(folder) == files(whole), f"killed at write {n}"


@posix
def test_killed_again_and_again_at_random_moments_gives_the_same_bytes(start, uninterrupted, tmp_path):
    rng, kills, process = np.random.default_rng(3), 0, None
    folder, state = tmp_path / "fit", tmp_path / "fit" / "resume.safetensors"
    for _ in range(12):
        seen = state.stat().st_mtime_ns if state.exists() else 0
        process = start(folder, "test_efficientnet")
        while process.is_alive() and not (state.exists() and state.stat().st_mtime_ns != seen):
            time.sleep(0.002)  # to an epoch that is new, so that each life gets further
        time.sleep(rng.uniform(0, 0.1))
        if not process.is_alive():
            break
        process.kill()
        kills += finish(process) == -signal.SIGKILL
    assert finish(process) == 0 or finish(start(folder, "test_efficientnet")) == 0
    assert kills >= 1
    assert files(folder) == files(uninterrupted["test_efficientnet"][0])


@posix
def test_a_full_disk_is_one_sentence_and_loses_nothing(start, uninterrupted, tmp_path):
    folder = tmp_path / "fit"
    assert finish(start(folder, "test_vit", limit=500_000)) == 1
    sentence = (tmp_path / "fit.log").read_text()
    assert "full" in sentence and "run the same command again" in sentence and len(sentence.splitlines()) == 1
    assert [f.name for f in folder.iterdir()] == ["resume.safetensors"]
    assert finish(start(folder, "test_vit")) == 0
    assert (tmp_path / "fit.log").read_text().startswith("True")
    assert files(folder) == files(uninterrupted["test_vit"][0])


@posix
def test_nothing_is_pickled(start, uninterrupted, tmp_path):
    assert sorted(files(uninterrupted["test_vit"][0])) == ["checkpoint.json", "history.csv", "model.safetensors"]
    finish(start(tmp_path / "fit", "test_vit", die=(2, False)))
    assert [f.name for f in (tmp_path / "fit").iterdir()] == ["resume.safetensors"]
