"""Random recurrent programs: on a tape, step by step, and in float64 by the formulas.

A program drives one or two layers that hear each other. It opens and closes blocks of ``unrolled``,
takes steps and goes ahead in them or without one, turns gradients off and on, clears and detaches.
The tape gives what plain steps give: every output, the state after each block, and all gradients.

By hand, for many more: ``python tests/test_unrolled_programs.py --programs 20000 --seed 0``.
"""

import argparse
import os
import random
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonsyn

KINDS = {
    "single": (tritonsyn.SingleExponentialCurrent, (4.0, 5.0)),
    "double": (tritonsyn.DoubleExponentialCurrent, (6.0, 6.0, 2.0)),
    "alpha": (tritonsyn.AlphaCurrent, (9.0, 3.0)),
}
SEEN = 7
"""External inputs, again and again."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of a difference, over the largest number that there is."""
F64 = torch.float64


class StopError(Exception):
    """Ends a block from inside."""


@dataclass
class Program:
    """What is drawn from a seed."""

    seed: int

    def __post_init__(self) -> None:
        draw = self.draw = random.Random(self.seed)
        self.kind = draw.choice([*KINDS])
        self.dtype = draw.choice([F64, F64, torch.float32, torch.bfloat16])
        self.dt = draw.choice([1.0, 0.5, 1.0 if self.dtype == torch.bfloat16 else 0.3])
        self.slots, self.size = draw.choice([1, 2, 3, 4, 7]), draw.choice([1, 3])
        self.batch, self.layers = draw.choice([1, 2]), draw.choice([1, 1, 2])
        self.least = draw.choice([0, 0, draw.randrange(self.slots)])
        self.bias, self.inplace, self.capturable = (draw.random() < p for p in (0.5, 0.1, 0.2))
        self.spiking = self.dtype == F64 and draw.random() < 0.2
        self.external = draw.random() < 0.8  # whether inputs from outside have gradients
        self.twice, self.ends = draw.random() < 0.2, draw.random() < 0.7
        self.strategy = draw.choice(["auto", "auto", "shift", "gemm"])
        self.constants = [draw.choice(["number", "scalar", "each", "kept"]) for _ in range(3)]
        self.operations = list(self._operations())

    def _operations(self) -> Any:
        """Names and arguments. ``fed`` and ``known`` count inputs and outputs."""
        draw, fed, known, graph = self.draw, 0, 0, True
        for _ in range(draw.randint(2, 6)):
            inside = draw.random() < 0.75
            work: list[tuple[Any, ...]] = []
            for _ in range(draw.randint(1, 5)):
                many = draw.randint(1, self.least + 1)
                if fed != known:
                    many = min(many, known - fed + 1)
                if inside and many > 1:
                    if fed == known:  # zeros, where no inputs were before
                        known += many - 1
                        work.append(("gap", many - 1))
                    work.append(("ahead", many))
                    fed, known = fed + many, max(known, fed + 2 * many - 1)
                else:
                    work.append(("step",))
                    fed, known = fed + 1, max(known, fed + 1)
                if draw.random() < 0.15:
                    work += [("step",)] * (known - fed)
                    fed, graph = known, not graph
                    work.append(("differentiate", graph))
            steps = sum(op[1] if op[0] == "ahead" else op[0] == "step" for op in work)
            if inside:
                end = draw.choice(["close", "close", "stop"])
                work = [("open", steps + draw.choice([0, 0, 3])), *work, (end,)]
            yield from work
            change = draw.choice(["none", "none", "detach", "clear", "mask", "set"])
            if change != "none":
                yield from [("step",)] * (known - fed)
                fed = known
                yield (change,)
        yield from [("step",)] * (known - fed)

    def leaves(self) -> dict[str, Tensor]:
        """Everything that may have a gradient, in the program's dtype."""
        torch.manual_seed(self.seed)
        rand, randn = (partial(make, dtype=F64) for make in (torch.rand, torch.randn))
        n, longest, found = self.size, (self.slots - 1) * self.dt, {}
        for i in range(self.layers):
            found[f"weight{i}"] = randn(n, n)
            delay = (rand(n, n) * 1.4 - 0.2) * longest
            whole = (delay / self.dt).round() * self.dt
            found[f"delay{i}"] = torch.where(rand(n, n) < 0.4, whole, delay)
            if self.bias:
                found[f"bias{i}"] = randn(n)
            for j, value in enumerate(KINDS[self.kind][1]):
                if self.constants[j] in ("each", "kept"):
                    found[f"constant{i}{j}"] = value * (1 + 0.1 * rand(n))
                elif self.constants[j] == "scalar":
                    found[f"constant{i}{j}"] = torch.tensor(value, dtype=F64)
        found["x"] = randn(SEEN, self.layers, self.batch, n)
        found["first"] = rand(self.layers, self.batch, n)
        found["set"] = randn(self.layers, self.batch, n)
        found = {name: value.to(self.dtype) for name, value in found.items()}
        for name, value in found.items():
            kept = name.startswith("constant") and self.constants[int(name[-1])] == "kept"
            value.requires_grad_(not kept and (name != "x" or self.external))
        return found

    def __str__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k not in ("draw", "operations")}
        return f"{shown}\n{' '.join(':'.join(map(str, op)) for op in self.operations)}"


class Steps:
    """A run by plain steps: outputs as soon as they are asked for."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.leaves = program.leaves()
        self.cells = [self.cell(i) for i in range(program.layers)]
        self.inputs = [[u] for u in self.leaves["first"]]
        self.outputs: list[list[Any]] = [[] for _ in self.cells]
        self.fed = 0
        self.seen: list[Tensor] = []
        self.states: dict[int, list[Tensor]] = {}
        self.graph = True

    def cell(self, i: int) -> Any:
        """Layer ``i``."""
        p = self.program
        cls, numbers = KINDS[p.kind]
        constants = [self.constant(i, j, number) for j, number in enumerate(numbers)]
        layer = tritonsyn.DelayedLinear(
            p.size, p.size, p.dt, delay=(p.slots - 1) * p.dt, min_delay=p.least * p.dt,
            synapse=cls.partialconstructor(*constants, inplace=p.inplace), bias=p.bias,
            batch_size=p.batch, dtype=p.dtype, capturable=p.capturable,
            strategy=p.strategy,
        )  # fmt: skip
        for name in ("weight", "delay", "bias")[: 2 + p.bias]:
            parameter = torch.nn.Parameter(self.leaves[name + str(i)].detach())
            setattr(layer, name, parameter)
            self.leaves[name + str(i)] = parameter
        return layer

    def constant(self, i: int, j: int, number: float) -> Any:
        value = self.leaves.get(f"constant{i}{j}")
        if value is None or not value.requires_grad:
            return number if value is None else value
        self.leaves[f"constant{i}{j}"] = made = torch.nn.Parameter(value.detach())
        return made

    def run(self) -> "Steps":
        fed = known = 0
        for name, *arguments in self.program.operations:
            if name == "step":
                self.observe(range(fed, fed + 1))
                fed, known = fed + 1, max(known, fed + 1)
            elif name == "ahead":
                (many,) = arguments
                self.observe(range(fed + many - 1, fed + 2 * many - 1))
                fed, known = fed + many, max(known, fed + 2 * many - 1)
            elif name == "gap":
                self.zeros(arguments[0])
                known += arguments[0]
            elif name in ("close", "stop"):
                self.states.setdefault(fed, [])
            elif name != "open":
                getattr(self, name)(*arguments)
        return self

    def zeros(self, count: int) -> None:
        for inputs in self.inputs:
            inputs[-1:-1] = [torch.zeros_like(inputs[-1])] * count
        for _ in range(count):
            self.feed(emit=False)

    def observe(self, indices: range) -> None:
        while self.fed < indices[-1] + 1:
            self.feed()
        for outputs in self.outputs:
            self.seen += [outputs[j] for j in indices]

    def feed(self, emit: bool = True) -> None:
        """One step of all layers, and the inputs of the next."""
        with torch.set_grad_enabled(self.graph):
            for cell, inputs, outputs in zip(self.cells, self.inputs, self.outputs, strict=True):
                outputs.append(cell(inputs[self.fed]))
            if emit:
                self.emit(self.fed)
        self.fed += 1
        self.states[self.fed] = self.state()

    def emit(self, j: int) -> None:
        """The inputs that follow from the outputs of step ``j``."""
        for i, inputs in enumerate(self.inputs):
            y = self.outputs[(i + 1) % len(self.cells)][j]
            v = self.leaves["x"][j % SEEN, i] + y
            inputs.append(v > 0 if self.program.spiking else torch.tanh(v))

    # -- changes ------------------------------------------------------------------------------

    def differentiate(self, graph: bool) -> None:
        self.graph = graph

    def detach(self) -> None:
        for cell in self.cells:
            cell.detach_state()

    def clear(self) -> None:
        for cell in self.cells:
            cell.clear()

    def mask(self) -> None:
        for cell in self.cells:
            cell.clear(torch.arange(self.program.batch) == 0)

    def set(self) -> None:
        for cell, value in zip(self.cells, self.leaves["set"], strict=True):
            name = "pos_current" if self.program.kind == "double" else "current"
            with torch.set_grad_enabled(self.graph):
                setattr(cell.synapse, name, value)

    # -- results ------------------------------------------------------------------------------

    def histories(self) -> list[Tensor]:
        """The last K values of each state, oldest first ``[K, B, N]``, with their graph."""
        return [
            record.readrange(self.program.slots).movedim(-1, 0)
            for cell in self.cells
            for record in cell.synapse.component_records()
        ]

    def state(self) -> list[Tensor]:
        with torch.no_grad():
            return self.histories()

    def results(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """All that was seen, the last state, and the gradients of a sum over some of it."""
        program = self.program
        values = self.seen + self.histories()
        loss = torch.zeros((), dtype=F64)
        for i, value in enumerate(values):
            last = i >= len(self.seen)
            if value.requires_grad and (program.ends if last else i % 4):
                terms = torch.arange(value.numel(), dtype=F64).view(value.shape)
                loss = loss + (value.double() * torch.cos(terms + i)).sum()
        leaves = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}
        how: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        found = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for again in ((True, False) if program.twice else (False,)) if loss.requires_grad else ():
            found = torch.autograd.grad(loss, [*leaves.values()], retain_graph=again, **how)
        return [v.detach().double() for v in values], dict(zip(leaves, found, strict=True))


class Tape(Steps):
    """The same by the operations as they are written."""

    def run(self) -> "Tape":
        operations = list(self.program.operations)
        while operations:
            name, *arguments = operations.pop(0)
            if name == "open":
                self.block(arguments[0], operations)
            else:
                self.do(name, *arguments)
        return self

    def block(self, steps: int, operations: list[tuple[Any, ...]]) -> None:
        try:
            with ExitStack() as stack:
                for cell in self.cells:
                    stack.enter_context(cell.unrolled(steps))
                while operations[0][0] not in ("close", "stop"):
                    name, *arguments = operations.pop(0)
                    self.do(name, *arguments)
                with pytest.raises(RuntimeError, match="on a tape"):
                    self.cells[0].clear()
                if operations.pop(0)[0] == "stop":
                    raise StopError
        except StopError:
            pass
        self.states[self.fed] = self.state()

    def do(self, name: str, *arguments: Any) -> None:
        if name == "step":
            self.take(1, lambda cell, given: cell(given[0]).unsqueeze(0))
        elif name == "ahead":
            self.take(arguments[0], lambda cell, given: cell.ahead(torch.stack(given)))
        elif name == "gap":
            for inputs, outputs in zip(self.inputs, self.outputs, strict=True):
                inputs[-1:-1] = [torch.zeros_like(inputs[-1])] * arguments[0]
                outputs += [None] * arguments[0]
        else:
            getattr(self, name)(*arguments)

    def take(self, many: int, call: Any) -> None:
        first, known = self.fed + many - 1, len(self.outputs[0])
        with torch.set_grad_enabled(self.graph):
            taken = [
                call(cell, inputs[self.fed : self.fed + many])
                for cell, inputs in zip(self.cells, self.inputs, strict=True)
            ]
            for y, outputs in zip(taken, self.outputs, strict=True):
                self.seen += y
                outputs += y[max(known - first, 0) :]
            for j in range(known, len(self.outputs[0])):
                self.emit(j)
        self.fed += many


class Formulas(Steps):
    """Plain steps in float64 as the formulas read, with gradients by PyTorch."""

    def __init__(self, program: Program) -> None:
        self.lists: list[list[list[Tensor]]] = []
        super().__init__(program)

    def cell(self, i: int) -> Any:
        p = self.program
        for name, leaf in self.leaves.items():
            if leaf.dtype != F64:
                self.leaves[name] = leaf.detach().double().requires_grad_(leaf.requires_grad)
        rest = torch.zeros(p.batch, p.size, dtype=F64)
        states = [[rest] * p.slots for _ in range(1 + (p.kind != "single"))]
        self.lists.append(states)
        numbers = KINDS[p.kind][1]
        constants = [self.constant(i, j, number) for j, number in enumerate(numbers)]
        return lambda x: self.step(i, x.to(F64), states, constants)

    def constant(self, i: int, j: int, number: float) -> Any:
        return self.leaves.get(f"constant{i}{j}", torch.tensor(number, dtype=F64))

    def step(self, i: int, x: Tensor, states: Any, constants: Any) -> Tensor:
        p, (charge, *taus) = self.program, constants
        gain = charge / (taus[0] - taus[1] if p.kind == "double" else taus[0])
        decays = [torch.exp(-p.dt / tau) for tau in taus]
        x = x.detach() if p.inplace else x
        last = [state[-1] for state in states]
        new = [last[0] * decays[0] + gain * x]
        if p.kind == "double":
            new.append(last[1] * decays[1] + gain * x)
        elif p.kind == "alpha":
            new.append((last[1] + p.dt / taus[0] * last[0]) * decays[0])
        for state, value in zip(states, new, strict=True):
            state.append(value)
        if p.inplace or not torch.is_grad_enabled():
            self.cut(states)
        return self.project(i, states, taus)

    def project(self, i: int, states: Any, taus: Any) -> Tensor:
        p = self.program
        bounds = torch.tensor([p.least, p.slots - 1], dtype=F64) * p.dt
        delay = self.leaves[f"delay{i}"].clamp(*bounds.to(p.dtype).double())
        exact = delay.detach()
        near = (exact / p.dt).round()
        unit = 2 ** exact.clamp(min=p.dt).log2().floor() * torch.finfo(p.dtype).eps
        hit = (exact - near * p.dt).abs() <= 4 * unit
        back = torch.where(hit, near, (exact / p.dt).ceil()).clamp(max=p.slots - 1)
        after = torch.where(hit, 0.0, back * p.dt - exact) + (exact - delay)
        back = back.long()
        seen = [
            torch.stack(state[-p.slots :]).flip(0).transpose(1, 2)[back, torch.arange(p.size)]
            for state in states
        ]  # [O, I, B]
        e = [torch.exp(-after / tau).unsqueeze(-1) for tau in taus]
        if p.kind == "single":
            current = seen[0] * e[0]
        elif p.kind == "double":
            current = seen[0] * e[0] - seen[1] * e[1]
        else:
            current = (seen[1] + (after / taus[0]).unsqueeze(-1) * seen[0]) * e[0]
        y = torch.einsum("oi,oib->bo", self.leaves[f"weight{i}"], current)
        return y + self.leaves[f"bias{i}"] if p.bias else y

    # -- changes ------------------------------------------------------------------------------

    def cut(self, states: Any) -> None:
        for state in states:
            state[:] = [value.detach() for value in state]

    def detach(self) -> None:
        for states in self.lists:
            self.cut(states)

    def clear(self) -> None:
        self.scale(0.0)
        self.detach()

    def mask(self) -> None:
        keep = torch.arange(self.program.batch) != 0
        self.scale(keep.double().unsqueeze(-1))

    def scale(self, factor: Any) -> None:
        for states in self.lists:
            for state in states:
                state[:] = [value * factor for value in state]

    def set(self) -> None:
        for states, value in zip(self.lists, self.leaves["set"], strict=True):
            state = states[1 if self.program.kind == "alpha" else 0]
            state[-1] = value
            if self.program.inplace or not self.graph:
                self.cut([state])

    def histories(self) -> list[Tensor]:
        slots = self.program.slots
        return [torch.stack(state[-slots:]) for states in self.lists for state in states]


# -- comparisons ----------------------------------------------------------------------------------


def failure(program: Program) -> str:
    """What is wrong with a program's run on the tape; nothing where nothing is."""
    tape, steps, right = (way(program).run() for way in (Tape, Steps, Formulas))
    for fed, state in tape.states.items():
        for one, other in zip(state, steps.states.get(fed, ()), strict=True):
            if apart(one, other) > TOLERANCE[program.dtype]:
                return f"the states after {fed} steps differ by {apart(one, other):.1e}"
    for one, other in zip(tape.cells, steps.cells, strict=True):
        pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        for (name, a), b in pairs:
            if apart(a, b) > TOLERANCE[program.dtype]:
                return f"{name} of the last state is {a}, but should be {b}"
    (values, gradients), others, exact = (run.results() for run in (tape, steps, right))
    named = [(f"value {i}", i) for i in range(len(values))]
    for name, key in [*named, *((name, name) for name in gradients)]:
        a, b, c = (
            (values, others[0], exact[0])
            if isinstance(key, int)
            else (gradients, others[1], exact[1])
        )
        plain = apart(b[key], c[key])
        if apart(a[key], c[key]) > 2 * plain + TOLERANCE[program.dtype]:
            return f"{name} is {a[key]}\nbut should be {c[key]}\nand is by steps {b[key]}"
        if plain > 100 * TOLERANCE[program.dtype]:
            return f"by plain steps {name} is {b[key]}\nbut should be {c[key]}"
    return ""


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the largest number or 1."""
    a, b = a.detach().double(), b.detach().double()
    if not a.numel():
        return 0.0
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    return ((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item()


def check(seeds: range) -> None:
    for seed in seeds:
        program = Program(seed)
        found = failure(program)
        if found:
            pytest.fail(f"{program}\n{found}", pytrace=False)


def test_random_recurrent_programs():
    check(range(40))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--programs", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one (0)")
    parser.add_argument("--backend", choices=("reference", "triton"), default="reference")
    options = parser.parse_args(arguments)
    if options.backend == "triton":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    tritonsyn.set_backend(options.backend)
    failed = 0
    for seed in range(options.seed, options.seed + options.programs):
        program = Program(seed)
        found = failure(program)
        if found:
            failed += 1
            print(f"{program}\n{found}\n", flush=True)
    print(f"{options.programs} programs, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
