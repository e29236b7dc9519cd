"""The same code on the CPU and on a GPU: NumPy against CuPy, kernel by kernel, in training and in sampling.

    python benchmarks/backends.py                                # needs an NVIDIA GPU: pip install 'npdiffusion[cuda]'
    python benchmarks/backends.py --json gpu.json --plot gpu.png --no-tf32
    python benchmarks/backends.py --backends numpy               # the CPU's part alone
    python benchmarks/backends.py --small                        # seconds, to see that everything runs

CuPy runs as it is, and captured: a whole training step, and a pass of the model in sampling, replayed as CUDA graphs.
Where PyTorch is installed, it runs beside on the same GPU, eager and compiled (torch.compile(mode="reduce-overhead"),
which captures CUDA graphs, too). All have the same weights, and outputs and gradients are asserted to agree, in float32
without TF32 (but for the compiled ones, which would have to be compiled twice), before anything is timed. Times are
medians; on the GPU they are taken by device events around work that starts with the GPU idle, so that they hold the
time of launching, too. TF32 is on for both libraries unless --no-tf32.

A training step: forward, backward, Adam, for the MNIST UNet. Sampling: 64 digits by 50 DDIM steps.
"""

import argparse
import json
import time

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from matplotlib.figure import Figure

from npdiffusion import Tensor, functional as F, optim, to_device
from npdiffusion.cuda_graph import captured
from npdiffusion.device import cupy
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, generate
from npdiffusion.figures import save_figure
from npdiffusion.files import atomic_write
from npdiffusion.models import UNet, pretrained
from train_step import CONFIG, inputs, kernel_calls, numpy_unet

try:
    import torch
    import torch_unet
except ImportError:
    torch = None

SMALL = dict(channels=(8, 32), blocks=1, attention=(1,), num_classes=10)
NAMES = {"numpy": "NumPy", "cupy": "CuPy", "captured": "CuPy captured", "torch": "PyTorch eager",
         "compiled": "PyTorch compiled"}
KERNEL_TOLERANCE, STEP_TOLERANCE, SAMPLE_TOLERANCE = 1e-4, 1e-3, 2e-2  # of the largest value, in float32


def training_step(model, adam, loss_of):
    """Two functions, in either library: the loss and all gradients as a list; the same and a step of Adam."""
    def gradients():
        adam.zero_grad()
        loss = loss_of()
        loss.backward()
        return [loss, *(p.grad for p in model.parameters())]

    def run():
        gradients()
        adam.step()

    return gradients, run


class Ours:
    """npdiffusion on a device. Functions without arguments, and what they compute as lists of NumPy arrays."""

    def __init__(self, name):
        self.name, self.device = name, "cpu" if name == "numpy" else "cuda"

    def tensor(self, a, **options):
        return Tensor(a, device=self.device, **options)

    def host(self, arrays):
        return [to_device(a.data if isinstance(a, Tensor) else a, "cpu") for a in arrays]

    def network(self, state, config):
        model = UNet(**config)
        model.load_state_dict(state)
        return model.to(self.device)

    def kernel(self, op, x, *parameters):
        tensors = [self.tensor(a, requires_grad=True) for a in (x, *parameters)]
        g = to_device(cotangent(op(F, *tensors).shape), self.device)

        def run():
            for x in tensors:
                x.grad = None
            y = op(F, *tensors)
            y.backward(g)
            return [y, *(x.grad for x in tensors)]

        return run

    def step(self, model, x, t, labels, noise):
        x, noise = self.tensor(x), self.tensor(noise)
        t, labels = (to_device(a, self.device) for a in (t, labels))
        adam = optim.Adam(model.parameters(), lr=1e-4)
        gradients, run = training_step(model, adam, lambda: F.mse_loss(model(x, t, labels), noise))
        if self.name != "captured":
            return gradients, run
        gradients, run = captured(gradients, model), captured(run, model)
        return lambda: [gradients() for _ in range(4)][-1], run  # the last: replayed

    def sample(self, model, scheduler, shape, labels):
        model = captured(model) if self.name == "captured" else model
        return lambda: [generate(model, scheduler, shape, labels, generator=np.random.default_rng(0))]

    def timed(self, function):
        """Milliseconds of one call."""
        if self.device == "cpu":
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        cuda = cupy().cuda
        start, end = cuda.Event(), cuda.Event()
        cuda.Device().synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return cuda.get_elapsed_time(start, end)


class Torch:
    """PyTorch, with the same functions."""

    def __init__(self, name, device="cuda"):
        self.name, self.device = name, device

    def tensor(self, a, **options):
        a = torch.from_numpy(a).to(self.device)
        return (a.contiguous(memory_format=torch.channels_last) if a.ndim == 4 else a).requires_grad_(**options)

    def host(self, arrays):
        return [a.detach().cpu().numpy() for a in arrays]

    def network(self, state, config):
        model = torch_unet.UNet(**UNet(**config).config)
        model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        return model.to(self.device, memory_format=torch.channels_last)

    def compiled(self, function):
        return torch.compile(function, mode="reduce-overhead") if self.name == "compiled" else function

    def kernel(self, op, x, *parameters):
        tensors = [self.tensor(a, requires_grad=True) for a in (x, *parameters)]
        forward = self.compiled(lambda *tensors: op(torch.nn.functional, *tensors))
        g = self.tensor(cotangent(tuple(forward(*tensors).shape)), requires_grad=False)

        def run():
            for x in tensors:
                x.grad = None
            y = forward(*tensors)
            y.backward(g)
            return [y, *(x.grad for x in tensors)]

        return run

    def step(self, model, x, t, labels, noise):
        x, t, labels, noise = (self.tensor(a, requires_grad=False) for a in (x, t, labels, noise))
        adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=self.device == "cuda")
        loss_of = self.compiled(lambda: torch.nn.functional.mse_loss(model(x, t, labels), noise))
        return training_step(model, adam, loss_of)

    def sample(self, model, scheduler, shape, labels):
        labels = self.tensor(labels, requires_grad=False)
        forward = self.compiled(model)

        def run():
            x = self.tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), requires_grad=False)
            with torch.no_grad():
                for t in scheduler.timesteps.tolist():  # DDIMScheduler.step with use_clipped_model_output
                    before = scheduler.previous_timestep(t)
                    now, then = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[before] if before >= 0 else 1.0
                    epsilon = forward(x, torch.full((len(x),), t, device=self.device), labels)
                    x0 = ((x - (1 - now) ** 0.5 * epsilon) / now ** 0.5).clamp(-1, 1)
                    x = then ** 0.5 * x0 + (1 - then) ** 0.5 * ((x - now ** 0.5 * x0) / (1 - now) ** 0.5)
            return [x]

        return run

    def timed(self, function):
        if self.device == "cpu":
            return Ours("numpy").timed(function)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def cotangent(shape):
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def use_tf32(allow):
    """The option of both libraries."""
    npdiffusion.allow_tf32(allow)
    if torch:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow


def compare(what, libraries, functions, tolerance, tf32, repeats):
    """{library: median ms} of the functions, after it was asserted that they compute the same, without TF32.

    functions: for each library (what gives arrays, what is timed). An array's error is held against its own largest
    value, or against a hundredth of the largest of all where the array is zero by nature.
    """
    first = None
    for library, (outputs, _) in zip(libraries, functions):
        use_tf32(tf32 and library.name == "compiled")  # which is not compiled twice
        tolerance = 5e-2 if tf32 and library.name == "compiled" else tolerance
        arrays = library.host(outputs())
        first = first or arrays
        floor = 1e-2 * max(abs(a).max() for a in first)
        for a, b in zip(first, arrays, strict=True):
            error = float(abs(a - b).max() / max(abs(a).max(), floor))
            assert error <= tolerance, f"{what}: {library.name} differs from {libraries[0].name} by {error:.1e}"
    use_tf32(tf32)
    return {library.name: median(library, timed, repeats) for library, (_, timed) in zip(libraries, functions)}


def median(library, function, repeats, seconds=20):
    """Milliseconds; warmed up first, and at least three times, but no new run after so many seconds."""
    start, times = time.perf_counter(), []
    for _ in range(3 if library.device == "cuda" and repeats > 1 else 1):
        function()
    while len(times) < min(3, repeats) or len(times) < repeats and time.perf_counter() - start < seconds:
        times.append(library.timed(function))
    return float(np.median(times))


def measure(libraries, args):
    """All results, as they go into the JSON file; prints the tables."""
    config, size = (SMALL, 8) if args.small else (CONFIG, 32)
    state = numpy_unet(config).state_dict()
    results = {"device": device_name() if any(x.device == "cuda" for x in libraries) else "CPU only",
               "tf32": args.tf32, "threads": npdiffusion.get_num_threads(), "numpy": np.__version__,
               "cupy": cupy().__version__ if {"cupy", "captured"} & {x.name for x in libraries} else None,
               "torch": torch.__version__ if torch else None, "kernels": {}, "train_step": {}, "sampling": {}}
    print(f"{results['device']}, TF32 {'on' if args.tf32 else 'off'}; NumPy on {results['threads']} threads\n")

    header("train_step", libraries)
    for batch in args.batches:
        functions = [x.step(x.network(state, config), *inputs(batch, size)) for x in libraries]
        row(results["train_step"], str(batch), f"training step, batch {batch}",
            compare(f"training step, batch {batch}", libraries, functions, STEP_TOLERANCE, args.tf32, args.repeats))

    trained = None if args.small else pretrained("mnist-ddpm")
    state, config = (state, config) if args.small else (trained.state_dict(), trained.config)
    scheduler = DDIMScheduler.from_config(DDPMScheduler().config)
    scheduler.set_timesteps(3 if args.small else 50)
    shape = (4 if args.small else 64, 1, size, size)
    labels = np.arange(shape[0]) % 10
    functions = [2 * (x.sample(x.network(state, config), scheduler, shape, labels),) for x in libraries]
    name = f"{shape[0]} digits, {len(scheduler.timesteps)} DDIM steps"
    row(results["sampling"], name, name,
        compare("sampling", libraries, functions, SAMPLE_TOLERANCE, args.tf32, args.repeats))

    libraries = [x for x in libraries if x.name not in ("captured", "compiled")]  # of one op alone there is little
    header("kernels", libraries)
    batch = 1 if args.small else args.kernel_batch
    for name, call in kernel_calls(batch).items():
        functions = [2 * (x.kernel(*call),) for x in libraries]
        row(results["kernels"], name, name,
            compare(name, libraries, functions, KERNEL_TOLERANCE, args.tf32, args.repeats))
    return results


def header(what, libraries):
    title = {"train_step": "ms (medians)", "kernels": "forward + backward, ms"}[what]
    print(f"\n{title:40s}" + "".join(f"{NAMES[x.name]:>18s}" for x in libraries) + "  how many times as fast")


def row(results, key, title, times):
    results[key] = times
    ratios = [f"{NAMES[mine]}: {times[other] / times[mine]:.1f}× {NAMES[other]}" for mine in ("cupy", "captured")
              for other in ("numpy", "torch") if mine in times and other in times]
    print(f"{title:40s}" + "".join(f"{ms:18.3f}" for ms in times.values()) + "  " + ", ".join(ratios), flush=True)


def device_name():
    properties = cupy().cuda.runtime.getDeviceProperties(0)
    return properties["name"].decode()


def plot(results):
    """A matplotlib Figure of the time of a training step against the batch size."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    batches = [int(batch) for batch in results["train_step"]]
    for name in next(iter(results["train_step"].values())):
        axes.loglog(batches, [times[name] for times in results["train_step"].values()], "o-", ms=4, label=NAMES[name])
    axes.set(xlabel="batch size", ylabel="training step / ms",
             title=f"MNIST UNet, float32 (TF32 {'on' if results['tf32'] else 'off'}), {results['device']}")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def chosen(names):
    """The libraries by name; SystemExit where there is no GPU for them."""
    if any(name != "numpy" for name in names):
        try:
            cupy()
        except RuntimeError as error:
            raise SystemExit(f"backends.py: {error}. The CPU's part alone: --backends numpy") from error
    if torch is None or not torch.cuda.is_available():
        missing = [name for name in names if name in ("torch", "compiled")]
        if missing:
            print("PyTorch with CUDA is not installed: measured without it")
        names = [name for name in names if name not in missing]
    return [Torch(name) if name in ("torch", "compiled") else Ours(name) for name in names]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--kernel-batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="for NumPy")
    parser.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--small", action="store_true", help="a tiny network and few steps")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--plot", help="write a figure of the training steps to this PNG file")
    args = parser.parse_args(arguments)
    npdiffusion.set_num_threads(args.threads)
    results = measure(chosen(args.backends), args)
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(results, indent=1, ensure_ascii=False).encode())
    if args.plot:
        save_figure(plot(results), args.plot)


if __name__ == "__main__":
    main()
