# SPDX-License-Identifier: MIT
"""bnorm.torch against PyTorch's own batch norm. Needs PyTorch and the package."""
import copy
import itertools
import random
import unittest

try:
    import torch
except ImportError:
    print("skipped: PyTorch is not installed; `make engines ENGINES=torch` in bnorm's checkout installs it")
    raise SystemExit(0)
import torch.nn.functional as F
from torch import nn

import bnorm.torch as bt

PAIRS = [(nn.BatchNorm1d, bt.BatchNorm1d, [(6, 5), (4, 5, 7)]), (nn.BatchNorm2d, bt.BatchNorm2d, [(3, 5, 4, 6)]),
         (nn.BatchNorm3d, bt.BatchNorm3d, [(2, 5, 3, 4, 2)])]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def fill(module):
    """Parameters and statistics other than 1 and 0."""
    with torch.no_grad():
        for t in itertools.chain(module.parameters(), module.buffers()):
            if t.dtype.is_floating_point:
                t.copy_(torch.rand_like(t) + 0.5)
    return module


def grads(function, *inputs):
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    (out * weights).sum().backward()
    return [out.detach(), *(t.grad for t in inputs)]


class Block(nn.Module):
    """A residual block as torchvision writes it, with one ReLU used three times."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU6(), nn.BatchNorm2d(6), nn.SiLU(), nn.BatchNorm2d(6))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        return self.last(self.relu(out))


class Test(unittest.TestCase):

    def setUp(self):
        torch.manual_seed(1)

    def close(self, got, wanted, dtype=torch.float32, factor=1):
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype] * factor, atol=TOLERANCE[dtype] * factor)

    def test_modules(self):
        for (stock, ours, shapes), dtype, training, affine, track, momentum in itertools.product(
                PAIRS, TOLERANCE, (True, False), (True, False), (True, False), (0.1, None)):
            for shape in shapes:
                with self.subTest(ours=ours, shape=shape, dtype=dtype, training=training, affine=affine, track=track,
                                  momentum=momentum):
                    one = fill(stock(5, affine=affine, track_running_stats=track, momentum=momentum)).train(training)
                    other = ours(5, affine=affine, track_running_stats=track, momentum=momentum).train(training)
                    other.load_state_dict(one.state_dict())
                    x = (torch.randn(shape) * 2 + 1).to(dtype)
                    for _ in range(2):
                        for a, b in zip(grads(other, x), grads(one, x)):
                            self.assertEqual(a.dtype, b.dtype)
                            self.close(a.float(), b.float(), dtype, 4)
                    for (name, a), (key, b) in zip(other.state_dict().items(), one.state_dict().items()):
                        self.assertEqual(name, key)
                        self.close(a, b)
                    for a, b in zip(other.parameters(), one.parameters()):
                        self.close(a.grad, b.grad, dtype, 40)

    def test_fused(self):
        for dtype, training, form in itertools.product(TOLERANCE, (True, False),
                                                       (torch.contiguous_format, torch.channels_last)):
            with self.subTest(dtype=dtype, training=training, form=form):
                x, r = (torch.randn(3, 5, 4, 6).to(dtype).to(memory_format=form) for _ in range(2))
                bn = fill(nn.BatchNorm2d(5)).train(training)
                for ours, wanted, inputs in [
                        (bt.BatchNormReLU(5), lambda x: F.relu(bn(x)), (x,)),
                        (bt.BatchNormAct(5, activation="relu6"), lambda x: F.relu6(bn(x)), (x,)),
                        (bt.BatchNormAct(5, activation="hard_swish"), lambda x: F.hardswish(bn(x)), (x,)),
                        (bt.BatchNormAct(5, activation="silu"), lambda x: F.silu(bn(x)), (x,)),
                        (bt.BatchNormAct(5, activation=("leaky_relu", 0.2)), lambda x: F.leaky_relu(bn(x), 0.2), (x,)),
                        (bt.BatchNormAddReLU(5), lambda x, r: F.relu(bn(x) + r), (x, r))]:
                    ours.train(training).load_state_dict(bn.state_dict())
                    # Between PyTorch's passes bfloat16 is rounded, which can change the branch of a ReLU.
                    bn32 = copy.deepcopy(bn)
                    got = grads(ours, *inputs)
                    bn = bn32
                    for a, b in zip(got, grads(wanted, *(t.float() for t in inputs))):
                        self.assertEqual(a.dtype, dtype)
                        self.assertTrue(a.is_contiguous(memory_format=form))
                        self.close(a.float(), b, dtype, 4)

    def test_residual_of_any_activation(self):
        x, r = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
        for activation, plain in ((None, lambda v: v), ("gelu", F.gelu), ("tanh", torch.tanh), ("elu", F.elu),
                                  (("clamp", -0.5, 0.5), lambda v: v.clamp(-0.5, 0.5)),
                                  (("leaky_relu", 0.2), lambda v: F.leaky_relu(v, 0.2)),
                                  (("leaky_relu", -0.2), lambda v: F.leaky_relu(v, -0.2))):
            with self.subTest(activation=activation):
                got = grads(lambda x, r: bt.batch_norm(x, None, None, training=True, activation=activation, residual=r),
                            x, r)
                wanted = grads(lambda x, r: plain(F.batch_norm(x, None, None, training=True) + r), x, r)
                for a, b in zip(got, wanted):
                    self.close(a, b)

    def test_samples_of_torch(self):
        from torch.testing._internal.common_methods_invocations import op_db
        op = next(op for op in op_db if op.name == "nn.functional.batch_norm")
        count = 0
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                arguments, mine = (copy.deepcopy((sample.args, sample.kwargs)) for _ in range(2))
                with self.subTest(sample=sample):
                    x, y = (sample.input.detach().clone().requires_grad_() for _ in range(2))
                    a, b = bt.batch_norm(x, *mine[0], **mine[1]), F.batch_norm(y, *arguments[0], **arguments[1])
                    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is not torch.bfloat16 else {"rtol": .02, "atol": .02}
                    torch.testing.assert_close(a, b, **tolerance)
                    torch.testing.assert_close(mine, arguments, **tolerance)
                    a.sum().backward(), b.sum().backward()
                    torch.testing.assert_close(x.grad, y.grad, **tolerance)
                    count += 1
        self.assertGreater(count, 20)

    def test_strides(self):
        x = torch.randn(4, 5, 6)
        bn, ours = nn.BatchNorm1d(5), bt.BatchNorm1d(5)
        for view in (x.transpose(0, 2).contiguous().transpose(0, 2), torch.randn(8, 10, 12)[::2, ::2, ::2],
                     torch.randn(4, 1, 6).expand(4, 5, 6), x.flip(0)):
            with self.subTest(strides=view.stride()):
                self.close(ours(view), bn(view))
        x = torch.randn(4, 5, 6, requires_grad=True)
        ours(x).sum().backward()  # a gradient with strides of 0
        self.assertTrue(x.grad.abs().max() < 1e-5)

    def test_left_to_torch(self):
        x = torch.randn(4, 5, 6, dtype=torch.double, requires_grad=True)
        ours = bt.BatchNorm1d(5).double()
        self.assertTrue(torch.autograd.gradcheck(lambda x: bt.batch_norm(x, None, None, ours.weight, ours.bias, True), x))
        self.assertTrue(torch.autograd.gradgradcheck(ours, x))
        for activation in (None, "relu", "sigmoid", ("elu", 0.5), ("clamp", -1, 1), ("leaky_relu", 0.1), "mish"):
            y = bt.batch_norm(x, None, None, training=True, activation=activation)
            self.close(y.float(), bt.batch_norm(x.float(), None, None, training=True, activation=activation))
        y = torch.func.vmap(lambda x: bt.batch_norm(x, torch.zeros(5), torch.ones(5)))(torch.randn(2, 3, 5, 4))
        self.assertEqual(y.shape, (2, 3, 5, 4))
        self.assertEqual(ours(torch.zeros(0, 5, 6, dtype=torch.double)).shape, (0, 5, 6))

    def test_any_arguments(self):
        """Arguments of any shape and type: what PyTorch's batch norm refuses is refused, and what it does is done."""
        shape = (3, 4, 5)
        tensors = [None, torch.randn(shape), torch.randn(4), torch.rand(4) + 0.5, torch.randn(5), torch.randn(1), torch.randn(()),
                   torch.randn(4, 1), torch.randn(shape).double(), torch.randn(4).double(), torch.randn(shape).half(),
                   torch.randn(4).bfloat16(), torch.randn(shape).bfloat16(), torch.zeros(4, dtype=torch.int), torch.randn(8)[::2],
                   torch.zeros(0, 4, 5), torch.zeros(3, 0, 5), torch.randn(1, 4, 1).expand(shape), torch.randn(4, 4),
                   torch.randn(3, 4), torch.randn(1, 4), torch.full((4,), torch.nan), torch.randn(3, 5, 4).transpose(1, 2),
                   torch.randn(60), torch.randn(shape).to_sparse(), torch.randn(shape, device="meta")]
        others = [0.1, 1e-5, 0.0, 3.0, -1.0, float("nan"), float("inf")]
        generator = random.Random(1)
        counts = {True: 0, False: 0}
        for i in range(1000):
            given = {"input": tensors[1], "running_mean": tensors[2], "running_var": tensors[3], "weight": tensors[2],
                     "bias": tensors[3], "training": bool(i % 2), "momentum": 0.1, "eps": 1e-5}
            for key in generator.sample(sorted(given), generator.randint(1, 2)):
                if key != "training":
                    given[key] = generator.choice(others if key in ("momentum", "eps") else tensors)
            mine, theirs = ({key: copy.deepcopy(value) for key, value in given.items()} for _ in range(2))
            wanted = got = None
            try:
                wanted = F.batch_norm(**theirs)
            except Exception as error:  # PyTorch has all kinds
                refused = error
            try:
                got = bt.batch_norm(mine.pop("input"), **mine)
            except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
                self.assertTrue(str(error))
            counts[wanted is not None] += 1
            with self.subTest(**given):
                if wanted is None:
                    self.assertIsNone(got, refused)
                else:
                    tolerance = {"rtol": 2e-2, "atol": 2e-2} if wanted.dtype.itemsize == 2 else {}
                    torch.testing.assert_close(got, wanted, equal_nan=True, **tolerance)
                for name in ("running_mean", "running_var"):
                    torch.testing.assert_close(mine[name], theirs[name], equal_nan=True)
        self.assertGreater(min(counts.values()), 150, counts)

    def test_negative_variance(self):
        x, mean, var = torch.randn(4, 3, requires_grad=True), torch.zeros(3), torch.tensor([1, -1, 2.])
        y, wanted = bt.batch_norm(x, mean, var), F.batch_norm(x, mean, var)
        self.assertTrue(y[:, 1].isnan().all())
        torch.testing.assert_close(y, wanted, equal_nan=True)
        y.sum().backward()
        with self.assertRaisesRegex(ValueError, "bound or slope"):
            bt.batch_norm(x, mean, var.abs(), activation=("clamp", 1, 0))

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "more than 1 value per channel"):
            bt.BatchNorm1d(5)(torch.randn(1, 5))
        with self.assertRaisesRegex(ValueError, "2 to 5 axes"):
            bt.BatchNormReLU(5)(torch.randn(5))
        with self.assertRaisesRegex(ValueError, "is no activation"):
            bt.BatchNormAct(5, activation="swosh")
        x = torch.randn(4, 5, requires_grad=True)
        bn = bt.BatchNorm1d(5).eval()
        y = bn(x).sum()
        bn.train()(x)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.backward()
        with self.assertRaisesRegex(RuntimeError, "gradients of gradients"):
            torch.autograd.grad(bn(x).square().sum(), x, create_graph=True)
        for wrong in (torch.ones(4), torch.ones(6)):
            with self.assertRaises(RuntimeError):
                bt.batch_norm(x, wrong, wrong)
            with self.assertRaises(RuntimeError):
                bt.batch_norm(x, None, None, wrong, training=True)

    def test_convert(self):
        for training in (True, False):
            stock = fill(Block()).train(training)
            model = bt.convert(copy.deepcopy(stock))
            self.assertEqual(sum(isinstance(m, bt.BatchNormAddReLU) for m in model.modules()), 1)
            self.assertEqual(sum(isinstance(m, bt.BatchNormAct) for m in model.modules()), 4)
            self.assertEqual(sum(type(m) is bt.BatchNorm2d for m in model.modules()), 2)
            self.assertEqual(list(model.state_dict()), list(stock.state_dict()))
            x = torch.randn(3, 6, 8, 8)
            for mode in (training, not training):
                stock.train(mode), model.train(mode)
                for a, b in zip(grads(model, x), grads(stock, x)):
                    self.close(a, b, factor=10)
            for a, b in zip(model.parameters(), stock.parameters()):
                self.close(a.grad, b.grad, factor=100)
            for a, b in zip(model.buffers(), stock.buffers()):
                self.close(a, b)
            self.assertIs(type(bt.convert(copy.deepcopy(stock), fuse=False)), Block)

    def test_convert_leaves_what_it_cannot_see_through(self):

        class Moody(nn.Module):

            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm1d(4)

            def forward(self, x):
                return F.relu(self.bn(x)) if self.training else self.bn(x)

        class Curious(Moody):

            def forward(self, x):
                return F.relu(self.bn(x)) if x.sum() > 0 else x

        class Shared(Moody):

            def forward(self, x):
                return F.relu(self.bn(F.relu(self.bn(x))))

        class Twice(Moody):

            def forward(self, x):
                y = self.bn(x)
                return F.relu(y) + y

        x = torch.randn(5, 4)
        for kind in (Moody, Curious, Shared, Twice):
            with self.subTest(kind=kind):
                stock = kind()
                model = bt.convert(copy.deepcopy(stock))
                self.assertIs(type(model.bn), bt.BatchNorm1d)
                for mode in (True, False):
                    self.close(model.train(mode)(x), stock.train(mode)(x))

    def test_autocast(self):
        stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        model = bt.convert(copy.deepcopy(stock))
        x = torch.randn(4, 3, 9, 9)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a, b = model(x), stock(x)
        self.assertIs(a.dtype, torch.bfloat16)
        self.close(a.float(), b.float(), torch.bfloat16, 4)
        a.float().sum().backward()

    def test_compile(self):
        model = bt.convert(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
        x = torch.randn(5, 6)
        wanted = copy.deepcopy(model)(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        self.close(compiled(x), wanted)
        compiled(x).sum().backward()

    def test_trace_and_deepcopy_and_pickle(self):
        import io
        model = bt.convert(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU())).eval()
        x = torch.randn(5, 6)
        self.close(torch.jit.trace(model, x)(x), model(x))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        self.close(torch.load(buffer, weights_only=False)(x), model(x))

    def test_same_bits_with_any_number_of_threads(self):
        x = torch.randn(8, 16, 40, 40)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(grads(bt.BatchNormReLU(16), x))
        torch.set_num_threads(2)
        for other in results[1:]:
            for a, b in zip(results[0], other):
                self.assertTrue(torch.equal(a, b))


CUTS = {1: [(6,)], 2: [(3, 3), (1, 5), (6, 0)], 3: [(2, 1, 3)]}
KINDS = [(torch.contiguous_format, torch.float32, "relu"), (torch.channels_last, torch.bfloat16, None)]


def synchronised(rank, cuts, folder):
    """One of the processes: its part of the batch in each of the cuts; what it computes goes to files."""
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(cuts[0]))
    for cut, kind in itertools.product(cuts, range(len(KINDS))):
        form, dtype, activation = KINDS[kind]
        torch.manual_seed(1)
        x, r = (torch.randn(6, 5, 9, 7).to(dtype) for _ in range(2))
        bn = fill(bt.SyncBatchNorm(5, activation=activation, momentum=0.3))
        part = slice(sum(cut[:rank]), sum(cut[:rank + 1]))
        x, r = (t[part].to(memory_format=form).requires_grad_() for t in (x, r))
        weights = torch.linspace(-1, 1, 6 * 5 * 9 * 7).reshape(6, 5, 9, 7)[part].to(dtype)
        of_images = []
        for _ in range(2):
            y = bn(x, r if activation else None)
            (y * weights).sum().backward()
            of_images += [t.detach().clone().contiguous() for t in (y, x.grad, *([r.grad] if activation else []))]
        torch.save({"of images": of_images, "of all": [*bn.parameters(), *bn.buffers()],
                    "gradients": [p.grad * len(cut) for p in bn.parameters()]}, f"{folder}/{cut} {kind} {rank}")
    dist.barrier()
    dist.destroy_process_group()


class SyncTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        import tempfile
        cls.results = {}
        for processes, cuts in CUTS.items():
            with tempfile.TemporaryDirectory() as folder:
                torch.multiprocessing.spawn(synchronised, (cuts, folder), processes)
                for cut, kind in itertools.product(cuts, range(len(KINDS))):
                    cls.results[cut, kind] = [torch.load(f"{folder}/{cut} {kind} {rank}") for rank in range(processes)]

    def same(self, got, wanted):
        self.assertEqual(len(got), len(wanted))
        for a, b in zip(got, wanted):
            self.assertTrue(torch.equal(a, b), (a - b).abs().max())

    def test_bits_of_one_process(self):
        for (cut, kind), parts in self.results.items():
            with self.subTest(cut=cut, kind=KINDS[kind]):
                whole = self.results[(6,), kind][0]
                for i, wanted in enumerate(whole["of images"]):
                    self.same([torch.cat([part["of images"][i] for part in parts])], [wanted])
                for part in parts:
                    self.same(part["of all"], whole["of all"])
                    if len(cut) == 3:  # divided by the number of processes and multiplied again
                        for a, b in zip(part["gradients"], whole["gradients"]):
                            torch.testing.assert_close(a, b)
                    else:
                        self.same(part["gradients"], whole["gradients"])

    def test_against_torch(self):
        parts = self.results[(3, 3), 0]
        torch.manual_seed(1)
        x, r = (torch.randn(6, 5, 9, 7) for _ in range(2))
        bn = fill(nn.BatchNorm2d(5, momentum=0.3))
        x.requires_grad_()
        y = F.relu(bn(x) + r)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        for i, wanted in enumerate((y.detach(), x.grad)):
            self.close(torch.cat([part["of images"][i] for part in parts]), wanted)

    def close(self, got, wanted):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    def test_one_process_alone(self):
        x = torch.randn(4, 5)
        torch.testing.assert_close(bt.SyncBatchNorm(5)(x), nn.BatchNorm1d(5)(x))


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    wrong = {getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}
    print(f"{result.testsRun - len(wrong)} passed, {len(wrong)} failed")
    raise SystemExit(len(wrong) != 0)
