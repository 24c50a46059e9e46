#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Do the tests notice when the sources are wrong? Changes one operator, constant, argument or statement
at a time, builds, runs the tests, and lists the changes that none of them fails for.

Each process works in a copy of the tree of its own. A change is first tried on the tests that are about
its file, then, if it survives, on all at quick depth: src/neon/ under qemu, mpi/ on 1, 2 and 4 processes.
Of the templates what this CPU runs is changed: kernel sets that it lacks are not built again.
tools/mutants.txt names changes that change nothing, with the reason; they are left out. The same seed and
sources give the same changes."""

import argparse
import concurrent.futures
import glob
import hashlib
import os
import queue
import random
import re
import shlex
import shutil
import subprocess
import sys

OPERATORS = [
    (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "),
    (r" && ", " || "), (r" \|\| ", " && "), (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "), (r" / ", " * "),
    (r" % ", " / "), (r" \| ", " & "), (r" & ", " | "), (r" \+= ", " -= "), (r" -= ", " += "), (r"!(?=[a-z(])", ""),
    (r"\b0\b(?![.x])", "1"), (r"(?<![\w.])1\b(?!\.)", "2"), (r"(?<![\w.])([2-9]|[1-9]\d+)\b(?![.x])", None),
]
STATEMENT = re.compile(r"\s+(?!return\b|break|continue|\w+ [*\w])[a-z*(][^{}]*( = | [-+*|&]= |\(|\+\+|--).*;$")
ARGUMENTS = re.compile(r"\b[a-z_]\w*\(([a-z_]\w*), ([a-z_]\w*)([,)])")

# The tests that are about a file: the longest name that its path begins with decides.
TESTS = {
    "": ["errors/*", "options/*", "properties/*"],
    "dispatch/": ["cpu/*", "options/*"],
    "src/apply": ["errors/*apply*", "apply/*", "mask/*", "types/nhwc/*"],
    "src/backward": ["errors/*", "backward/*", "options/*", "mask/*"],
    "src/check": ["errors/*", "options/*"],
    "src/describe": ["describe/*"],
    "src/fold": ["fold/*", "errors/*"],
    "src/forward": ["errors/*", "train/*", "moments/*", "options/*"],
    "src/ghost": ["variants/*ghost*", "errors/*"],
    "src/avx2/": ["kernel/*avx2*"],
    "src/jobs": ["jobs/*", "errors/*"],
    "src/kernels/coefficients": ["kernel/coefficients*", "kernel/grad_coefficients*", "kernel/scale_shift*", "kernel/merge*", "kernel/add_blocks*"],
    "src/kernels/convert": ["kernel/apply*", "kernel/*rows*", "types/nhwc/*"],
    "src/kernels/gradient": ["kernel/sums*", "kernel/dx*"],
    "src/kernels/leaves": ["kernel/*tree*"],
    "src/kernels/map": ["kernel/apply*", "kernel/dx*"],
    "src/kernels/reduce": ["kernel/moments*", "kernel/sums*"],
    "src/kernels/smooth": ["smooth/*"],
    "src/map": ["apply/*", "threads/*", "backward/*", "mask/*"],
    "src/pieces": ["pieces/*", "errors/*"],
    "src/reduce": ["train/*", "backward/*", "pieces/*"],
    "src/renorm": ["variants/*renorm*", "errors/*"],
    "src/running": ["running/*", "train/*", "fold/*", "errors/*"],
    "src/scalar/": ["kernel/*", "apply/*", "train/*", "backward/*"],
    "src/tensor": ["errors/*", "options/*", "apply/*", "blocked/*"],
    "src/uses": ["errors/*", "options/*"],
    "src/weights": ["variants/*weight*", "errors/*"],
    "src/workspace": ["errors/*", "train/*", "pieces/*"],
}

# Files whose tests are another program, or run elsewhere: what make is told and builds, what runs it with the
# tests that are about the file, and what runs all.
NEON = ["-j", "1", "*neon*", "!frameworks/*", "!types/nchw/*", "!types/blocked/*", "!variants/nchw/*", "!variants/blocked/*"]
ARM64 = ["qemu-aarch64", "build/aarch64/bnorm-tests"]
ARM32 = ["qemu-arm", "-cpu", "cortex-a7", "build/armhf/bnorm-tests"]
ELSEWHERE = {
    # How work is shared out, no result tells.
    "src/run.c": (["build/bnorm-balance", "build/bnorm-tests"],
                  ["build/bnorm-tests", "-j", "1", "threads/*", "jobs/*", "train/*", "fp-mode/*"],
                  ["sh", "-c", "build/bnorm-balance --share=512 && build/bnorm-tests -j 1"]),
    "src/neon/": (["BUILD=build/aarch64", "CC=aarch64-linux-gnu-gcc", "LDFLAGS=", "SLEEF=0", ARM64[-1]],
                  ARM64 + ["-j", "1", "kernel/*neon*"], ARM64 + NEON),
    "src/neon/armv7": (["BUILD=build/armhf", "CC=arm-linux-gnueabihf-gcc", "AR=arm-linux-gnueabihf-ar", "LDFLAGS=",
                        "SLEEF=0", ARM32[-1]], ARM32 + ["-j", "1", "kernel/*neon*"], ARM32 + NEON),
    "mpi/": (["MPI=openmpi", "build/openmpi/bnorm-mpi-tests", "build/openmpi/digits-mpi"],
             ["mpiexec.openmpi", "-n", "3", "build/openmpi/bnorm-mpi-tests"], ["mpi/test.sh", "build", "openmpi"]),
}
# Open MPI's words for more processes than cores, and for root.
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "RANKS": "1 2 4", "BNORM_MPI_LIMIT": "120"}


def longest(table, path):
    """What the table has for the longest name that the path begins with."""
    return table[max((name for name in table if path.startswith(name)), key=len, default=None)]


def plan_of(path):
    """What make is told, the tests about a file, and all tests."""
    try:
        return longest(ELSEWHERE, path)
    except KeyError:
        tests = ["build/bnorm-tests", "-j", "1"]
        return ["build/bnorm-tests"], tests + longest(TESTS, path), tests


def code_of(line):
    """The part of a line that is neither comment nor string, as long as the line."""
    return re.sub(r'/\*.*?(\*/|$)|"[^"]*"', lambda m: "\0" * len(m.group()), line)


def changes_of(path):
    """(line number, old line, new line) of every change of a file."""
    found, in_comment, before = [], False, ""
    for number, line in enumerate(open(path), 1):
        was_comment, code = in_comment, code_of(line)
        if in_comment:
            in_comment = "*/" not in line
        elif "/*" in line:
            in_comment = "*/" not in line[line.rindex("/*"):]
        if was_comment or not line[0].isspace():
            continue
        for pattern, new in OPERATORS:
            for match in re.finditer(pattern, code):
                text = new if new is not None else str(int(match.group(1)) + 1)
                found.append((number, line, line[:match.start()] + text + line[match.end():]))
        for match in ARGUMENTS.finditer(code):
            swapped = f"{match.group(2)}, {match.group(1)}"
            found.append((number, line, line[:match.start(1)] + swapped + line[match.start(3):]))
        code = code.replace("\0", " ").rstrip()
        if STATEMENT.match(code) and code.count("(") == code.count(")") and before[-1:] in ";{})":
            found.append((number, line, re.match(r"\s*", line).group() + ";\n"))
        before = code or before
    return found


def key_of(path, old, new):
    return path, " ".join(old.split()), " ".join(new.split())


def known(path):
    """The changes that change nothing."""
    lines = [line.rstrip("\n").split("\t") for line in open(path) if line.strip() and not line.startswith("#")]
    return {tuple(fields[:3]): fields[3] for fields in lines}


def run(command, folder, seconds, **environment):
    """What it printed and its exit status; 124 where it took too long."""
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        return process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "too slow\n", 124


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="globs; without any: src/*.c dispatch/*.c")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60, help="how many of all changes; 0 = all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, default=1200, help="seconds for the tests of one change")
    parser.add_argument("--make", default="make", help="the command that builds, as in 'make CC=clang'")
    parser.add_argument("--folder", default="build/mutants", help="for the copies of the tree")
    parser.add_argument("--list", action="store_true", help="names the changes and tries none")
    options = parser.parse_args()
    patterns = options.files or ["src/*.c", "dispatch/*.c"]
    paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
    harmless = known("tools/mutants.txt")
    all_changes = [(path, *change) for path in paths for change in changes_of(path)]
    changes = [c for c in all_changes if key_of(c[0], c[2], c[3]) not in harmless]
    random.Random(options.seed).shuffle(changes)
    changes = changes[:options.count or None]
    print(f"{len(changes)} of {len(all_changes)} changes of {len(paths)} files", flush=True)
    if options.list:
        for path, number, old, new in changes:
            print(f"{path}:{number}: {old.strip()} -> {new.strip()}")
        return 0

    flags = "-O1 -Werror=incompatible-pointer-types -Werror=int-conversion"
    build = shlex.split(options.make) + ["-s", "JOBS=1", "CFLAGS=" + flags]

    def program(folder, target):
        with open(os.path.join(folder, target), "rb") as file:
            return hashlib.sha256(file.read()).digest()

    folders = queue.Queue()
    first = os.path.join(options.folder, "0")
    shutil.rmtree(options.folder, ignore_errors=True)
    for name in ["Makefile", "make", "include", "src", "dispatch", "tests", "scripts", "tools", "mpi", "examples", "bench"]:
        copy = shutil.copytree if os.path.isdir(name) else shutil.copy2
        os.makedirs(first, exist_ok=True)
        copy(name, os.path.join(first, name))
    originals = {}
    for path in sorted({change[0] for change in changes}):
        goals, about, _ = plan_of(path)
        if goals[-1] in originals:
            continue
        if run(build + goals, first, 3600)[1]:
            sys.exit(f"{first} does not build: see what '{' '.join(build + goals)}' says there.")
        output, status = run(about, first, 3600, BNORM_TEST_QUICK="1", **MPI)
        if status:
            sys.exit(f"The tests fail without any change: '{' '.join(about)}' in {first}, with BNORM_TEST_QUICK=1.")
        originals[goals[-1]] = program(first, goals[-1])
        # make takes what is named by -o for new, whatever has changed.
        for name in re.findall(r"(\w+) +SKIPPED: bnorm has it", output):
            build += ["-o", f"build/src/{name}/{name}.c.o"]
    for i in range(options.jobs):
        if i:
            shutil.copytree(first, os.path.join(options.folder, str(i)))
        folders.put(os.path.join(options.folder, str(i)))

    def attempt(change):
        path, number, _, new = change
        goals, about, everything = plan_of(path)
        folder = folders.get()
        target = os.path.join(folder, path)
        lines = open(target).readlines()
        try:
            open(target, "w").writelines(lines[:number - 1] + [new] + lines[number:])
            if run(build + goals, folder, 1200)[1]:
                return "invalid", "does not build"
            if program(folder, goals[-1]) == originals[goals[-1]]:
                return "same", "gives the same program"
            for tests in [about, everything]:
                # What is too slow counts as failed: a change that hangs is noticed.
                output, status = run(tests, folder, options.limit,
                                     BNORM_TEST_QUICK="1", BNORM_TEST_TIMEOUT="60", **MPI)
                if status:
                    failed = [line for line in output.splitlines() if "FAIL" in line.upper()] or [output.strip()[-99:]]
                    return "killed", failed[0].strip()[:99]
            return "survived", ""
        finally:
            open(target, "w").writelines(lines)
            folders.put(folder)

    results = {"killed": 0, "survived": 0, "invalid": 0, "same": 0}
    survivors = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for change, (result, why) in zip(changes, pool.map(attempt, changes)):
            path, number, old, new = change
            results[result] += 1
            print(f"{result:8}  {path}:{number}: {old.strip()}  ->  {new.strip()}  {why}", flush=True)
            if result == "survived":
                survivors.append(change)
    tried = results["killed"] + results["survived"]
    print(f"\n{results['killed']} of {tried} killed; {results['invalid']} did not build, {results['same']} gave the same "
          f"program; {len(harmless)} are known to change nothing.")
    if survivors:
        print("Write a test that fails for each of these, or a line with the reason into tools/mutants.txt:")
    for path, number, old, new in survivors:
        print("\t".join([*key_of(path, old, new), "(why it changes nothing)"]))
    return results["killed"] < 0.95 * tried


if __name__ == "__main__":
    sys.exit(main())
