"""Random programs give what the oracle gives: values, states, gradients, refusals.

By hand, for many more: ``python tests/test_programs.py --programs 20000 --seed 0``.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

import formulas
import programs
import pytest


def run(seeds: range) -> None:
    for seed in seeds:
        program = programs.make(seed)
        if program.failure() is not None:
            pytest.fail(report(program), pytrace=False)


def report(program: programs.Program) -> str:
    """The shortest program with the same failure, and the failure."""
    short = program.shortened()
    commented = "\n".join(f"# {line}" for line in str(short.failure()).splitlines())
    return f"# seed {program.seed}\n{short.source()}\n{commented}"


def test_random_programs():
    run(range(200))


def test_a_wrong_rate_is_found_and_its_program_shortened(monkeypatch):
    """A rate of decay that is one in a thousand too large, in the formulas."""
    right = formulas.decayed
    monkeypatch.setattr(formulas, "decayed", lambda rate, unit: right(1.001 * rate, unit))
    program = next(p for p in map(programs.make, range(50)) if p.failure())
    short = program.shortened()
    assert short.failure().resembles(program.failure())
    assert len(short.statements) < len(program.statements)
    assert "MismatchError: numbers differ" in report(program)


@pytest.mark.slow
def test_more_random_programs():
    run(range(200, 3200))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Runs random programs on tritonsyn and on the oracle, and compares.",
        epilog="Each program has a seed of its own, so --seed 512 --programs 1 runs one again. "
        "Failing programs are shortened and printed; the exit code is 1 if there were any.",
    )
    parser.add_argument("--programs", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one (default 0)")
    parser.add_argument("--failures", type=int, default=5, help="stop after as many (default 5)")
    parser.add_argument("--show", action="store_true", help="print each program before it runs")
    parser.add_argument(
        "--backend", choices=("reference", "triton"), default="reference",
        help="what tritonsyn runs on; triton is interpreted, and slow (default reference)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.backend == "triton":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import tritonsyn

    tritonsyn.set_backend(options.backend)
    began = printed = time.monotonic()
    failed = []
    for done, seed in enumerate(range(options.seed, options.seed + options.programs), 1):
        program = programs.make(seed)
        if options.show:
            print(program.source())
        if program.failure() is not None:
            failed.append(seed)
            print(report(program), end="\n\n", flush=True)
            if len(failed) == options.failures:
                break
        if time.monotonic() > printed + 10 or done == options.programs:
            printed = time.monotonic()
            rate = done / (printed - began)
            print(f"{done} programs, {rate:.1f} a second, failed: {failed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
