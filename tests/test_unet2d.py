"""diffusers' UNet2DModel in NumPy: against diffusers where it is installed, and everywhere against a file made with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from npdiffusion import Tensor, no_grad
from npdiffusion.models import UNet2DModel

GOLDEN = Path(__file__).parent / "golden" / "unet2d"
FAST, ALL = 6, 48  # drawn configurations


def draw_config(seed):
    """A configuration of every kind that is supported, with what its network is to be given: (config, x, t, labels)."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    levels, groups = int(rng.integers(1, 5)), pick(2, 4)
    channels = [int(c) for c in 8 * rng.integers(1, 4, levels)]
    downs = [pick("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D") for _ in channels]
    ups = [pick("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D") for _ in channels]
    config = dict(sample_size=pick(None, 16, [16, 24]), in_channels=pick(1, 2, 3), out_channels=pick(1, 3, 6),
                  center_input_sample=pick(True, False), time_embedding_dim=pick(None, 20), freq_shift=pick(0, 1, 0.5),
                  flip_sin_to_cos=pick(True, False), down_block_types=downs, up_block_types=ups,
                  mid_block_type=pick("UNetMidBlock2D", "UNetMidBlock2D", None), block_out_channels=channels,
                  layers_per_block=pick(1, 2, 3), mid_block_scale_factor=pick(1, 2**0.5), downsample_padding=pick(0, 1),
                  downsample_type=pick("conv", "resnet"), upsample_type=pick("conv", "resnet"), dropout=pick(0.0, 0.1),
                  act_fn=pick("silu", "swish"), attention_head_dim=pick("absent", None, 4), norm_num_groups=groups,
                  attn_norm_num_groups=pick(None, None, 8), norm_eps=pick(1e-5, 1e-6, 1e-2),
                  resnet_time_scale_shift=pick("default", "scale_shift"), add_attention=pick(True, True, False))
    if config["attention_head_dim"] == "absent":
        del config["attention_head_dim"]
    n, side = int(rng.integers(1, 4)), 2 ** (levels - 1)
    x = rng.standard_normal((n, config["in_channels"], side * int(rng.integers(2, 5)), side * int(rng.integers(2, 5))),
                            dtype=np.float32)
    t = pick(rng.integers(0, 1000, n), rng.uniform(0, 1000, n).astype(np.float32), int(rng.integers(1000)))
    kind = pick("none", "none", "classes", "timestep", "identity")
    labels = None
    if kind == "classes":
        config["num_class_embeds"] = 5
        labels = rng.integers(0, 5, n)
    elif kind != "none":
        config["class_embed_type"] = kind
        width = config["time_embedding_dim"] or 4 * channels[0]
        labels = rng.uniform(0, 9, n) if kind == "timestep" else rng.standard_normal((n, width))
        labels = labels.astype(np.float32)
    return config, x, t, labels


def diffusers_network(config, seed):
    """Their network, with weights drawn large enough for every part of it to matter."""
    torch = pytest.importorskip("torch", reason="the comparison with diffusers needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    torch.manual_seed(seed)
    theirs = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return theirs


def their_output(theirs, x, t, labels):
    import torch
    t, labels = (torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (t, labels))
    return theirs(torch.from_numpy(x), t, labels).sample


def assert_close(actual, expected, tolerance=1e-4):
    """Equal to 1e-4 of the largest number."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def compare(seed, directory):
    config, x, t, labels = draw_config(seed)
    theirs = diffusers_network(config, seed)
    theirs.save_pretrained(directory)
    if "attention_head_dim" not in config:
        rewrite(directory / "config.json", attention_head_dim=REMOVED)
    ours = UNet2DModel.from_pretrained(directory)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    with no_grad():
        actual = ours(Tensor(x), t, labels).data
        expected = their_output(theirs, x, t, labels).detach().numpy()
    assert_close(actual, expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()


REMOVED = object()


def rewrite(path, **changes):
    """Change keys of a JSON file."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not REMOVED}))


@pytest.mark.parametrize("seed", [*range(FAST), *(pytest.param(i, marks=pytest.mark.slow) for i in range(FAST, ALL))])
def test_drawn_networks_are_diffusers(seed, tmp_path):
    compare(seed, tmp_path)
