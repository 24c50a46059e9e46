# SPDX-License-Identifier: MIT
"""What a case's results are in float64, and how far from that float32 may be.

Three things are compared with the exact results e, which are formulas, not any framework's code:

  bnorm                      |bnorm - e| <= 2^-24 times `ours`: a few roundings of the terms that the result is made of.
                             Its mean has some 44 bits, its variance a few ulp, its sums hardly grow with n.
  the framework in float32   |f - e| <= 2^-24 times `theirs`: what plain float32 arithmetic gives, with sums whose error
                             grows as sqrt(n), a variance that may come from E[x^2] - mean^2 and y that may come from
                             x*scale + (beta - mean*scale).
  the framework in float64   |f64 - e| <= 2^-50 times `theirs`, where it has one. This says that e is what the framework
                             means, to 11 or more digits; so bnorm is within a few ulp of what it means.

So |bnorm - f| <= |f - e| + a few ulp: the difference to a framework is at most the framework's own error plus that.

Both bounds follow the same path: errors of the mean (dmean), of the variance (dvar) and of sums are propagated to the
first order, and every operation adds a few roundings (K) of its terms. Only what goes in differs: class Style."""
import dataclasses

import numpy as np

import cases

K = 8  # half ulps: of the roundings on the way from statistics to a result


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a framework defines batch norm, and the preset of bnorm that follows it."""
    preset: str  # bnorm_running_...
    momentum: str = 'old'  # the weight of the 'old' or the 'new' value; 'average'; 'caffe'
    sample: bool = False  # the running variance counts n/(n - 1) times; n = 1 counts once
    weight_eps: float = 0  # added to the sum of weights
    ghost: str = ''  # 'interleaved': one update with averages; 'contiguous': one update per group
    tracked: bool = True  # else batch statistics are used in every mode

    def rate(self, case, step):
        if self.momentum == 'average' or case.momentum is None:
            return 1/step
        if self.momentum == 'caffe':
            f = case.momentum
            return 1/sum(f**k for k in range(step))
        return case.momentum if self.momentum == 'new' else 1 - case.momentum


@dataclasses.dataclass
class Result:
    """A value and its bounds in units of 2^-24; size is that of its largest term, for relative differences."""
    value: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    size: float


def of_channels(a):
    """Broadcasts a value per channel."""
    return None if a is None else a.reshape(1, -1, 1)


def total(a):
    return a.sum((0, 2))


class Style:
    """Errors that go in, in units of 2^-24, for one batch x."""

    def __init__(self, ours, x, w, count, mean, var):
        self.ours = ours
        self.growth = K if ours else K + 2*np.sqrt(count.max())
        centred = np.abs(x - of_channels(mean))
        if ours:
            self.dmean = 2.0**-20*np.abs(mean)
            self.dvar = K/2*var
            self.terms = centred
        else:
            self.dmean = self.growth*total(w*np.abs(x))/count
            self.dvar = self.growth*total(w*x*x)/count
            self.terms = np.abs(x) + np.abs(of_channels(mean))


class Batch:
    """One (ghost) batch in training: its statistics, y and gradients, with bounds."""

    def __init__(self, case, rules, x, w, data, state):
        self.eps, self.x, self.w = case.eps, x, w
        self.weight_eps = rules.weight_eps if data.weights is not None else 0
        self.count = total(np.broadcast_to(w, x.shape)) + self.weight_eps
        self.mean = total(w*x)/self.count
        self.var = total(w*(x - of_channels(self.mean))**2)/self.count
        self.gamma = np.ones_like(self.mean) if data.gamma is None else data.gamma.astype(np.float64)
        self.beta = np.zeros_like(self.mean) if data.beta is None else data.beta.astype(np.float64)
        self.styles = [Style(ours, x, w, self.count, self.mean, self.var) for ours in (True, False)]
        self.invstd = 1/np.sqrt(self.var + self.eps)
        self.xh = (x - of_channels(self.mean))*of_channels(self.invstd)
        self.r, self.d = np.ones_like(self.mean), np.zeros_like(self.mean)
        self.dr, self.dd = [0*self.mean]*2, [0*self.mean]*2
        if case.renorm:
            self.renormalize(case, state)

    def renormalize(self, case, state):
        deviation, mean = state.deviation, state.mean
        rs = np.maximum(deviation.value, np.sqrt(self.eps))
        r_min, r_max, d_max = case.renorm_limits()
        self.r = np.clip(1/(self.invstd*rs), r_min, r_max)
        d = (self.mean - mean.value)/rs
        self.d = np.clip(d, -d_max, d_max)
        for i, style in enumerate(self.styles):
            self.dr[i] = self.relative(style) + deviation.error[i]/rs + K
            self.dd[i] = ((style.dmean + mean.error[i] + K*(abs(self.mean) + abs(mean.value)))/rs +
                          abs(d)*(deviation.error[i]/rs + K))

    def relative(self, style):
        """Error of invstd."""
        return style.dvar/(2*(self.var + self.eps)) + K

    def of_xh(self, style):
        return (of_channels(self.invstd)*(of_channels(style.dmean) + K*style.terms) +
                np.abs(self.xh)*of_channels(self.relative(style)))

    def y(self):
        gamma, beta, r, d = (of_channels(a) for a in (self.gamma, self.beta, self.r, self.d))
        value = gamma*(self.xh*r + d) + beta
        bounds = [np.abs(gamma)*(self.of_xh(style)*r + np.abs(self.xh)*r*of_channels(dr) + of_channels(dd)) +
                  K*(np.abs(beta) + np.abs(gamma*d))
                  for style, dr, dd in zip(self.styles, self.dr, self.dd)]
        return value, bounds

    def gradients(self, g):
        """dgamma, dbeta and dx, and their bounds; sums of positions are over this batch."""
        share = self.w/of_channels(self.count)
        s1, dbeta = total(g*self.xh), total(g)
        gamma, r, d = self.gamma, self.r, self.d
        dgamma = r*s1 + d*dbeta
        drift = of_channels(self.mean*self.weight_eps*self.invstd/self.count)  # the mean is not quite the weighted one
        inner = g - share*(of_channels(dbeta) + (self.xh - drift)*of_channels(s1))
        factor = of_channels(gamma*r*self.invstd)
        bounds = {'dgamma': [], 'dbeta': [], 'dx': []}
        for style, dr, dd in zip(self.styles, self.dr, self.dd):
            exh = self.of_xh(style)
            edb = K*np.abs(dbeta) if style.ours else style.growth*total(np.abs(g))
            if style.ours:  # see bnorm_backward in bnorm.h
                es1 = ((self.relative(style) + K)*np.abs(s1) + K*np.sqrt(total(g*g)) +
                       total(np.abs(g))*self.invstd*style.dmean)
            else:
                es1 = total(np.abs(g)*exh) + style.growth*total(np.abs(g)*style.terms)*self.invstd
            terms = np.abs(g) + share*(of_channels(np.abs(dbeta)) + np.abs(self.xh*of_channels(s1)))
            errors = share*(of_channels(edb) + exh*of_channels(np.abs(s1)) + np.abs(self.xh)*of_channels(es1))
            bounds['dgamma'].append(r*es1 + np.abs(d)*edb + r*np.abs(s1)*dr + np.abs(dbeta)*dd + K*np.abs(dgamma))
            bounds['dbeta'].append(edb)
            bounds['dx'].append(np.abs(factor)*((of_channels(self.relative(style) + dr) + K)*terms + errors))
        sizes = {'dgamma': total(np.abs(g*self.xh)).max(), 'dbeta': total(np.abs(g)).max(),
                 'dx': np.abs(factor*g).max()}
        return {'dgamma': dgamma, 'dbeta': dbeta, 'dx': factor*inner}, bounds, sizes


@dataclasses.dataclass
class Average:
    """A running value and its errors."""
    value: np.ndarray
    error: list

    def update(self, rate, batch, errors):
        old = self.value
        self.value = old + rate*(batch - old)
        self.error = [abs(1 - rate)*error + abs(rate)*own + (2 if ours else K)*np.maximum(
                          np.abs(self.value), 0 if ours else np.abs(old) + np.abs(rate*batch))
                      for ours, error, own in zip((True, False), self.error, errors)]


class State:
    """Running statistics, with those of batch renormalization as Keras has them."""

    def __init__(self, data):
        zero = [0*data.mean.astype(np.float64)]*2
        self.moving_mean = Average(data.mean.astype(np.float64), zero)
        self.moving_var = Average(data.var.astype(np.float64), zero)
        self.mean = Average(data.mean.astype(np.float64), zero)
        root = np.sqrt(data.var.astype(np.float64))
        self.deviation = Average(root, [root, root])  # a rounded root: half an ulp
        self.moving_deviation = Average(root, [root, root])

    def update(self, case, rules, rate, batches):
        mean = sum(b.mean for b in batches)/len(batches)
        var = sum(b.var for b in batches)/len(batches)
        dmean = [sum(b.styles[i].dmean for b in batches)/len(batches) for i in (0, 1)]
        dvar = [sum(b.styles[i].dvar for b in batches)/len(batches) for i in (0, 1)]
        if case.renorm:
            deviation = np.sqrt(var + case.eps)
            errors = [e/(2*deviation) + K*deviation for e in dvar]
            # save_mean is the mean rounded to a float.
            dmean = [e + K*np.abs(mean) for e in dmean]
            self.moving_mean.update(rate, mean, dmean)
            self.moving_deviation.update(rate, deviation, errors)
            self.mean.update(1 - case.renorm_momentum, mean, dmean)
            self.deviation.update(1 - case.renorm_momentum, deviation, errors)
            root = self.moving_deviation
            self.moving_var = Average(np.maximum(root.value**2 - case.eps, 0),
                                      [2*root.value*error + K*root.value**2 for error in root.error])
            return
        correction = batches[0].count/np.maximum(batches[0].count - 1, 1) if rules.sample else 1
        self.moving_mean.update(rate, mean, dmean)
        self.moving_var.update(rate, var*correction, [e*correction for e in dvar])


def groups_of(case, rules):
    """Rows of the canonical shape that belong to each ghost batch."""
    rows, samples = cases.canonical(case)[0], case.shape[0]
    if not case.groups:
        return [np.arange(rows)]
    sample = np.arange(rows)//(rows//samples)
    group = sample % case.groups if rules.ghost == 'interleaved' else sample//(samples//case.groups)
    return [np.flatnonzero(group == i) for i in range(case.groups)]


def solve(case, data, rules):
    """The case's results as Result by name."""
    shape = cases.canonical(case)
    g = data.dy.astype(np.float64).reshape(shape)
    if case.mode != 'train' and rules.tracked:
        return solve_frozen(case, data, g)
    w = np.ones((1, 1, 1)) if data.weights is None else data.weights.astype(np.float64).reshape(shape[0], 1, shape[2])
    state = State(data)
    groups = groups_of(case, rules)
    means, variances = [], []
    for step, x in enumerate(data.x, 1):
        x = x.astype(np.float64).reshape(shape)
        batches = [Batch(case, rules, x[rows], w[rows] if w.size > 1 else w, data, state) for rows in groups]
        rate = rules.rate(case, step)
        if rules.ghost == 'contiguous':
            for batch in batches:
                state.update(case, rules, rate, [batch])
        else:
            state.update(case, rules, rate, batches)
        means.append(dataclasses.replace(state.moving_mean))
        variances.append(dataclasses.replace(state.moving_var))
    y, dx = np.zeros(shape), np.zeros(shape)
    y_bounds, dx_bounds = np.zeros((2,) + shape), np.zeros((2,) + shape)
    sums = {name: [0, [0, 0], 0] for name in ('dgamma', 'dbeta')}
    dx_size = 0
    for rows, batch in zip(groups, batches):
        y[rows], bounds = batch.y()
        values, grad_bounds, sizes = batch.gradients(g[rows])
        dx[rows] = values['dx']
        dx_size = max(dx_size, sizes['dx'])
        for i in (0, 1):
            y_bounds[i][rows] = bounds[i]
            dx_bounds[i][rows] = grad_bounds['dx'][i]
        for name, entry in sums.items():
            entry[0] = entry[0] + values[name]
            entry[1] = [a + b + K*np.abs(values[name]) for a, b in zip(entry[1], grad_bounds[name])]
            entry[2] += sizes[name]
    results = {'y': tensor_result(case, y, y_bounds, np.abs(y).max()),
               'dx': tensor_result(case, dx, dx_bounds, dx_size)}
    results |= {name: Result(value, *bounds, size) for name, (value, bounds, size) in sums.items()}
    if rules.tracked:
        for name, averages in (('running_mean', means), ('running_var', variances)):
            value = np.array([average.value for average in averages])
            bounds = [np.array([average.error[i] for average in averages]) for i in (0, 1)]
            results[name] = Result(value, *bounds, np.abs(value).max())
    return results


def tensor_result(case, value, bounds, size):
    return Result(value.reshape(case.shape), *(bound.reshape(case.shape) for bound in bounds), size)


def solve_frozen(case, data, g):
    x = data.x[-1].astype(np.float64).reshape(g.shape)
    mean, var = (of_channels(a.astype(np.float64)) for a in (data.mean, data.var))
    gamma = of_channels(data.gamma.astype(np.float64)) if data.gamma is not None else 1
    beta = of_channels(data.beta.astype(np.float64)) if data.beta is not None else 0
    invstd = 1/np.sqrt(var + case.eps)
    xh = (x - mean)*invstd
    growth = K + 2*np.sqrt(x.size/x.shape[1])
    scale = np.abs(gamma*invstd) + 0*x
    loose = (np.abs(x) + np.abs(mean))*invstd  # of a form that cancels
    s1 = total(g*xh)
    y = gamma*xh + beta
    return {
        'y': tensor_result(case, y, [K*(np.abs(gamma*xh) + np.abs(beta)), K*(np.abs(gamma)*loose + np.abs(beta))],
                           np.abs(y).max()),
        'dx': tensor_result(case, gamma*invstd*g, [K*scale*np.abs(g)]*2, (scale*np.abs(g)).max()),
        'dgamma': Result(s1, K*(np.abs(s1) + np.sqrt(total(g*g))), growth*total(np.abs(g)*loose),
                         total(np.abs(g*xh)).max()),
        'dbeta': Result(total(g), K*np.abs(total(g)), growth*total(np.abs(g)), total(np.abs(g)).max()),
    }
