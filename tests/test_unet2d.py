"""diffusers' UNet2DModel in NumPy: against diffusers where it is installed, and against a file made with it."""

import functools
import inspect
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion import Tensor, captured, no_grad, to_device
from npdiffusion.checkpoint import load_file, save_file
from npdiffusion.config import IGNORED
from npdiffusion.data import load_square
from npdiffusion.diffusion import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate,
                                   scheduler_from_pretrained)
from npdiffusion.diffusion.pretrained import SCHEDULERS
from npdiffusion.models import UNet2DModel, load_model, save_model
from npdiffusion.models.unet2d import CONFIG

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "unet2d"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FAST, ALL, GRADIENTS = 6, 48, (1, 2, 3)  # drawn configurations
REMOVED = object()


def rewrite(path, **changes):
    """Change keys of a JSON file."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not REMOVED}))


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
                  time_embedding_dim=pick(None, 20), freq_shift=pick(0, 1, 0.5),
                  flip_sin_to_cos=pick(True, False), down_block_types=downs, up_block_types=ups,
                  block_out_channels=channels, layers_per_block=pick(1, 2, 3), downsample_padding=pick(0, 1),
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


def diffusers_network(config, seed, spread=0.1):
    """Their network, with weights drawn large enough for every part of it to matter."""
    torch = pytest.importorskip("torch", reason="the comparison with diffusers needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    torch.manual_seed(seed)
    theirs = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(spread * torch.randn(p.shape))
    return theirs


def their_output(theirs, x, t, labels):
    import torch
    return theirs(*(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (x, t, labels))).sample


def assert_close(actual, expected, tolerance=1e-4):
    """Equal to 1e-4 of the largest number."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("seed", [*range(FAST), *(pytest.param(i, marks=pytest.mark.slow) for i in range(FAST, ALL))])
def test_drawn_networks_are_diffusers(seed, tmp_path):
    config, x, t, labels = draw_config(seed)
    theirs = diffusers_network(config, seed)
    theirs.save_pretrained(tmp_path)
    if "attention_head_dim" not in config:
        rewrite(tmp_path / "config.json", attention_head_dim=REMOVED)
    ours = UNet2DModel.from_pretrained(tmp_path)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    with no_grad():
        assert_close(ours(Tensor(x), t, labels).data, their_output(theirs, x, t, labels).detach().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("seed", GRADIENTS)
def test_gradients_are_pytorch_s(seed, tmp_path):
    """Of <y, v> with respect to the input and to all weights."""
    config, x, t, labels = draw_config(seed)
    theirs = diffusers_network(config, seed)
    theirs.save_pretrained(tmp_path)
    ours, input = UNet2DModel.from_pretrained(tmp_path), Tensor(x, requires_grad=True)
    y = ours(input, t, labels)
    v = np.random.default_rng(seed).standard_normal(y.shape, dtype=np.float32)
    (y * Tensor(v)).sum().backward()

    import torch
    their_input = torch.from_numpy(x).requires_grad_()
    (their_output(theirs, their_input, t, labels) * torch.from_numpy(v)).sum().backward()
    actual = {name: p.grad.data for name, p in ours.named_parameters()} | {"x": input.grad.data}
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()} | {"x": their_input.grad.numpy()}
    assert set(actual) == set(expected)
    largest = max(np.abs(g).max() for g in expected.values())
    for name, g in expected.items():
        size = max(np.abs(g).max(), 1e-2 * largest)  # that of a key's bias is 0
        np.testing.assert_allclose(actual[name], g, rtol=0, atol=1e-4 * size, err_msg=name)


# Whole sampling loops

RELATIVES = {  # of public checkpoints: their configuration, smaller
    "cifar10-32": (dict(sample_size=16, block_out_channels=[16, 32, 32, 32], norm_num_groups=8, norm_eps=1e-6,
                        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
                        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], freq_shift=1,
                        attention_head_dim=None, flip_sin_to_cos=False, downsample_padding=0),
                   "DDPMScheduler", dict(variance_type="fixed_large"), 50),
    "celebahq-256": (dict(sample_size=32, block_out_channels=[8, 8, 16, 16, 32, 32], norm_num_groups=4, norm_eps=1e-6,
                          down_block_types=4 * ["DownBlock2D"] + ["AttnDownBlock2D", "DownBlock2D"],
                          up_block_types=["UpBlock2D", "AttnUpBlock2D"] + 4 * ["UpBlock2D"], freq_shift=1,
                          attention_head_dim=None, flip_sin_to_cos=False, downsample_padding=0),
                     "DDPMScheduler", {}, 20),
    "sd-class-butterflies-32": (dict(sample_size=16, block_out_channels=[8, 16, 16, 32], norm_num_groups=8,
                                     down_block_types=2 * ["DownBlock2D"] + 2 * ["AttnDownBlock2D"],
                                     up_block_types=2 * ["AttnUpBlock2D"] + 2 * ["UpBlock2D"]),
                                "DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2"), 50),
    "MNIST-diffusion": (dict(sample_size=28, in_channels=1, out_channels=1, block_out_channels=[8, 16, 16],
                             norm_num_groups=8, down_block_types=["DownBlock2D"] + 2 * ["AttnDownBlock2D"],
                             up_block_types=2 * ["AttnUpBlock2D"] + ["UpBlock2D"]),
                        "DDPMScheduler", dict(timestep_spacing="trailing"), 25),
    "Dhariwal & Nichol": (dict(sample_size=[16, 24], block_out_channels=[8, 16], norm_num_groups=4,
                               resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet",
                               down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"], layers_per_block=3,
                               up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"]),
                          "DDIMScheduler", dict(prediction_type="v_prediction", clip_sample_range=2.0), 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_whole_loops_are_the_pipelines(name, tmp_path, monkeypatch):
    """DDPMPipeline from start to end, with the same noise; its tables in float64, as in test_schedulers.py.

    DDIM's network predicts v: with one for ε, moving the start by 1e-6 moves diffusers' own pictures by up to 0.04.
    """
    config, kind, options, steps = RELATIVES[name]
    network = diffusers_network(config, 0, spread=0.02)
    import diffusers
    import torch
    from diffusers.pipelines.ddpm import pipeline_ddpm
    from diffusers.schedulers import scheduling_ddpm
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**options))
    pipeline.scheduler = getattr(diffusers, kind)(**options)
    pipeline.save_pretrained(tmp_path)
    ours, scheduler = UNet2DModel.from_pretrained(tmp_path), scheduler_from_pretrained(tmp_path)
    assert type(scheduler).__name__ == kind and scheduler.num_train_timesteps == 1000

    drawn, rng = [], np.random.default_rng(0)

    def noise(shape, *args, **kwargs):
        drawn.append(rng.standard_normal(tuple(shape), dtype=np.float32))
        return torch.from_numpy(drawn[-1].copy())

    for module in (pipeline_ddpm, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", noise)
    pipeline.scheduler.alphas_cumprod = torch.from_numpy(scheduler.alphas_cumprod)
    pipeline.scheduler.one = pipeline.scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, num_inference_steps=steps, output_type="np").images

    x = drawn.pop(0)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        with no_grad():
            output = ours(Tensor(x), t).data
        x = scheduler.step(output, t, x, noise=drawn.pop(0) if drawn else None).prev_sample
    assert not drawn and expected.std() > 0.05
    np.testing.assert_allclose((x / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1), expected, rtol=0, atol=1e-4)


# The file made once


@pytest.fixture
def golden(tmp_path):
    """A copy of the golden directory, to be spoilt."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "network"))


def check_golden(model):
    call = load_file(GOLDEN / "call.safetensors")[0]
    with no_grad():
        assert_close(model(Tensor(call["x"]), call["t"]).data, call["y"])


def test_the_golden_output():
    check_golden(UNet2DModel.from_pretrained(GOLDEN))
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) <= 200e3
    scheduler = scheduler_from_pretrained(GOLDEN)
    assert type(scheduler) is DDPMScheduler
    assert scheduler.config == DDPMScheduler(1000, variance_type="fixed_large").config


def test_on_a_gpu(cupy):
    """t comes from the CPU or lies there; a loop is replayed as a CUDA graph."""
    call = load_file(GOLDEN / "call.safetensors")[0]
    model, x = UNet2DModel.from_pretrained(GOLDEN).to("cuda"), Tensor(call["x"], device="cuda")
    with no_grad():
        for t in (call["t"], to_device(call["t"], "cuda")):
            assert_close(model(x, t).cpu().data, call["y"])
    drawn = [to_device(generate(network, DDIMScheduler(1000), (2, 3, 8, 12), num_inference_steps=5,
                                generator=np.random.default_rng(0)), "cpu") for network in (model, captured(model))]
    assert np.array_equal(*drawn)


def test_files_in_subdirectories(golden):
    for folder, names in (("unet", ("config.json", WEIGHTS)), ("scheduler", ("scheduler_config.json",))):
        (golden / folder).mkdir()
        for name in names:
            (golden / name).rename(golden / folder / name)
    check_golden(UNet2DModel.from_pretrained(str(golden)))
    assert scheduler_from_pretrained(golden).variance_type == "fixed_large"


def test_a_network_survives_its_own_file(tmp_path):
    model = UNet2DModel.from_pretrained(GOLDEN)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    check_golden(again)
    assert type(again) is UNet2DModel and again.config == model.config


def test_old_names_of_weights(golden):
    """Of attention before diffusers 0.17, as 1×1 convolutions; a twin of a downsampling; blocks' names of 2022."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, array in load_file(golden / WEIGHTS)[0].items():
        if ".downsamplers." in name:
            state[name.replace(".conv.", ".Conv2d_0.")] = 7 * array  # which is not looked at
        for new, before in old.items():
            if f".{new}." in name:
                name = name.replace(new, before)
                array = array[:, :, None, None] if array.ndim == 2 else array
        state[name] = array
    save_file(golden / WEIGHTS, state)
    rewrite(golden / "config.json", down_block_types=["UNetResDownBlock2D", "UNetResAttnDownBlock2D", "DownBlock2D"])
    check_golden(UNet2DModel.from_pretrained(golden))


def test_absent_keys_take_diffusers_defaults(golden):
    assert UNet2DModel.from_pretrained(golden).config["attention_head_dim"] is None
    rewrite(golden / "config.json", attention_head_dim=REMOVED, norm_eps=REMOVED, decay=0.9999)
    config = UNet2DModel.from_pretrained(golden).config
    assert config["attention_head_dim"] == 8 and config["norm_eps"] == 1e-5 and "decay" not in config


def test_the_defaults_are_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    tables = {"UNet2DModel": CONFIG, **{name: table for name, (_, table) in SCHEDULERS.items()}}
    del tables["GaussianDDPMScheduler"]
    for name, table in tables.items():
        theirs = dict(inspect.signature(getattr(diffusers, name)).parameters)
        assert theirs.keys() <= table.keys()
        for key in theirs.keys() & {key for key, entry in table.items() if entry is not IGNORED}:
            assert table[key][0] == theirs[key].default, key


def test_the_file_decides_on_the_middle_s_norm(golden):
    """Which diffusers leaves out for scale_shift, but did not always."""
    state = load_file(golden / WEIGHTS)[0]
    for name in state:
        if "time_emb_proj" in name:
            state[name] = np.concatenate([state[name], state[name]])
    rewrite(golden / "config.json", resnet_time_scale_shift="scale_shift")
    save_file(golden / WEIGHTS, state)
    assert UNet2DModel.from_pretrained(golden).config["attn_norm_num_groups"] == 2
    without = {name: a for name, a in state.items() if "mid_block.attentions.0.group_norm" not in name}
    save_file(golden / WEIGHTS, without)
    assert UNet2DModel.from_pretrained(golden).config["attn_norm_num_groups"] is None


@pytest.mark.parametrize("changes, kind, expected", [
    ({}, DDPMScheduler, dict(num_train_timesteps=1000, variance_type="fixed_large")),
    (dict(num_train_timesteps=None), DDPMScheduler, dict(num_train_timesteps=1000)),
    (dict(_class_name="GaussianDDPMScheduler", timesteps=500, num_train_timesteps=None, tensor_format="pt"),
     DDPMScheduler, dict(num_train_timesteps=500)),
    (dict(_class_name="GaussianDDPMScheduler", num_train_timesteps=300), DDPMScheduler, dict(num_train_timesteps=300)),
    (dict(_class_name="DDIMScheduler", skip_prk_steps=True, timestep_values=[], set_alpha_to_one=False), DDIMScheduler,
     dict(set_alpha_to_one=False)),  # keys of other schedulers, and of other versions
    (dict(set_alpha_to_one=False), DDPMScheduler, dict(variance_type="fixed_large")),
    (dict(_class_name="DDIMScheduler", variance_type=None, set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2"),
     DDIMScheduler, dict(set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2", eta=0.0)),
    (dict(_class_name="DPMSolverMultistepScheduler", use_lu_lambdas=True, lambda_min_clipped=-math.inf,
          timestep_spacing=None), DPMSolverMultistepScheduler,
     dict(use_lu_lambdas=True, clip_sample=False, timestep_spacing="linspace")),
    (dict(_class_name="DPMSolverMultistepScheduler", thresholding=True, sample_max_value=1),
     DPMSolverMultistepScheduler, dict(use_lu_lambdas=False, clip_sample=True, timestep_spacing="leading")),
    *((change, DDPMScheduler, change) for change in (
        dict(prediction_type="v_prediction", clip_sample=False), dict(steps_offset=1, timestep_spacing="trailing"))),
])
def test_schedulers(golden, changes, kind, expected):
    rewrite(golden / "scheduler_config.json", **{k: REMOVED if v is None else v for k, v in changes.items()})
    scheduler = scheduler_from_pretrained(golden)
    assert type(scheduler) is kind and expected.items() <= scheduler.config.items()


# Sampling


def small(**config):
    types = dict(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)
    return UNet2DModel(**{"block_out_channels": [4, 8], "norm_num_groups": 4, "in_channels": 1, "out_channels": 1,
                          "layers_per_block": 1, **types, **config})


@pytest.mark.parametrize("kind, sizes", [("timestep", ()), ("identity", (16,))])
def test_it_draws_what_embedded_labels_ask_for(kind, sizes):
    model, scheduler, x = small(class_embed_type=kind), DDIMScheduler(1000), np.ones((2, 1, 4, 4), np.float32)
    labels = np.random.default_rng(0).standard_normal((2, *sizes), dtype=np.float32)
    both = denoise(model, scheduler, x, [300, 600], labels=labels)
    for i, t in enumerate((300, 600)):
        alone = denoise(model, scheduler, x[:1], t, labels=labels[i:i + 1])
        np.testing.assert_allclose(both[i:i + 1], alone, atol=1e-5)
    assert np.isfinite(generate(model, scheduler, x.shape, labels, num_inference_steps=2)).all()
    for wrong in (labels[:1], ["a", "b"]):
        with pytest.raises(ValueError, match="labels: expected 2 numbers or vectors, one for each picture"):
            generate(model, scheduler, x.shape, wrong, num_inference_steps=2)


def test_it_draws_and_denoises():
    model, scheduler = UNet2DModel.from_pretrained(GOLDEN), scheduler_from_pretrained(GOLDEN)
    drawn = generate(model, scheduler, (2, 3, 8, 12), num_inference_steps=3)
    assert drawn.shape == (2, 3, 8, 12) and np.isfinite(drawn).all()
    clean = denoise(model, scheduler, drawn.clip(-1, 1), sigma=0.5, method="ddim", num_inference_steps=3)
    assert clean.shape == drawn.shape


def test_classes():
    model, scheduler = small(num_class_embeds=3), DDIMScheduler(1000)
    assert model.num_classes == 3
    drawn = [generate(model, scheduler, (2, 1, 4, 4), labels=label, num_inference_steps=2,
                      generator=np.random.default_rng(0)) for label in (0, 1, [0, 1])]
    assert not np.allclose(drawn[0], drawn[1]) and np.allclose(drawn[2][1], drawn[1][1], atol=1e-6)
    with pytest.raises(ValueError, match="this UNet2DModel needs labels"):
        generate(model, scheduler, (2, 1, 4, 4))
    with pytest.raises(ValueError, match="expected 0 to 2"):
        generate(model, scheduler, (2, 1, 4, 4), labels=3)
    for guidance_scale in (0, 2):
        with pytest.raises(ValueError, match='a label for "no class".*pass guidance_scale=1'):
            generate(model, scheduler, (2, 1, 4, 4), labels=1, guidance_scale=guidance_scale)


def write(model, directory):
    """As diffusers would."""
    save_file(directory / WEIGHTS, model.state_dict())
    (directory / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **model.config}))


def run_checkpoint(out, *args):
    command = [sys.executable, ROOT / "examples" / "run_checkpoint.py", *map(str, args), "--out", out]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_example(golden, tmp_path):
    run = functools.partial(run_checkpoint, tmp_path)
    rewrite(golden / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True)
    drawing = run(golden, "--count", 5, "--steps", 2)
    assert "18,399 weights; a pass takes" in drawing.stdout and "2/2" in drawing.stderr, drawing.stderr
    assert Image.open(tmp_path / "drawn.png").size == (3 * 12, 2 * 8)
    cleaning = run(GOLDEN, "--image", tmp_path / "drawn.png", "--steps", 2, "--sigma", 30)
    assert Image.open(tmp_path / "cleaned.png").size == (3 * 12, 8), cleaning.stderr
    missing = run("google/ddpm-cifar10-32")
    assert missing.returncode and "Traceback" not in missing.stderr
    assert "hf download google/ddpm-cifar10-32 --local-dir DIR" in missing.stderr


@pytest.mark.parametrize("config, args, message", [
    (dict(in_channels=4, out_channels=4), (), "in_channels 4 and out_channels 4: expected 1 or 3"),
    (dict(out_channels=2), (), "in_channels 1 and out_channels 2"),
    (dict(sample_size=5), (), "sample_size 5: expected .* that divide by 2"),
    (dict(sample_size=[4, 4, 4]), (), r"sample_size \(4, 4, 4\): expected the side of its pictures, or"),
    (dict(sample_size=None), (), "sample_size None"),
    (dict(class_embed_type="timestep"), (), "class_embed_type timestep: expected none"),
    (dict(num_class_embeds=3), ("--image", "x.png"), "3 classes: say with --label which"),
    (dict(num_class_embeds=3), ("--label", "3"), "from 0 to 2, got 3"),
    ({}, ("--label", "0"), "this UNet2DModel takes no labels"),
])
def test_networks_that_the_example_refuses(config, args, message, golden, tmp_path):
    model = small(**{"sample_size": 4, **config})
    write(model, golden)
    done = run_checkpoint(tmp_path / "out", golden, "--steps", 2, *args)
    assert done.returncode and re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not [*tmp_path.glob("out/*")]


def test_the_example_draws_the_class_that_is_asked_for(golden, tmp_path):
    model = small(sample_size=4, num_class_embeds=3)
    model.class_embedding.weight.data *= 30  # so that classes differ by more than what clips them
    write(model, golden)
    sheets = {}
    for label in ([], ["--label", 2]):
        done = run_checkpoint(tmp_path, golden, "--steps", 2, "--count", 4, *label)
        sheets[len(label)] = np.asarray(Image.open(tmp_path / "drawn.png"))
        assert done.returncode == 0, done.stderr
    first, third = (slice(0, 4), slice(0, 4)), (slice(4, 8), slice(0, 4))  # in turn 0 1 2 0
    assert (sheets[0][third] == sheets[2][third]).all() and (sheets[0][first] != sheets[2][first]).any()
    cleaned = run_checkpoint(tmp_path, golden, "--steps", 2, "--image", tmp_path / "drawn.png", "--label", 1)
    assert cleaned.returncode == 0 and (tmp_path / "cleaned.png").exists(), cleaned.stderr


@pytest.mark.parametrize("side", [20, 29, 225])
def test_the_example_s_pictures_may_have_any_side(side, tmp_path):
    """29/28·28 > 29: the part to cut out must not begin outside."""
    Image.new("L", (side, side), 255).save(tmp_path / "white.png")
    picture = load_square(tmp_path / "white.png", 28, channels=1)
    assert picture.shape == (1, 1, 28, 28) and (picture == 1).all()


# Bad input


@pytest.mark.parametrize("key, value, message", [
    ("_class_name", "UNet2DConditionModel", '_class_name is "UNet2DConditionModel"; supported: UNet2DModel'),
    ("_class_name", None, "_class_name is null"),
    ("_class_name", ["UNet2DModel"], "_class_name is .*; supported: UNet2DModel"),
    ("attention_legacy_order", True, "the key 'attention_legacy_order' is not known here"),
    ("time_embedding_type", "fourier", 'time_embedding_type is "fourier"; supported: "positional"'),
    ("down_block_types", ["AttnSkipDownBlock2D", "DownBlock2D", "DownBlock2D"], "down_block_types is.*AttnSkipDown"),
    ("down_block_types", ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "down_block_types is .*; supported: a list of "),
    ("down_block_types", ["DownBlock2D"], "down_block_types is for 1 levels, block_out_channels for 3"),
    ("up_block_types", ["UpBlock2D"] * 4, "up_block_types is for 4 levels"),
    ("block_out_channels", [], "block_out_channels for 0"),
    ("block_out_channels", [4, 8.5, 8], "block_out_channels is .*; supported: a list of a positive integer"),
    ("block_out_channels", [4, 7, 8], "norm_num_groups is 2, which does not divide block_out_channels 4, 7, 8"),
    ("attention_head_dim", 3, "attention_head_dim is 3, which doesn't divide 8 channels"),
    ("attention_head_dim", 0, "attention_head_dim is 0; supported: a positive integer or null"),
    ("attn_norm_num_groups", 3, "attn_norm_num_groups is 3, which does not divide"),
    ("norm_num_groups", None, "norm_num_groups is null"),
    ("freq_shift", 2, "freq_shift be less than half of it; got 4 and 2"),
    ("freq_shift", True, "freq_shift is true; supported: a finite number"),
    ("norm_eps", math.nan, "norm_eps is NaN; supported: a finite number"),
    ("norm_eps", -1e-6, "norm_eps at least 0"), ("dropout", 1.5, "dropout must be from 0 to 1"),
    ("mid_block_type", "UNetMidBlock2DCrossAttn", "mid_block_type"), ("mid_block_scale_factor", 2**0.5, "supported: 1"),
    ("downsample_padding", 2, "downsample_padding is 2; supported: 0 or 1"),
    ("downsample_type", "fir", "downsample_type"),
    ("upsample_type", "fir", "upsample_type"),
    ("act_fn", "gelu", "act_fn"),
    ("resnet_time_scale_shift", "ada_group", "resnet_time_scale_shift"),
    ("class_embed_type", "projection", "class_embed_type"),
    ("add_attention", 1, "add_attention is 1; supported: true or false"),
    ("layers_per_block", 2, r"missing \[(\S+, ){4}\S+\] and \d+ more, unexpected \[\]"),
    ("in_channels", 1, "conv_in.weight: expected"),
])
def test_configurations_that_are_refused(golden, key, value, message):
    rewrite(golden / "config.json", **{key: value})
    with pytest.raises(ValueError, match=message) as info:
        UNet2DModel.from_pretrained(golden)
    assert str(golden / "config.json") in str(info.value)


@pytest.mark.parametrize("key, value, message", [
    ("_class_name", "ScoreSdeVeScheduler", "_class_name is .*; supported: DDPMScheduler or"),
    ("trained_betas", [0.1, 0.2], "trained_betas is .*; supported: null"),
    ("thresholding", True, "thresholding is true; supported: false"),
    ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr"),
    ("variance_type", "learned_range", 'variance_type is "learned_range"; supported: "fixed_small" or "fixed_large"'),
    ("predict_epsilon", False, "predict_epsilon is false; supported: true"),
    ("beta_schedule", "laplace", "beta_schedule"),
    ("num_train_timesteps", 0, "num_train_timesteps is 0; supported: a positive integer"),
    ("beta_start", 0.5, "expected 0 < beta_start <= beta_end < 1"),
    ("timestep_spacings", "leading", "the key 'timestep_spacings' is not known here"),
])
def test_schedulers_that_are_refused(golden, key, value, message):
    rewrite(golden / "scheduler_config.json", **{key: value})
    with pytest.raises(ValueError, match=message) as info:
        scheduler_from_pretrained(golden)
    assert str(golden / "scheduler_config.json") in str(info.value)


@pytest.mark.parametrize("key, value", [
    ("algorithm_type", "sde-dpmsolver++"), ("solver_order", 3), ("solver_type", "heun"), ("sample_max_value", 1.5),
    ("variance_type", "learned_range"),
    ("use_exponential_sigmas", True)])
def test_solvers_that_are_refused(golden, key, value):
    rewrite(golden / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler", **{key: value})
    with pytest.raises(ValueError, match=f"{key} is .*; supported: "):
        scheduler_from_pretrained(golden)


def test_files_that_are_not_there(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (UNet2DModel.from_pretrained, scheduler_from_pretrained):
        with pytest.raises(FileNotFoundError, match="no directory google/ddpm-cifar10-32.*: "
                                                    "hf download google/ddpm-cifar10-32 --local-dir DIR"):
            read("google/ddpm-cifar10-32")
        with pytest.raises(FileNotFoundError, match="there is no directory /not/at/all$"):
            read("/not/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds neither config.json nor unet/config.json"):
        UNet2DModel.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="neither scheduler_config.json nor scheduler/scheduler_config.json"):
        scheduler_from_pretrained("empty")
    (golden / WEIGHTS).rename(golden / "weights")
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        UNet2DModel.from_pretrained(golden)
    (golden / "weights").rename((golden / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(ValueError, match="diffusion_pytorch_model.bin is a pickle.*python -c .*torch.load.*" + WEIGHTS):
        UNet2DModel.from_pretrained(golden)
    (golden / WEIGHTS).with_suffix(".bin").rename(golden / "model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match="in one file under that name; there are: .*model.fp16.safetensors"):
        UNet2DModel.from_pretrained(golden)


def test_what_converts_a_pickle_does(golden, tmp_path):
    """Tensors that share memory or are transposed, and a name that a shell would change."""
    torch = pytest.importorskip("torch", reason="PyTorch's pickles need it installed")
    folder = tmp_path / "it's $HOME"
    shutil.copytree(golden, folder)
    state = {name: torch.from_numpy(a.T.copy()).T if a.ndim == 2 else torch.from_numpy(a)
             for name, a in load_file(folder / WEIGHTS)[0].items()}
    twins = {name.replace(".conv.", ".Conv2d_0."): a for name, a in state.items() if ".downsamplers." in name}
    torch.save(state | twins, (folder / WEIGHTS).with_suffix(".bin"))
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="is a pickle") as info:
        UNet2DModel.from_pretrained(folder)
    command = str(info.value).partition("PyTorch: python")[2]
    subprocess.run(shlex.quote(sys.executable) + command, shell=True, check=True)
    check_golden(UNet2DModel.from_pretrained(folder))


@pytest.mark.parametrize("text", ["{", "[1]", "", "\0", pytest.param("[" * 200000, id="deep")])
def test_damaged_configurations(golden, text):
    for name, read in (("config.json", UNet2DModel.from_pretrained),
                       ("scheduler_config.json", scheduler_from_pretrained)):
        (golden / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is damaged, or no configuration"):
            read(golden)


def test_damaged_weights(golden):
    (golden / WEIGHTS).write_bytes((golden / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is cut short, damaged"):
        UNet2DModel.from_pretrained(golden)


@pytest.mark.parametrize("config, shape, t, labels, message", [
    ({}, (2, 2, 4, 4), 0, None, r"UNet2DModel expects an input of shape \(N, 1, H, W\)"),
    ({}, (2, 1, 4, 5), 0, None, "UNet2DModel with 1 halvings expects sides that divide by 2, got 4×5"),
    ({}, (2, 1, 4, 4), [1, 2, 3], None, r"expects t of shape \(2,\), got \(3,\)"),
    ({}, (2, 1, 4, 4), 0, 1, "this UNet2DModel takes no labels"),
    (dict(num_class_embeds=3), (2, 1, 4, 4), 0, None, "this UNet2DModel needs labels"),
    (dict(num_class_embeds=3), (2, 1, 4, 4), 0, 3, "expects indices from 0 to 2, got 3"),
    (dict(class_embed_type="timestep"), (2, 1, 4, 4), 0, [1.0], r"expects labels of shape \(2,\)"),
    (dict(class_embed_type="identity"), (2, 1, 4, 4), 0, [1, 2], r"expects labels of shape \(2, 16\), got \(2,\)"),
])
def test_calls_that_are_refused(config, shape, t, labels, message):
    with pytest.raises(ValueError, match=message):
        small(**config)(Tensor(np.zeros(shape, np.float32)), t, labels)


def test_types_that_are_refused():
    model, x = small(num_class_embeds=3), np.zeros((2, 1, 4, 4), np.float32)
    for wrong in (x, x.tolist(), None):
        with pytest.raises(TypeError, match="UNet2DModel expects a Tensor, got (ndarray|list|NoneType): npdiffusion"):
            model(wrong, 0, 1)
    for wrong in ("5", [1, None], 5 + 1j, np.array([5, 5], object)):
        with pytest.raises(TypeError, match="UNet2DModel expects t to be real numbers, got "):
            model(Tensor(x), wrong, 1)


@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_outputs_that_are_no_pictures(kind):
    """As of networks that also predict the variance."""
    with pytest.raises(ValueError, match=r"the model's output: expected shape \(2, 1, 4, 4\) .* got \(2, 2, 4, 4\)"):
        generate(small(out_channels=2), kind(), (2, 1, 4, 4), num_inference_steps=2)


def test_arguments_that_are_refused():
    with pytest.raises(ValueError, match="UNet2DModel: the key 'channels' is not known here"):
        UNet2DModel(channels=(32, 64))
