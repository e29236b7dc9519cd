"""Lesson 4. A UNet finds mitochondria

A network that says what is in a picture may forget where. One that draws outlines has to know both. This lesson builds
a UNet, takes its skips away, and watches what is lost.
"""

from course import keep, micrographs

import time

import npdiffusion as nd
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from npdiffusion import functional as F, nn
from npdiffusion.metrics import segmentation_scores
from npdiffusion.optim import Adam, warmup_cosine
from tqdm import tqdm

# 1. The task
#
# Electron micrographs of nerve tissue, and masks that tell where mitochondria are. (Serial-section TEM of a Drosophila
# larva: Gerhard et al. 2013, figshare 856713, licence CC BY-NC-SA 3.0.) The network sees a square of 4 × 4 pixels as
# one pixel of 16 channels: a mitochondrion is then 10 to 30 wide, and a small network sees all of it. The first 16
# sections train, the rest test: neighbours look alike, and a random choice would test what was learned by heart.

FOLD, SIDE, BATCH, STEPS, RATE, DEPTH = 4, 128, 2, 300, 5e-3, 5


def folded(x):  # (N, H, W) -> (N, 16, H/4, W/4): every fourth pixel, from 16 starts
    return np.stack([x[:, i::FOLD, j::FOLD] for i, j in np.ndindex(FOLD, FOLD)], 1)


train, test = micrographs()
x_train, x_test = (folded(sections.images / np.float32(128) - 1) for sections in (train, test))
y_train, y_test = (folded(sections.masks).mean(1, keepdims=True) > 0.5 for sections in (train, test))

# Mitochondria are rare. To call everything background is right nearly everywhere, and useless. So the score is the
# intersection over union of the pixels predicted, P, and labelled, L:  IoU = |P ∩ L| / |P ∪ L|, 0 if P is empty.

print(f"all background: {np.mean(~y_test):.1%} of the pixels right")

# 2. What pooling forgets
#
# To tell a mitochondrion takes context: hundreds of pixels. Pooling is the cheap way to it. After three max poolings of
# 2 × 2 a number stands for a block of 8 × 8, and a 3 × 3 convolution spans 24 pixels. The price: where in its block a
# maximum lay is gone. Eight pictures with an edge at eight places become one:

x = nd.Tensor(np.array([np.tile(np.arange(16) < place, (1, 16, 1)) for place in range(1, 9)], np.float32))
code = F.max_pool2d(F.max_pool2d(F.max_pool2d(x, 2), 2), 2).data
assert (code == code[0]).all() and not (x.data == x.data[0]).all()

# Convolutions before the pooling can save some of this in more channels. But then the code, what is left at the bottom,
# here 32 numbers for a block of 64 pixels, has to say both what is there and where it ends. A UNet (Ronneberger et al.
# 2015) keeps the pictures from before each pooling, and on the way up lays them beside the enlarged code: the code says
# what, the skips say where.


def layer(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())


class UNet(nn.Module):
    def __init__(self, skips, channels=(16, 16, 24, 32)):
        pairs, self.skips = list(zip(channels, channels[1:])), skips
        self.first, self.bottom = layer(FOLD * FOLD, channels[0]), layer(channels[-1], channels[-1])
        self.down = nn.ModuleList(layer(fine, fine) for fine, coarse in pairs)
        self.wider = nn.ModuleList(layer(fine, coarse) for fine, coarse in pairs)
        self.narrower = nn.ModuleList(layer(coarse, fine) for fine, coarse in pairs)
        self.up = nn.ModuleList(layer(2 * fine, fine) for fine, coarse in pairs)
        self.last = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x):  # (N, 16, h, w) -> logits (N, 1, h, w)
        x, kept = self.first(x), []
        for down, wider in zip(self.down, self.wider):
            kept.append(down(x))
            x = wider(F.max_pool2d(kept[-1], 2))
        x = self.bottom(x)
        for narrower, up in reversed(list(zip(self.narrower, self.up))):
            x = F.interpolate(narrower(x), scale_factor=2)
            x = up(F.cat([x, self.skips * kept.pop()], 1))  # without skips: zeros, and layers as large as with them
        return self.last(x)


# 3. Training
#
# Binary cross-entropy judges each pixel alone, and most of them are background. The soft Dice loss (Milletari et al.
# 2016, who square below) looks at all together: 1 − (2 Σ p y + 1) / (Σ p + Σ y + 1), with probabilities p and labels y.
# The loss is their sum. Both networks start from the same weights and see the same patches, by turns.

nets, adams, seconds, curves, masks, rng = {}, {}, {}, {}, {}, np.random.default_rng(0)
for name, skips in (("without skips", False), ("with skips", True)):
    nd.manual_seed(0)
    nets[name] = UNet(skips)
    adams[name], seconds[name], curves[name] = Adam(nets[name].parameters()), 0.0, []
for step in tqdm(range(STEPS)):
    corners = rng.integers(0, (len(x_train), *np.array(x_train.shape[2:]) - SIDE + 1), (BATCH, 3))
    x, y = (nd.Tensor(np.float32([part[n, :, i:i + SIDE, j:j + SIDE] for n, i, j in corners]))
            for part in (x_train, y_train))
    for name, net in nets.items():
        start = time.perf_counter()
        logits = net(x)
        p = F.sigmoid(logits)
        dice = 1 - (2 * (p * y).sum() + 1) / ((p + y).sum() + 1)
        loss = F.binary_cross_entropy_with_logits(logits, y) + dice
        net.zero_grad()
        loss.backward()
        adams[name].lr = RATE * warmup_cosine(step, STEPS, warmup_steps=20)
        adams[name].step()
        seconds[name] += time.perf_counter() - start
        if (step + 1) % 25 == 0:
            with nd.no_grad():
                masks[name] = net(nd.Tensor(x_test)).data > 0
            curves[name].append((seconds[name], segmentation_scores(masks[name], y_test)["iou"]))
ious = {name: curve[-1][1] for name, curve in curves.items()}
for name, iou in ious.items():
    print(f"{name}: IoU {iou:.3f} after {STEPS} steps in {seconds[name]:.0f} s")
assert 0.1 < ious["without skips"] < ious["with skips"] - 0.03

# 4. Where the mistakes are
#
# How far is a pixel from the edge of a label? Shrink both sides by a pixel, −max(−x) over 3 × 3, and again: what lasts
# d rounds lies d pixels deep (5: or deeper), inside for d > 0, outside for d < 0.

inside, outside, distance = np.float32(y_test), np.float32(~y_test), 0
for _ in range(DEPTH):
    distance = distance + inside - outside
    inside, outside = (-F.max_pool2d(nd.Tensor(-side), 3, stride=1, padding=1).data for side in (inside, outside))
beside = {name: (mask != y_test)[abs(distance) == 1].mean() for name, mask in masks.items()}
for name, mask in masks.items():
    near = (abs(distance) <= 2)[mask != y_test].mean()
    print(f"{name}: {beside[name]:.1%} of the pixels beside an edge wrong; {near:.0%} of all mistakes within 2 pixels")
assert beside["with skips"] < beside["without skips"]

# The figure: a test patch, its labels, and what both networks make of it, with the IoU on this patch. Without skips the
# code draws blots; with them most outlines fit better, though not all are found. Below on the left: a step costs both
# the same, but what is fine need not go through the code, and is learned sooner. On the right: pixels beside an edge
# are wrong most often, and there skips help most; deep inside, where it is context that counts, they do not.

corner, colours = np.s_[0, 0, -SIDE:, -SIDE:], ListedColormap(["#3c8ce6", "#e68c00", "#009e73", "#f0e442"])
labels, grey = y_test[corner], x_test.mean(1, keepdims=True)[corner]
panels = [("a test patch", 0 * labels), ("its labels", 4 * labels)]  # 1: too much, 2: missed, 3: found, 4: labelled
for name, mask in masks.items():
    iou = segmentation_scores(mask[corner], labels)["iou"]
    panels.append((f"{name}: IoU {iou:.2f}", mask[corner] + 2 * labels))
figure = Figure(figsize=(11, 6.5), layout="constrained")
upper, lower = figure.subfigures(2, 1, height_ratios=[1.1, 1])
for axes, (title, panel) in zip(upper.subplots(1, 4), panels):
    axes.imshow(grey, cmap="gray", vmin=-0.9, vmax=0.7)
    axes.imshow(np.ma.masked_equal(panel, 0), cmap=colours, vmin=1, vmax=4, alpha=0.6)
    axes.set(title=title, xticks=(), yticks=())
credit = "" if "synthetic" in test.names[0] else "   (sections: Gerhard et al. 2013, CC BY-NC-SA 3.0)"
upper.supxlabel(f"green: found   orange: missed   blue: too much{credit}", fontsize=10)
by_time, by_distance = lower.subplots(1, 2)
distances = [d for d in range(-DEPTH, DEPTH + 1) if d]
for (name, mask), style in zip(masks.items(), ("o-", "s-")):
    by_time.plot(*zip(*curves[name]), style, ms=4, label=name)
    by_distance.plot(distances, [100 * (mask != y_test)[distance == d].mean() for d in distances], style, ms=4)
by_time.set(xlabel="seconds of training", ylabel="IoU on the test sections", xlim=(0, None), ylim=(0, 1))
by_time.legend(loc="lower right", frameon=False)
by_distance.axvline(0, color="k", lw=0.8)
by_distance.set(xlabel="outside  ←  pixels from the edge of a label  →  inside", ylabel="wrong in %", ylim=(0, None),
                xticks=distances, xticklabels=["≥ 5", 4, 3, 2, 1, 1, 2, 3, 4, "≥ 5"])
keep(figure, __file__)

# Try: channels=(16, 32, 64, 128), a code with room for places: does the network without skips use it? Two poolings,
# channels=(16, 16, 24), and STEPS = 1000 (minutes; without the assertion on ious): are skips still worth it? What does
# a code for each 4 × 4 pixels forget? (examples/segment_mitochondria.py trains to an IoU of 0.88, in minutes.) Then
# exercises/04_unet.py.
