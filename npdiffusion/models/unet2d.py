"""The UNet of the public DDPM checkpoints, as Hugging Face's diffusers builds, names and stores it."""

import shlex
from functools import partial

from .. import functional as F, nn
from ..checkpoint import load_file
from ..config import IGNORED, check_config, find_file, read_config
from ..device import array_module
from ..tensor import Tensor
from .blocks import NormSiLU, check_shape, check_sides, per_sample, self_attention
from .unet import timestep_embedding

DOWN = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UNetResDownBlock2D", "UNetResAttnDownBlock2D"
UP = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "UNetResUpBlock2D", "UNetResAttnUpBlock2D"
EMA = "decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup".split()  # an average's
CONFIG = {  # key: (diffusers' default, what is supported), see config.py
    "sample_size": (None, (None, int, [int])), "in_channels": (3, int), "out_channels": (3, int),
    "block_out_channels": ((224, 448, 672, 896), [int]), "layers_per_block": (2, int),
    "down_block_types": (("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), [DOWN]),
    "up_block_types": (("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), [UP]),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"), "mid_block_scale_factor": (1, (1, 1.0)),
    "downsample_type": ("conv", ("conv", "resnet")), "upsample_type": ("conv", ("conv", "resnet")),
    "downsample_padding": (1, (0, 1)), "resnet_time_scale_shift": ("default", ("default", "scale_shift")),
    "norm_num_groups": (32, int), "norm_eps": (1e-5, float), "act_fn": ("silu", ("silu", "swish")),
    "add_attention": (True, bool), "attention_head_dim": (8, (int, None)), "attn_norm_num_groups": (None, (int, None)),
    "time_embedding_type": ("positional", "positional"), "time_embedding_dim": (None, (int, None)),
    "freq_shift": (0, float), "flip_sin_to_cos": (True, bool), "num_class_embeds": (None, (int, None)),
    "class_embed_type": (None, (None, "timestep", "identity")), "center_input_sample": (False, False),
    "dropout": (0.0, float), **dict.fromkeys(["num_train_timesteps", *EMA], IGNORED)}

halve, double = partial(F.avg_pool2d, kernel_size=2), partial(F.interpolate, scale_factor=2)  # mean, nearest neighbour


class TimestepEmbedding(nn.Module):
    """linear_2(silu(linear_1(sinusoids))): (N, in_channels) -> (N, width)."""

    def __init__(self, in_channels, width):
        self.linear_1, self.linear_2 = nn.Linear(in_channels, width), nn.Linear(width, width)

    def forward(self, sinusoids):
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class ResnetBlock2D(nn.Module):
    """x + conv2(silu(norm2(h))), where h = conv1(silu(norm1(x))) is told of time and class by e, linear in their
    embedding: norm2(h + e) (Ho et al. 2020), or norm2(h)·(1 + e_1) + e_2 (Dhariwal & Nichol 2021, eq. 3).

    resample: None, or ``halve`` or ``double``, which x and silu(norm1(x)) go through (BigGAN's blocks: there, sec. 3).
    """

    def __init__(self, in_channels, out_channels, width, groups, eps, scale_shift, dropout, resample=None):
        self.norm1, self.norm2 = NormSiLU(groups, in_channels, eps), NormSiLU(groups, out_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, 2 * out_channels if scale_shift else out_channels)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.dropout, self.resample, self.scale_shift = nn.Dropout(dropout), resample, scale_shift

    def forward(self, x, embedding):
        e = self.time_emb_proj(embedding)  # [n, c] or [n, 2c]
        h = self.norm1(x)
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        h = self.norm2(h, e) if self.scale_shift else self.norm2(h + e[:, :, None, None])
        return self.conv_shortcut(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """x + to_out(attention(to_q, to_k, to_v of norm(x))) among all pixels; groups=None: without norm."""

    def __init__(self, channels, head_dim, groups, eps):
        self.head_dim = head_dim or channels
        if channels % self.head_dim:
            raise ValueError(f"UNet2DModel: attention_head_dim is {head_dim}, which doesn't divide {channels} channels")
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        return x + self_attention(self.group_norm(x), self.to_q, self.to_k, self.to_v, self.to_out[0], self.head_dim)


class Downsample2D(nn.Module):
    """Convolution 3×3, stride 2. padding=0: of x with a row of zeros below and a column at the right (Ho et al.)."""

    def __init__(self, channels, padding):
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x, embedding):
        if self.conv.padding == 0:
            x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)  # memory stays channels-last
        return self.conv(x)


class Upsample2D(nn.Module):
    """Convolution 3×3 of x at twice the size. (The embedding is for the residual block that may stand here.)"""

    def __init__(self, channels):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embedding):
        return self.conv(double(x))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or Identity, and at most one way to the next."""

    def __init__(self, resnets, attentions):
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()


class UNet2DModel(nn.Module):
    """diffusers' UNet2DModel (Ho et al. 2020, app. B; Dhariwal & Nichol 2021, sec. 3). Unlike in ``UNet``, convolutions
    change the resolution, and what every block returns is a skip.

    Args, all by name; ``CONFIG`` lists them with diffusers' defaults and what is supported. The main ones:
        block_out_channels: for each level, from full size down by halves; multiples of norm_num_groups.
        down_block_types, up_block_types: for each level on the way down, and on the way up from the smallest. "Attn…"
            has attention after every residual block, "Resnet…" residual blocks that change the resolution.
        layers_per_block: residual blocks of a level on the way down; on the way up there is one more.
        attention_head_dim: channels of one head; None for one head of all.
        num_class_embeds: K, for labels 0 … K − 1; or class_embed_type, "timestep" for labels that are numbers, embedded
            as t is, "identity" for labels (N, time_embedding_dim) that are an embedding.

    Called as ``unet(x, t, labels)`` with x a Tensor (N, in_channels, H, W), H and W multiples of 2^(levels − 1), t
    numbers (N,) or one number, whole or not, and labels if the network has classes; returns a Tensor
    (N, out_channels, H, W). ``config`` holds the arguments: UNet2DModel(**config) builds the same network.

    Raises ValueError for arguments that are unknown, not supported, or do not go together.
    """

    def __init__(self, **config):
        self.config = config = check_config("UNet2DModel", config, CONFIG)
        channels, layers, groups = (config[k] for k in ("block_out_channels", "layers_per_block", "norm_num_groups"))
        _check_values(config, channels)
        width, class_embed = config["time_embedding_dim"] or 4 * channels[0], config["class_embed_type"]
        scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
        resnet = partial(ResnetBlock2D, width=width, groups=groups, eps=config["norm_eps"], scale_shift=scale_shift,
                         dropout=config["dropout"])
        attention = partial(Attention, head_dim=config["attention_head_dim"], groups=groups, eps=config["norm_eps"])

        def level(kind, inputs, c):
            return Level([resnet(i, c) for i in inputs],
                         [attention(c) if "Attn" in kind else nn.Identity() for _ in inputs])

        def resampler(kind, by, c, resample, convolution):
            by_resnet = "Resnet" in kind or ("Attn" in kind and by == "resnet")
            return resnet(c, c, resample=resample) if by_resnet else convolution(c)

        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], width)
        self.num_classes = None if class_embed else config["num_class_embeds"]
        self.labels_required = bool(class_embed or self.num_classes)
        if self.num_classes:
            self.class_embedding = nn.Embedding(self.num_classes, width)
        elif class_embed == "timestep":
            self.class_embedding = TimestepEmbedding(channels[0], width)
        self.down_blocks = nn.ModuleList()
        h, skips, last = channels[0], [channels[0]], len(channels) - 1  # channels of h and of the skips
        convolution = partial(Downsample2D, padding=config["downsample_padding"])
        for i, (kind, c) in enumerate(zip(config["down_block_types"], channels)):
            self.down_blocks.append(down := level(kind, [h] + [c] * (layers - 1), c))
            if i < last:
                down.downsamplers.append(resampler(kind, config["downsample_type"], c, halve, convolution))
            skips += [c] * (layers + len(down.downsamplers))
            h = c
        norm = config["attn_norm_num_groups"] or (None if scale_shift else groups)
        between = attention(h, groups=norm) if config["add_attention"] else nn.Identity()
        self.mid_block, self.up_blocks = Level([resnet(h, h) for _ in range(2)], [between]), nn.ModuleList()
        for i, (kind, c) in enumerate(zip(config["up_block_types"], channels[::-1])):
            self.up_blocks.append(up := level(kind, [(c if j else h) + skips.pop() for j in range(layers + 1)], c))
            if i < last:
                up.upsamplers.append(resampler(kind, config["upsample_type"], c, double, Upsample2D))
            h = c
        self.conv_norm_out = NormSiLU(groups, channels[0], config["norm_eps"])
        self.conv_out = nn.Conv2d(channels[0], config["out_channels"], 3, padding=1)

    @classmethod
    def from_pretrained(cls, directory):
        """The network in a directory that diffusers wrote, or in its ``unet``, in evaluation mode: config.json and
        diffusion_pytorch_model.safetensors.

        Raises FileNotFoundError for what is not there, ValueError for what is damaged or not supported.
        """
        path = find_file(directory, "unet", "config.json")
        weights = path.with_name("diffusion_pytorch_model.safetensors")
        pickled = weights.with_suffix(".bin")
        if not weights.is_file() and pickled.is_file():
            raise ValueError(f"{pickled} is a pickle, which may run anything: it is not read; convert it with PyTorch: "
                             'python -c "import sys, torch, safetensors.torch as s; a, b = sys.argv[1:]; s.save_file('
                             '{k: v.clone().contiguous() for k, v in torch.load(a, weights_only=True).items()}, b)" '
                             f"{shlex.quote(str(pickled))} {shlex.quote(str(weights))}")
        if not weights.is_file():
            others = ", ".join(sorted(p.name for p in path.parent.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(f"no weights at {weights}, in one file under that name; there are: {others}")
        _, config = read_config(path, {"UNet2DModel": CONFIG})
        state = _renamed(load_file(weights)[0])
        if "mid_block.attentions.0.group_norm.weight" in state:  # the file decides: versions differ for scale_shift
            config["attn_norm_num_groups"] = config["attn_norm_num_groups"] or config["norm_num_groups"]
        try:
            model = cls(**config)
            model.load_state_dict(state)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} and the weights beside it make no network: {error.args[0]}") from error
        return model.eval()

    def forward(self, x, t, labels=None):
        check_shape("UNet2DModel", x, self.config["in_channels"], "H", "W")
        check_sides("UNet2DModel", x, len(self.down_blocks) - 1)
        embedding = F.silu(self._embedding(x.data, t, labels))  # [n, width]
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):
                h = attention(resnet(h, embedding))
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h, embedding)
                skips.append(h)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attentions[0](first(h, embedding)), embedding)
        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):
                h = attention(resnet(F.cat([h, skips.pop()], 1), embedding))
            for upsample in level.upsamplers:
                h = upsample(h, embedding)
        return self.conv_out(self.conv_norm_out(h))

    def _embedding(self, x, t, labels):
        """Of time, plus of class: (N, width)."""
        if (labels is not None) != self.labels_required:
            raise ValueError("this UNet2DModel {} labels: it has num_class_embeds {num_class_embeds}, class_embed_type "
                             "{class_embed_type}".format("needs" if labels is None else "takes no", **self.config))
        embedding = self.time_embedding(self._sinusoids("t", t, x))
        if labels is None:
            return embedding
        if self.num_classes:
            return embedding + self.class_embedding(per_sample("UNet2DModel", "labels", labels, x))
        if self.config["class_embed_type"] == "timestep":
            return embedding + self.class_embedding(self._sinusoids("labels", labels, x))
        labels = per_sample("UNet2DModel", "labels", labels, x, embedding.shape[1])
        return embedding + Tensor(labels.astype(x.dtype, copy=False))

    def _sinusoids(self, name, t, x):
        """cos(t·ω_i) and sin(t·ω_i), or the sines first, with ω_i = 10000^(−i/(d/2 − freq_shift)), i < d/2: (N, d),
        where d is the first level's channels."""
        d, shift = self.config["block_out_channels"][0], self.config["freq_shift"]
        period = 10000 ** (d / 2 / (d / 2 - shift))
        y = timestep_embedding(per_sample("UNet2DModel", name, t, x), d, period, x.dtype)
        if not self.config["flip_sin_to_cos"]:
            y = array_module(x).concatenate([y[:, d // 2:], y[:, :d // 2]], 1)
        return Tensor(y)


def _check_values(config, channels):
    """ValueError, which names the key, unless the sizes go together and the numbers lie in their range."""
    for key in ("down_block_types", "up_block_types"):
        if not 0 < len(channels) == len(config[key]):
            raise ValueError(f"UNet2DModel: {key} is for {len(config[key])} levels, "
                             f"block_out_channels for {len(channels)}")
    for key, multiples in (("norm_num_groups", channels), ("attn_norm_num_groups", channels[-1:])):
        if any(c % (config[key] or 1) for c in multiples):
            raise ValueError(f"UNet2DModel: {key} is {config[key]}, which does not divide block_out_channels "
                             f"{', '.join(map(str, multiples))}")
    if channels[0] % 2 or config["freq_shift"] >= channels[0] / 2:
        raise ValueError(f"UNet2DModel: block_out_channels must begin with an even number, and freq_shift be less than "
                         f"half of it; got {channels[0]} and {config['freq_shift']}")
    if not 0 <= config["dropout"] <= 1 or config["norm_eps"] < 0:
        raise ValueError("UNet2DModel: dropout must be from 0 to 1, and norm_eps at least 0; "
                         f"got {config['dropout']} and {config['norm_eps']}")


def _renamed(state):
    """Weights under diffusers' names of today; attention had others, and 1×1 convolutions for linear maps."""
    renamed = {}
    for name, array in state.items():
        today = name.replace(".Conv2d_0.", ".conv.")
        if today != name and today in state:  # some files have both
            continue
        parts = today.split(".")
        if "attentions" in parts[:-2]:
            old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.17
            parts[-2] = old.get(parts[-2], parts[-2])
            array = array.reshape(array.shape[:2]) if array.shape[2:] == (1, 1) else array
        renamed[".".join(parts)] = array
    return renamed
