# SPDX-License-Identifier: MIT
"""What the judge programs share: each runs one framework beside bnorm on the cases of cases.py, compares both with the
exact results, and leaves its findings as JSON for run.py. How a program says what it does:

    judge_NAME.py LIBRARY FINDINGS     LIBRARY: path of libbnorm.so"""
import dataclasses
import json
import sys

import numpy as np

import bnorm
import cases
import exact

U = 2.0**-24
U64 = 2.0**-50  # of float64, and some operations more than in float32
TINY = 2.0**-146  # denormals: a few steps
COLUMNS = {'y': 'y', 'running_mean': 'running', 'running_var': 'running', 'dx': 'dx', 'dgamma': 'dgamma',
           'dbeta': 'dgamma'}
MAX_MESSAGES = 8  # of a row


def note_worst(worst, column, one, other, size):
    """Nothing is relative to a size of 0, as that of y where one value is normalised."""
    if size:
        off = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64).reshape(one.shape)).max()/size
        worst[column] = max(worst.get(column, 0), float(off))


class Row:
    """A row of the table: a framework, or one of its ways."""

    def __init__(self, judge, framework, version, rules, default_eps=None, note=''):
        self.judge, self.rules = judge, rules
        self.facts = {'framework': framework, 'version': version, 'preset': rules.preset if rules.tracked else '',
                      'eps': default_eps, 'momentum': '', 'variance': '', 'one': '', 'note': note}
        # By column the largest relative difference between bnorm and the framework, the same with hard data, and
        # between bnorm and the exact result.
        self.worst, self.worst_hard, self.own = {}, {}, {}
        self.passed = self.failed = self.complaints = 0

    def complain(self, message):
        self.complaints += 1
        if self.complaints <= MAX_MESSAGES:
            print(f'FAILED {self.facts["framework"]}: {message}', flush=True)
        elif self.complaints == MAX_MESSAGES + 1:
            print(f'{self.facts["framework"]}: further messages are left out', flush=True)

    def check_all(self, found, function, **options):
        for case in found:
            try:
                good = self.check(case, function, **options)
            except Exception as error:  # whatever a framework may throw: the other cases go on
                self.complain(f'{case}: {type(error).__name__}: {error}')
                good = False
            if good:
                self.passed += 1
            else:
                self.failed += 1
        return self

    def check(self, case, function, double=True, as_double=lambda case: case):
        """One case. function(case, data, dtype) runs the framework and returns arrays by name, or None where it has
        no such dtype; as_double(case) is the case that its float64 really computes."""
        data = cases.generate(case)
        wanted = exact.solve(case, data, self.rules)
        ours = self.judge.library.run(case, data, self.rules)
        theirs = function(case, data, np.float32)
        good = self.compare(case, 'bnorm', ours, {name: result.ours*U for name, result in wanted.items()}, wanted)
        good &= self.compare(case, 'the framework', theirs,
                             {name: result.theirs*U for name, result in wanted.items()}, wanted)
        if double:
            wanted64 = exact.solve(as_double(case), data, self.rules)
            good &= self.compare(case, 'the framework in float64', function(case, data, np.float64),
                                 {name: result.theirs*U64 for name, result in wanted64.items()}, wanted64)
        good &= self.unchanged(case, data, theirs)
        for name, result in wanted.items():
            note_worst(self.own, COLUMNS[name], ours[name], result.value, result.size)
            if name in theirs:
                worst = self.worst_hard if case.kind in ('offset', 'constant') else self.worst
                note_worst(worst, COLUMNS[name], ours[name], theirs[name], result.size)
        if case.coarse:
            self.record(case, data, theirs, wanted)
        return good

    def compare(self, case, whose, got, bounds, wanted):
        good = 'y' in got
        for name, result in wanted.items():
            if name not in got:
                continue
            value = np.asarray(got[name], np.float64).reshape(result.value.shape)
            off = np.abs(value - result.value)/(bounds[name] + TINY)
            if np.all(off <= 1):
                continue
            good = False
            at = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
            self.complain(f'{case}: {name}[{",".join(map(str, at))}] of {whose} is {value[at]:.9g}, exact is '
                          f'{result.value[at]:.9g}: {off[at]:.3g} times as far off as rounding explains')
        return good

    def unchanged(self, case, data, theirs):
        """Running statistics only change in training."""
        if case.mode == 'train':
            return True
        for name, before in (('running_mean', data.mean), ('running_var', data.var)):
            if name in theirs and not np.array_equal(theirs[name].reshape(-1), before):
                self.complain(f'{case}: {name} has changed')
                return False
        return True

    def measure(self, function, shape=(4, 3, 5, 2), axis=-1, one=(1, 1, 1, 2)):
        """What the framework means by its momentum, which variance it keeps and what it does with one value, told from
        what it computes."""
        rule = dict(momentum=0.25, steps=1, axis=axis, scale=False, center=False)
        case = cases.Case(shape, **rule)
        data = cases.generate(case)
        data.mean, data.var = 0*data.mean, 0*data.var + 1
        found = function(case, data, np.float32)
        rows = data.x[0].astype(np.float64).reshape(cases.canonical(case))
        rate = found['running_mean'].reshape(-1)/rows.mean((0, 2))
        self.facts['momentum'] = ('weight of new' if np.allclose(rate, 0.25, rtol=1e-3) else
                                  'weight of old' if np.allclose(rate, 0.75, rtol=1e-3) else f'{rate[0]:g}')
        count = rows.size/rows.shape[1]
        ratio = (found['running_var'].reshape(-1) - (1 - rate))/rate/rows.var((0, 2))
        self.facts['variance'] = ('population' if np.allclose(ratio, 1, rtol=1e-3) else
                                  'sample' if np.allclose(ratio, count/(count - 1), rtol=1e-3) else f'{ratio[0]:g}')
        try:
            case = cases.Case(one, **rule)
            data = cases.generate(case)
            data.mean, data.var = 0*data.mean, 0*data.var + 1
            found = function(case, data, np.float32)
            variance = float(((found['running_var'].reshape(-1) - (1 - rate[0]))/rate[0])[0])
            self.facts['one'] = f'variance {0 if abs(variance) < 1e-6 else variance:g}'
        except ValueError:
            self.facts['one'] = 'ValueError'
        return self

    def measure_clamp(self, function, shape=(4, 3, 5, 2), axis=-1):
        """The eps that is really used where 1e-9 is asked for."""
        case = cases.Case(shape, axis, eps=1e-9, center=False, scale=False)
        data = cases.generate(case)
        data.x *= np.float32(1e-3)
        x = data.x[0].astype(np.float64).reshape(cases.canonical(case))
        y = function(case, data, np.float32)['y'].astype(np.float64).reshape(x.shape)
        eps = (x.var((0, 2))/y.var((0, 2)) - x.var((0, 2))).max()
        self.facts['note'] += f'eps 1e-9 is {"used as given" if eps < 1e-7 else f"raised to {eps:.4g}"}'
        return self

    def record(self, case, data, theirs, wanted):
        """For the snapshot: inputs, what the framework returned, and how far bnorm may be from that."""
        expected = {}
        for name, result in wanted.items():
            if name in theirs:
                value = np.asarray(theirs[name], np.float32).reshape(result.value.shape)
                tolerance = np.abs(value - result.value).max() + (result.ours*U).max()
                expected[name] = {'values': value.ravel().tolist(), 'tolerance': float(tolerance)}
        shape = bnorm.shape_of(case)
        self.judge.records.append({
            'framework': f'{self.facts["framework"]} ({self.facts["version"]})', 'case': str(case),
            'fields': dataclasses.asdict(case), 'rules': dataclasses.asdict(self.rules),
            'shape': {'layout': shape.layout, 'n': shape.n, 'c': shape.c, 'hw': shape.hw},
            'inputs': {name: value.ravel().tolist() for name, value in vars(data).items() if value is not None},
            'expected': expected})

    def done(self):
        facts = self.facts
        print(f'  {facts["framework"]} {facts["version"]}: {self.passed} cases passed, {self.failed} failed',
              flush=True)
        self.judge.rows.append(facts | {'worst': self.worst, 'worst_hard': self.worst_hard, 'own': self.own,
                                        'passed': self.passed, 'failed': self.failed})


class Judge:
    def __init__(self):
        if len(sys.argv) != 3:
            sys.exit(f'usage: {sys.argv[0]} LIBRARY FINDINGS (make conformance does that)')
        self.library = bnorm.Library(sys.argv[1])
        self.rows, self.records = [], []

    def row(self, *args, **options):
        return Row(self, *args, **options)

    def finish(self):
        with open(sys.argv[2], 'w', encoding='utf-8') as file:
            json.dump({'rows': self.rows, 'records': self.records}, file)
        sys.exit(1 if any(row['failed'] for row in self.rows) else 0)
