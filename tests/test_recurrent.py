"""Recurrent loops of a delayed layer: compiled, and captured in CUDA graphs."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from synapses import CLASSES, PHYSICS
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import tritonsyn
from tritonsyn.launch.launcher import Launch

BATCH, N = 2, 3


def made(kind, device, capturable=True, learned=False):
    """A recurrent layer; each call gives the same numbers."""
    torch.manual_seed(0)
    physics = list(PHYSICS[kind].values())
    if learned:
        physics[1] = torch.nn.Parameter(torch.tensor(physics[1], device=device))
    return tritonsyn.DelayedLinear(
        N, N, 1.0, synapse=CLASSES[kind].partialconstructor(*physics), delay=3.0, bias=True,
        batch_size=BATCH, device=device, capturable=capturable,
    )  # fmt: skip


def step_of(layer):
    return lambda i, z: torch.sigmoid(i + layer(z))


def loop_of(step):
    def loop(x):
        z, out = torch.zeros_like(x[0]), []
        for i in x:
            z = step(i, z)
            out.append(z)
        return torch.stack(out)

    return loop


def trained(layer, loop, x):
    """Values and gradients of a loop; the next one goes on from its state."""
    x = x.clone().requires_grad_()
    out = loop(x)
    found = [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]
    layer.detach_state()
    return found


def same_state(layer, other):
    for a, b in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


# -- compiled -------------------------------------------------------------------------------------

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "learned", "backend"),
    [
        ("single", True, "aot_eager"),
        pytest.param("double", False, "aot_eager", marks=slow),
        pytest.param("alpha", True, "aot_eager", marks=slow),
        pytest.param("double", True, "inductor", marks=slow),
    ],
)
def test_a_compiled_step_is_one_graph(device, kind, learned, backend):
    """Without gradients one serves all steps; with them there is another for the first steps,
    in which the state has no graph yet, or only a part of it."""
    layer, eager = (made(kind, device, flag, learned) for flag in (True, False))
    torch._dynamo.reset()
    counters.clear()
    compiled = loop_of(torch.compile(step_of(layer), fullgraph=True, backend=backend))
    plain = loop_of(step_of(eager))
    with torch.no_grad():
        x = torch.rand(9, BATCH, N, device=device)
        torch.testing.assert_close(compiled(x), plain(x))
    assert counters["stats"]["unique_graphs"] == 1
    made_by = []
    for steps in (3, 8):
        x = torch.rand(steps, BATCH, N, device=device)
        for a, b in zip(trained(layer, compiled, x), trained(eager, plain, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        made_by.append(counters["stats"]["unique_graphs"])
    same_state(layer, eager)
    assert made_by[0] == made_by[1] <= 4


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("single", True),
        pytest.param("double", False, marks=slow),
        pytest.param("alpha", True, marks=slow),
    ],
)
def test_a_compiled_loop_is_one_graph(device, kind, learned):
    layer, eager = (made(kind, device, flag, learned) for flag in (True, False))
    torch._dynamo.reset()
    counters.clear()
    plain = loop_of(step_of(eager))
    compiled = torch.compile(loop_of(step_of(layer)), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.rand(3, BATCH, N, device=device)
        for a, b in zip(trained(layer, compiled, x), trained(eager, plain, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    same_state(layer, eager)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_unrolled_is_not_compiled(device, whole):
    """In the error's first line, also where a graph may end; what was stepped before stays."""
    layer, other = made("single", device), made("single", device)
    x = torch.rand(BATCH, N, device=device)

    def block(x):
        with layer.unrolled(2):
            return layer(x)

    def refused(call):
        torch._dynamo.reset()
        with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported)) as error:
            torch.compile(call, fullgraph=whole, backend="eager")(x)
        assert "unrolled(...)` and torch.compile do not go" in str(error.value).splitlines()[0]

    refused(block)
    with layer.unrolled(3):
        layer(x)
        refused(lambda x: torch.sigmoid(layer(x)))
        layer(x)
    for _ in range(2):
        other(x)
    same_state(layer, other)


# -- captured -------------------------------------------------------------------------------------


class _Imitation(TorchDispatchMode):
    """Takes down what a CUDA graph would: kernels and operations, and the memory they are on.

    What a replay could not do raises: to ask for a value, or to copy from the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "_to_copy"), name
        result = func(*args, **kwargs)
        if not func.is_view and not name.startswith("empty"):
            self.work.append(lambda: self.repeat(func, args, kwargs, result))
        return result

    @staticmethod
    def repeat(func, args, kwargs, result):
        again = func(*args, **kwargs)
        if again is not result:
            result.copy_(again)

    def launch(self, made):
        with _disable_current_modes():  # the interpreter's own
            run(made)
        self.work.append(lambda: run(made))

    def replay(self):
        for part in self.work:
            part()


run = Launch.run


def imitated(work: Callable[[], object]) -> Callable[[], None]:
    """What a capture of the work would replay."""
    imitation = _Imitation()
    with imitation, mock.patch.object(Launch, "run", lambda made: imitation.launch(made)):
        work()
    return imitation.replay


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """The work in a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@pytest.mark.parametrize("capture", [imitated, pytest.param(captured, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("kind", "learned"),
    [("single", False), ("double", True), pytest.param("alpha", True, marks=slow)],
)
def test_a_recurrent_step_is_replayed(device, kind, learned, capture):
    """Each replay is a step with the weights and constants of its time, from the state on."""
    layer, eager = (made(kind, device, flag, learned) for flag in (True, False))
    i, z = (torch.zeros(BATCH, N, device=device) for _ in "iz")

    def step():
        z.copy_(torch.sigmoid(i + layer(z)))

    with tritonsyn.use_backend("triton"), torch.no_grad():
        step()  # which compiles, and fills in constants
        kept = addresses(layer)
        replay = capture(step)
        layer.clear()
        z.zero_()
        expected = torch.zeros_like(z)
        for t in range(5):
            i.uniform_()
            if t == 3:
                for changed in (layer, eager):
                    for parameter in changed.parameters():
                        parameter.mul_(0.9)
            replay()
            expected = step_of(eager)(i, expected)
            torch.testing.assert_close(z, expected)
    assert addresses(layer) == kept
    same_state(layer, eager)


def addresses(module: torch.nn.Module) -> dict[str, int]:
    """Where parameters and buffers are."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}
