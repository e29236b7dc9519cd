"""Training: resumed bit for bit, saved whole, averaged weights where they belong."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import npdiffusion
from npdiffusion import Tensor, functional as F
from npdiffusion.checkpoint import load_file
from npdiffusion.models import Classifier, load_model
from npdiffusion.training import Training

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


def test_a_checkpoint_of_version_0_1_goes_on(tmp_path):
    """Stopped by version 0.1 after 3 of 7 steps of this training, with the averaged weights that it ended with."""
    old = Path(__file__).parent / "version_0_1"
    shutil.copy(old / "checkpoint.safetensors", tmp_path)
    run = training()
    run.fit(loss_of(run), tmp_path, resume=True)
    assert run.step == 7 and run.optimizer.steps.tolist() == [7] * len(run.optimizer.parameters)
    for name, a in load_model(old / "model.safetensors").state_dict().items():
        if not name.startswith("convs.") or name.endswith("weight"):  # the biases' gradients are nothing but rounding
            np.testing.assert_allclose(run.ema.weights[name], a, rtol=1e-4, atol=1e-5)


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


def test_settings_are_saved_as_json_has_them(tmp_path):
    run = training()
    assert run.settings == json.loads(json.dumps(SETTINGS)) and run.settings["channels"] == [8, 8]


def test_a_file_of_an_unknown_class_is_refused(tmp_path):
    from npdiffusion.checkpoint import save_weights
    save_weights(tmp_path / "x.safetensors", {"w": np.zeros(1, np.float32)}, {"class": "Transformer"})
    with pytest.raises(ValueError, match="holds a Transformer, which this version does not know"):
        load_model(tmp_path / "x.safetensors")
