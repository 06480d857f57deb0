"""Proof without a GPU: what the machine code of every kernel says, and what reads it."""

import json
import re
import subprocess
import sys

import pytest
import triton

from tritonsyn import cli
from tritonsyn.kernels.signatures import SIGNATURES
from tritonsyn.launch.config import HEURISTICS, LaunchConfig
from tritonsyn.workbench import checking, compiled, sass
from tritonsyn.workbench.occupancy import LIMITS, occupancy, resident_warps
from tritonsyn.workbench.report import Report, StreamReport
from tritonsyn.workbench.workers import CompileError, Compilers, Job
from tritonsyn.workbench.workloads import WORKLOADS

# With the compiler of triton 3.6 these overflow the registers on some architectures.
OLD_TRITON = triton.__version__.startswith("3.6.")
SPILLING = {
    "sm_80": ["exp_scan_kernel"],
    "sm_100": ["exp_scan_kernel", "temporal_gemm_kernel"],
}


@pytest.fixture(scope="module")
def outcomes():
    """Every kernel in every shipped configuration: its code for one target, spills for others."""
    return [
        *checking.check(["sm_90"]),
        *checking.check(["sm_80", "sm_100"], read_code=False),
    ]


def told(outcomes, words=""):
    """The findings that have some words in them, a line each."""
    return "\n".join(
        f"{job.kernel} variant {job.variant} on {job.target} in {job.config}: {finding}"
        for job, outcome in outcomes
        for finding in checking.as_dict(job, outcome)["findings"]
        if words in finding and not (job.kernel in SPILLING.get(job.target, ()) and OLD_TRITON)
    )


def test_every_kernel_has_a_signature_with_all_of_its_arguments():
    kernels = compiled.all_kernels()
    assert kernels.keys() == SIGNATURES.keys() == HEURISTICS.keys() == WORKLOADS.keys()
    for name, kernel in kernels.items():
        for variant in SIGNATURES[name]:
            config = checking.shipped_configs(name, variant)[0]
            constants = compiled.constants_of(kernel.arg_names, variant, config)
            assert sorted([*variant.types, *constants]) == sorted(kernel.arg_names)


@pytest.mark.parametrize("kernel", SIGNATURES)
def test_streams_are_those_of_the_docstring(kernel):
    """So that the count in the docstring is what the machine code is held to."""
    doc = " ".join(compiled.all_kernels()[kernel].fn.__doc__.split())
    streams: dict[str, int] = {}
    for variant in SIGNATURES[kernel]:
        for name, stream in variant.streams.items():
            size = 1 if name == "spike_ptr" else 4
            streams[name] = size * (stream.loads + stream.stores)
    if not streams:
        advice = "declare streams in kernels/signatures.py, or say 'No streams: ...' and why"
        assert "No streams: " in doc, f"{kernel}: {advice}"
        return
    text = re.search(r"Bytes per element in float32: ([^.;]*)", re.sub(r" \([^)]*\)", "", doc))
    assert text, f"{kernel}: the docstring lacks 'Bytes per element in float32: x 4, y 4.'"
    counted = {f"{name}_ptr": int(count) for name, count in re.findall(r"(\w+) (\d+)", text[1])}
    assert streams == counted, f"{kernel}: the docstring and the declared streams differ"


def test_everything_compiles(outcomes):
    assert not told(outcomes, "does not compile")
    assert {job.kernel for job, _ in outcomes} == SIGNATURES.keys()


def test_nothing_spills(outcomes):
    assert not told(outcomes, "spilled")


def test_streams_are_accessed_in_128_bits(outcomes):
    assert not told(outcomes, "bits, not")


def test_no_byte_is_moved_twice(outcomes):
    assert not told(outcomes, "bytes per element, not")


def test_nothing_else_is_found(outcomes):
    assert not told(outcomes)


CODE = """
.text.kernel:
        /*0000*/                   LDC.128 R4, c[0x0][0x210] ;
        /*0010*/                   ULDC.64 UR4, c[0x0][0x220] ;
        /*0020*/                   IMAD.WIDE.U32 R2, R0, 0x4, R6 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0040*/              @!P1 LDG.E.128 R8, desc[UR8][R2.64] ;
        /*0050*/                   LDG.E.U16 R12, desc[UR8][R4.64+0x10] ;
        /*0060*/                   IADD3 R14, P2, R0, UR4, RZ ;
        /*0070*/               @P2 MOV R16, R14 ;
        /*0080*/              @!P2 MOV R16, R4 ;
        /*0090*/               @P2 STG.E.64 desc[UR8][R16.64], R8 ;
        /*00a0*/                   STG.E desc[UR8][R16.64], R8 ;
        /*00b0*/                   IADD3 R2, R2, 0x100, RZ ;
        /*00c0*/               @P3 BRA `(.L_x_0) ;
.L_x_1:
        /*00d0*/                   LDG.E.64 R20, desc[UR8][R8.64] ;
        /*00e0*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR8][R4.64+0x10], P1 ;
        /*00e8*/                   LDGDEPBAR ;
        /*00ec*/                   EXIT ;
        /*00f0*/                   NOP;
"""


def test_accesses_are_followed_to_their_pointers():
    found = sass.accesses(CODE, {0x210: "a_ptr", 0x218: "b_ptr", 0x220: "c_ptr"})
    assert found == {
        sass.Access("b_ptr", False, 128): 1,  # the second of two pointers in one load, in a loop
        sass.Access("a_ptr", False, 16): 1,
        sass.Access("a_ptr", False, 128): 1,  # from memory to shared memory
        sass.Access("c_ptr", True, 64): 1,  # what the same predicate wrote
        sass.Access("?", True, 32): 1,  # either
        sass.Access("?", False, 64): 1,  # an address out of memory
    }
    assert sass.instruction_count(CODE) == 17


def test_loops_are_found():
    assert sass.has_loop(CODE)
    end = ".L_x_0:\n        /*0250*/                   BRA `(.L_x_0);\n"
    assert not sass.has_loop(end)  # what stands behind every kernel
    assert not sass.has_loop(CODE.replace("@P3 BRA `(.L_x_0)", "@P3 BRA `(.L_x_1)") + end)


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
    share = occupancy(target, registers, num_warps, shared)
    assert share == warps / LIMITS[target].warps


def report(**changes):
    values = {
        "kernel": "ring_push_kernel", "variant": 0, "target": "sm_90",
        "config": {"block": 1024, "num_warps": 4}, "types": {}, "aligned": True, "registers": 20,
        "spills": 0, "shared": 0, "instructions": 50, "elements": 1024, "loops": False,
        "streams": {}, "loads": {}, "stores": {}, "resident_warps": 64, "occupancy": 1.0,
    }  # fmt: skip
    return Report(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, None),
        ({"spills": 8}, "8 bytes per thread are spilled"),
        ({"occupancy": 0.0}, "not even one program fits"),
        ({"streams": {"x_ptr": StreamReport(4, 1, 8.0, 128)}}, "x_ptr moves 8 bytes .*, not 4"),
        # A loop that the compiler has unrolled; but not every stream as often.
        ({"streams": {"x_ptr": StreamReport(4, 1, 8.0, 128)}, "loops": True}, None),
        (
            {
                "streams": {
                    "x_ptr": StreamReport(4, 1, 8.0, 128),
                    "y_ptr": StreamReport(4, 1, 4.0, 128),
                },
                "loops": True,
            },
            "x_ptr moves 8 bytes",
        ),
        ({"streams": {"x_ptr": StreamReport(4, 1, 4.0, 32)}}, "x_ptr is accessed in 32 bits"),
        ({"streams": {"x_ptr": StreamReport(4, 1, 4.0, 32)}, "aligned": False}, None),
        ({"streams": {"x_ptr": StreamReport(1, 1, 1.0, 64)}}, None),  # a thread has 8 bytes
        ({"streams": {"x_ptr": StreamReport(1, 1, 1.0, 32)}}, "in 32 bits, not 64"),
    ],
)
def test_findings(changes, finding):
    found = report(**changes).findings()
    assert len(found) == (finding is not None)
    if finding:
        assert re.search(finding, found[0])


def test_a_compile_error_or_a_crash_is_told_and_the_next_job_runs(monkeypatch):
    good = Job("ring_push_kernel", 0, "sm_90", LaunchConfig(1024), read_code=False)
    with Compilers(1) as compilers:
        with pytest.raises(CompileError, match="1048576"):
            compilers.compile(good._replace(config=LaunchConfig(2**21)))
        with monkeypatch.context() as patch:
            crashing = subprocess.Popen(
                [sys.executable, "-c", "raise SystemExit(3)"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            patch.setattr(compilers, "_process", lambda: crashing)
            with pytest.raises(CompileError, match="the compiler crashed"):
                compilers.compile(good)
            crashing.communicate()
        assert compilers.compile(good).registers > 0


def test_check_prints_json(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # it compiles in processes without it
    command = ["check", "--kernel", "ring_take_kernel", "--target", "sm_90", "--json"]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(SIGNATURES["ring_take_kernel"])
    first = rows[0]
    assert (first["kernel"], first["target"]) == ("ring_take_kernel", "sm_90")
    assert first["config"]["block"] == 1024
    assert (first["spills"], first["shared"], first["bytes_per_element"]) == (0, 0, 12)
    assert first["loads"] == {"128": 2} and first["stores"] == {"128": 4}


def test_check_prints_a_table_and_tells_findings(capsys, monkeypatch):
    job = Job("ring_push_kernel", 0, "sm_90", LaunchConfig(1024))
    outcomes = [(job, report(spills=8)), (job, CompileError("out of luck"))]
    monkeypatch.setattr(checking, "check", lambda *_, **__: outcomes)
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
