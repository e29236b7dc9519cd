"""A training that shows its progress, saves itself, and goes on bit for bit where it was stopped."""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
from tqdm import tqdm

from . import distributed
from .checkpoint import load_file, save_file
from .cuda_graph import captured
from .device import array_module, to_device
from .figures import save_figure
from .files import atomic_write
from .models import save_model
from .optim import EMA, AdamW, clip_grad_norm_, warmup_cosine
from .random import default_generator

LOG_EVERY = 50  # steps
COMPARE_EVERY = 100  # steps, after which ranks make sure that they still have the same weights


class Training:
    """A model being trained, and everything that a checkpoint must hold so that it can go on.

        run = Training(model, len(digits), settings, steps=4000, batch_size=64, lr=1e-3)
        run.fit(lambda index: F.mse_loss(model(Tensor(digits[index])), ...), "runs/mine")

    Written to the directory: checkpoint.safetensors (all that resuming needs), model.safetensors (the averaged
    weights, for ``load_model``), log.csv and loss.png.

    Args:
        model: the Module; its ``config`` goes into model.safetensors.
        count: number of training examples. Each epoch visits each of them once, in a new order.
        settings: JSON-able dict of what shapes the training; a checkpoint of other settings is refused.
        steps: training steps in all. batch_size: examples in each; at most ``count``.
        lr: peak learning rate: it warms up over the first 500 steps (at most a tenth of all), then falls to 0 along
            half a cosine.
        ema: decay of the averaged weights. weight_decay: AdamW's. clip: largest norm of all gradients together.

    Started by ``mpiexec -n 4``, four ranks compute a quarter of each batch, and train the same network as one would
    (``distributed.py``), if the loss is a mean over its pictures and draws from ``rng`` and ``device_rng`` alone.

    The model may be on a GPU: ``model.to("cuda")`` comes first. A checkpoint can go on on another device. A model in
    evaluation mode is put into training mode; parts that you put into evaluation mode (``model.part.eval()``) stay so.

    Attributes: ``rng`` and ``device_rng``, the library's generators of the CPU and of the model's device; ``step``;
    ``seconds`` spent in training steps; ``history``, a list of dicts that ``report`` may add to. All are saved, too.
    """

    def __init__(self, model, count, settings, *, steps, batch_size, lr, ema=0.999, weight_decay=0.0, clip=1.0):
        if min(steps, batch_size) < 1 or batch_size > count:
            raise ValueError(f"Training expects steps >= 1 and a batch of 1 to {count} (all examples), "
                             f"got steps={steps}, batch_size={batch_size}")
        if batch_size < distributed.get_world_size():
            raise ValueError(f"Training expects at least one example of each batch for each of "
                             f"{distributed.get_world_size()} ranks, got batch_size={batch_size}: start fewer ranks")
        self.model, self.rng, self.device_rng = model, default_generator(), default_generator(model.device)
        self.steps, self.batch_size, self.peak_lr, self.clip = steps, batch_size, lr, clip
        self.settings = json.loads(json.dumps(settings))  # as it comes back from a checkpoint: tuples are lists
        self.optimizer = AdamW(model.parameters(), lr, weight_decay=weight_decay)
        self.ema = EMA(model, ema)
        self.step, self.seconds, self.position = 0, 0.0, 0
        self.order = self.rng.permutation(count)
        self.log = []  # rows (step, seconds, mean loss since the row before, learning rate)
        self.losses = []  # since the last row, arrays as they come: on a GPU nothing waits for them
        self.history = []

    def fit(self, loss, out, *, batch=None, cuda_graph=False, resume=False, save_minutes=5.0, report=None, title=""):
        """Train until ``steps``; Ctrl-C finishes the step in hand, saves and exits.

        Args:
            loss: called with the indices of a batch, or of a rank's share of it; returns the loss, a Tensor of one
                element.
            batch: called with the indices (batch_size,), returns arrays of as many rows; the loss is then called with
                those, or a rank's share of them, on the model's device.
            cuda_graph: on a GPU record a step as a CUDA graph and replay it (see ``cuda_graph.Captured``): the loss may
                draw from ``device_rng`` there, and all else that changes must come from ``batch``, always of one shape.
            out: directory. resume: go on from its checkpoint.
            save_minutes: time between checkpoints.
            report: called with this object before each checkpoint and at the end, with the averaged weights in the
                model, which is in evaluation mode. It must draw nothing from ``rng``.
            title: of the loss curve.

        Raises:
            RuntimeError: the step cannot be recorded. ValueError: ``cuda_graph`` without ``batch``.
            SystemExit: there is a checkpoint but ``resume`` was not asked for, or one of other settings or of another
                count; or the training was stopped (after saving), or went to NaN or infinity (which is seen when the
                log or a checkpoint is written, and never saved). The message says how to go on.
            FileNotFoundError, ValueError: nothing to resume from, or a damaged checkpoint.
        """
        out = Path(out)
        checkpoint = out / "checkpoint.safetensors"
        if resume:
            self.load(checkpoint)
        elif distributed.broadcast(checkpoint.exists):
            raise SystemExit(f"{checkpoint} exists: go on with --resume, or choose another --out")
        descend = self.descent(loss, batch, cuda_graph)
        finished, stops = self.step >= self.steps, np.zeros(1)  # how often each rank was asked to stop
        save_at = time.monotonic() + save_minutes * 60
        self.compare_ranks()
        with stop_requests() as requests, tqdm(total=self.steps * self.batch_size, initial=self.step * self.batch_size,
                                               unit="img", unit_scale=True, smoothing=0.05) as bar:
            while self.step < self.steps and not stops.any():
                started = time.perf_counter()
                self.losses.append(self.train_step(descend))
                stops, late = distributed.all_gather(np.array([[len(requests), time.monotonic() > save_at]])).T
                row = self.step % LOG_EVERY == 0 or self.step == self.steps
                mean = float(np.mean([float(x) for x in self.losses])) if row else 0.0
                self.seconds += time.perf_counter() - started
                bar.update(self.batch_size)
                if not np.isfinite(mean):
                    self.check_finite(checkpoint)
                if row:
                    self.log.append((self.step, self.seconds, mean, self.optimizer.lr))
                    bar.set_postfix(loss=f"{mean:.4f}")
                    self.losses.clear()
                if self.step % COMPARE_EVERY == 0:
                    self.compare_ranks()
                if self.step < self.steps and late[0]:  # by rank 0's clock
                    self.write(out, report, title)
                    save_at = time.monotonic() + save_minutes * 60
        if self.step < self.steps:
            self.save(checkpoint)
            by = f", as rank {stops.argmax()} was asked to" if len(stops) > 1 else ""
            raise SystemExit(f"stopped at step {self.step} of {self.steps}{by}; go on with --resume")
        if not finished:
            self.write(out, report, title)

    def train_step(self, descend):
        """One step on the next batch; descend: what ``descent`` returned. Returns the loss, an array of one element."""
        if not self.model.training:
            self.model.train()
        self.optimizer.lr = self.peak_lr * warmup_cosine(self.step, self.steps, min(500, self.steps // 10 + 1))
        loss = descend(self.next_batch())
        self.step += 1
        return loss

    def descent(self, loss, batch=None, cuda_graph=False):
        """A step of gradient descent as a function of a batch's indices; arguments as for ``fit``."""
        if cuda_graph and batch is None:
            raise ValueError("fit(cuda_graph=True) needs batch=, which makes on the CPU what changes from step to step")
        mine = distributed.share()
        weight = len(range(self.batch_size)[mine]) / self.batch_size

        def gradients(*arrays):  # the same on a CPU, on a GPU and recorded as a CUDA graph
            with distributed.batch_of(self.batch_size):
                value = loss(*arrays)
            if weight < 1:  # the batch's mean is the sum of these
                value = weight * value
            self.optimizer.zero_grad()
            value.backward()
            return [value.data.reshape(()), *(p.grad for p in self.optimizer.parameters)]

        def update(value, *grads):
            for p, grad in zip(self.optimizer.parameters, grads):
                p.grad = grad
            clip_grad_norm_(self.optimizer.parameters, self.clip)
            self.optimizer.step()
            self.ema.update()
            return value

        def descend(*arrays):
            return update(*distributed.all_reduce_coalesced(gradients(*arrays)))

        if cuda_graph and distributed.get_world_size() == 1:
            descend = captured(descend, self.model)
        elif cuda_graph:  # what ranks send is no part of a graph
            gradients, update = captured(gradients, self.model), captured(update, self.model)
        if batch is None:
            return lambda index: descend(index[mine])
        return lambda index: descend(*(to_device(a[mine], self.model.device) for a in batch(index)))

    def compare_ranks(self):
        """RuntimeError if weights or averages of a rank are not the others'."""
        distributed.check_equal("weights", [*self.model.state_dict().values(), *self.ema.weights.values()])

    def next_batch(self):
        """Indices of the next examples; those that an epoch leaves over and the first of the next make a batch, too."""
        batch = self.order[self.position:self.position + self.batch_size]
        self.position += len(batch)
        if missing := self.batch_size - len(batch):
            self.order, self.position = self.rng.permutation(len(self.order)), missing
            batch = np.concatenate([batch, self.order[:missing]])
        return batch

    @contextmanager
    def averaged(self):
        """Context in which the model has the averaged weights and is, for this thread, in evaluation mode."""
        self.ema.swap()
        try:
            with self.model.evaluating():
                yield self.model
        finally:
            self.ema.swap()

    def write(self, out, report=None, title=""):
        """Call ``report``, then write averaged weights, log and loss curve, and last the checkpoint: a training that is
        killed before that resumes from the one before, and comes here again."""
        self.check_finite(out / "checkpoint.safetensors")
        try:
            if report:
                with self.averaged():
                    report(self)
        finally:
            with self.averaged():
                save_model(out / "model.safetensors", self.model)
            with atomic_write(out / "log.csv") as file:
                np.savetxt(file, np.reshape(self.log, (-1, 4)), ["%d", "%.1f", "%.5f", "%.3e"], ",",
                           header="step,seconds,loss,lr", comments="")
            save_figure(loss_curve(self.log, title), out / "loss.png")
            self.save(out / "checkpoint.safetensors")

    def arrays(self):
        """All arrays of a checkpoint, by name."""
        parts = {"model": self.model.state_dict(), "ema": self.ema.weights, "optimizer": self.optimizer.state_dict()}
        return {"losses": np.array([float(x) for x in self.losses]), "log": np.reshape(self.log, (-1, 4)),
                "order": self.order, **{f"{part}.{k}": a for part, some in parts.items() for k, a in some.items()}}

    def check_finite(self, path):
        """SystemExit if a loss or any of the state is NaN or infinite: it does not replace what is at ``path``."""
        for name, a in self.arrays().items():
            if a.dtype.kind == "f" and not array_module(a).isfinite(a).all():
                if name == "losses":
                    name = f"the loss of step {self.step - len(a) + np.isfinite(a).argmin() + 1}"
                kept = f"{path}, from before, is unchanged" if Path(path).exists() else "nothing was saved before"
                raise SystemExit(f"stopped at step {self.step} of {self.steps}: {name} is NaN or infinite; {kept}. "
                                 "Look for such values in the data, or try a smaller learning rate (--lr) with another "
                                 "--out")

    def save(self, path):
        """Write the checkpoint; SystemExit if something in it is NaN or infinite."""
        self.check_finite(path)
        save_file(path, self.arrays(), {"settings": self.settings, "step": self.step, "seconds": self.seconds,
                                        "position": self.position, "ema_updates": int(self.ema.updates),
                                        "history": self.history, "generator": self.rng.bit_generator.state,
                                        "device_generator": self.device_rng.bit_generator.state})

    def load(self, path):
        """Take over what ``save`` wrote; SystemExit if it was written under other settings, or with other data."""
        arrays, meta = load_file(path)
        check_settings(path, meta.get("settings"), self.settings)
        if len(arrays["order"]) != len(self.order):
            raise SystemExit(f"{path} was written with {len(arrays['order'])} training examples, here are "
                             f"{len(self.order)}.\nGive the same data, or another --out.")

        def part(prefix):
            return {k[len(prefix):]: v for k, v in arrays.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.load(part("ema."), meta["ema_updates"])
        self.optimizer.load_state_dict(part("optimizer."))
        self.order, self.losses = arrays["order"], arrays["losses"].tolist()
        self.log = [tuple(row) for row in arrays["log"].tolist()]
        self.step, self.seconds, self.position = meta["step"], meta["seconds"], meta["position"]
        self.history = meta["history"]
        self.rng.bit_generator.state = meta["generator"]
        state = meta.get("device_generator", {})
        if state.get("bit_generator") == self.device_rng.bit_generator.state["bit_generator"]:
            self.device_rng.bit_generator.state = state  # on another device the generator starts anew


def check_settings(path, there, here):
    """SystemExit if the settings with which the file at ``path`` was written are not those of now."""
    if there and "preset" in there and "preset" not in here:  # version 0.1, with paths, too: compare what both have
        there, here = ({k: settings[k] for k in there if k in here} for settings in (there, here))
    if there != here:
        raise SystemExit(f"{path} was written with other settings.\n  there: {there}\n  here:  {here}\n"
                         "Give the same options, or another --out.")


def loss_curve(log, title):
    """A matplotlib Figure of the training loss against the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps, _, losses, _ = np.reshape(log, (-1, 4)).T
    axes.plot(steps, losses, lw=1)
    axes.set(xlabel="step", ylabel="training loss", title=title, yscale="log" if (losses > 0).all() else "linear")
    axes.grid(alpha=0.3, which="both")
    return figure


@contextmanager
def stop_requests():
    """A list that Ctrl-C (or SIGTERM) adds to, so that the step in hand is finished first; a second one raises."""
    requests, process = [], os.getpid()

    def ask(number, frame):
        if os.getpid() != process:  # the child of a fork, say one that loads data: not the training
            signal.signal(number, before[number])
            return signal.raise_signal(number)
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()  # else nobody can ask
    before = {number: signal.signal(number, ask) or signal.SIG_DFL for number in numbers}  # None: it was not Python's
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
