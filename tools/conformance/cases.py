# SPDX-License-Identifier: MIT
"""The cases that all frameworks are judged by, and their data."""
import dataclasses
import math
import os
import zlib

import numpy as np

SEED = int(os.environ.get('BNORM_SEED', '1'))
STEPS = 20


@dataclasses.dataclass(frozen=True)
class Case:
    shape: tuple  # as the framework sees it
    axis: object = -1  # of the channels; several for per-activation mode
    eps: float = 1e-3
    momentum: object = 0.9  # as the framework means it
    center: bool = True
    scale: bool = True
    mode: str = 'train'  # or 'infer', 'frozen': statistics as given, also in backward
    steps: int = 1
    kind: str = 'normal'  # of the data, see generate()
    weights: str = ''  # 'mask': zeros and ones; 'nothing': all masked; 'weights': any
    groups: int = 0  # ghost batches
    renorm: tuple = ()  # limits of r and d: r_min, r_max, d_max; None = no limit
    renorm_momentum: float = 0.9
    coarse: bool = False  # data of few digits, for the snapshot

    def renorm_limits(self):
        return [default if limit is None else limit for limit, default in zip(self.renorm, (0, math.inf, math.inf))]

    def __str__(self):
        parts = [f'{self.mode} {"x".join(map(str, self.shape))}']
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default and field.name not in ('mode', 'coarse'):
                parts.append(f'{field.name}={value}')
        return ' '.join(parts).replace(', ', ',')


@dataclasses.dataclass
class Data:
    x: np.ndarray  # one tensor per step
    dy: np.ndarray
    gamma: np.ndarray  # None where the case has no scale
    beta: np.ndarray
    mean: np.ndarray  # running statistics before the first step, or those of inference
    var: np.ndarray
    weights: np.ndarray  # None, or one per position


def axes(case):
    return tuple(axis % len(case.shape) for axis in (case.axis if isinstance(case.axis, tuple) else (case.axis,)))


def canonical(case):
    """The shape as (before the channels, channels, behind them)."""
    first, last = min(axes(case)), max(axes(case))
    shape = case.shape
    return math.prod(shape[:first]), math.prod(shape[first:last + 1]), math.prod(shape[last + 1:])


def generate(case):
    """The same numbers on every machine: RandomState's are never changed by numpy. Kinds:
         normal    means from -2 to 2, deviations from 0.5 to 2
         offset    means of 100, deviations of 1
         spread    channels of sizes from 1e-3 to 1e3
         constant  channel 0 has one value"""
    random = np.random.RandomState(zlib.crc32(str(case).encode()) ^ SEED)
    rows, channels, inner = canonical(case)
    size = {'spread': 10**random.uniform(-3, 3, channels)}.get(case.kind, np.ones(channels))
    means = random.uniform(-2, 2, channels)*size + 100*(case.kind == 'offset')
    deviations = random.uniform(0.5, 2, channels)*size
    along = (1, 1, channels, 1)
    x = random.randn(case.steps, rows, channels, inner)*deviations.reshape(along) + means.reshape(along)
    if case.kind == 'constant':
        x[:, :, 0] = 0.75
    signs = random.choice([-1, 1, 1], channels)
    data = Data(
        x=x.reshape(case.steps, *case.shape),
        dy=random.randn(*case.shape),
        gamma=random.uniform(0.5, 2, channels)*signs,
        beta=random.randn(channels),
        mean=means + random.uniform(-1, 1, channels)*deviations,
        var=np.maximum(deviations**2*random.uniform(0.5, 2, channels), 1/16 if case.coarse else 0),
        weights=None)
    if case.weights:
        # Channels last or at axis 1: one weight per sample and position.
        values = (random.uniform(0.1, 3, rows*inner) if case.weights == 'weights' else np.ones(rows*inner))
        values[random.permutation(rows*inner)[:rows*inner//(1 if case.weights == 'nothing' else 3)]] = 0
        data.weights = values.reshape(case.shape[:1] + tuple(
            length for axis, length in enumerate(case.shape) if axis and axis not in axes(case)))
    for name, value in vars(data).items():
        if value is not None:
            rounded = np.round(value*16)/16 if case.coarse else value
            setattr(data, name, np.ascontiguousarray(rounded, np.float32))
    if not case.scale:
        data.gamma = None
    if not case.center:
        data.beta = None
    return data


# Hand-picked: edges of rank and size, and all axes that a framework may put the channels on.
HAND_PICKED = [
    ((16, 5), -1), ((2, 3), -1), ((64, 33), -1), ((7, 4), 0), ((1000, 16), -1),
    ((4, 7, 6), -1), ((4, 6, 7), 1), ((6, 4, 7), 0), ((2, 1, 3), -1), ((2, 1, 300), 1),
    ((3, 5, 6, 4), -1), ((3, 4, 5, 6), 1), ((4, 3, 5, 6), 0), ((1, 8, 9, 20), -1), ((2, 17, 9, 8), 1),
    ((3, 4, 5, 6), 2), ((8, 16, 16, 32), -1), ((8, 32, 16, 16), 1),
    ((2, 3, 2, 4, 5), -1), ((2, 5, 3, 2, 4), 1), ((5, 2, 3, 2, 4), 0), ((1, 2, 2, 2, 3), 4),
]
ONE_VALUE = [((1, 5), -1), ((1, 1, 1, 6), -1), ((1, 6, 1, 1), 1), ((1, 4, 1), 1), ((1, 1, 1, 1, 3), -1)]
ALL_EPS = (1e-3, 1e-5, 1e-9)
KINDS = ('offset', 'spread', 'constant')
RANDOM_COUNT = 30


def everything(allowed, momenta, modes, one_value=True):
    """The list for a framework that takes the shapes and axes that allowed(shape, axis) says and the given momenta,
    the usual one first."""
    shapes = [(shape, axis) for shape, axis in HAND_PICKED if allowed(shape, axis)]
    some = [shapes[0], shapes[-1]] + [(shape, axis) for shape, axis in shapes if len(shape) == 4][:1]
    usual = Case((1, 1), momentum=momenta[0])

    def with_shape(pairs, **settings):
        return [dataclasses.replace(usual, shape=shape, axis=axis, **settings) for shape, axis in pairs]

    base = with_shape(shapes)
    for momentum in momenta:
        base += with_shape(some, momentum=momentum)
    for eps in ALL_EPS:
        base += with_shape(some, eps=eps)
    for center, scale in ((False, True), (True, False), (False, False)):
        base += with_shape(some, center=center, scale=scale)
    for kind in KINDS:
        base += with_shape(some, kind=kind)
    if one_value:
        base += with_shape([pair for pair in ONE_VALUE if allowed(*pair)])
    base += random_cases(allowed, momenta)
    return unique(dataclasses.replace(case, mode=mode, steps=STEPS if mode == 'train' else 1)
                  for case in base for mode in modes)


def random_cases(allowed, momenta):
    random = np.random.RandomState(SEED)
    found = []
    while len(found) < RANDOM_COUNT:
        rank = random.randint(2, 6)
        shape = tuple(int(length) for length in random.randint(1, {2: 60, 3: 20, 4: 9, 5: 6}[rank], rank))
        axis = int(random.choice([-1, 1, 0]))
        case = Case(shape, axis, eps=float(random.choice(ALL_EPS)), momentum=momenta[random.randint(len(momenta))],
                    center=bool(random.randint(4)), scale=bool(random.randint(4)),
                    kind=str(random.choice(('normal',) + KINDS)))
        rows, _, inner = canonical(case)
        if allowed(shape, axis) and rows*inner > 1:
            found.append(case)
    return found


def unique(found):
    return list({str(case): case for case in found}.values())


def small(shapes, modes=('train', 'infer', 'frozen'), **settings):
    """Cases for the snapshot: few values, of few digits."""
    return [Case(shape, axis, mode=mode, steps=3 if mode == 'train' else 1, coarse=True, **settings)
            for shape, axis in shapes for mode in modes]
