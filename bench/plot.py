#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the roofline picture of a bnorm-bench JSON file: GB/s against tensor size, with the roof.

Usage: bench/plot.py [build/bench.json [output without extension]]   (writes .png and .svg)
Needs Python 3 and gnuplot (Debian: gnuplot-nox); GNUPLOT=command names another gnuplot.
"""
import collections
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

OPS = ["inference", "inference_relu", "training", "backward"]
LAYOUTS = ["nhwc", "nchw"]
# Later ones are drawn over earlier ones.
STYLES = {
    "plain": "pt 4 ps 0.8 lw 1.5 lc rgb '#d55e00'",
    "scalar": "pt 2 ps 0.7 lw 1.5 lc rgb '#999999'",
    "avx2": "pt 9 ps 0.9 lw 1 lc rgb '#009e73'",
    "neon": "pt 7 ps 0.8 lw 1 lc rgb '#0072b2'",
    "avx512": "pt 7 ps 0.8 lw 1 lc rgb '#0072b2'",
}
LABELS = {"plain": "plain C"}
SIZE_TICKS = ", ".join(
    f'"{label}" {size}'
    for label, size in [
        ("1 KiB", 2**10), ("16 KiB", 2**14), ("256 KiB", 2**18), ("4 MiB", 2**22), ("64 MiB", 2**26)
    ]
)


def read_rows(path):
    """(op, layout, set) -> [(bytes, GB/s)] and op -> {bytes: [roof GB/s]}, from the medians."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    # Other layouts and fusions are measured against something else than the roof.
    runs = [
        run
        for run in data["benchmarks"]
        if "roof_GB/s" in run and "/f32/" in run["run_name"] and not run.get("error_occurred")
    ]
    medians = [run for run in runs if run.get("aggregate_name") == "median"]
    series = collections.defaultdict(list)
    roof = collections.defaultdict(lambda: collections.defaultdict(list))
    # With one repetition there are no aggregates.
    for run in medians or [run for run in runs if run["run_type"] == "iteration"]:
        op, layout, _, kernels = run["run_name"].split("/")[:4]
        series[op, layout, kernels].append((run["tensor_bytes"], run["GB/s"]))
        roof[op][run["tensor_bytes"]].append(run["roof_GB/s"])
    return data["context"], series, roof


def datablock(name, points):
    return f"${name} << EOD\n" + "".join(f"{x:g} {y:g}\n" for x, y in points) + "EOD\n"


def escape(text):
    """For a gnuplot string in single quotes that is set without enhanced text."""
    return text.replace("'", "''")


def make_script(context, series, roof, title):
    ops = [op for op in OPS if op in roof]
    layouts = [layout for layout in LAYOUTS if any(key[1] == layout for key in series)]
    kernels = [name for name in STYLES if any(key[2] == name for key in series)]
    rates = [rate for points in series.values() for _, rate in points]
    rates += [rate for sizes in roof.values() for rates_ in sizes.values() for rate in rates_]
    sizes = [size for points in series.values() for size, _ in points]
    # In fractions of the picture.
    left, right, bottom, top = 0.055, 0.99, 0.075, 0.86
    width, height = (right - left) / len(ops), (top - bottom) / len(layouts)

    script = ""
    for op in ops:
        line = [(size, statistics.median(rates_)) for size, rates_ in sorted(roof[op].items())]
        script += datablock(f"roof_{op}", line)
    for key, points in series.items():
        script += datablock("_".join(key), sorted(points))
    script += f"""set multiplot
set label 1 '{escape(title)}' at screen {left}, 0.965 left noenhanced font ',13'
set label 2 'GB/s of the minimum traffic: x and y once; for backward x, dy and dx once' \
at screen 0.012, {(bottom + top) / 2} center rotate by 90
set label 3 'bytes of one tensor' at screen {(left + right) / 2}, 0.02 center
set lmargin at screen {left}; set rmargin at screen {right}
set tmargin at screen 0.95; set bmargin at screen 0.90
unset border; unset tics; set xrange [0:1]; set yrange [0:1]
set key at screen {right}, 0.925 right center horizontal samplen 2 width 1 noenhanced
plot NaN with lines lw 2 lc rgb 'black' title 'roof (best copy)'"""
    for name in reversed(kernels):
        script += f", NaN with points {STYLES[name]} title '{LABELS.get(name, name)}'"
    script += f"""
unset label; unset key
set border 3 lc rgb '#444444'; set tics nomirror out scale 0.6
set grid xtics ytics lc rgb '#dddddd' lt 1 lw 0.6
set logscale xy
set xrange [{min(sizes) / 1.6}:{max(sizes) * 1.6}]
set yrange [{min(rates) / 1.3}:{max(rates) * 1.3}]
set ytics nomirror (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
"""
    for row, layout in enumerate(layouts):
        for column, op in enumerate(ops):
            last_row = row == len(layouts) - 1
            script += f"set lmargin at screen {left + column * width + 0.004}\n"
            script += f"set rmargin at screen {left + (column + 1) * width - 0.006}\n"
            script += f"set tmargin at screen {top - row * height - 0.03}\n"
            script += f"set bmargin at screen {top - (row + 1) * height + 0.015}\n"
            ticks = SIZE_TICKS if last_row else re.sub(r'"[^"]*"', '""', SIZE_TICKS)
            script += f"set xtics nomirror ({ticks})\n"
            script += f"set format y '{'%g' if column == 0 else ''}'\n"
            script += f"set title '{op.replace('_relu', ' + ReLU')}, {layout.upper()}' offset 0,-0.7\n"
            plots = [f"$roof_{op} with lines lw 2 lc rgb 'black' notitle"]
            for name in kernels:
                if (op, layout, name) in series:
                    plots.append(f"${op}_{layout}_{name} with points {STYLES[name]} notitle")
            script += "plot " + ", ".join(plots) + "\n"
    return script + "unset multiplot\n"


def main():
    if len(sys.argv) > 3 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__.strip())
    source = sys.argv[1] if len(sys.argv) > 1 else "build/bench.json"
    target = sys.argv[2] if len(sys.argv) > 2 else os.path.splitext(source)[0]
    gnuplot = shutil.which(os.environ.get("GNUPLOT", "gnuplot"))
    if not gnuplot:
        sys.exit("plot.py: gnuplot is missing; install it (Debian: apt-get install gnuplot-nox).")
    try:
        context, series, roof = read_rows(source)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"plot.py: cannot use {source}: {error}. Run `make bench` first.")
    if not series:
        sys.exit(f"plot.py: {source} holds no measured rows. Run `make bench` first.")
    threads = context.get("bnorm_threads", "1")
    title = (
        f"bnorm {context.get('bnorm_version', '')} on {context.get('bnorm_cpu', 'unknown CPU')}, "
        f"f32, {threads} thread{'' if threads == '1' else 's'}"
    )
    script = make_script(context, series, roof, title)
    outputs = [
        ("svg size 1900,1000 font 'DejaVu Sans,12' background rgb 'white'", target + ".svg"),
        ("pngcairo size 1900,1000 font 'DejaVu Sans,11' background rgb 'white'", target + ".png"),
    ]
    for terminal, output in outputs:
        head = f"set terminal {terminal}\nset output '{escape(output)}'\n"
        subprocess.run([gnuplot, "-"], input=head + script, text=True, check=True)
    print("Picture:", ", ".join(output for _, output in outputs))


if __name__ == "__main__":
    main()
