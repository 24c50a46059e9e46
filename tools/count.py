#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts the instructions of every kernel and compares them with tools/count.tsv.

Instructions do not depend on the machine or its load, only on the sources and the compiler: what
CI can hold where it cannot hold times. tools/count.c runs the cases; qemu logs every instruction
between its marks, for all kernel sets but avx512, which qemu does not have: there the program steps
through itself on a CPU that has it.

Exit status 1 where a count is more than 3 % above the figure in tools/count.tsv. With another
compiler than that of the figures nothing is compared.
"""

import argparse
import os
import shutil
import subprocess
import sys

TOLERANCE = 3  # percent
SHOWN = 40
FIGURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "count.tsv")
HEADER = "set\tname\tvariant\tsize\tinstructions"
# Per kernel set: the CPU that its program is for, and the emulator; none = the CPU itself.
SETS = {
    "avx512": ("x86_64", None),
    "avx2": ("x86_64", ["qemu-x86_64", "-cpu", "Haswell"]),
    "scalar": ("x86_64", ["qemu-x86_64", "-cpu", "Haswell"]),
    "neon": ("aarch64", ["qemu-aarch64"]),
}
LOG = ["-singlestep", "-d", "exec,nochain"]


def skip(what, why):
    print(f"\n*** SKIPPED: {what}: {why}\n", flush=True)


def count_log(stream):
    """Instructions between each pair of marks in qemu's log."""
    counts = []
    count = None
    for line in stream:
        if line.endswith(b" count_mark_begin\n"):
            count = 0
        elif count is not None and line.endswith(b" count_mark_end\n"):
            counts.append(count)
            count = None
        elif count is not None and line.startswith(b"Trace "):
            count += 1
    return counts


def run(program, kernel_set, emulator):
    """The compiler, and a list of (case, count)."""
    if emulator is None:
        done = subprocess.run([program, kernel_set, "--step"], stdout=subprocess.PIPE, check=True)
        lines = done.stdout.decode().splitlines()
        rows = [line.rsplit("\t", 1) for line in lines[1:]]
    else:
        command = emulator + LOG + [program, kernel_set]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            counts = count_log(process.stderr)
            lines = process.stdout.read().decode().splitlines()
        if process.returncode or len(counts) != len(lines) - 1:
            sys.exit(f"count.py: {' '.join(command)} ended with status {process.returncode} and "
                     f"{len(counts)} counts for {len(lines) - 1} cases. Its log is read as qemu "
                     "7.2 writes it; run the command by hand to see it.")
        rows = list(zip(lines[1:], counts))
    marks = int(rows[0][1]) if rows else 0
    return lines[0], [(case, int(count) - marks) for case, count in rows[1:]]


def count_all(folder):
    """The compiler, and a dictionary from case to count, of the sets that can be counted here."""
    compilers = set()
    counts = {}
    for kernel_set, (cpu, emulator) in SETS.items():
        program = os.path.join(folder, cpu, "bnorm-count")
        if not os.path.exists(program):
            skip(kernel_set, f"{cpu}-linux-gnu-gcc is not installed; see make deps-cross")
        elif emulator and not shutil.which(emulator[0]):
            skip(kernel_set, f"{emulator[0]} is not installed; see make deps-cross")
        elif not emulator and cpu != os.uname().machine:
            skip(kernel_set, "this CPU does not have it, nor does qemu")
        else:
            compiler, rows = run(program, kernel_set, emulator)
            compilers.add(compiler)
            if not rows:
                skip(kernel_set, "this CPU does not have it")
            elif any(count <= 0 for _, count in rows):
                skip(kernel_set, "stepping through a program is not possible here")
            else:
                print(f"{kernel_set}: {len(rows)} cases, {sum(n for _, n in rows)} instructions",
                      flush=True)
                counts.update(rows)
    return " and ".join(sorted(compilers)), counts


def read_figures():
    """The compiler of the committed figures, and the figures."""
    figures = {}
    compiler = ""
    if os.path.exists(FIGURES):
        with open(FIGURES, encoding="ascii") as file:
            for line in file.read().splitlines():
                if line.startswith("# Compiler: "):
                    compiler = line.split(": ", 1)[1]
                elif line and line[0] != "#" and line != HEADER:
                    case, count = line.rsplit("\t", 1)
                    figures[case] = int(count)
    return compiler, figures


def write_figures(compiler, counts):
    """Sets that were not counted keep their figures, if these are of the same compiler."""
    old_compiler, old = read_figures()
    if old_compiler == compiler:
        counted = {case.split("\t")[0] for case in counts}
        counts = {**{k: v for k, v in old.items() if k.split("\t")[0] not in counted}, **counts}
    missing = [s for s in SETS if not any(case.startswith(s + "\t") for case in counts)]
    with open(FIGURES, "w", encoding="ascii") as file:
        file.write("# SPDX-License-Identifier: MIT\n"
                   "# Instructions of each kernel and of whole calls, as make count compares them;\n"
                   "# written by make count-update.\n"
                   f"# Compiler: {compiler}\n{HEADER}\n")
        for kernel_set in SETS:
            for case, count in counts.items():
                if case.startswith(kernel_set + "\t"):
                    file.write(f"{case}\t{count}\n")
    print(f"{len(counts)} figures written to {os.path.relpath(FIGURES)}; commit them.")
    if missing:
        sys.exit(f"count.py: no figures for {', '.join(missing)}: run make count-update where "
                 "nothing is skipped before you commit.")


def print_changes(title, changes):
    print(f"\n{title}\n")
    print(f"{'set':8} {'name':20} {'variant':14} {'size':18} {'before':>9} {'now':>9}   change")
    for change, case, before, now in changes[:SHOWN]:
        kernel_set, name, variant, size = case.split("\t")
        print(f"{kernel_set:8} {name:20} {variant:14} {size:18} {before:9} {now:9} {change:+7.1f} %")
    if len(changes) > SHOWN:
        print(f"... and {len(changes) - SHOWN} more")


def compare(figures, counts):
    """True where nothing is worse, or missing."""
    changes = [(100 * (now / figures[case] - 1), case, figures[case], now)
               for case, now in counts.items() if case in figures]
    worse = sorted((c for c in changes if c[0] > TOLERANCE), reverse=True)
    better = sorted(c for c in changes if c[0] < -TOLERANCE)
    counted = {case.split("\t")[0] for case in counts}
    new = [case for case in counts if case not in figures]
    gone = [case for case in figures if case.split("\t")[0] in counted and case not in counts]
    if better:
        print_changes(f"Improved by more than {TOLERANCE} %; hold it with make count-update:", better)
    if worse:
        print_changes(f"More instructions than before, by more than {TOLERANCE} %:", worse)
    for title, cases in (("no figure yet", new), ("a figure, but no such case", gone)):
        for case in cases[:SHOWN]:
            print(f"{title}: {' '.join(case.split(chr(9)))}")
    if worse or new or gone:
        print(f"\ncount: FAILED: {len(worse)} counts rose, {len(new)} have no figure, {len(gone)} "
              "figures have no case.\nMake the kernels shorter again, or, where the change is meant, "
              "run make count-update and commit tools/count.tsv.")
        return False
    print(f"\ncount: all {len(changes)} counts are within {TOLERANCE} % of tools/count.tsv or below.")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the counts to tools/count.tsv")
    parser.add_argument("folder", help="has <cpu>/bnorm-count for each CPU")
    arguments = parser.parse_args()
    compiler, counts = count_all(arguments.folder)
    if arguments.update:
        if not counts:
            sys.exit("count.py: nothing could be counted; tools/count.tsv is as it was.")
        write_figures(compiler, counts)
        return 0
    expected, figures = read_figures()
    if not counts or compiler != expected:
        skip("all counts" if counts else "everything",
             f"the figures are for {expected or 'no compiler yet'}, this is {compiler or 'none'}")
        return 0
    return 0 if compare(figures, counts) else 1


if __name__ == "__main__":
    sys.exit(main())
