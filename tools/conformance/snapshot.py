# SPDX-License-Identifier: MIT
"""tests/frameworks.inc: inputs, and what the frameworks made of them, as initialisers for test_frameworks.c."""
import textwrap

import numpy as np

HEAD = '''/* SPDX-License-Identifier: MIT
 *
 * Written by make conformance-snapshot; do not edit. What these frameworks computed:
{versions} */
'''


def number(value):
    """The shortest decimal that reads as the same float."""
    text = np.format_float_scientific(np.float32(value), trim='-') if value and not 1e-3 < abs(value) < 1e6 else \
        np.format_float_positional(np.float32(value), trim='0')
    mantissa, *exponent = text.split('e')
    return mantissa + ('' if '.' in mantissa else '.0') + ''.join('e' + e for e in exponent) + 'f'


def floats(values):
    return '(const float[]){' + ', '.join(map(number, values)) + '}'


def momentum_of(record):
    """In the preset's sense."""
    momentum = record['fields']['momentum']
    if record['rules']['preset'] == 'tensorflow_factor':
        return 1 - momentum
    return 0 if momentum is None else momentum


def preset_of(record):
    if not record['rules']['tracked']:
        return 'PRESET_NONE'
    return 'PRESET_' + {'tensorflow_factor': 'tensorflow'}.get(record['rules']['preset'],
                                                               record['rules']['preset']).upper()


def initialiser(record):
    fields, rules, shape = record['fields'], record['rules'], record['shape']
    members = {'name': '"' + f'{record["framework"]}/{record["case"]}'.replace(',', '').replace(' ', '_') + '"',
               'shape': f'{{.layout = {("BNORM_NHWC", "BNORM_NCHW")[shape["layout"]]}, .n = {shape["n"]}, '
                        f'.c = {shape["c"]}, .hw = {shape["hw"]}}}',
               'preset': preset_of(record), 'frozen': int(fields['mode'] != 'train' and rules['tracked']),
               'steps': fields['steps'], 'eps': repr(fields['eps']), 'momentum': repr(momentum_of(record))}
    if fields['groups']:
        interleaved = rules['ghost'] == 'interleaved'
        members['ghost'] = (f'{{{fields["groups"]}, BNORM_GHOST_{"INTERLEAVED" if interleaved else "CONTIGUOUS"}, '
                            f'BNORM_GHOST_{"AVERAGE" if interleaved else "SUCCESSIVE"}}}')
    if fields['weights']:
        members['weight_epsilon'] = repr(rules['weight_eps'])
    if fields['renorm']:
        r_min, r_max, d_max = fields['renorm']
        members['renorm'] = f'&(const bnorm_renorm){{.r_min = {r_min!r}, .r_max = {r_max!r}, .d_max = {d_max!r}}}'
        members['renorm_momentum'] = repr(fields['renorm_momentum'])
    members |= {name: floats(values) for name, values in record['inputs'].items()}
    members |= {name: f'{{{floats(expected["values"])}, {expected["tolerance"]:.2e}}}'
                for name, expected in record['expected'].items()}
    text = '{' + ', '.join(f'.{name} = {value}' for name, value in members.items()) + '},'
    return textwrap.fill(text, 100, subsequent_indent=' ', break_long_words=False, break_on_hyphens=False)


def write(path, records):
    versions = sorted({record['framework'] for record in records})
    head = HEAD.format(versions=''.join(f' *   {version}\n' for version in versions))
    path.write_text(head + '\n'.join(map(initialiser, records)) + '\n', encoding='utf-8')
