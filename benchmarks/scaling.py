"""Data parallelism: the MNIST UNet on one process, on MPI ranks, and in PyTorch (eager, and DDP over gloo), on one CPU.

    python benchmarks/scaling.py                        # 1, 2, 4, ... ranks up to the cores; needs mpi4py and mpich
    python benchmarks/scaling.py --ranks 1 2 --json results.json

All have the same weights and the same batch. A training step is ``Training.descent``: gradients, their Allreduce, the
clipping of their norm, AdamW and the average of the weights; PyTorch does the same. A forward pass has its pictures
divided by ``over_ranks``, and every rank gets all outputs. Losses, gradients and outputs are checked to agree within
1e-4 before anything is timed. PyTorch runs in NCHW and in channels-last memory; the faster counts. Runs are
interleaved, figures are medians; how contenders wait for their turn: ``scaling_workers.py``.

Strong scaling divides one batch among the ranks, weak scaling gives each rank a batch. What more ranks would do is
computed: from the step on a rank's own pictures (measured while all ranks work, each for itself), from the packing and
the adding of gradients, measured, too, and from what an Allreduce costs on a network of latency α and 1/β bytes a
second (Thakur, Rabenseifner & Gropp 2005, section 4), assumed (``NETWORKS``) and with nothing overlapped.
"""

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scaling_workers import CORES, assert_agreement, contenders
from train_step import LAYOUTS, interleaved, torch

from npdiffusion.figures import save_figure

RANKS = [2 ** k for k in range(11)]  # of which the model speaks
NETWORKS = {"10 Gbit/s": (20e-6, 8 / 10e9), "100 Gbit/s": (2e-6, 8 / 100e9)}  # α in s, β in s/byte
MESSAGES = {"ring": lambda ranks: 2 * (ranks - 1), "tree": lambda ranks: 2 * math.log2(ranks)}


def measure(workers, batch, rounds, minutes):
    """The medians, in milliseconds, as ``--json`` writes them, without the model."""
    ranks = [n for kind, n in workers if kind == "ours"]
    top = max(n for n in ranks if n <= len(CORES))
    runs = {(kind, n, *which): (each, (batch, *which)) for (kind, n), each in workers.items()
            for which in ([()] if kind == "ours" else [(layout,) for layout in LAYOUTS])}
    assert_agreement(runs)
    print("all agree; measuring", file=sys.stderr)
    functions = {(name, *key): partial(each.ask, name, *which)
                 for key, (each, which) in runs.items() for name in ("step", "forward")}
    for n in ranks[1:]:
        functions["weak", n] = partial(workers["ours", n].ask, "step", n * batch)
        functions["alone", n] = partial(workers["ours", n].ask, "step", batch, alone=True, only=1)
    sizes = sorted({batch, max(1, batch // 2), max(1, batch // 8), 1})
    for size in sizes:
        functions["local", size] = partial(workers["ours", top].ask, "step", size, alone=True)
    taken, end = [], time.monotonic() + 60 * minutes
    while not taken or len(taken) < rounds and time.monotonic() < end:
        taken.append(interleaved(functions, 1))
    ms = {key: 1e3 * float(np.median([times[key] for times in taken])) for key in functions}

    def entry(*key):
        return {"step_ms": ms["step", *key], "forward_ms": ms["forward", *key]}

    results = {"batch": batch, "threads": npdiffusion.get_num_threads(), "cores": len(CORES), "rounds": len(taken),
               "torch_version": torch.__version__ if torch else None,
               "ranks": {str(n): entry("ours", n) for n in ranks}, "torch": {}, "ddp": {}, "weak": {}, "allreduce": {}}
    for n in ranks if torch else ():
        (results["ddp"] if n > 1 else results)[str(n) if n > 1 else "torch"] = {
            layout: entry("theirs", n, layout) for layout in LAYOUTS}
    for n, mine in zip(ranks, results["ranks"].values()):
        if torch:
            mine |= {f"{name}_ratio_to_torch": mine[f"{name}_ms"] / fastest(results["torch"], name)
                     for name in ("step", "forward")}
        if n > 1:
            mine |= {"one_rank_step_ms": ms["alone", n], "speedup": ms["alone", n] / mine["step_ms"]}
            results["weak"][str(n)] = {"step_ms": ms["weak", n], "efficiency": ms["alone", n] / ms["weak", n]}
            results["allreduce"][str(n)] = all_reduce_entry(workers["ours", n], n, batch, rounds, mine["step_ms"])
    results["local_ms"] = {str(size): ms["local", size] for size in sizes}
    # of the ranks that have cores of their own, as above all others
    results["allreduce"] = {**results["allreduce"].get(str(top), {}), "by_ranks": results["allreduce"]}
    costs = {name: max(costs[name] for costs in workers["ours", top].ask("costs", batch, 10 + rounds))
             for name in ("bytes", "add_ms", "draw_ms")}
    return results | {"costs": costs, "threads_of_a_rank": max(1, len(CORES) // top), "model_of": top}


def all_reduce_entry(ours, n, batch, rounds, step_ms):
    """The Allreduce of the gradients: alone, not waiting for the slowest rank."""
    times = ours.ask("all_reduce", batch, 10 + 10 * rounds)
    ms, flat_ms, one_ms, size = (max(t[name] for t in times) for name in ("ms", "flat_ms", "one_ms", "bytes"))
    return {"bytes": size, "ms": ms, "share": ms / step_ms, "packing_ms": max(0.0, ms - flat_ms),
            "latency_us": 1e3 * one_ms, "bandwidth_GB_per_s": 2 * (n - 1) / n * size / flat_ms / 1e6}


def fastest(layouts, part):
    return min(times[f"{part}_ms"] for times in layouts.values())


def all_reduce_ms(algorithm, ranks, size, alpha, beta, gamma):
    """An Allreduce of so many bytes, where to add up takes γ a byte: M α + (P − 1)/P n (2β + γ), for a ring of P with
    M = 2 (P − 1) messages, for a tree (halving, then doubling the distance between partners) with M = 2 log₂ P."""
    return 1e3 * (MESSAGES[algorithm](ranks) * alpha + (ranks - 1) / ranks * size * (2 * beta + gamma))


def fit(ms):
    """(overhead, ms a picture) of {pictures: ms}, a line with the least relative errors."""
    pictures, times = np.array([int(n) for n in ms], float), np.array([*ms.values()])
    slope, overhead = np.polyfit(pictures, times, 1, w=1 / times) if len(ms) > 1 else (0.0, times[0])
    return float(overhead), float(slope)


def model(results):
    """Computed: {"strong": {line: {ranks: ms}}, "weak": …}, and the numbers that they come from."""
    overhead, slope = fit(results["local_ms"])
    costs, reduce, batch = results["costs"], results["allreduce"], results["batch"]
    size, gamma = costs["bytes"], costs["add_ms"] / 1e3 / costs["bytes"]
    packing, draw = reduce.get("packing_ms", 0.0), costs["draw_ms"] / batch
    lines = {f"{name}, {how}": partial(all_reduce_ms, how, size=size, alpha=alpha, beta=beta, gamma=gamma)
             for name, (alpha, beta) in NETWORKS.items() for how in MESSAGES}
    if "ms" in reduce:  # the measured bandwidth has the adding in it
        alpha = reduce["latency_us"] / 1e6 / math.log2(results["model_of"])
        lines["shared memory, tree"] = partial(all_reduce_ms, "tree", size=size, alpha=alpha, gamma=0.0,
                                               beta=1 / (1e9 * reduce["bandwidth_GB_per_s"]))
    lines["no communication"] = lambda ranks: 0.0
    error = max(abs(overhead + slope * int(n) - ms) / ms for n, ms in results["local_ms"].items())
    answer = {"overhead_ms": overhead, "ms_per_picture": slope, "error_of_fit": error, "bytes": size,
              "packing_ms": packing, "draw_ms_per_picture": draw,
              "strong": {}, "weak": {}, "communication_ms": {}, "break_even_pictures": {}}
    for name, communication in lines.items():
        extra = {p: communication(p) + packing if p > 1 and name != "no communication" else 0.0 for p in RANKS}
        answer["communication_ms"][name] = extra
        answer["strong"][name] = {p: overhead + slope * batch / p + extra[p] for p in RANKS if p <= batch}
        answer["weak"][name] = {p: overhead + slope * batch + extra[p] for p in RANKS}
        # pictures a rank for which 1,024 ranks compute as long as they communicate
        answer["break_even_pictures"][name] = max(0.0, (extra[RANKS[-1]] - overhead) / slope) if slope > 0 else 0.0
    answer["weak_drawing"] = {p: answer["weak"]["100 Gbit/s, tree"][p] + draw * batch * (p - 1) for p in RANKS}
    return answer


def print_tables(results):
    """What was measured, what was computed from it, and what that means."""
    threads, computed = results["threads"], results["model"]
    rows = {f"npdiffusion, {n} ranks × {max(1, results['cores'] // int(n))} threads": t
            for n, t in results["ranks"].items()}
    rows = {f"npdiffusion, 1 process × {threads} threads": rows.pop(next(iter(rows))), **rows}
    rows |= {f"PyTorch eager, {threads} threads, {layout}": t for layout, t in results["torch"].items()}
    rows |= {f"PyTorch DDP, {n} processes, {layout}": t for n, layouts in results["ddp"].items()
             for layout, t in layouts.items()}
    what = f"measured, batch {results['batch']}, {results['rounds']} rounds"
    print(f"\n| {what} | step / ms | to eager | forward / ms | to eager |\n|---|--:|--:|--:|--:|")
    for name, t in rows.items():
        print(f"| {name}", *(f"{t[f'{part}_ms']:.1f} | " + (
            f"{t[f'{part}_ms'] / fastest(results['torch'], part):.2f}" if results["torch"] else "")
            for part in ("step", "forward")), sep=" | ", end=" |\n")
    for n, weak in results["weak"].items():
        mine, reduce = results["ranks"][n], results["allreduce"]["by_ranks"][n]
        print(f"\n{n} ranks: {mine['speedup']:.2f} times as fast as one alone ({mine['one_rank_step_ms']:.1f} ms); "
              f"with {results['batch']} pictures each {weak['step_ms']:.1f} ms, efficiency {weak['efficiency']:.0%}. "
              f"Allreduce {reduce['ms']:.2f} ms, {reduce['share']:.1%} of the step; {reduce['latency_us']:.0f} µs for "
              f"one number, {reduce['bandwidth_GB_per_s']:.1f} GB/s.")
    if not results["torch"]:
        print("\nPyTorch is not installed: no ratios.")
    shown = RANKS[::2]
    print(f"\n| computed, step / ms | {' | '.join(map(str, shown))} |\n|---" + len(shown) * "|--:" + "|")
    for kind in ("strong", "weak"):
        for name, line in computed[kind].items():
            print(f"| {kind}, {name} | " + " | ".join(f"{line[p]:.1f}" if p in line else "" for p in shown) + " |")
    print("\n" + paragraph(results))


def paragraph(results):
    """What the model says, in words."""
    m, batch = results["model"], results["batch"]
    most, last, plain = max(m["strong"]["no communication"]), RANKS[-1], m["strong"]["no communication"]
    text = (f"Computed: a step takes a rank {m['overhead_ms']:.1f} ms, however few its pictures, and "
            f"{m['ms_per_picture']:.2f} ms a picture (a line through the measured steps, off by at most "
            f"{m['error_of_fit']:.0%}); gradients are {m['bytes'] / 1e6:.1f} MB. {batch} pictures divided among {most} "
            f"ranks would be done {plain[1] / plain[most]:.0f} times as fast if sending cost nothing. ")
    for network in NETWORKS:
        tree, ring = f"{network}, tree", f"{network}, ring"
        strong, weak, sums = m["strong"][tree], m["weak"][tree], m["communication_ms"]
        even = [f"{n:.1f}" if (n := m["break_even_pictures"][name]) >= 1 else "<1" for name in (tree, ring)]
        half = max(p for p in strong if strong[1] / strong[p] >= p / 2)
        text += (f"Over {network} they are {strong[1] / strong[most]:.0f} times as fast, and up to {half} ranks are "
                 f"used by half or better ({strong[1] / strong[half]:.1f} times as fast). {last:,} ranks with {batch} "
                 f"pictures each keep {weak[1] / weak[last]:.0%} of their speed: their gradients are summed in "
                 f"{sums[tree][last]:.1f} ms by a tree, in {sums[ring][last]:.1f} ms by a ring, as long as a step's "
                 f"computing takes with {even[0]} or {even[1]} pictures a rank. ")
    drawing = m["weak_drawing"]
    return text + (f"But each rank draws the noise of all, {1e3 * m['draw_ms_per_picture']:.1f} µs a picture: then 64 "
                   f"ranks keep {drawing[1] / drawing[64]:.0%} and {last:,} ranks {drawing[1] / drawing[last]:.0%}.")


def plot(results):
    """A matplotlib Figure: the measured steps, and what was computed for more ranks."""
    m, batch, threads = results["model"], results["batch"], results["threads_of_a_rank"]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    styles = {"shared memory, tree": dict(color="tab:green", ls=(0, (4, 2))), "no communication": dict(color="0.6"),
              **{f"{network}, {how}": dict(color=color, ls="--" if how == "ring" else "-")
                 for network, color in zip(NETWORKS, ("tab:red", "tab:blue")) for how in MESSAGES}}
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("strong", "weak")):
        for name, line in m[kind].items():
            axes.plot([*line], [*line.values()], lw=1.2, **styles[name], label=f"computed: {name}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := [p for p in RANKS if p <= batch or kind == "weak"], [f"{p:,}" for p in ticks])
        axes.grid(alpha=0.3)
        axes.set(xlabel=f"ranks of {threads} thread{'s' * (threads > 1)}", ylabel="training step / ms",
                 title=f"{kind} scaling: {batch} pictures {'in all' if kind == 'strong' else 'a rank'}")
    (strong, weak), alone = panels, {1: results["local_ms"][str(batch)]}

    def measured(axes, points, marker, label, **style):
        axes.plot([*map(int, points)], [*points.values()], marker, ms=7, ls="", label=f"measured: {label}", **style)

    steps = {n: t["step_ms"] for n, t in results["ranks"].items()}
    cores = max(1, results["threads"] // threads)
    measured(strong, {cores: steps.pop("1")}, "o", "npdiffusion, 1 process, all threads", color="k", mfc="none")
    measured(strong, alone | steps, "o", "npdiffusion, ranks", color="k")
    measured(weak, alone | {n: t["step_ms"] for n, t in results["weak"].items()}, "o", "npdiffusion, ranks", color="k")
    if results["torch"]:
        measured(strong, {cores: fastest(results["torch"], "step")}, "D", "PyTorch eager, 1 process, all threads",
                 color="tab:orange", mfc="none")
    measured(strong, {n: fastest(layouts, "step") for n, layouts in results["ddp"].items()}, "s", "PyTorch DDP, gloo",
             color="tab:purple", mfc="none")
    drawing = {p: ms for p, ms in m["weak_drawing"].items() if ms < 2 * m["weak_drawing"][1]}
    weak.plot([*drawing], [*drawing.values()], "k:", lw=1.2, label="computed: 100 Gbit/s, tree; each draws all noise")
    strong.set_yscale("log")
    strong.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    strong.yaxis.set_major_formatter("{x:,.0f}")
    strong.minorticks_off(), weak.minorticks_off()
    weak.set_ylim(0, 2 * m["weak"]["no communication"][1])
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[p for p in RANKS if p <= len(CORES)])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=10, help="after which no round is begun")
    parser.add_argument("--json", type=Path, help="write the results to this file, the figure beside it")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="directory of the figure")
    args = parser.parse_args(argv)
    ranks = sorted({1, *args.ranks})
    if min(ranks) < 1 or any(args.batch % n for n in ranks):
        parser.error("--batch must be a multiple of each number of --ranks")
    with contenders(ranks) as workers:
        results = measure(workers, args.batch, args.rounds, args.minutes)
    results["model"] = model(results)
    print_tables(results)
    for folder in {args.out, *([args.json.parent] if args.json else [])}:
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(plot(results), folder / "scaling.png")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
