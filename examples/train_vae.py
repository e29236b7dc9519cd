"""Train a variational autoencoder on digits, and see why it cannot denoise.

    python examples/train_vae.py                            # minutes on 2 cores, into runs/vae
    python examples/train_vae.py --resume
    python examples/train_vae.py --latent 2 --out runs/vae2
    python examples/train_vae.py --latent 128 --beta 0.02 --out runs/vae128
    python examples/train_vae.py --preset smoke --data synthetic

The loss is −log p(x | z) + β·KL(q(z | x) ‖ N(0, I)) with Bernoulli pixels (Kingma & Welling 2014, eq. 10), of all
32×32 pixels. What is reported (−ELBO with β = 1 whatever --beta is, in nats; MSE in units of the range from black to
white; PSNR) is of the 28×28 pixels that MNIST has: the blank border costs nothing worth counting, but is not counted.
Beside it stands PCA with as many components as the code has numbers. A smaller β makes a longer code pay: with
β = 0.02 all of 128 numbers are used, and the reconstruction is closer, but −ELBO is much worse.

Why it cannot denoise: what a code can say is a blurred picture even without noise, and the encoder knows clean digits
only, so noise moves the code, and the decoder draws, sharp as ever, the digit that lives there.

Written to --out: metrics.json, rows.png (originals, reconstructions, the same of noisy pictures), latent.png (what the
codes mean), against_ddpm.png (the VAE and the package's diffusion model as the noise grows), model.safetensors,
checkpoint.safetensors, log.csv and loss.png.
"""

from command_line import above_0, at_least_0, integer, parse, parser_for, settings_of, write_metrics

import math
from statistics import NormalDist

import numpy as np
from train_classifier import in_batches, predictions

from npdiffusion import Tensor
from npdiffusion.data import load_digits
from npdiffusion.diffusion import DDPMScheduler, denoise
from npdiffusion.distributed import Generator
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr
from npdiffusion.models import VAE, bernoulli_nll, gaussian_kl, pretrained, vae_loss
from npdiffusion.training import Training

PRESETS = {"smoke": dict(steps=20, batch_size=32, channels=[8, 16], test=100, noisy=20),
           "cpu": dict(steps=8000, batch_size=128, channels=[32, 64], test=10000, noisy=1000),
           "long": dict(steps=30000, batch_size=128, channels=[32, 64], test=10000, noisy=1000)}
INSIDE = np.s_[..., 2:30, 2:30]  # MNIST's own pixels
LEVELS = (0, 25, 50, 100, 150, 200, 300, 400, 500, 600)  # t of the noise


def arguments():
    parser = parser_for(__doc__, "vae")
    parser.add_argument("--latent", type=integer(1), default=20, help="size of the code")
    parser.add_argument("--beta", type=at_least_0, default=1.0, help="weight of the KL divergence")
    parser.add_argument("--lr", type=above_0, default=2e-3)
    parser.add_argument("--test", type=integer(8), help="number of test digits")
    parser.add_argument("--noisy", type=integer(8), help="number of test digits that are made noisy")
    return parse(parser, PRESETS)


def bound(model, images, samples=4, seed=0):
    """−log p(x | z) and KL of each of the images (N, 2), in nats, of the 28×28 pixels, the mean over some z."""
    rng = Generator(np.random.default_rng(seed))

    def parts(images):
        x = Tensor(images, device=model.device)
        mean, logvar = model.encode(x)
        logits = (model.decode(model.reparameterise(mean, logvar, rng)) for _ in range(samples))
        nll = sum(bernoulli_nll(y[INSIDE], x[INSIDE]) for y in logits) / samples
        return np.stack([nll.cpu().data, gaussian_kl(mean, logvar).cpu().data], 1)

    return in_batches(parts, images)


def pca(train, images, components):
    """``images`` after the best linear code of that size, the principal components of ``train``; clipped to [−1, 1]."""
    mean = train.mean(0, dtype=np.float64).astype(np.float32)
    flat = (train - mean).reshape(len(train), -1)
    basis = np.linalg.eigh(flat.T @ flat)[1][:, -components:]  # the largest eigenvalues are the last
    return (mean + ((images - mean).reshape(len(images), -1) @ basis @ basis.T).reshape(images.shape)).clip(-1, 1)


def against_ddpm(model, images, labels, seed=0):
    """Both models at all LEVELS.

    The VAE gets the noisy pictures on their own scale, x_t/√ᾱ_t, clipped to their range or not, whichever comes out
    better at that level (clipping helps up to about t = 150); the diffusion model gets x_t and t. Returns
    {name: {"pictures": (levels, N, …), "psnr", "accuracy": lists}}.
    """
    scheduler = DDPMScheduler()
    ddpm, judge = (pretrained(name).to(model.device) for name in ("mnist-ddpm", "mnist-classifier"))
    rng = np.random.default_rng(seed)
    found = {name: {"pictures": [], "psnr": [], "accuracy": []} for name in ("noisy", "VAE", "DDPM, one-shot")}
    for t in LEVELS:
        noisy = scheduler.add_noise(images, rng.standard_normal(images.shape, dtype=np.float32), t)
        seen = noisy / math.sqrt(scheduler.alphas_cumprod[t])
        clipped = seen.clip(-1, 1)
        vae = max((in_batches(model.reconstruct, x) for x in (seen, clipped)), key=lambda x: psnr(x, images).mean())
        results = clipped, vae, in_batches(lambda x: denoise(ddpm, scheduler, x, t), noisy)
        for of, pictures in zip(found.values(), results):
            of["pictures"].append(pictures)
            of["psnr"].append(float(psnr(pictures, images).mean()))
            of["accuracy"].append(float((predictions(judge, pictures) == labels).mean()))
    return found


def rows_figure(model, images, found, shown=4, levels=(50, 200, 400)):
    """Originals, their reconstructions, noisy, and the reconstructions of those."""
    chosen = [np.arange(i * shown, (i + 1) * shown) % len(images) for i in range(len(levels))]
    originals = np.concatenate([images[i] for i in chosen])
    noisy, after = (np.concatenate([found[name]["pictures"][LEVELS.index(t)][i] for t, i in zip(levels, chosen)])
                    for name in ("noisy", "VAE"))
    rows = [originals, model.reconstruct(originals), noisy, after]
    labels = ["original", "its reconstruction", "noisy", "its reconstruction"]
    return picture_rows(rows, labels, [f"t = {t}" for t in levels], group=shown)


def ddpm_figure(found, labels):
    """PSNR and accuracy against the noise, and one digit after both models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.35, 1])
    left, right = top.subplots(1, 2)
    for axes, key, label in ((left, "psnr", "PSNR / dB"), (right, "accuracy", "digits recognised")):
        for (name, of), style in zip(found.items(), ("k:", "C3o-", "C0s-")):
            axes.plot(LEVELS, of[key], style, label=name, ms=4)
        axes.set(xlabel="noise level t", ylabel=label)
        axes.grid(alpha=0.3)
    left.legend()
    right.set_ylim(0, 1.03)
    columns, eight = [LEVELS.index(t) for t in (0, 50, 100, 200, 300, 400, 500, 600)], int(np.argmax(labels == 8))
    sheet = np.block([[of["pictures"][k][eight, 0] for k in columns] for of in found.values()])
    axes = bottom.subplots()
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    side = len(sheet) // len(found)
    axes.set_xticks(side * (np.arange(len(columns)) + 0.5), [f"t = {LEVELS[k]}" for k in columns])
    axes.set_yticks(side * (np.arange(len(found)) + 0.5), found)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def manifold_figure(model, codes, labels, count=22):
    """The pictures of a grid of codes at the quantiles of N(0, I), and where the codes (N, 2) of test digits lie."""
    from matplotlib.figure import Figure

    normal = NormalDist()
    z = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    grid = np.array([(a, b) for b in z[::-1] for a in z], np.float32)
    sheet = model.pictures(grid)[INSIDE].reshape(count, count, 28, 28).transpose(0, 2, 1, 3).reshape(28 * count, -1)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(sheet, cmap="gray", vmin=-1, vmax=1, extent=(0, 1, 0, 1))
    left.set_title("what the codes decode to")
    x, y = np.vectorize(normal.cdf)(codes.T)
    for digit in range(10):
        right.scatter(x[labels == digit], y[labels == digit], s=2, color=f"C{digit}", label=str(digit))
    right.set(title="where the test digits lie", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.legend(markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axes in (left, right):
        axes.set(xlabel="Φ(z₁)", ylabel="Φ(z₂)", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    return figure


def travel_figure(model, codes, columns=12, rows=4, seed=0):
    """Pictures of random codes, and on the straight way between the codes of two test digits."""
    rng = np.random.default_rng(seed)
    prior = rng.standard_normal((rows, columns, codes.shape[1]), dtype=np.float32)
    ways = np.linspace(codes[:rows], codes[rows:2 * rows], columns, axis=1)
    pictures = [model.pictures(z) for z in (*prior, *ways)]
    return picture_rows(pictures, [text if i == 0 else "" for text in ("z ~ N(0, I)", "digit to digit")
                                   for i in range(rows)])


def main():
    args = arguments()
    model = VAE(args.latent, args.channels).to(args.device)
    digits, (images, labels) = load_digits(args.data, "train"), load_digits(args.data, "test")[:args.test]
    run = Training(model, len(digits), settings_of(args), steps=args.steps, batch_size=args.batch_size, lr=args.lr,
                   weight_decay=0.01)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(digits)} digits")

    def batch(index):
        return [digits.images[index]]

    def loss(x):
        x = Tensor(x)
        logits, mean, logvar = model(x, run.device_rng)
        return vae_loss(logits, x, mean, logvar, args.beta)

    def report(run):
        run.history.append({"step": run.step, "neg_elbo_nats": float(bound(model, images[:1000], 1).sum(1).mean())})

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, report=report, title="VAE")
    with run.averaged():
        nll, kl = bound(model, images).mean(0, dtype=np.float64)
        codes = in_batches(lambda x: model.encode(Tensor(x, device=args.device))[0].cpu().data, images)
        ours = in_batches(model.pictures, codes)
        theirs = pca(digits.images[INSIDE], images[INSIDE], args.latent)
        found = against_ddpm(model, images[:args.noisy], labels[:args.noisy])
        save_figure(rows_figure(model, images, found), args.out / "rows.png")
        save_figure(ddpm_figure(found, labels[:args.noisy]), args.out / "against_ddpm.png")
        save_figure(manifold_figure(model, codes, labels) if args.latent == 2 else travel_figure(model, codes),
                    args.out / "latent.png")
    errors = {name: (np.square(x - images[INSIDE], dtype=np.float64).mean() / 4, psnr(x, images[INSIDE]).mean())
              for name, x in (("", ours[INSIDE]), ("pca_", theirs))}
    write_metrics(args.out, {
        "latent": args.latent, "beta": args.beta, "neg_elbo_nats": float(nll + kl), "nll_nats": float(nll),
        "kl_nats": float(kl), "active_numbers": int((codes.var(0) > 0.01).sum()),
        **{f"{name}mse_28": float(mse) for name, (mse, _) in errors.items()},
        **{f"{name}psnr_28": float(db) for name, (_, db) in errors.items()},
        "against_ddpm": {"t": LEVELS, **{name: {key: of[key] for key in ("psnr", "accuracy")}
                                         for name, of in found.items()}},
        "test_digits": len(images), "minutes": run.seconds / 60, "history": run.history})


if __name__ == "__main__":
    main()
