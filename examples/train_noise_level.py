"""Train the network that tells how noisy a picture is, and measure what its mistakes cost the denoiser.

    python examples/train_noise_level.py                    # minutes on 2 cores, into runs/noise_level
    python examples/train_noise_level.py --resume
    python examples/train_noise_level.py --preset smoke --data synthetic
    python examples/train_noise_level.py --images my_pictures --size 64 --model runs/diffusion/model.safetensors

The network predicts log-SNR with its uncertainty; t follows from the schedule. Beside it stand estimates that are told
the clean picture where a digit's is known to be background, or everywhere (the oracle): no estimate can have a smaller
mean absolute error than the oracle's posterior median. With --images the denoiser is --model; without one, nothing is
denoised. Written to --out: metrics.json, levels.png (predicted against true t), wrong_levels.png (PSNR over true and
assumed t), model.safetensors, checkpoint.safetensors, log.csv and loss.png.
"""

from pathlib import Path

from command_line import (above_0, add_pictures, integer, load_examples, load_network, parse, parser_for,
                          settings_of, some, write_metrics)

import numpy as np

from npdiffusion import Tensor
from npdiffusion.diffusion import DDPMScheduler, denoise
from npdiffusion.figures import save_figure
from npdiffusion.metrics import psnr
from npdiffusion.models import NoiseLevelNet, UNet, laplace_nll, pretrained
from npdiffusion.training import Training

LEVELS = (100, 200, 300, 400, 500, 600)
BLANK = 0.01  # pixels that carry ink in fewer training digits than this are taken for background
PRESETS = {"smoke": dict(steps=20, batch_size=16, channels=[8, 16], test=200, pictures=2, grid=3),
           "cpu": dict(steps=6000, batch_size=64, channels=[16, 32, 64], test=10000, pictures=500, grid=15),
           "long": dict(steps=40000, batch_size=64, channels=[32, 64, 128], test=10000, pictures=2000, grid=29)}


def arguments():
    parser = parser_for(__doc__, "noise_level")
    add_pictures(parser)
    parser.add_argument("--model", type=Path, help="weights of the denoiser (default: the package's own, of digits)")
    parser.add_argument("--lr", type=above_0, default=3e-3)
    parser.add_argument("--test", type=integer(8), help="number of test pictures whose level is estimated")
    parser.add_argument("--pictures", type=integer(1), help="number of test pictures denoised at each level")
    parser.add_argument("--grid", type=integer(2), help="levels along each side of the map of wrong levels")
    return parse(parser, PRESETS)


def estimate_from_known(scheduler, noisy, clean, known=True):
    """t from the pixels whose clean value x_0 is known: x_t ~ N(√ᾱ_t x_0, 1 − ᾱ_t), every t as likely as another.

    noisy (N, C, H, W); clean broadcasts to it, as does the mask ``known``. Returns the maximum-likelihood estimate and
    the posterior median, which has the least mean absolute error of all that see only these pixels; both (N,).
    """
    alpha_bar = scheduler.alphas_cumprod
    sums = [np.where(known, a, 0).sum((1, 2, 3), dtype=np.float64)[:, None]
            for a in (noisy * noisy, noisy * clean, np.broadcast_to(clean * clean, noisy.shape))]
    count = np.broadcast_to(known, noisy.shape[1:]).sum()
    squares = sums[0] - 2 * np.sqrt(alpha_bar) * sums[1] + alpha_bar * sums[2]  # Σ (x_t − √ᾱ_t x_0)²: [n, T]
    log_likelihood = -0.5 * (count * np.log(1 - alpha_bar) + squares / (1 - alpha_bar))
    posterior = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    below = posterior.cumsum(1) / posterior.sum(1, keepdims=True)
    return log_likelihood.argmax(1), (below < 0.5).sum(1)


def errors(scheduler, estimate, t):
    """Mean absolute errors in steps, overall, for t ≤ 384 and by bins of 128; and in log-SNR."""
    error, log_snr = np.abs(estimate - t), -2 * np.log(scheduler.sigmas)
    error_log_snr = np.abs(log_snr[estimate] - log_snr[t])

    def mean(errors):  # of few pictures, none may have such a level
        return float(errors.mean()) if len(errors) else None

    return {"mae": mean(error), "mae_t_le_384": mean(error[t <= 384]),
            "mae_by_bin": {f"{128 * i}-{128 * i + 127}": mean(error[t // 128 == i]) for i in range(8)},
            "mae_log_snr": mean(error_log_snr), "mae_log_snr_t_le_384": mean(error_log_snr[t <= 384])}


def noisy_pictures(scheduler, images, t):
    """``images`` with noise of level t, always the same."""
    noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    return scheduler.add_noise(images, noise, t)


def psnr_loss(model, scheduler, noise_level, images):
    """PSNR in dB with the true level and what the estimated one loses, for each of LEVELS (one-shot)."""
    true, lost = {}, {}
    for t in LEVELS:
        noisy = noisy_pictures(scheduler, images, t)
        told, guessed = (psnr(denoise(model, scheduler, noisy, **level), images).mean()
                         for level in ({"t": t}, {"noise_level": noise_level}))
        true[t], lost[t] = float(told), float(told - guessed)
    return true, lost


def wrong_levels(model, scheduler, images, levels):
    """Mean PSNR in dB for every true level (rows) and every assumed one (columns)."""
    return np.array([[psnr(denoise(model, scheduler, noisy, int(assumed)), images).mean() for assumed in levels]
                     for noisy in (noisy_pictures(scheduler, images, int(true)) for true in levels)])


def spread(t, estimate, levels):
    """Where 90 % of the estimates lie, for true levels near each of ``levels``: two arrays like it."""
    near = [np.argsort(np.abs(t - level))[:len(t) // 25 + 1] for level in levels]
    return np.array([level + np.quantile((estimate - t)[some], (0.05, 0.95)) for level, some in zip(levels, near)]).T


def levels_figure(t, estimates):
    """Predicted against true t, with the oracle's spread; and the mean absolute error of all estimates along t."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = np.linspace(0, 1023, 33)
    left.scatter(t, estimates["network"], s=3, alpha=0.35, lw=0, color="C0", label="network, a dot for each picture")
    low, high = spread(t, estimates["oracle"], levels)
    left.plot(levels, low, color="C3", lw=1.2, label="90 % of the oracle's estimates: it knows $x_0$")
    left.plot(levels, high, color="C3", lw=1.2)
    left.plot([0, 1023], [0, 1023], color="black", lw=0.6)
    left.set(xlabel="true t", ylabel="predicted t", xlim=(0, 1023), ylim=(0, 1023), aspect="equal")
    left.legend(loc="upper left", fontsize=8, markerscale=2)
    parts = np.array_split(np.argsort(t), min(40, len(t)))
    styles = {"border pixels": "C1:", "blank pixels": "C2--", "oracle": "C3", "network": "C0"}
    for name, estimate in estimates.items():
        error = np.abs(estimate - t)
        right.plot([t[part].mean() for part in parts], [error[part].mean() for part in parts], styles[name], lw=1.4,
                   label=f"{name}: {error.mean():.1f} over all t")
    right.set(xlabel="true t", ylabel="mean absolute error in steps", xlim=(0, 1023), ylim=(0, None))
    right.grid(alpha=0.3)
    right.legend(fontsize=8, loc="upper left")
    return figure


def wrong_levels_figure(levels, values, between):
    """PSNR over (true, assumed), and what is lost against the right level; ``between`` lie 90 % of the estimates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    lost = values.diagonal()[:, None] - values
    for axes, shown, label, options in ((left, values, "PSNR in dB", {}),
                                        (right, lost, "PSNR lost against the right level, in dB",
                                         dict(cmap="magma_r", vmin=0, vmax=10))):
        mesh = axes.pcolormesh(levels, levels, shown.T, shading="nearest", **options)
        figure.colorbar(mesh, ax=axes, label=label, extend="max" if options else "neither")
        axes.plot(levels, levels, color="white" if axes is left else "black", lw=0.6)
        axes.set(xlabel="true t", ylabel="assumed t", aspect="equal")
    # Around the diagonal the loss is a narrow parabola; its root with a sign is smooth, which contours need.
    root = np.sign(levels - levels[:, None]) * np.sqrt(lost.clip(0))
    texts = {sign * np.sqrt(loss): f"{loss} dB" for sign in (-1, 1) for loss in (0.2, 1, 3)}
    lines = right.contour(levels, levels, root.T, sorted(texts), colors="C0", linewidths=1, linestyles="solid")
    right.clabel(lines, fmt=texts, fontsize=7)
    for edge in between:
        right.plot(levels, edge, color="black", lw=1, ls="--")
    right.plot([], [], color="black", lw=1, ls="--", label="90 % of the network's estimates")
    right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
    right.legend(fontsize=8, loc="upper left")
    return figure


def evaluate(model, scheduler, test, known, out):
    """Measure the network on the test pictures, and the estimates from what is ``known``; writes levels.png.

    known: {name: (clean, mask)} as ``estimate_from_known`` takes them. Returns what goes into metrics.json, then the
    true levels and the network's.
    """
    log_snr = -2 * np.log(scheduler.sigmas)
    t = np.random.default_rng(1).permutation(np.arange(len(test)) * scheduler.num_train_timesteps // len(test))
    noisy = noisy_pictures(scheduler, test, t)  # levels spread evenly over the schedule
    baselines = {name: estimate_from_known(scheduler, noisy, *what) for name, what in known.items()}
    found, (median, b) = model.timesteps(noisy, scheduler), model.log_snr(noisy)
    off = np.abs(log_snr[t] - median) / b  # of a Laplace distribution, half is below log 2 and 90 % below log 10
    save_figure(levels_figure(t, {**{name: both[1] for name, both in baselines.items()}, "network": found}),
                out / "levels.png")
    return {**errors(scheduler, found, t),
            "inside_50_percent": float((off < np.log(2)).mean()),
            "inside_90_percent": float((off < np.log(10)).mean()),
            "baselines": {name: {"known_pixels": int(np.broadcast_to(known[name][1], test.shape[1:]).sum()),
                                 "maximum_likelihood": errors(scheduler, both[0], t),
                                 "posterior_median": errors(scheduler, both[1], t)}
                          for name, both in baselines.items()}}, t, found


def main():
    args = arguments()
    scheduler = DDPMScheduler()
    pictures, test = load_examples(args), load_examples(args, "test")
    _, channels, size, _ = test[:1][0].shape
    denoiser, sides = None, {"sample_size": size} if args.images else {}
    if args.model:
        denoiser = load_network(args.model, None, UNet, in_channels=channels, out_channels=channels, time=True, **sides)
    model = NoiseLevelNet(channels, args.channels).to(args.device)
    run = Training(model, len(pictures), settings_of(args), steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(pictures)} pictures")

    def batch(index):
        t = run.rng.integers(0, scheduler.num_train_timesteps, len(index))
        return pictures[index][0], t, -2 * np.log(scheduler.sigmas[t])

    def loss(x0, t, log_snr):
        noisy = scheduler.add_noise(x0, run.device_rng.standard_normal(x0.shape, dtype=np.float32), t)
        return laplace_nll(model(Tensor(noisy)), log_snr)

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, title="noise level")

    if args.images:
        test, known = some(test, args.test), {}
    else:
        denoiser = denoiser or pretrained("mnist-ddpm")
        test = test.images[:args.test]
        border = np.pad(np.zeros((28, 28), bool), 2, constant_values=True)
        known = {"border pixels": (-1.0, border), "blank pixels": (-1.0, (pictures.images > -1).mean(0) < BLANK)}
    with run.averaged():
        metrics, t, found = evaluate(model, scheduler, test, known | {"oracle": (test, True)}, args.out)
        if denoiser:
            denoiser.to(model.device)
            levels = np.linspace(20, 700, args.grid).round()
            values = wrong_levels(denoiser, scheduler, test[:min(args.pictures, 50)], levels)
            save_figure(wrong_levels_figure(levels, values, spread(t, found, levels)), args.out / "wrong_levels.png")
            metrics["psnr_db"], metrics["psnr_loss_db"] = psnr_loss(denoiser, scheduler, model, test[:args.pictures])
    write_metrics(args.out, {**metrics, "test_pictures": len(test), "minutes": run.seconds / 60})


if __name__ == "__main__":
    main()
