"""Proof without a GPU: what the machine code of every kernel says, and what reads it."""

import errno
import json
import os
import re
import signal
import subprocess
from functools import partial
from inspect import getsource

import pytest
import triton

from tritonsyn import cli
from tritonsyn.launch.config import HEURISTICS, LaunchConfig
from tritonsyn.workbench import inspect
from tritonsyn.workbench.calls import CALLS
from tritonsyn.workbench.inspect import (
    LIMITS,
    Access,
    Job,
    Report,
    StreamReport,
    all_kernels,
    all_streams,
    report,
    resident_warps,
)
from tritonsyn.workbench.record import Pointer, Variant, variants
from tritonsyn.workbench.workers import CompileError, Workers

slow = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=["sm_90", pytest.param("sm_80", marks=slow), pytest.param("sm_100", marks=slow)],
)
def outcomes(request):
    """Every kernel in every shipped configuration, compiled once for a target."""
    return inspect.check([request.param], machine_code=False)


def told(outcomes, words=""):
    """The findings that have some words in them, a line each."""
    return "\n".join(
        f"{job.variant} on {job.target} in {job.config}: {finding}"
        for job, outcome in outcomes
        for finding in inspect.as_dict(job, outcome)["findings"]
        if words in finding
    )


def test_every_kernel_is_called_and_declares_its_streams():
    kernels = all_kernels()
    assert kernels.keys() == CALLS.keys() == HEURISTICS.keys() == all_streams().keys()
    assert kernels.keys() == {variant.kernel for variant in variants()}


def test_variants_take_every_branch_on_a_flag_or_an_absent_pointer():
    """All that a kernel compares with None or takes as a flag is there in both ways."""
    always = {"enable_fp_fusion"}
    for name, kernel in all_kernels().items():
        calls = [v for v in variants() if v.kernel == name]
        values = {flag: {dict(v.constants)[flag] for v in calls} for flag, _ in calls[0].constants}
        flags = {n: v for n, v in values.items() if n not in always and v <= {True, False}}
        assert all(v == {True, False} for v in flags.values()), (name, flags)
        pointers = zip(kernel.arg_names, *(v.arguments for v in calls), strict=False)
        seen = {argument: {v is None for v in given} for argument, *given in pointers}
        for argument in re.findall(r"(\w+_ptr) is not None", getsource(kernel.fn)):
            assert seen[argument] == {True, False}, (name, argument)


@pytest.mark.parametrize("kernel", CALLS)
def test_streams_are_those_of_the_docstring(kernel):
    """So that the count in the docstring is what the machine code is held to."""
    doc = " ".join(all_kernels()[kernel].fn.__doc__.split())
    streams: dict[str, int] = {}
    for name, stream in all_streams()[kernel].pointers.items():
        size = 1 if name == "spike_ptr" else 4
        streams[name] = size * (stream.loads + stream.stores)
    if not streams:
        advice = "declare STREAMS beside the kernel, or say 'No streams: ...' and why"
        assert "No streams: " in doc, f"{kernel}: {advice}"
        return
    text = re.search(r"Bytes per element in float32: ([^.;]*)", re.sub(r" \([^)]*\)", "", doc))
    assert text, f"{kernel}: the docstring lacks 'Bytes per element in float32: x 4, y 4.'"
    counted = {f"{name}_ptr": int(count) for name, count in re.findall(r"(\w+) (\d+)", text[1])}
    assert streams == counted, f"{kernel}: the docstring and the declared streams differ"


def test_everything_compiles(outcomes):
    assert not told(outcomes, "does not compile")
    assert {job.variant.kernel for job, _ in outcomes} == CALLS.keys()


def test_every_stream_is_seen(outcomes):
    """In some variant, so that what is declared is held to the code."""
    reports = [outcome for _, outcome in outcomes if isinstance(outcome, Report)]
    for kernel, streams in all_streams().items():
        seen = {
            name
            for report in reports
            if report.job.variant.kernel == kernel
            for name in report.streams
        }
        assert seen == streams.pointers.keys(), kernel


def test_nothing_spills(outcomes):
    """With the compiler of triton 3.6, which needs more registers, spills are only told."""
    spilled = told(outcomes, "spilled")
    if spilled and triton.__version__.startswith("3.6."):
        pytest.skip(f"triton {triton.__version__}:\n{spilled}")
    assert not spilled


def test_streams_are_accessed_as_widely_as_a_thread_can(outcomes):
    assert not told(outcomes, "bits, not")


def test_no_byte_is_moved_twice(outcomes):
    assert not told(outcomes, "bytes per element, not")


def test_nothing_else_is_found(outcomes):
    assert not [line for line in told(outcomes).splitlines() if "spilled" not in line]


PTX = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1,
    .param .u64 kernel_param_2,
    .param .u64 .ptr .global .align 1 kernel_param_3
)
{
\tld.param.b64 \t%rd1, [kernel_param_0];
\tld.param.b64 \t%rd2, [kernel_param_1];
\tld.param.b64 \t%rd3, [kernel_param_2];
\tmul.lo.s64 \t%rd4, %rd3, 4;
\tadd.s64 \t%rd5, %rd1, %rd4;
\tmov.b64 \t%rd6, %rd5;
$L__BB0_1:
\t@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd6 + 0 ];
\t@%p1 ld.global.L1::evict_last.b16 { %rs1 }, [ %rd6 + 16 ];
\tadd.s64 \t%rd6, %rd6, 64;
\tadd.s64 \t%rd7, %rd2, %rd4;
\t@!%p2 st.global.v2.b64 [ %rd7 + 0 ], { %rd8, %rd9 };
\tcp.async.cg.shared.global [ %r9 + 0 ], [ %rd6 + 0 ], 0x10, %r8;
\tselp.b64 \t%rd10, %rd5, %rd7, %p3;
\tst.global.b32 [ %rd10 + 0 ], { %r1 };
\tld.global.b64 { %rd11 }, [ %rd2 + 0 ];
\tld.global.b8 { %rs2 }, [ %rd11 + 0 ];
\t@%p4 bra \t$L__BB0_1;
\tret;
}
"""


def test_accesses_are_followed_to_their_pointers():
    assert inspect.accesses(PTX, ["a_ptr", "b_ptr", "size"]) == {
        Access("a_ptr", False, 128): 2,  # to registers in a loop, and to shared memory
        Access("a_ptr", False, 16): 1,
        Access("b_ptr", True, 128): 1,
        Access("?", True, 32): 1,  # either of two
        Access("b_ptr", False, 64): 1,
        Access("?", False, 8): 1,  # an address out of memory
    }


def test_loops_are_found():
    (loop,) = inspect.loops(PTX)
    assert not inspect.loops(PTX.replace("$L__BB0_1;", "$L__BB0_2;") + "$L__BB0_2:\n")
    before = PTX.replace("$L__BB0_1:", "\tld.global.b64 \t%rd13, [ %rd5 + 0 ];\n$L__BB0_1:")
    once = Access("a_ptr", False, 64)
    assert inspect.accesses(before, ["a_ptr", "b_ptr", "size"])[once] == 1
    within = inspect.accesses(before, ["a_ptr", "b_ptr", "size"], inspect.loops(before))
    assert within == inspect.accesses(PTX, ["a_ptr", "b_ptr", "size"], [loop])
    assert within[once] == 0 and within[Access("a_ptr", False, 128)] == 2


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x00000a00ff017b82 */
                                                                /* 0x000fe20000000f00 */
        /*0010*/              @!P0 BRA 0x50 ;                   /* 0x0000000108247547 */
        /*0020*/                   LDG.E R0, desc[UR4][R2.64] ; /* 0x0000000402007981 */
        /*0030*/                   NOP ;                        /* 0x0000000000007918 */
        /*0040*/                   BRA.U !UP0, 0x20 ;           /* 0xfffffff508407547 */
        /*0050*/                   EXIT ;                       /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                    /* 0xfffffffc00fc7947 */
        /*0070*/                   NOP;                         /* 0x0000000000007918 */
"""


def test_machine_instructions_are_counted_in_whole_and_in_loops():
    assert inspect.instructions(SASS) == (6, 2)


@pytest.mark.parametrize(
    ("target", "registers", "num_warps", "shared", "warps"),
    [
        ("sm_90", 32, 4, 0, 64),  # all
        ("sm_90", 255, 4, 0, 8),  # 65536 registers / (256 * 32)
        ("sm_80", 64, 8, 0, 32),
        ("sm_80", 65, 1, 0, 28),  # 72 registers each: 7 warps in each of four partitions
        ("sm_90", 16, 1, 0, 32),  # 32 programs of a warp
        ("sm_86", 16, 1, 0, 16),
        ("sm_90", 16, 4, 100 * 1024, 8),  # shared memory for two
        ("sm_80", 16, 4, 200 * 1024, 0),
        ("sm_75", 32, 4, 0, 32),
    ],
)
def test_occupancy_of_known_cases(target, registers, num_warps, shared, warps):
    assert resident_warps(target, registers, num_warps, shared) == warps
    job = Job(Variant("ring_push_kernel", (), (), True), target, LaunchConfig(32))
    assert made(job=job, resident_warps=warps).occupancy == warps / LIMITS[target].warps


def made(aligned=True, **changes):
    values = {
        "job": Job(Variant("ring_push_kernel", (), (), aligned), "sm_90", LaunchConfig(1024)),
        "types": {}, "registers": 20, "spills": 0, "shared": 0, "instructions": 50, "in_loops": 0,
        "virtual": 50, "elements": 1024, "loops": False, "streams": {}, "loads": {}, "stores": {},
        "resident_warps": 64,
    }  # fmt: skip
    return Report(**{**values, **changes})


def stream(itemsize, moved, bits):
    return StreamReport(itemsize, 1, 0, moved, bits)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, None),
        ({"spills": 8}, "8 bytes per thread are spilled"),
        ({"resident_warps": 0}, "not even one program fits"),
        ({"streams": {"x_ptr": stream(4, 8.0, 128)}}, "x_ptr moves 8 bytes .*, not 4"),
        # A loop that the compiler has unrolled; but not every stream as often.
        ({"streams": {"x_ptr": stream(4, 8.0, 128)}, "loops": True}, None),
        (
            {
                "streams": {"x_ptr": stream(4, 8.0, 128), "y_ptr": stream(4, 4.0, 128)},
                "loops": True,
            },
            "x_ptr moves 8 bytes",
        ),
        ({"streams": {"x_ptr": stream(4, 4.0, 32)}}, "x_ptr is accessed in 32 bits"),
        ({"streams": {"x_ptr": stream(4, 4.0, 32)}, "aligned": False}, None),
        ({"streams": {"x_ptr": stream(1, 1.0, 64)}}, None),  # a thread has 8 bytes
        ({"streams": {"x_ptr": stream(1, 1.0, 32)}}, "in 32 bits, not 64"),
    ],
)
def test_findings(changes, finding):
    found = made(**changes).findings()
    assert len(found) == (finding is not None)
    if finding:
        assert re.search(finding, found[0])


def push(config=LaunchConfig(1024)):  # noqa: B008 (it is frozen)
    variant = next(variant for variant in variants() if variant.kernel == "ring_push_kernel")
    return Job(variant, "sm_90", config, machine_code=False)


_MACHINE = {
    -1: OSError(errno.ENOSPC, "No space left on device", "/cache"),
    -2: MemoryError(),
    -3: subprocess.CalledProcessError(-signal.SIGKILL, ["cuobjdump"]),
    -4: RuntimeError("`ptxas` failed with error code -9"),
    -5: RuntimeError("ptxas fatal: /tmp/x.o: No space left on device"),
}


def crash_or_answer(number):
    """Stands for a compiler: some crash, some fail, others answer without the interpreter."""
    if number == 1:
        os._exit(3)
    if number == 2:
        raise ValueError("no such number")
    if number < 0:
        raise _MACHINE[number]
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.environ.get("TRITON_INTERPRET")


@slow
def test_a_crash_or_an_error_is_its_own_job_s_result(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with Workers(crash_or_answer, 2) as workers:
        first, crash, error, last, again = workers.map([0, 1, 2, 3, 1])
    assert (first, last) == ((0, None), (3, None))
    assert isinstance(error, CompileError) and "no such number" in str(error)
    for outcome in (crash, again):
        assert isinstance(outcome, CompileError) and "the compiler crashed" in str(outcome)
    assert os.environ["TRITON_INTERPRET"] == "1"


@slow
def test_a_failure_of_the_machine_is_no_job_s_result():
    with Workers(crash_or_answer, 1) as workers:
        for number in _MACHINE:
            with pytest.raises((OSError, MemoryError)):
                workers.run(number)
        with pytest.raises(ChildProcessError, match="was killed"):
            workers.run(9)
        assert workers.run(0) == (0, None)


def test_check_tells_a_cache_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(inspect, "Workers", partial(Workers, parallel=1))
    assert cli.main(["check", "--kernel", "ring_push_kernel", "--target", "sm_90"]) == 2
    out, error = capsys.readouterr()
    assert "Not a directory" in error and str(tmp_path / "file") in error
    assert error.count("\n") == 1 and "does not compile" not in out


def test_a_compile_error_is_told_and_the_next_job_runs():
    with Workers(report, 1) as compilers:
        with pytest.raises(CompileError, match="1048576"):
            compilers.run(push(LaunchConfig(2**21)))
        assert compilers.run(push()).registers > 0


def test_a_variant_is_what_triton_would_compile_in():
    """Two launches that Triton tells apart are two variants; those that it does not are one."""
    import torch

    from tritonsyn.launch.launcher import Launch
    from tritonsyn.workbench.calls import LARGE

    def variant(*arguments):
        kernel = all_kernels()["ring_push_kernel"]
        launch = Launch(kernel, (1,), arguments, {}, (1,), torch.float32, LaunchConfig(32))
        return Variant.of(launch, LARGE)

    t = torch.zeros(64)
    assert variant(t, t, 5, 48) == variant(t, t, 7, 16)
    different = [
        variant(t, t, 5, 48), variant(t.half(), t, 5, 48), variant(t[1:], t, 5, 48),
        variant(t, None, 5, 48), variant(t, t, 1, 48), variant(t, t, 5, 49),
        variant(t, t, 5, 2**31), variant(t, t, 5, 2**31 + 1), variant(t, t, 16, 48),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert variant(t[4:], t, 5, 48).arguments[0] == Pointer(torch.float32, aligned=True)


@slow
def test_check_prints_json(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # it compiles in processes without it
    command = ["check", "--kernel", "ring_take_kernel", "--target", "sm_90", "--json"]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["variant"] for row in rows} == set(range(len(rows)))
    first = rows[0]
    assert (first["kernel"], first["target"]) == ("ring_take_kernel", "sm_90")
    assert first["config"]["BLOCK"] == 1024
    assert (first["spills"], first["shared"], first["bytes_per_element"]) == (0, 0, 12)
    assert first["loads"] == {"128": 2} and first["stores"] == {"128": 4}
    assert first["instructions"] > 20 and first["in_loops"] == 0


def test_check_prints_a_table_and_tells_findings(capsys, monkeypatch):
    outcomes = [(push(), made(spills=8)), (push(), CompileError("out of luck"))]
    monkeypatch.setattr(inspect, "check", lambda *_, **__: outcomes)
    assert cli.main(["check"]) == 1
    out = capsys.readouterr().out
    for words in ("ring_push_kernel", "8 bytes per thread are spilled", "not compile: out of luck"):
        assert words in out
    assert "2 findings" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_9"], "target is 'sm_9', but must be one of sm_75, sm_80"),
        (["--kernel", "nonsense"], "kernel is 'nonsense', but must be one of ring_push_kernel"),
    ],
)
def test_check_refuses_in_one_line(capsys, arguments, message):
    assert cli.main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
