#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs all judges, makes the table of docs/frameworks.md and, if asked to, the snapshot of tests/frameworks.inc.
make conformance calls it."""
import argparse
import json
import pathlib
import subprocess
import sys
import time

import snapshot
import table

HERE = pathlib.Path(__file__).parent
# name, modules it needs, and what makes them available
JUDGES = [
    ('keras3', ['tensorflow', 'keras', 'numpy'], 'venv'),
    ('tf_keras', ['tensorflow', 'tf_keras', 'numpy'], 'venv'),
    ('torch', ['torch', 'numpy'], 'debian'),
    ('onnx', ['onnx', 'onnxruntime', 'numpy'], 'venv'),
    ('caffe', ['numpy'], 'venv'),
]
HOW_TO_INSTALL = {'venv': 'remove the folder conformance/venv of the build folder and run make conformance again',
                  'debian': 'run make deps-conformance (Debian: python3-torch and python3-numpy)'}


def missing(python, modules):
    """Names of modules that this Python lacks."""
    program = f'import importlib.util as u; print(*[m for m in {modules} if not u.find_spec(m)])'
    found = subprocess.run([python, '-c', program], stdout=subprocess.PIPE, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else modules


def run_judge(args, name, modules, where):
    """What the judge found, or None."""
    python = args.debian_python if where == 'debian' else sys.executable
    lacking = missing(python, modules)
    if lacking:
        print(f'FAILED {name}: {python} has no {" and no ".join(lacking)}: {HOW_TO_INSTALL[where]}')
        return None
    findings, log = args.folder/f'{name}.json', args.folder/f'{name}.log'
    findings.unlink(missing_ok=True)
    # What TensorFlow says about itself goes to the log.
    with log.open('w', encoding='utf-8') as errors:
        subprocess.run([python, HERE/f'judge_{name}.py', args.library, findings], stderr=errors, check=False)
    if not findings.exists():
        print(f'FAILED {name}: the program ended without findings; the end of {log}:')
        print(''.join('    ' + line for line in log.read_text().splitlines(keepends=True)[-15:]))
        return None
    return json.loads(findings.read_text())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--library', required=True, help='path of libbnorm.so')
    parser.add_argument('--folder', required=True, type=pathlib.Path, help='for findings, logs and table.md')
    parser.add_argument('--debian-python', required=True, help='the Python that has torch')
    parser.add_argument('--update', type=pathlib.Path, help='puts the table between the markers of this document')
    parser.add_argument('--snapshot', type=pathlib.Path, help='writes the snapshot to this file')
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    rows, records, passed, failed = [], [], 0, 0
    for i, (name, modules, where) in enumerate(JUDGES, 1):
        print(f'{i}/{len(JUDGES)} {name}', flush=True)
        began = time.monotonic()
        found = run_judge(args, name, modules, where)
        if found is None:
            failed += 1
            continue
        rows += found['rows']
        records += found['records']
        passed += sum(row['passed'] for row in found['rows'])
        failed += sum(row['failed'] for row in found['rows'])
        print(f'  {time.monotonic() - began:.0f} s', flush=True)

    text = table.markdown(rows, args.library)
    print('\n' + text)
    (args.folder/'table.md').write_text(text)
    if not failed and args.update:
        table.update(args.update, text)
        print(f'{args.update} has this table now.')
    if not failed and args.snapshot:
        snapshot.write(args.snapshot, records)
        print(f'{args.snapshot}: {len(records)} cases, {args.snapshot.stat().st_size//1000} KB')
    if failed and (args.update or args.snapshot):
        print('Nothing was updated, as not all cases passed.')
    print(f'{passed} passed, {failed} failed')
    sys.exit(1 if failed or not passed else 0)


main()
