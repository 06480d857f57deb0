"""The arithmetic on compiled code: turns of loops, lines of a warp, times, gates and budgets."""

import csv
import json
from itertools import product
from pathlib import Path

import pytest
import torch
import triton

from tritonsyn import cli
from tritonsyn.workbench import LaunchConfig, Shape, gates, model, override_config, sass, sweep
from tritonsyn.workbench.gates import GATES, Gate, Operations, Outcome, Verdict, Work
from tritonsyn.workbench.inspect import listing
from tritonsyn.workbench.model import H100, Prediction
from tritonsyn.workbench.ptx import Code
from tritonsyn.workbench.timers import StaticTimer
from tritonsyn.workbench.workers import Workers

slow = pytest.mark.slow
# Of the newest version the budgets are held; of older ones the figures are only printed.
NEWEST = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)

PTX = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1,
    .param .u32 kernel_param_2
)
.reqntid 64
{
\tmov.u32 \t%r1, %tid.x;
\tmov.u32 \t%r2, %ctaid.x;
\tld.param.b64 \t%rd1, [kernel_param_0];
\tld.param.b64 \t%rd2, [kernel_param_1];
\tld.param.b32 \t%r3, [kernel_param_2];
\tshl.b32 \t%r4, %r1, 2;
\tmul.wide.s32 \t%rd3, %r4, 4;
\tadd.s64 \t%rd4, %rd1, %rd3;
\tmul.wide.s32 \t%rd5, %r1, 4;
\tadd.s64 \t%rd6, %rd2, %rd5;
\tld.global.b32 { %r5 }, [ %rd6 + 0 ];
\tmul.wide.s32 \t%rd7, %r5, 4;
\tadd.s64 \t%rd8, %rd6, %rd7;
\tld.global.b32 { %r6 }, [ %rd8 + 0 ];
\tmov.b32 \t%r7, 0;
\tsetp.lt.s32 \t%p1, %r2, 8;
\t@!%p1 bra \t$L__BB0_3;
$L__BB0_1:
\tmov.b32 \t%r8, 0;
$L__BB0_2:
\tld.global.v4.b32 { %r9, %r10, %r11, %r12 }, [ %rd4 + 0 ];
\tadd.s64 \t%rd4, %rd4, 1024;
\tadd.s32 \t%r8, %r8, 1;
\tsetp.lt.s32 \t%p2, %r8, %r3;
\t@%p2 bra \t$L__BB0_2;
\tadd.s32 \t%r7, %r7, 2;
\tsetp.ge.s32 \t%p3, %r7, 6;
\t@%p3 bra \t$L__BB0_3;
\tbra.uni \t$L__BB0_1;
$L__BB0_3:
\tret;
}
"""


def test_loops_turn_as_often_as_the_arguments_say():
    code = Code(PTX)
    inner, outer = (code.labels[f"$L__BB0_{n}"] for n in (2, 1))
    runs = code.turns({2: 7}, (6,))
    assert (runs[outer], runs[inner], runs[0], runs[-1]) == (3, 21, 1, 1)
    assert code.turns({2: 7}, (16,))[inner] == 0
    assert code.turns({}, (6,))[outer] == 3  # how often the inner loop turns is not known
    assert {first: code.ops[last].name for first, last in code.loops} == {
        inner: "bra",
        outer: "bra.uni",
    }


def test_requests_of_a_warp_are_counted_in_lines_and_sectors():
    index, gather, row = Code(PTX).requests(["a_ptr", "b_ptr", "n"], {2: 7}, (1,), 1000)
    assert (index.lines, index.sectors, index.gathered, index.depth) == (1, 4, False, 0)
    assert (gather.gathered, gather.depth, len(gather.places)) == (True, 1, 2)
    assert (row.access.pointer, row.lines, row.sectors, row.depth) == ("a_ptr", 4, 16, 0)


DELAYED = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1
)
{
\tmov.u32 \t%r1, %ctaid.x;
\tmov.u32 \t%r2, %tid.x;
\tld.param.b64 \t%rd1, [kernel_param_0];
\tld.param.b64 \t%rd2, [kernel_param_1];
\tld.global.b32 { %r3 }, [ %rd2 + 0 ];
\tshl.b32 \t%r4, %r1, 5;
\tsub.s32 \t%r5, %r4, %r3;
\tmax.s32 \t%r6, %r5, 0;
\tadd.s32 \t%r7, %r6, %r2;
\tmul.wide.s32 \t%rd3, %r7, 4;
\tadd.s64 \t%rd4, %rd1, %rd3;
\tld.global.b32 { %r8 }, [ %rd4 + 0 ];
\tret;
}
"""


def test_delays_reach_as_far_back_as_the_code_lets_them():
    delay, row = Code(DELAYED).requests(["a_ptr", "b_ptr"], {}, (8,), 1000)
    assert delay.reaches == () and row.lines == 1
    assert set(row.reaches) == set(range(8))  # a line of each program, and none before the first


def test_lines_that_outputs_share_are_read_once():
    """Against every draw of delays: tiles stop at the first line, and walks begin there."""
    for outputs, slots, step, tile, turns, reach in (
        (3, 4, 1, 2, 1, 9), (3, 4, 2, 3, 1, 4), (2, 6, 1, 2, 3, 3), (1, 5, 1, 4, 1, 0)
    ):  # fmt: skip
        counts = []
        for delays in product(range(0, slots * step, step), repeat=outputs):
            starts = {min(d - t * tile, reach) for d in delays for t in range(turns)}
            counts.append(len({start - line for start in starts for line in range(tile)}))
        expected = sum(counts) / len(counts)
        covered = model.covered(outputs, slots, step, tile * turns, tile, reach)
        assert covered == pytest.approx(expected)


def test_clocks_are_those_of_the_fullest_unit():
    assert sass.clocks(sass.Counter(FFMA=8)) == 2
    assert sass.clocks(sass.Counter(FFMA=8, IADD3=8)) == 4
    assert sass.clocks(sass.Counter(FFMA=1, I2F=2)) == 4


SASS = """
        /*0000*/                   S2R R1, SR_TID.X ;           /* 0x00000a00ff017b82 */
        /*0010*/                   LDG.E R0, desc[UR4][R2.64] ; /* 0x0000000402007981 */
        /*0020*/              @!P0 BRA 0x10 ;                   /* 0x0000000108247547 */
        /*0030*/              @!P0 BRA 0x00 ;                   /* 0x0000000108247547 */
        /*0040*/               @P1 EXIT ;                       /* 0x000000000000794d */
        /*0050*/                   EXIT ;                       /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                    /* 0xfffffffc00fc7947 */
"""


def test_loops_of_machine_code_and_its_usual_end():
    code = sass.read(SASS)
    assert sass.loops(code) == [(0, 3), (1, 2)] and sass.innermost(sass.loops(code)) == [(1, 2)]
    assert sass.memory(code, (1, 2)) == 1 and sass.ends(code) == 6


@pytest.fixture(scope="module")
def compilers():
    with Workers(listing) as made:
        yield made


def scanned(compilers, **config):
    work = Work(gates.scan, Shape(1000, 64, 1024, None, 1), {"source": "bool"})
    with override_config(LaunchConfig(**config), "exp_scan_kernel"):
        return gates.outcome(work, compilers).launches[-1]


def test_a_scan_moves_what_it_cannot_do_without(compilers):
    found = scanned(compilers, BLOCK=64, num_warps=1, UNROLL=16)
    size = 1000 * 64 * 1024
    assert found.times["memory"] == pytest.approx(5 * size / H100.memory, rel=0.01)
    assert found.times["L2"] == pytest.approx(9 / 5 * 5 * size / H100.l2, rel=0.9)
    assert found.warps == pytest.approx(1024 / 132)
    # Sixteen steps of the 8 programs on the busiest multiprocessor, a sector or two each.
    assert found.in_flight == pytest.approx(8 * 16 * 64, rel=0.01)
    assert 3 < found.instructions < 30 and found.bound == "memory"


def test_small_operations_are_counted_but_no_views_or_allocations():
    a = torch.ones(8, 4, device="meta")
    with Operations() as operations:
        b = torch.empty_like(a).copy_(a.t().contiguous().t())
        b.view(-1)[3:].detach().add_(1)
    assert [op.name for op in operations.found] == ["clone", "copy_", "add_"]
    assert operations.found[0].moved == 2 * 128


def verdict(gate, milliseconds, rival):
    launch = Prediction("k", 1, 50, 32, 0, 2.0, 3.0, 4.0, 0.0, {"issue": 1e-3 * milliseconds})
    return Verdict(gate, Outcome([launch]), rival)


def test_a_gate_is_judged_by_the_ratio_that_it_names():
    work = Work(gates.step, Shape(1, 2, 3))
    most = verdict(Gate("a", work, 1.3, "copy_", 2.0), 2.5, 2.0)
    least = verdict(Gate("b", work, 4, "a loop", 2.0, least=True), 0.4, 2.0)
    assert most.reached and most.ratio == 1.25 and most.gate.target == "at most 1.3x copy_"
    assert least.reached and least.ratio == 5 and "at least 4x" in least.gate.target
    assert not verdict(most.gate, 2.7, 2.0).reached and not verdict(least.gate, 0.6, 2.0).reached


def test_check_prints_gates_and_what_it_assumes(capsys, monkeypatch):
    work = Work(gates.step, Shape(1, 2, 3))
    found = [verdict(Gate("a step", work, 1.3, "copy_", 2.0), 2.5, 2.0)]
    monkeypatch.setattr(gates, "judge", lambda *_: found)
    assert cli.main(["check", "--gates"]) == 0
    out = capsys.readouterr().out
    for words in ("a step: at most 1.3x copy_: 1.25x, reached", "132 multiprocessors", "not meas"):
        assert words in out
    assert cli.main(["check", "--gates", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["reached"] and row["launches"][0]["bound"] == "issue"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gates", "nonsense"], "no gate has one of nonsense in its name: step, K=26"),
        (["--gates", "--kernel", "exp_scan_kernel"], "--gates takes neither --target nor --kernel"),
    ],
)
def test_check_refuses_gates_in_one_line(capsys, arguments, message):
    assert cli.main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_gates_have_names_of_their_own_and_a_rival():
    assert len({gate.name for gate in GATES}) == len(GATES)
    for gate in GATES:
        assert (gate.milliseconds is None) != (gate.against is None), gate.name


@slow
def test_the_static_timer_ranks_scans_as_measurements_did():
    """One piece, many steps ahead; not 512 elements in four pieces."""
    settings = [(64, 16, 1), (64, 4, 1), (512, 4, 4)]
    configs = [LaunchConfig(b, num_warps=1, UNROLL=u, chunks=c) for b, u, c in settings]
    with StaticTimer() as timer:
        rows = sweep(
            ["exp_scan_kernel"],
            [Shape(1000, 64, 1024)],
            space={"exp_scan_kernel": configs},
            timer=timer,
        )
    best, shallow, coarse = (row.cost for row in rows)
    assert best < shallow < coarse and coarse > 1.3 * best


# -- budgets --------------------------------------------------------------------------------------

BUDGETS = {
    ("step, K=26", "synapse_step_fwd_kernel", "code"): 130,
    ("exp_scan from bits", "exp_scan_kernel", "instructions"): 14,
    ("exp_scan from bool", "exp_scan_kernel", "instructions"): 9,
    ("read [128, 256, 256]", "select_fwd_kernel", "instructions"): 24,
    # 120 instructions for 64 multiply-adds, 118 of them in the loop.
    ("delayed layer, shifted sum", "shift_sum_kernel", "instructions"): 1.875,
}
"""The most instructions of the machine code that a kernel may have in the call of a gate: as they
stand (``code``), or for an element of its streams, loops as often as they turn."""
TABLE = Path(__file__).resolve().parent.parent / "bench" / "results" / "gates.csv"


@slow
def test_kernels_stay_within_their_budgets_and_the_table_says_so():
    """Held with the newest Triton; with older ones the figures are printed."""
    verdicts = {verdict.gate.name: verdict for verdict in gates.judge()}
    found = {
        (gate, kernel, figure): max(
            getattr(launch, figure)
            for launch in verdicts[gate].outcome.launches
            if launch.kernel == kernel
        )
        for gate, kernel, figure in BUDGETS
    }
    over = {what: count for what, count in found.items() if count > BUDGETS[what]}
    spilled = {
        launch.kernel for v in verdicts.values() for launch in v.outcome.launches if launch.spills
    }
    with TABLE.open(encoding="utf-8") as file:
        table = {line["gate"]: float(line["milliseconds"]) for line in csv.DictReader(file)}
    drifted = {
        name: (verdict.outcome.milliseconds, table.get(name))
        for name, verdict in verdicts.items()
        if verdict.outcome.milliseconds != pytest.approx(table.get(name, 0.0), rel=0.05)
    }
    if not NEWEST:
        pytest.skip(f"triton {triton.__version__}: {found}, over: {over}, spilled: {spilled}")
    assert not over and not spilled
    assert not drifted, "run python docs/measured.py --gates"
