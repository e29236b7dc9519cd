"""Training: resumed bit for bit, saved whole, averaged weights where they belong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npdiffusion
from npdiffusion import Tensor, functional as F
from npdiffusion.checkpoint import load_file
from npdiffusion.models import Classifier, load_model
from npdiffusion.training import Training, check_settings

IMAGES = np.random.default_rng(0).standard_normal((30, 1, 8, 8), dtype=np.float32)
LABELS = np.arange(30) % 3
IMAGES[LABELS == 1, :, ::2] += 2  # stripes one way
IMAGES[LABELS == 2, :, :, ::2] += 2  # and the other
SETTINGS = {"seed": 4, "channels": (8, 8)}


def training(settings=SETTINGS, **options):
    npdiffusion.manual_seed(settings["seed"])
    model = Classifier(num_classes=3, channels=settings["channels"], dropout=0.3)
    options = {"steps": 7, "batch_size": 8, "lr": 1e-2, "ema": 0.9, **options}
    return Training(model, len(IMAGES), settings, **options)


def loss_of(run):
    def loss(index):
        noise = run.rng.standard_normal(IMAGES[index].shape, dtype=np.float32)
        return F.cross_entropy(run.model(Tensor(IMAGES[index] + 0.1 * noise)), LABELS[index])

    return loss


def stopping_after(run, steps, function):
    """The loss, or what makes the batches, until the user presses Ctrl-C in step ``steps``."""
    def wrapped(index):
        if run.step == steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return function(index)

    return wrapped


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = training()
    whole.fit(loss_of(whole), tmp_path / "whole")

    run = training()
    with pytest.raises(SystemExit, match="stopped at step 3 of 7; go on with --resume"):
        run.fit(stopping_after(run, 3, loss_of(run)), tmp_path / "parts")
    npdiffusion.manual_seed(99)
    again = training({**SETTINGS})
    again.fit(loss_of(again), tmp_path / "parts", resume=True)
    (a, meta_a), (b, meta_b) = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    for name in set(a) - {"log"}:
        assert np.array_equal(a[name], b[name]), name
    assert meta_a["generator"] == meta_b["generator"] and meta_a["step"] == meta_b["step"] == 7


def next_batch_of_version_0_1(self):
    """It left out what an epoch has over."""
    if self.position + self.batch_size > len(self.order):
        self.order, self.position = self.rng.permutation(len(self.order)), 0
    self.position += self.batch_size
    return self.order[self.position - self.batch_size:self.position]


def test_a_checkpoint_of_version_0_1_goes_on(tmp_path, monkeypatch):
    """Stopped by version 0.1 after 3 of 7 steps of this training, with the averaged weights that it ended with."""
    monkeypatch.setattr(Training, "next_batch", next_batch_of_version_0_1)
    old = Path(__file__).parent / "version_0_1"
    shutil.copy(old / "checkpoint.safetensors", tmp_path)
    run = training()
    run.fit(loss_of(run), tmp_path, resume=True)
    assert run.step == 7 and run.optimizer.steps.tolist() == [7] * len(run.optimizer.parameters)
    for name, a in load_model(old / "model.safetensors").state_dict().items():
        if not name.startswith("convs.") or name.endswith("weight"):  # the biases' gradients are nothing but rounding
            np.testing.assert_allclose(run.ema.weights[name], a, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_version_0_1_sees_the_rest_of_its_epoch(tmp_path):
    shutil.copy(Path(__file__).parent / "version_0_1" / "checkpoint.safetensors", tmp_path)
    run = training()
    run.load(tmp_path / "checkpoint.safetensors")
    assert run.position == 24
    seen = run.order[:24]
    assert sorted([*seen, *run.next_batch()[:6]]) == list(range(30))


@pytest.mark.parametrize("count, batch_size", [(10, 6), (10, 10), (10, 9), (10, 1), (10, 5), (7, 4)])
def test_every_example_is_seen_once_an_epoch(count, batch_size):
    """Also where batches do not divide it, and after a resume."""
    def begun():
        return Training(Classifier(num_classes=3, channels=(8,)), count, {}, steps=1, batch_size=batch_size, lr=1)

    run, seen = begun(), []
    for _ in range(3 * count):
        seen.append(run.next_batch())
        assert len(seen[-1]) == batch_size
        other = begun()
        other.order, other.position, other.rng = run.order, run.position, run.rng
        run = other
    epochs = np.concatenate(seen).reshape(-1, count)
    assert (np.sort(epochs) == np.arange(count)).all() and len({tuple(epoch) for epoch in epochs}) > 1


def test_the_loss_falls_and_every_epoch_visits_every_example(tmp_path):
    run, seen = training(steps=90, batch_size=10, lr=0.05), []

    def loss(index):
        seen.append(index)
        return F.cross_entropy(run.model(Tensor(IMAGES[index])), LABELS[index])

    run.fit(loss, tmp_path)
    for epoch in np.concatenate(seen).reshape(-1, 30):
        assert sorted(epoch) == list(range(30))
    assert not np.array_equal(seen[0], seen[3])
    assert run.log[-1][2] < 0.8 * run.log[0][2]


def test_report_sees_the_averaged_model_and_history_survives(tmp_path):
    run, states = training(), []

    def report(run):
        run.history.append({"step": run.step})
        states.append((run.model.training, run.model.linear.weight.data.copy()))

    run.fit(loss_of(run), tmp_path, report=report, save_minutes=0)
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(training for training, _ in states)
    assert not np.array_equal(states[-1][1], run.model.linear.weight.data)
    saved = load_model(tmp_path / "model.safetensors")
    assert isinstance(saved, Classifier) and np.array_equal(states[-1][1], saved.linear.weight.data)
    again = training()
    again.fit(loss_of(again), tmp_path, resume=True, report=report)  # finished: nothing to do
    assert again.history == run.history and again.step == 7 and again.seconds == run.seconds


def test_checkpoint_survives_a_failing_report(tmp_path):
    run = training()
    with pytest.raises(ZeroDivisionError):
        run.fit(loss_of(run), tmp_path, report=lambda run: 1 / 0)
    assert load_file(tmp_path / "checkpoint.safetensors")[1]["step"] == 7


def test_refusals(tmp_path):
    run = training()
    run.fit(loss_of(run), tmp_path)
    with pytest.raises(SystemExit, match="go on with --resume, or choose another --out"):
        run.fit(loss_of(run), tmp_path)
    other = training({**SETTINGS, "seed": 5})
    with pytest.raises(SystemExit, match="other settings"):
        other.fit(loss_of(other), tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        other.fit(loss_of(other), tmp_path / "nowhere", resume=True)
    with pytest.raises(ValueError, match="a batch of 1 to 30"):
        training(batch_size=31)


@pytest.mark.parametrize("count", [20, 40])
def test_other_data_are_refused(tmp_path, count):
    run = training()
    run.save(tmp_path / "checkpoint.safetensors")
    other = Training(Classifier(num_classes=3, channels=(8, 8)), count, run.settings, steps=7, batch_size=8, lr=1e-2)
    with pytest.raises(SystemExit, match=f"with 30 training examples, here are {count}.\n.*another --out"):
        other.fit(loss_of(other), tmp_path, resume=True)
    assert other.step == 0


@pytest.mark.parametrize("there, here, fits", [
    ({"preset": "cpu", "images": "/a/images", "lr": 1}, {"lr": 1, "pairs": "1234"}, True),  # of version 0.1
    ({"preset": "cpu", "images": "/a/images", "lr": 1}, {"lr": 2, "pairs": "1234"}, False),
    ({"preset": "cpu", "images": "/a/images", "lr": 1}, {"lr": 1, "images": None}, False),  # other data
    ({"lr": 1, "pairs": "1234"}, {"lr": 1, "pairs": "1235"}, False), ({"lr": 1}, {"lr": 1, "more": 2}, False),
    ({"preset": "a"}, {"preset": "b"}, False), (None, {"lr": 1}, False), ({"lr": 1, "more": 2}, {"lr": 1}, False)])
def test_which_settings_fit(there, here, fits):
    if fits:
        return check_settings("x", there, here)
    with pytest.raises(SystemExit, match="x was written with other settings"):
        check_settings("x", there, here)


# NaN and infinity


def spoilt(run, name):
    """The loss of a training in which something becomes infinite in step 5."""
    def loss(index):
        if run.step == 4:
            {"weights": run.model.linear.weight.data, "average": run.ema.weights["linear.weight"],
             "optimiser": run.optimizer.v[-1], "loss": np.empty(1)}[name].flat[0] = np.inf
        if name == "weights":
            return Tensor(1.0)  # finite all the same
        return loss_of(run)(index) * (np.nan if name == "loss" and run.step == 4 else 1.0)

    return loss


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("name, words", [
    ("loss", "the loss of step 5 is NaN"), ("weights", "model.linear.weight is NaN"),
    ("average", "ema.linear.weight is NaN"), ("optimiser", "optimizer.v.17 is NaN")])
def test_nothing_that_is_not_finite_is_saved(tmp_path, name, words, stop):
    """Neither at the end nor when Ctrl-C asks for it; the checkpoint from before stays."""
    run, reported = training(), []
    with pytest.raises(SystemExit):
        run.fit(stopping_after(run, 3, loss_of(run)), tmp_path)
    good = (tmp_path / "checkpoint.safetensors").read_bytes()
    again = training()
    loss = spoilt(again, name)
    if name == "weights":
        again.descent = lambda loss, *_: lambda index: loss(index).data
    with pytest.raises(SystemExit, match=f"stopped at step {5 if stop else 7} of 7: {words}.*checkpoint.safetensors, "
                                         "from before, is unchanged.*--lr"):
        again.fit(stopping_after(again, 5, loss) if stop else loss, tmp_path, resume=True, report=reported.append)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == good and not reported
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("options, image", [({"lr": 1e30}, 1), ({}, np.nan)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_training_that_diverges_stops_at_the_next_row_of_the_log(tmp_path, options, image):
    run = training(steps=1000, **options)

    def loss(index):
        return F.cross_entropy(run.model(Tensor(IMAGES[index] * np.where(index == 3, image, 1)[:, None, None, None]
                                                .astype(np.float32))), LABELS[index])

    with pytest.raises(SystemExit, match="stopped at step 50 of 1000: the loss of step . is NaN.*nothing was saved"):
        run.fit(loss, tmp_path)
    assert not list(tmp_path.iterdir()) and run.log == []


@pytest.mark.parametrize("name", ["model.safetensors", "log.csv", "loss.png", "checkpoint.safetensors"])
def test_a_training_that_ends_amid_its_last_files_writes_them_all_again(tmp_path, monkeypatch, name):
    """The checkpoint, by which a resumed training knows that nothing is left to do, is the last of them."""
    whole = training()
    whole.fit(loss_of(whole), tmp_path / "whole")
    run, replace = training(), os.replace
    with pytest.raises(SystemExit):
        run.fit(stopping_after(run, 3, loss_of(run)), tmp_path / "ended")

    def ending(source, target):
        if Path(target).name == name:
            raise SystemExit("ended")
        replace(source, target)

    again = training()
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="ended"):
        patch.setattr(os, "replace", ending)
        again.fit(loss_of(again), tmp_path / "ended", resume=True)
    last = training()
    last.fit(loss_of(last), tmp_path / "ended", resume=True)
    a, b = (load_model(tmp_path / run / "model.safetensors").state_dict() for run in ("whole", "ended"))
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
    assert (tmp_path / "ended/loss.png").exists() and last.step == 7


@pytest.mark.parametrize("count", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_again_and_again(count):
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    done = subprocess.run([sys.executable, Path(__file__).with_name("kills.py"), str(count), str(count)], text=True,
                          capture_output=True, timeout=600)
    assert done.returncode == 0 and f"'kills': {count}," in done.stdout, done.stderr


def test_settings_are_saved_as_json_has_them(tmp_path):
    run = training()
    assert run.settings == json.loads(json.dumps(SETTINGS)) and run.settings["channels"] == [8, 8]


def test_a_file_of_an_unknown_class_is_refused(tmp_path):
    from npdiffusion.checkpoint import save_weights
    save_weights(tmp_path / "x.safetensors", {"w": np.zeros(1, np.float32)}, {"class": "Transformer"})
    with pytest.raises(ValueError, match="holds a Transformer, which this version does not know"):
        load_model(tmp_path / "x.safetensors")
