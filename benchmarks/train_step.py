"""The training step of the MNIST UNet, and its kernels one by one, beside PyTorch eager on the same CPU.

    python benchmarks/train_step.py                     # needs torch for the comparison: pip install torch
    python benchmarks/train_step.py --json results.json
    python benchmarks/train_step.py --sizes             # the step and the forward pass alone, from 1×32² to 1×256²
    python benchmarks/train_step.py --network ddpm-cifar10  # both for a larger network; PyTorch's is from diffusers

The networks have the same weights, and outputs and gradients are checked to agree within 1e-4 before anything is
timed. PyTorch runs in NCHW and in channels-last memory, and the faster of the two counts. Runs are interleaved,
figures are medians. "share of sgemm" is the arithmetic of the convolutions and linear layers, counted directly (also
where Winograd needs less), over time × the rate of a large matrix product in the same run.

The ladder is the same convolution, and the same step, on four rungs: the plain kernels (``npdiffusion/kernels/plain``),
the fast ones with im2col alone, the fast ones as they are (Winograd where it pays), and PyTorch.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Callable, NamedTuple

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from threadpoolctl import threadpool_info

from npdiffusion import Tensor, functional as F, no_grad, optim, use_kernels
from npdiffusion._process import AVX512, processor_flags
from npdiffusion.kernels import kernels
from npdiffusion.kernels.numpy import conv
from npdiffusion.kernels.numpy.layout import channels_last, to_nchw
from npdiffusion.models import UNet, UNet2DModel

try:
    import torch
    import torch_unet
except ImportError:
    torch = None

CONFIG = dict(channels=(32, 64, 128), blocks=1, attention=(2,), num_classes=10)  # what train_diffusion.py trains
CIFAR = dict(  # google/ddpm-cifar10-32
    sample_size=32, in_channels=3, out_channels=3, block_out_channels=(128, 256, 256, 256), attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), downsample_padding=0,
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), norm_eps=1e-6, flip_sin_to_cos=False,
    freq_shift=1)
NETWORKS = {"mnist": (CONFIG, 64), "ddpm-cifar10": (CIFAR, 4)}  # and the batch
LADDER = "conv 3×3, 64→64, 16×16"
SIZES = "1x32", "4x32", "64x32", "16x64", "4x128", "1x256"  # batch × side
LAYOUTS = {"nchw": "contiguous_format", "channels_last": "channels_last"}  # PyTorch's names for them


def inputs(batch, size=32, config=CONFIG):
    """x, t, the labels if the network has classes, and the noise to predict."""
    rng, shape = np.random.default_rng(0), (batch, config.get("in_channels", 1), size, size)
    x, t = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 1024, batch)
    labels = [rng.integers(0, 11, batch)] if "num_classes" in config else []
    return x, t, *labels, rng.standard_normal(shape, dtype=np.float32)


def numpy_unet(config=CONFIG):
    """The network with every weight away from its zero start, so that every gradient is alive."""
    rng = npdiffusion.manual_seed(0)
    model = (UNet2DModel if config is CIFAR else UNet)(**config)
    for p in model.parameters():
        if not p.data.any():
            p.data[...] = 0.02 * rng.standard_normal(p.shape)
    return model


class Runs(NamedTuple):
    """A network, and what is done with it, each a function without arguments."""

    model: object
    forward: Callable  # without a graph, as sampling does
    gradients: Callable
    step: Callable


def runs(model, adam, forward, loss):
    """The same training step for both libraries, from the functions that differ."""
    def gradients():
        value = loss()
        adam.zero_grad()
        value.backward()

    def step():
        gradients()
        adam.step()

    return Runs(model, forward, gradients, step)


def torch_network(config):
    """The same in PyTorch, its weights as they come."""
    if config is not CIFAR:
        return torch_unet.UNet(**numpy_unet(config).config)
    from diffusers import UNet2DModel

    class Network(UNet2DModel):
        def forward(self, x, t):
            return super().forward(x, t).sample

    return Network(**config)


def numpy_runs(batch, size=32, config=CONFIG):
    x, *conditions, noise = inputs(batch, size, config)
    model = numpy_unet(config)

    def forward():
        with no_grad():
            return model(Tensor(x), *conditions)

    def loss():
        return F.mse_loss(model(Tensor(x), *conditions), Tensor(noise))

    return runs(model, optim.Adam(model.parameters(), lr=1e-4), forward, loss)


def torch_runs(batch, layout, state, size=32, config=CONFIG):
    x, *conditions, noise = (in_layout(torch.from_numpy(a), layout) for a in inputs(batch, size, config))
    model = torch_network(config)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
    model = model.to(memory_format=getattr(torch, LAYOUTS[layout]))

    def forward():
        with torch.no_grad():
            return model(x, *conditions)

    def loss():
        return torch.nn.functional.mse_loss(model(x, *conditions), noise)

    return runs(model, torch.optim.Adam(model.parameters(), lr=1e-4), forward, loss)


def in_layout(tensor, layout):
    """A PyTorch tensor in one of the LAYOUTS, if it has images' four axes."""
    return tensor.to(memory_format=getattr(torch, LAYOUTS[layout])) if tensor.ndim == 4 else tensor


def assert_agreement(ours, theirs, tolerance=1e-4):
    """The two networks' outputs within 1e-4 of their size, and their gradients within a tolerance."""
    close("the network's output", ours.forward().data, theirs.forward())
    ours.gradients(), theirs.gradients()
    other = dict(theirs.model.named_parameters())
    scale = max(float(abs(p.grad).max()) for p in ours.model.parameters())
    for name, p in ours.model.named_parameters():
        # where the gradient is zero by nature (the bias of attention's keys) only rounding is left: hence scale
        close(f"gradient of {name}", p.grad, other[name].grad, 1e-2 * scale, tolerance)


def close(what, a, b, floor=1e-8, tolerance=1e-4):
    b = b.detach().numpy()
    error = float(abs(a - b).max()) / max(float(abs(b).max()), floor)
    assert error < tolerance, f"{what} differs from PyTorch's by {error:.1e}"


def kernel_pairs(batch):
    """name -> (our forward and backward, {layout: PyTorch's}) for the ops that the UNet spends its time on."""
    def pair(op, x, *parameters):
        """op(library, x, *parameters) in both libraries; gradients for everything."""
        image = to_nchw(channels_last(x)) if x.ndim == 4 else x
        shape = op(F, Tensor(x), *map(Tensor, parameters)).shape
        cotangent = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        g = to_nchw(channels_last(cotangent)) if cotangent.ndim == 4 else cotangent

        def ours():
            tensors = [Tensor(a, requires_grad=True) for a in (image, *parameters)]
            y = op(F, *tensors)
            y.backward(g)
            return [y.data, *(p.grad for p in tensors)]

        if torch is None:
            return ours, {}

        def theirs(layout):
            *arrays, upstream = (in_layout(torch.from_numpy(a), layout) for a in (x, *parameters, cotangent))

            def run():
                tensors = [a.detach().requires_grad_() for a in arrays]
                y = op(torch.nn.functional, *tensors)
                y.backward(upstream)
                return [y, *(p.grad for p in tensors)]

            return run

        return ours, {layout: theirs(layout) for layout in LAYOUTS}

    return {name: pair(*call) for name, call in kernel_calls(batch).items()}


def kernel_calls(batch):
    """name -> (op(library, x, *parameters), x, *parameters) for the ops that the UNet spends its time on."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def conv(c, o, size, k=3):
        return (lambda lib, x, w, b: lib.conv2d(x, w, b, padding=k // 2),
                draw(batch, c, size, size), draw(o, c, k, k) / k, draw(o))

    def up(c, o, size):
        return (lambda lib, x, w, b: lib.conv_transpose2d(x, w, b, stride=2),
                draw(batch, c, size, size), draw(c, o, 2, 2), draw(o))

    def norm(c, size):
        def op(lib, x, w, b):
            return lib.group_norm_silu(x, 8, w, b) if lib is F else lib.silu(lib.group_norm(x, 8, w, b))
        return op, draw(batch, c, size, size), draw(c), draw(c)

    def attention():
        def op(lib, q, k, v):
            return lib.scaled_dot_product_attention(q, k, v)
        return op, *(draw(batch, 4, 64, 32) for _ in range(3))

    return {
        "conv 3×3, 32→32, 32×32": conv(32, 32, 32), "conv 3×3, 64→32, 32×32": conv(64, 32, 32),
        "conv 3×3, 64→64, 16×16": conv(64, 64, 16), "conv 3×3, 128→64, 16×16": conv(128, 64, 16),
        "conv 3×3, 128→128, 8×8": conv(128, 128, 8), "conv 1×1, 64→32, 32×32": conv(64, 32, 32, 1),
        "conv 3×3, 1→32, 32×32": conv(1, 32, 32),
        "transposed conv 2×2, 64→32, 16×16": up(64, 32, 16), "transposed conv 2×2, 128→64, 8×8": up(128, 64, 8),
        "max pool 2×2, 32, 32×32": (lambda lib, x: lib.max_pool2d(x, 2), draw(batch, 32, 32, 32)),
        "group norm + SiLU, 32, 32×32": norm(32, 32), "group norm + SiLU, 128, 8×8": norm(128, 8),
        "attention, 64 pixels, 4 heads": attention(),
    }


def interleaved(functions, repeats):
    """Median seconds of each function, run in turn."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(0.02)  # PyTorch's threads spin for a while after their work, on cores that the next one needs
            function()  # and after a pause the cores have to wake up
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


@contextmanager
def rung(name):
    """The kernels of one rung of the ladder: "plain", "im2col" or "winograd"."""
    pays = conv.winograd_pays
    with use_kernels("plain" if name == "plain" else "numpy"):
        if name == "im2col":
            conv.winograd_pays = lambda *_: False
        try:
            yield
        finally:
            conv.winograd_pays = pays


def ladder(functions, repeats):
    """{rung: median ms}; functions: ours under "numpy", PyTorch's by their layout, of which the faster counts."""
    def on(name):
        def run():
            with rung(name):
                functions["numpy"]()
        return run

    others = {layout: function for layout, function in functions.items() if layout != "numpy"}
    times = interleaved({**{name: on(name) for name in ("plain", "im2col", "winograd")}, **others}, repeats)
    best = min([times.pop(layout) for layout in others], default=None)
    return {name: 1e3 * seconds for name, seconds in (times | ({"torch": best} if best else {})).items()}


def sgemm():
    """A large float32 matrix product on our threads: 2·2048³ operations."""
    a = np.ones((2048, 2048), np.float32)
    return lambda: kernels(a).matmul(a, a)


def count_operations(forward):
    """Multiplications and additions of the convolutions and linear layers in one forward pass of ours."""
    total, originals = 0, {name: getattr(F, name) for name in ("conv2d", "conv_transpose2d", "linear")}

    def counting(name):
        def op(input, weight, *args, **kwargs):
            nonlocal total
            y = originals[name](input, weight, *args, **kwargs)
            pixels = (input if name == "conv_transpose2d" else y).data.size // weight.shape[0]
            total += 2 * pixels * weight.data.size
            return y
        return op

    for name in originals:
        setattr(F, name, counting(name))
    try:
        forward()
    finally:
        for name, op in originals.items():
            setattr(F, name, op)
    return total


def blas_kernels():
    """NumPy's BLAS and the kernels that it chose for this processor."""
    return ", ".join(f"{lib['internal_api']} {lib.get('architecture', '')}" for lib in threadpool_info()
                     if lib["user_api"] == "blas")


def size_table(threads, repeats):
    """The training step and the forward pass at each of SIZES; ratios are to PyTorch in channels-last memory."""
    results = {"threads": threads, "sizes": {}}
    print(f"{threads} threads, ms{'forward':>30s}{'training step':>30s}\n"
          f"{'batch × size':16s}" + 2 * f"{'ours':>8s}{'ch.last':>8s}{'nchw':>7s}{'ratio':>7s}")
    for name in SIZES:
        batch, size = map(int, name.split("x"))
        all_runs = {"numpy": numpy_runs(batch, size)}
        state = all_runs["numpy"].model.state_dict()
        all_runs |= {layout: torch_runs(batch, layout, state, size) for layout in LAYOUTS} if torch else {}
        for layout in LAYOUTS if torch else ():
            # of large pictures PyTorch's gradients are up to 3e-3 from those in float64, ours up to 1e-3
            assert_agreement(all_runs["numpy"], all_runs[layout], 1e-4 if size == 32 else 1e-2)
        row, line = {}, f"{name:16s}"
        for run in ("forward", "step"):
            times = interleaved({key: getattr(each, run) for key, each in all_runs.items()}, repeats)
            row |= {f"{run}_ms": {key: 1e3 * seconds for key, seconds in times.items()}}
            line += f"{1e3 * times['numpy']:8.1f}"
            if torch:
                row[f"{run}_ratio_to_torch"] = ratio = times["numpy"] / times["channels_last"]
                line += f"{1e3 * times['channels_last']:8.1f}{1e3 * times['nchw']:7.1f}{ratio:7.2f}"
        results["sizes"][name] = row
        print(line, flush=True)
    if os.path.exists("/proc/self/status"):
        print("peak memory of attention, forward and backward, one picture in 4 heads of 32 channels:")
        for pixels in (1024, 4096):
            results[f"attention_peak_mib_{pixels}"] = peak = peak_memory("attention", pixels)
            print(f"{pixels:,} pixels {peak:.0f} MiB")
    return results


def peak_memory(what, n):
    """MiB that three runs need beyond what was loaded before; in a process of its own. what: "attention" of n pixels,
    or a library's training step with a batch of n."""
    command = [sys.executable, __file__, "--measure-memory", what, "--batch", str(n), "--keep-blas"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(what, n):
    def peak():  # not getrusage: a process inherits that figure from the one that started it
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def attention():
        F.scaled_dot_product_attention(*heads).sum().backward()
        for tensor in heads:
            tensor.grad = None

    if what == "attention":
        rng = np.random.default_rng(0)
        heads = [Tensor(rng.standard_normal((1, 4, n, 32), dtype=np.float32), requires_grad=True) for _ in range(3)]
        run = attention
    else:
        run = (numpy_runs(n) if what == "numpy" else torch_runs(n, what, numpy_unet().state_dict())).step
    before = peak()
    for _ in range(3):
        run()
    print(peak() - before)


def use_the_whole_processor():
    """Start again without OPENBLAS_CORETYPE where it holds NumPy at AVX2 while PyTorch has AVX-512."""
    pinned = os.environ.get("OPENBLAS_CORETYPE", "")
    if AVX512 <= processor_flags() and pinned.lower() in ("haswell", "zen", "sandybridge", "nehalem"):
        print(f"OPENBLAS_CORETYPE={pinned} would hold NumPy at older instructions than PyTorch uses on this processor: "
              "measuring without it (--keep-blas: with it)")
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="mnist")
    parser.add_argument("--batch", type=int, help="default: 64, for ddpm-cifar10 4")
    parser.add_argument("--sizes", action="store_true", help="measure other sizes of picture and batch instead")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=npdiffusion.get_num_threads())
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    parser.add_argument("--keep-blas", action="store_true", help="leave OPENBLAS_CORETYPE as it is")
    args = parser.parse_args()
    args.batch = args.batch or NETWORKS[args.network][1]
    if args.network == "ddpm-cifar10" and torch and not importlib.util.find_spec("diffusers"):
        parser.error("PyTorch's ddpm-cifar10 is from diffusers, which isn't installed: pip install diffusers")
    if not args.keep_blas:
        use_the_whole_processor()
    npdiffusion.set_num_threads(args.threads)
    if torch:
        torch.set_num_threads(args.threads)
    if args.measure_memory:
        return measure_memory(args.measure_memory, args.batch)

    results = size_table(args.threads, args.repeats) if args.sizes else step_table(args)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1, ensure_ascii=False)


def step_table(args):
    """The training step and the forward pass at one batch size; of the MNIST UNet, also the ladder and the kernels."""
    config = NETWORKS[args.network][0]
    ours = numpy_runs(args.batch, config=config)
    state = ours.model.state_dict()
    theirs = {layout: torch_runs(args.batch, layout, state, config=config) for layout in LAYOUTS} if torch else {}
    for other in theirs.values():
        assert_agreement(ours, other)
    operations = count_operations(ours.forward)
    results = {"network": args.network, "parameters": sum(p.data.size for p in ours.model.parameters()), "size": 32,
               "batch": args.batch, "threads": args.threads, "numpy": np.__version__,
               "torch": torch.__version__ if torch else None, "blas": blas_kernels()}
    rows = []
    for key, run, factor in (("train_step", "step", 3), ("forward", "forward", 1)):
        functions = {name: getattr(each, run) for name, each in {"numpy": ours, **theirs}.items()}
        times = interleaved({**functions, "sgemm": sgemm()}, args.repeats)
        rate = 2 * 2048 ** 3 / times.pop("sgemm")
        results[key] = entry(times, share_of_sgemm=factor * operations / times["numpy"] / rate,
                             sgemm_gflops=rate / 1e9)
        rows.append((key.replace("_", " "), results[key]))
    if args.network == "mnist":
        measure_parts(args, ours, theirs, results, rows)

    print(f"{args.network}, {results['parameters']:,} parameters, batch {args.batch} at 32×32, {args.threads} threads, "
          f"NumPy {np.__version__} with {results['blas']}, PyTorch {torch.__version__ if torch else 'not installed'}")
    print(f"{'ms; kernels forward + backward':36s}{'ours':>8s}{'nchw':>8s}{'ch.last':>8s}{'ratio':>8s}")
    for name, e in rows:
        others = "".join(f"{e['torch_ms'][layout]:8.2f}" if torch else f"{'-':>8s}" for layout in LAYOUTS)
        ratio = f"{e['ratio_to_torch']:8.2f}" if torch else f"{'-':>8s}"
        share = f"   {e['share_of_sgemm']:.0%} of {e['sgemm_gflops']:.0f} GFLOP/s" if "share_of_sgemm" in e else ""
        print(f"{name:36s}{e['ms']:8.2f}{others}{ratio}{share}")
    if "ladder" in results:
        print(f"\n{'the ladder, ms':36s}" + "".join(f"{name:>10s}" for name in results["ladder"][LADDER]))
        for name, times in results["ladder"].items():
            print(f"{name:36s}" + "".join(f"{ms:10.1f}" for ms in times.values()))
    if "memory_mib" in results:
        print("peak memory of a step, MiB:", ", ".join(f"{k} {v:.0f}" for k, v in results["memory_mib"].items()))
    return results


def measure_parts(args, ours, theirs, results, rows):
    """The MNIST UNet's memory, ladder and kernels, into the results and the rows to print."""
    if torch and os.path.exists("/proc/self/status"):
        results["memory_mib"] = {library: peak_memory(library, args.batch) for library in ("numpy", *LAYOUTS)}
    results["ladder"] = {"training step": ladder({name: each.step for name, each in {"numpy": ours, **theirs}.items()},
                                                 max(1, args.repeats // 3))}
    results["kernels"] = {}
    for name, (mine, others) in kernel_pairs(args.batch).items():
        for other in others.values():
            for a, b in zip(mine(), other()):
                close(name, a, b)
        results["kernels"][name] = entry(interleaved({"numpy": mine, **others}, args.repeats))
        rows.append((name, results["kernels"][name]))
        if name == LADDER:
            results["ladder"][name] = ladder({"numpy": mine, **others}, args.repeats)


def entry(times, **more):
    """Milliseconds, and the ratio of ours to the faster of PyTorch's layouts."""
    ms = {name: 1e3 * seconds for name, seconds in times.items()}
    mine = ms.pop("numpy")
    return {"ms": mine, **more, **({"torch_ms": ms, "ratio_to_torch": mine / min(ms.values())} if ms else {})}


if __name__ == "__main__":
    main()
