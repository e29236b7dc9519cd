"""The course: its lessons run, its solutions are right, and typical mistakes are caught."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "examples" / "lessons"
LESSONS = sorted(COURSE.glob("[0-9]*.py"))

spec = importlib.util.spec_from_file_location("check", COURSE / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

# Of each lesson: a function, what stands in its solution, and what some write instead
MISTAKES = {
    1: [("unbroadcast", "n == 1 and", "False and"),
        ("softmax_backward", "y * (g - (g * y).sum(-1, keepdims=True))", "g * y * (1 - y)"),
        ("accumulate", "gradients.get(parent, 0.0) +", "")],
    2: [("output_size", "dilation * (kernel - 1) - 1", "dilation * kernel"),
        ("output_size", "2 * padding", "padding"),
        ("conv2d", "dilation * (w.shape[2] - 1) + 1", "dilation * w.shape[2]"),
        ("conv2d", ".reshape(len(w), n, p, q).swapaxes(0, 1)", ".reshape(n, len(w), p, q)"),
        ("conv_transpose2d_backward", "ncpqij -> nopq", "ncpqji -> nopq"),
        ("conv_transpose2d_backward", ", x, windows)", ", x / len(x), windows)"),
        ("winograd_tile", "G @ f @ G.T", "(G @ f) @ (G @ f).T")],
    3: [("avg_pool2d_backward", "(window.shape[2] * window.shape[3])", "K ** 2"),
        ("avg_pool2d_backward", "window += ", "window[...] = "),
        ("rms_norm_backward", "h, xhat = g * weight, x * r", "h, xhat = g, x * r"),
        ("rms_norm_backward", "r * (h - xhat *", "r * (h - h.mean(-1, keepdims=True) - xhat *"),
        ("attention_backward", "ds = a * (da - (a * da).sum(-1, keepdims=True)) / np.sqrt(d)",
         "ds = a * (da - (a * da).sum(-1, keepdims=True))"),
        ("attention_backward", "ds.T @ q", "ds @ q"),
        ("receptive_field", "reversed(layers)", "layers"),
        ("receptive_field", "stride - padding + kernel - 1", "stride + padding + kernel - 1")],
    4: [("soft_dice_backward", "(a - 2 * y * b) / b**2", "-2 * y / b"),  # b depends on p, too
        ("upsample_backward", ".sum((1, 3))", "[:, 0, :, 0]"),
        ("tile_starts", "max(1, size - overlap)", "size"),
        ("tile_starts", "min(start, size - tile)", "start"),
        ("mean_of_eight_ways", "predict(turned[:, ::-1])[:, ::-1]", "predict(turned[:, ::-1])")],
    5: [("betas_from", "np.concatenate([[1.0], alphas_cumprod[:-1]])", "np.roll(alphas_cumprod, 1)"),
        ("posterior", "np.sqrt(alpha_bar_prev) / (1 - alpha_bar_prev) * x0", "x0 / (1 - alpha_bar_prev)"),
        ("posterior", "return mean, 1 / precision", "return mean, 1 - alpha"),  # β_t, the step's own variance
        ("score", "np.sqrt(alpha_bar) * x0_mean", "x0_mean"),
        ("score", "/ (1 - alpha_bar)\n\n", "/ np.sqrt(1 - alpha_bar)\n\n"),  # that would be −ε
        ("posterior_covariance", "(1 - alpha_bar) / np.sqrt(alpha_bar) * jacobian", "jacobian")],
    6: [("loss_weights", "alpha_bar / (1 - alpha_bar), alpha_bar", "(1 - alpha_bar) / alpha_bar, 1 / alpha_bar"),
        ("loss_weights", "alpha_bar / (1 - alpha_bar), alpha_bar", "np.sqrt(alpha_bar / (1 - alpha_bar)), alpha_bar"),
        ("ancestral_step", " if t > 0 else mean", ""),
        ("ancestral_step", "np.sqrt(betas[t]) * noise", "betas[t] * noise"),
        ("ancestral_step", "np.sqrt(1 - alpha_bar) * epsilon", "np.sqrt(1 - betas[t]) * epsilon"),
        ("bound_term", "(difference**2).mean()", "(difference**2).sum()"),
        ("bound_term", " / np.log(2)", ""),
        ("corrected_averages", "averages.append(s / (1 - decay**k))", "s = s / (1 - decay**k); averages.append(s)")],
    7: [("ddim_step", "np.sqrt(1 - alpha_bar_prev - sigma**2)", "np.sqrt(1 - alpha_bar_prev)"),
        ("ddim_step", "sigma = eta * np.sqrt(", "sigma = eta * ("),
        ("heun_step", "denoiser(euler, sigma_next)", "denoiser(x, sigma)"),
        ("heun_step", "return x + h * (slope", "return euler + h * (slope"),
        ("spaced_timesteps", "wanted = np.linspace(log_snr[-1], log_snr[0], n)",
         "wanted = log_snr[np.linspace(len(log_snr) - 1, 0, n).round().astype(int)]"),  # evenly in t
        ("frechet_diagonal", "(std_a - std_b)**2", "(std_a**2 - std_b**2)**2")],
    8: [("guided_x0", "v_none + s * (v_label - v_none)", "v_none + s * v_label"),
        ("drop_labels", "num_classes, labels)", "0, labels)"),
        ("drop_labels", "noise < probability", "noise > probability"),
        ("classifier_score", "(means[c] - p @ means)", "(means[c] - x)"),
        ("classifier_score", " / sigma**2\n\n", "\n\n"),
        ("without_label", "(p[:, :, None] * epsilons).sum(0) / p.sum(0)[:, None]", "epsilons.mean(0)")],
    9: [("gaussian_kl", "apart / np.exp(logvar_p)", "apart / np.exp(logvar_q)"),
        ("reparametrised_gradient", "0.5 * np.exp(0.5 * logvar)", "np.exp(0.5 * logvar)"),  # as if to σ
        ("wiener_gain", "np.sqrt(alpha_bar) * variances /", "variances /"),
        ("errors_of_mean_and_sample", "return error, 2 * error", "return error, error")],
    10: [("velocity_of_epsilon", "(epsilon - x) / (1 - t)", "epsilon - x"),
         ("heun", "if after != 0:", "if True:"),
         ("heun", "(after - now) * slope, after)", "(after - now) * slope, now)"),
         ("log_density_change", "-np.mean", "np.mean"),
         ("pair", "paired[np.argsort(noise)]", "paired[:]"),
         ("pair", "paired[np.argsort(noise)] = np.sort(x0)", "paired[:] = np.sort(x0)[np.argsort(noise)]")],
    11: [("block_of_pixel", "down, across = -(-H // T), -(-W // T)", "down, across = H // T, W // T"),
         ("block_of_pixel", "p // T * across", "p // T * down"),
         ("memory_lines", "4 * elements // 128", "elements // 128"),
         ("tree_sum", "x[:half] + x[half:]", "x[::2] + x[1::2]"),
         ("attainable", "(T + K - 1) ** 2", "T ** 2"),
         ("attainable", "min(peak, intensity * bandwidth)", "intensity * bandwidth")],
    12: [("pooling_pinv", "y.repeat(k, 0).repeat(k, 1)", "y.repeat(k, 0).repeat(k, 1) / k**2"),
         ("consistent", "y - forward(x)", "y"),
         ("pull_on_estimate", "sigma**2 * np.eye", "sigma * np.eye"),
         ("pull_on_estimate", "r**2 * A @ A.T", "A @ A.T"),
         ("fill", "(x - mean)[known]", "x[known]"),
         ("fill", "mean + C[:, known]", "C[:, known]")],
}


def run(*args, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_solutions_are_right_and_the_exercises_open(lesson):
    verdicts = check.grade(COURSE / "solutions" / lesson.name)
    assert set(verdicts.values()) == {check.RIGHT}, verdicts
    assert 2 <= len(verdicts) <= 4
    assert check.grade(COURSE / "exercises" / lesson.name) == dict.fromkeys(verdicts, check.OPEN)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_exercises_ask_for_what_the_solutions_have(lesson):
    asked, solved = ({node.name: node for node in ast.parse((COURSE / folder / lesson.name).read_text()).body
                      if isinstance(node, ast.FunctionDef)} for folder in ("exercises", "solutions"))
    assert asked.keys() <= solved.keys()
    for name, function in asked.items():
        assert len(function.body) == 1 and len(ast.get_docstring(function)) > 80, name
        assert ast.unparse(function.args) == ast.unparse(solved[name].args), name


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_typical_mistakes_are_caught(lesson, tmp_path):
    mistakes = MISTAKES[int(lesson.stem[:2])]
    assert len(mistakes) >= 3
    solution = (COURSE / "solutions" / lesson.name).read_text()
    for name, right, wrong in mistakes:
        assert solution.count(right) == 1, right
        (tmp_path / lesson.name).write_text(solution.replace(right, wrong))
        verdicts = check.grade(tmp_path / lesson.name)
        assert re.search(r"wrong, smallest case:(.|\n)*(returns|raises)(.|\n)*should be", verdicts.pop(name)), right
        assert set(verdicts.values()) == {check.RIGHT}


def test_check_says_what_is_wrong_and_how_far_one_is(tmp_path):
    course = shutil.copytree(COURSE, tmp_path / "lessons", ignore=shutil.ignore_patterns("__pycache__"))
    answers = course / "exercises" / "01_tape.py"
    lines, begun = answers.read_text().split("\n"), "    g: gradient of the result, an array. shape"
    end = next(i for i, line in enumerate(lines) if line.startswith(begun)) + 3
    assert run(course / "check.py", cwd=tmp_path).returncode == 0
    missing = run(course / "check.py", 1, cwd=tmp_path)
    assert missing.returncode == 1 and "unbroadcast: not written yet" in missing.stdout
    for body, said in [("return g", r"g +\[6. 5.\]\n +shape +\(1,\)\n +returns +\[6. 5.\]\n +should be +\[11.\]"),
                       ("return g.sun()", r"raises +AttributeError: .* 'sun' \(line 15\)"),
                       ("return g.sum(", r"does not run: SyntaxError.*\(line 15\)"),
                       ("g.sum()", "returns +None: is a return missing"),
                       ("r = 1 * g; g += 1; return r", "changes +its arguments")]:
        answers.write_text("\n".join([*lines[:end], f"    {body}", *lines[end:]]))
        result = run(course / "check.py", 1, cwd=tmp_path)
        assert result.returncode == 1 and re.search(said, result.stdout), result.stdout + result.stderr
    shutil.copy(course / "solutions" / "01_tape.py", answers)
    done = run(course / "check.py", 1, cwd=tmp_path)
    assert done.returncode == 0 and "3 of 3 right" in done.stdout
    assert "3 of 3 right" in run(course / "check.py", cwd=tmp_path).stdout
    wrong = course / "solutions" / "01_tape.py"
    wrong.write_text(wrong.read_text().replace("y * (g", "y + (g"))
    graded = run(course / "check.py", "--solutions", cwd=tmp_path)
    assert graded.returncode == 1 and "softmax_backward: wrong" in graded.stdout


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lessons_run(lesson, tmp_path):
    result = run(lesson, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "runs" / "lessons" / f"{lesson.stem}.png").size[0] > 600
    assert len(lesson.read_text().splitlines()) <= 175
