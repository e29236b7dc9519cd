"""Makes tests/golden/unet2d, with torch 2.13 and diffusers 0.42.1: a small random network in the manner of
google/ddpm-cifar10-32, as diffusers writes it, and what diffusers makes of an input.

    python tests/golden/make_unet2d.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "unet2d"

torch.manual_seed(0)
network = UNet2DModel(
    sample_size=[8, 12], block_out_channels=[4, 8, 8], layers_per_block=1, norm_num_groups=2, norm_eps=1e-6,
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"], attention_head_dim=None,
    up_block_types=["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], downsample_padding=0, flip_sin_to_cos=False,
    freq_shift=1)
with torch.no_grad():
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([7.5, 990.0])
    y = network.eval()(x, t).sample
network.save_pretrained(HERE)
DDPMScheduler(variance_type="fixed_large").save_pretrained(HERE)
save_file({name: np.ascontiguousarray(a.numpy()) for name, a in (("x", x), ("t", t), ("y", y))},
          HERE / "call.safetensors")
