# SPDX-License-Identifier: MIT
"""The table of docs/frameworks.md."""
import pathlib
import re
import sys
import textwrap

import bnorm

BEGIN, END = '<!-- table -->\n', '<!-- end of table -->'
COLUMNS = ('y', 'running', 'dx', 'dgamma')
HEAD = ['framework', 'version', 'default eps', 'momentum is the', 'running variance', 'n = 1', 'preset',
        'bnorm - framework', 'the same, hard data', 'bnorm - exact']


def processor():
    found = re.search(r'^model name\s*: (.*)$', pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.M)
    return found.group(1) if found else 'an unnamed CPU'


def differences(worst):
    return ' / '.join(f'{worst[column]:.0e}'.replace('e-0', 'e-') if column in worst else '-' for column in COLUMNS)


def markdown(rows, library):
    lines = ['| ' + ' | '.join(HEAD) + ' |', '|' + '---|'*len(HEAD)]
    notes = []
    for row in rows:
        note = row['note'].strip('; ')
        mark = ''
        if note:
            if note not in notes:
                notes.append(note)
            mark = f' ({notes.index(note) + 1})'
        preset = {'tensorflow_factor': 'tensorflow', '': '-'}.get(row['preset'], row['preset'])
        eps = '-' if row['eps'] is None else f'{row["eps"]:g}'
        cells = [row['framework'] + mark, row['version'], eps, row['momentum'] or '-', row['variance'] or '-',
                 row['one'] or '-', preset, differences(row['worst']), differences(row['worst_hard']),
                 differences(row['own'])]
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines.append('')
    lines += [textwrap.fill(f'{i}. {note}', 100, subsequent_indent='   ') for i, note in enumerate(notes, 1)]
    found = bnorm.Library(library)
    lines += ['', textwrap.fill(
        'Differences are the largest over all cases, for y / running statistics / dx / dgamma and dbeta, as parts of '
        'the largest |y|, running value, |gamma\\*invstd\\*dy| and sum of |dy\\*xh| (for dbeta of |dy|) of a case. One '
        'rounding to float is 6e-8. Hard data have means of 100 and deviations of 1, or a channel of one value, which invstd = '
        '1/sqrt(eps) multiplies; there the frameworks lose digits. Exact is computed in float64. Measured by '
        f'`make conformance` with bnorm {found.version()}, kernel set {found.kernel_set()}, on {processor()}.', 100)]
    return '\n'.join(lines) + '\n'


def update(document, text):
    old = document.read_text(encoding='utf-8') if document.exists() else ''
    if BEGIN not in old or END not in old:
        sys.exit(f'{document} has no lines {BEGIN.strip()} and {END}: add them where the table belongs')
    before, rest = old.split(BEGIN, 1)
    document.write_text(before + BEGIN + '\n' + text + '\n' + END + rest.split(END, 1)[1], encoding='utf-8')
