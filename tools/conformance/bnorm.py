# SPDX-License-Identifier: MIT
"""libbnorm.so through ctypes, as far as the judges need it: the structs of bnorm.h and one function that runs a case
as a program would."""
import ctypes as ct

import numpy as np

import cases

DOUBLE, FLOAT, SIZE, INT, PTR = ct.c_double, ct.c_float, ct.c_size_t, ct.c_int, ct.c_void_p
NHWC, NCHW = 0, 1
FORWARD_TRAIN, BACKWARD = 1, 2  # bnorm_op
OK = 0


def struct(name, **fields):
    return type(name, (ct.Structure,), {'_fields_': list(fields.items())})


Shape = struct('bnorm_shape', layout=INT, dtype=INT, n=SIZE, c=SIZE, hw=SIZE, c_block=SIZE)
Tensor = struct('bnorm_in', data=PTR, run_stride=SIZE, image_stride=SIZE)  # and bnorm_out
Act = struct('bnorm_act', kind=INT, a=FLOAT, b=FLOAT)
Quant = struct('bnorm_quant', scale=FLOAT, zero_point=INT)
Affine = struct('bnorm_affine', center=PTR, scale=PTR, shift=PTR, residual=Tensor, act=Act, y_dtype=INT,
                x_quant=Quant, residual_quant=Quant, y_quant=Quant, mask=PTR)
Weighting = struct('bnorm_weights', values=PTR, epsilon=DOUBLE)
Running = struct('bnorm_running', mean=PTR, var=PTR, rate=DOUBLE, variance=INT, new_mean=PTR, new_var=PTR)
Renorm = struct('bnorm_renorm', r_min=DOUBLE, r_max=DOUBLE, d_max=DOUBLE, save_r=PTR, save_d=PTR)
Train = struct('bnorm_train', gamma=PTR, beta=PTR, eps=DOUBLE, running=Running, save_mean=PTR, save_invstd=PTR,
               save_var=PTR, save_mean_lo=PTR, residual=Tensor, act=Act, mask=PTR, weights=Weighting,
               renorm=ct.POINTER(Renorm))
Grad = struct('bnorm_grad', gamma=PTR, beta=PTR, save_mean=PTR, save_invstd=PTR, save_var=PTR,
              eps=DOUBLE, save_mean_lo=PTR, frozen=INT,
              act=Act, residual=Tensor, y=Tensor, mask=PTR, dresidual=Tensor, dgamma=PTR, dbeta=PTR,
              weights=Weighting, renorm_r=PTR, renorm_d=PTR, dy_broadcast=ct.c_uint)
Ghost = struct('bnorm_ghost', groups=SIZE, order=INT, running=INT)


def pointer(array):
    """Of a contiguous float array; None stays NULL. The array must outlive the call."""
    if array is None:
        return None
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return array.ctypes.data


def tensor(array):
    return Tensor(pointer(array), 0, 0)


def shape_of(case):
    """The case's tensor as bnorm sees it: channels last, or channels between what is before and after them."""
    rows, channels, inner = cases.canonical(case)
    if inner == 1:
        return Shape(NHWC, 0, case.shape[0], channels, rows // case.shape[0], 0)
    return Shape(NCHW, 0, rows, channels, inner, 0)


class Library:
    def __init__(self, path):
        self.lib = ct.CDLL(path)
        self.lib.bnorm_strerror.restype = ct.c_char_p
        self.lib.bnorm_version.restype = ct.c_char_p
        self.lib.bnorm_workspace.restype = SIZE
        self.lib.bnorm_isa_name.restype = ct.c_char_p
        for name in ('keras', 'tensorflow', 'pytorch', 'onnx'):
            preset = getattr(self.lib, 'bnorm_running_' + name)
            preset.restype, preset.argtypes = Running, (PTR, PTR, DOUBLE)
        self.lib.bnorm_running_pytorch_cumulative.restype = Running
        self.lib.bnorm_running_pytorch_cumulative.argtypes = (PTR, PTR, SIZE)
        self.lib.bnorm_running_caffe.restype = Running
        self.lib.bnorm_running_caffe.argtypes = (PTR, PTR, DOUBLE, SIZE)

    def version(self):
        return self.lib.bnorm_version().decode()

    def kernel_set(self):
        return self.lib.bnorm_isa_name(None).decode()

    def call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status != OK:
            raise RuntimeError(f'{name}: {self.lib.bnorm_strerror(status).decode()}')

    def workspace(self, op, shape):
        size = self.lib.bnorm_workspace(op, ct.byref(shape))
        return ct.create_string_buffer(max(size, 1)), SIZE(size)

    def preset(self, name, mean, var, momentum, step):
        """The bnorm_running of a framework, at a step that counts from 1."""
        if mean is None:
            return Running()
        if name == 'tensorflow_factor':  # bnorm.h: for exponential_avg_factor f pass momentum = 1 - f
            name, momentum = 'tensorflow', 1 - momentum
        preset = getattr(self.lib, 'bnorm_running_' + name)
        if name == 'pytorch_cumulative':
            return preset(pointer(mean), pointer(var), step)
        if name == 'caffe':
            return preset(pointer(mean), pointer(var), momentum, step)
        return preset(pointer(mean), pointer(var), momentum)

    def run(self, case, data, rules):
        """What the case asks for, by the framework's rules. As in the judges: y, dx, dgamma and dbeta of the last
        step, running statistics after every step."""
        if case.mode != 'train' and rules.tracked:
            return self.run_frozen(case, data)
        shape = shape_of(case)
        channels = shape.c
        mean, var = (data.mean.copy(), data.var.copy()) if rules.tracked else (None, None)
        groups = max(case.groups, 1)
        saved = [np.zeros(groups*channels, np.float32) for _ in range(3)]
        r, d = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        weights = Weighting(pointer(data.weights), rules.weight_eps if data.weights is not None else 0)
        ghost = Ghost(case.groups, int(rules.ghost == 'interleaved'), int(rules.ghost != 'interleaved'))
        renorm = renorm_state = None
        if case.renorm:
            renorm = Renorm(*case.renorm_limits(), pointer(r), pointer(d))
            renorm_state = RenormState(self, case, data)
        y = np.zeros(case.shape, np.float32)
        means, variances = [], []
        for step, x in enumerate(data.x, 1):
            train = Train(gamma=pointer(data.gamma), beta=pointer(data.beta), eps=case.eps,
                          running=self.preset(rules.preset, mean, var, case.momentum, step),
                          save_mean=pointer(saved[0]), save_mean_lo=pointer(saved[1]), save_invstd=pointer(saved[2]),
                          weights=weights)
            if renorm:
                train.running = renorm_state.running()
                train.renorm = ct.pointer(renorm)
            ws, size = self.workspace(FORWARD_TRAIN, shape)
            if case.groups:
                self.call('bnorm_forward_train_ghost', ct.byref(shape), tensor(x), tensor(y), ct.byref(train),
                          ct.byref(ghost), ws, size, None)
            else:
                self.call('bnorm_forward_train', ct.byref(shape), tensor(x), tensor(y), ct.byref(train), ws, size,
                          None)
            if renorm:
                mean, var = renorm_state.update(saved[0], saved[2])
            if rules.tracked:
                means.append(mean.copy())
                variances.append(var.copy())
        grad = Grad(gamma=pointer(data.gamma), beta=pointer(data.beta), save_mean=pointer(saved[0]),
                    save_mean_lo=pointer(saved[1]), save_invstd=pointer(saved[2]), weights=weights)
        if renorm:
            grad.renorm_r, grad.renorm_d = pointer(r), pointer(d)
        results = self.backward(shape, data, grad, ghost if case.groups else None)
        results['y'] = y
        if rules.tracked:
            results |= {'running_mean': np.array(means), 'running_var': np.array(variances)}
        return results

    def backward(self, shape, data, grad, ghost):
        dx = np.zeros(data.dy.shape, np.float32)
        dgamma, dbeta = np.zeros(shape.c, np.float32), np.zeros(shape.c, np.float32)
        grad.dgamma, grad.dbeta = pointer(dgamma), pointer(dbeta)
        ws, size = self.workspace(BACKWARD, shape)
        args = [ct.byref(shape), tensor(data.x[-1]), tensor(data.dy), tensor(dx), ct.byref(grad)]
        if ghost:
            self.call('bnorm_backward_ghost', *args, ct.byref(ghost), ws, size, None)
        else:
            self.call('bnorm_backward', *args, ws, size, None)
        return {'dx': dx, 'dgamma': dgamma, 'dbeta': dbeta}

    def run_frozen(self, case, data):
        """Inference, and backward with statistics that are constants."""
        shape = shape_of(case)
        scale, invstd, shift = (np.zeros(shape.c, np.float32) for _ in range(3))
        for gamma, out in ((data.gamma, scale), (None, invstd)):
            self.call('bnorm_fold', SIZE(shape.c), PTR(pointer(gamma)), None, PTR(pointer(data.mean)),
                      PTR(pointer(data.var)), DOUBLE(case.eps), PTR(pointer(out)), PTR(pointer(shift)))
        affine = Affine(center=pointer(data.mean), scale=pointer(scale), shift=pointer(data.beta))
        y = np.zeros(case.shape, np.float32)
        self.call('bnorm_apply', ct.byref(shape), tensor(data.x[-1]), tensor(y), ct.byref(affine), None)
        grad = Grad(gamma=pointer(data.gamma), beta=pointer(data.beta), save_mean=pointer(data.mean),
                    save_invstd=pointer(invstd), frozen=1)
        return self.backward(shape, data, grad, None) | {'y': y}


class RenormState:
    """Batch renormalization in Keras averages standard deviations, sqrt(variance + eps), and keeps two pairs of
    averages, each with a momentum of its own: one for r and d, one for inference. bnorm_forward_train takes variances
    and is kept from updating them (rate 0); bnorm_running_update does it, with deviations for variances."""

    def __init__(self, library, case, data):
        self.library, self.case = library, case
        self.count = data.x[0].size / data.mean.size
        self.renorm = [data.mean.copy(), np.sqrt(data.var)]
        self.moving = [data.mean.copy(), np.sqrt(data.var)]

    def variance(self, deviation):
        return np.maximum(deviation.astype(np.float64)**2 - self.case.eps, 0).astype(np.float32)

    def running(self):
        self.var = self.variance(self.renorm[1])
        return Running(pointer(self.renorm[0]), pointer(self.var), 0, 0)

    def update(self, mean, invstd):
        deviation = 1/invstd
        for averages, momentum in ((self.renorm, self.case.renorm_momentum), (self.moving, self.case.momentum)):
            running = self.library.preset('keras', *averages, momentum, 1)
            self.library.call('bnorm_running_update', SIZE(mean.size), PTR(pointer(mean)), PTR(pointer(deviation)),
                              DOUBLE(self.count), ct.byref(running))
        return self.moving[0].copy(), self.variance(self.moving[1])
