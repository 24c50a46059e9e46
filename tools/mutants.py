#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Do the tests notice when the sources are wrong? Changes one operator, constant, argument or statement
at a time, builds, runs the tests, and lists the changes that none of them fails for.

Each process works in a copy of the tree of its own. A change is first tried on the tests that are about
its file, then, if it survives, on all at quick depth. tools/mutants.txt names changes that change
nothing, with the reason; they are left out. The same seed and sources give the same changes."""

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
    "src/jobs": ["jobs/*", "errors/*"],
    "src/map": ["apply/*", "threads/*", "backward/*", "mask/*"],
    "src/pieces": ["pieces/*", "errors/*"],
    "src/reduce": ["train/*", "backward/*", "pieces/*"],
    "src/renorm": ["variants/*renorm*", "errors/*"],
    "src/run.": ["threads/*", "jobs/*", "train/*", "fp-mode/*"],
    "src/running": ["running/*", "train/*", "fold/*", "errors/*"],
    "src/scalar/": ["kernel/*", "apply/*", "train/*", "backward/*"],
    "src/tensor": ["errors/*", "options/*", "apply/*", "blocked/*"],
    "src/uses": ["errors/*", "options/*"],
    "src/weights": ["variants/*weight*", "errors/*"],
    "src/workspace": ["errors/*", "train/*", "pieces/*"],
}


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

    build = shlex.split(options.make) + ["-s", "JOBS=1", "CFLAGS=-O1 -Werror=incompatible-pointer-types -Werror=int-conversion", "build/bnorm-tests"]

    def program(folder):
        with open(os.path.join(folder, "build/bnorm-tests"), "rb") as file:
            return hashlib.sha256(file.read()).digest()

    folders = queue.Queue()
    first = os.path.join(options.folder, "0")
    shutil.rmtree(options.folder, ignore_errors=True)
    for name in ["Makefile", "make", "include", "src", "dispatch", "tests", "scripts", "tools"]:
        copy = shutil.copytree if os.path.isdir(name) else shutil.copy2
        os.makedirs(first, exist_ok=True)
        copy(name, os.path.join(first, name))
    if run(build, first, 3600)[1]:
        sys.exit(f"{first} does not build: see what '{' '.join(build)}' says there.")
    original = program(first)
    for i in range(options.jobs):
        if i:
            shutil.copytree(first, os.path.join(options.folder, str(i)))
        folders.put(os.path.join(options.folder, str(i)))

    def attempt(change):
        path, number, _, new = change
        folder = folders.get()
        target = os.path.join(folder, path)
        lines = open(target).readlines()
        try:
            open(target, "w").writelines(lines[:number - 1] + [new] + lines[number:])
            if run(build, folder, 1200)[1]:
                return "invalid", "does not build"
            if program(folder) == original:
                return "same", "gives the same program"
            about = TESTS[max((name for name in TESTS if path.startswith(name)), key=len)]
            for tests in [about, []]:
                # What is too slow counts as failed: a change that hangs is noticed.
                output, status = run(["build/bnorm-tests", "-j", "1"] + tests, folder, options.limit,
                                     BNORM_TEST_QUICK="1", BNORM_TEST_TIMEOUT="60")
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
