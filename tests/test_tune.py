"""Launch settings as data: which are chosen, how they are swept, cached and installed."""

import contextlib
import errno
import importlib.util
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from tritonsyn import cli
from tritonsyn.cli import configs
from tritonsyn.launch import config, tables
from tritonsyn.launch.config import HEURISTICS, PASSES
from tritonsyn.system import write_whole
from tritonsyn.workbench import (
    LaunchConfig,
    Shape,
    best,
    config_for,
    install,
    override_config,
    search,
    sweep,
)
from tritonsyn.workbench.calls import CALLS
from tritonsyn.workbench.record import launches_of, main_launch
from tritonsyn.workbench.search import read_rows
from tritonsyn.workbench.spaces import configs_of, default_configs, read_spaces
from tritonsyn.workbench.timers import StaticTimer

F32 = torch.float32
SHAPE = Shape(12, 2, 64)
LAYER = Shape(3, 11, 33, 20, 4)
PROJECTIONS = (
    "shift_sum_kernel", "shift_dot_kernel", "temporal_gemm_kernel", "temporal_gemm_dot_kernel",
    "bit_sum_kernel", "bit_dot_kernel", "spike_sum_kernel", "spike_dot_kernel",
)  # fmt: skip
SPACE = {"BLOCK": [32, 64, 128], "num_warps": [1, 2]}
PUSH = "ring_push_kernel"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path / "cache"))
    config.forget()
    yield tmp_path
    config.forget()


@pytest.fixture
def gpu(monkeypatch):
    """A device that goes by a GPU's names."""
    monkeypatch.setattr(config, "names", lambda device: ("NVIDIA Test 1", "sm_90"))
    return torch.device("cuda", 0)


def entry(*settings):
    return {"config": LaunchConfig(*settings).as_dict(), "timer": "device", "cost": 1.0}


def small_blocks(trial):
    """A timer that likes small blocks and cannot do 64."""
    if trial.config.BLOCK == 64:
        raise RuntimeError("no such luck")
    return {"cost": trial.config.BLOCK / trial.config.num_warps, "note": 1}


# Which settings are chosen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0,), "BLOCK must be a positive integer, but is 0"),
        ((48,), "BLOCK must be a power of two, but is 48"),
        ((32, 3), "num_warps must be a power of two, but is 3"),
        ((32, 64), "num_warps must be at most 32, but is 64"),
        ((32, 4, 1.5), "UNROLL must be a positive integer, but is 1.5"),
        ((32, 4, 1, True), "chunks must be a positive integer, but is True"),
        ((32, 4, 1, 1, 3), "BLOCK_R must be a power of two, but is 3"),
        ((32, 4, 1, 1, 1, 6), "BLOCK_C must be a power of two, but is 6"),
        ((32, 4, 1, 1, 1, 1, 0), "num_stages must be a positive integer, but is 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LaunchConfig(*values)


def test_an_override_comes_first_then_the_cache_then_tables_then_the_heuristic(
    monkeypatch, folder, gpu
):
    work = (1000,)
    monkeypatch.setattr(tables, "_SHIPPED", folder)
    heuristic = HEURISTICS[PUSH](work, F32)
    assert config_for(PUSH, work, F32, gpu) == heuristic

    shipped = {
        "format": tables._FORMAT,
        "entries": {tables.key(PUSH, "float32", work): entry(64, 1)},
    }
    (folder / "sm90.json").write_text(json.dumps(shipped))
    config.forget()
    assert config_for(PUSH, work, F32, gpu) == LaunchConfig(64, 1)
    assert tables.shipped() == [folder / "sm90.json"]

    for device, block in (("sm_90", 128), ("NVIDIA Test 1", 256)):
        tables.install(device, {tables.key(PUSH, "float32", work): entry(block, 2)})
        config.forget()
        assert config_for(PUSH, work, F32, gpu) == LaunchConfig(block, 2)

    with override_config(LaunchConfig(32), PUSH):
        assert config_for(PUSH, work, F32, gpu) == LaunchConfig(32)
        assert config_for("ring_take_kernel", work, F32, gpu) != LaunchConfig(32)
    assert config_for(PUSH, work, F32, gpu) == LaunchConfig(256, 2)


def test_settings_hold_for_sizes_that_round_up_to_the_same_powers_of_two(gpu):
    tables.install("sm_90", {tables.key(PUSH, "float32", (1000,)): entry(64, 1)})
    for size, tuned in [(512, False), (513, True), (1024, True), (1025, False)]:
        chosen = config_for(PUSH, (size,), F32, gpu)
        assert (chosen == LaunchConfig(64, 1)) == tuned
    assert config_for(PUSH, (1000,), torch.float64, gpu) != LaunchConfig(64, 1)


def test_a_cpu_does_not_look_into_the_cache(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tables, "read", None)
        assert config_for(PUSH, (77,), F32, torch.device("cpu")) == HEURISTICS[PUSH]((77,), F32)


def test_the_cache_is_read_once(monkeypatch, gpu):
    tables.install("sm_90", {tables.key(PUSH, "float32", (10,)): entry(64, 1)})
    for size in (10, 200):
        config_for(PUSH, (size,), F32, gpu)
    monkeypatch.setattr(tables, "read_json", None)
    assert config_for(PUSH, (9,), F32, gpu) == LaunchConfig(64, 1)
    assert config_for(PUSH, (300,), F32, gpu) == HEURISTICS[PUSH]((300,), F32)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel is 'nonsense', but must be one of ring_push"):
        config_for("nonsense", (1,), F32)


BROKEN = [
    b"", b"[]", b"{}", b"NaN", b"\xff\xfe\x00", 100_000 * b"[", b'{"format": "other"}',
    b'{"format": "%s"}', b'{"format": "%s", "entries": [1]}',
    b'{"format": "%s", "entries": {"a": {}}}', b'{"format": "%s", "entries": {"a": null}}',
    b'{"format": "%s", "entries": {"a": {"config": "BLOCK"}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_cache_is_told_with_what_to_do(gpu, content, capsys):
    path = tables.path("sm_90")
    path.parent.mkdir(parents=True)
    content = content.replace(b"%s", tables._FORMAT.encode())
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sm90\.json is not a table of .*delete it"):
        config_for(PUSH, (5,), F32, gpu)
    with pytest.raises(ValueError, match="delete it"):
        tables.install("sm_90", {"a": entry(32)})
    assert cli.main(["configs", "--device", "sm_90"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1
    assert path.read_bytes() == content


def test_a_cache_too_large_to_be_one_is_not_read(gpu):
    path = tables.path("sm_90")
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # without a block on the disk
    with pytest.raises(ValueError, match=r"sm90\.json is not .*larger than 256 MiB; delete it"):
        config_for(PUSH, (5,), F32, gpu)


def test_a_cache_that_is_a_file_is_told(gpu, capsys):
    tables.folder().write_text("")
    with pytest.raises(ValueError, match=r"cannot be read: .*cache/.*\.json: Not a directory"):
        config_for(PUSH, (5,), F32, gpu)
    assert cli.main(["configs", "--device", "sm_90"]) == 2
    error = capsys.readouterr().err
    assert f"{tables.folder()}/" in error and "Not a directory" in error
    assert error.count("\n") == 1
    assert cli.main(["info"]) == 0


def test_installations_at_once_all_arrive():
    def add(number):
        for i in range(10):
            tables.install("sm_90", {f"{number} {i}": entry(32)})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = tables.path("sm_90")
    assert len(tables.read(path)) == 40
    assert {file.suffix for file in path.parent.iterdir()} == {".json", ".lock"}


def test_the_cache_lies_where_the_variables_say(monkeypatch, tmp_path):
    assert tables.folder() == tmp_path / "cache"
    monkeypatch.delenv(tables.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tables.folder() == tmp_path / "tritonsyn"


# Spaces


def test_a_space_is_every_combination():
    assert len(configs_of({**SPACE, "UNROLL": [1, 2, 4]})) == 18
    assert configs_of({"BLOCK": [32]}) == [LaunchConfig(32)]


@pytest.mark.parametrize("kernel", HEURISTICS)
def test_the_default_space_begins_with_the_heuristic(kernel):
    launch = main_launch(kernel, Shape(1000, 64, 1024), "float32")
    configs = default_configs(kernel, launch.work, launch.dtype)
    assert configs[0] == HEURISTICS[kernel](launch.work, launch.dtype) == launch.config
    assert len(set(configs)) == len(configs) > 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "must be an object of lists, by BLOCK, num_warps"),
        ('{"num_warps": [4]}', "has no values of BLOCK"),
        ('{"block": [32]}', "has 'block', but settings are BLOCK, num_warps, UNROLL, chunks"),
        ('{"BLOCK": 32}', "BLOCK must be a list of values, but is 32"),
        ('{"BLOCK": []}', "BLOCK must be a list"),
        ('{"BLOCK": [33]}', "BLOCK must be a power of two, but is 33"),
        ('{"ring_push_kernel": {"BLOCK": [32]}, "x": {}}', "has 'x', but kernels are ring_push"),
        ('{"ring_push_kernel": {"BLOCK": ["a"]}}', "ring_push_kernel: BLOCK must be a positive"),
    ],
)
def test_a_broken_space_file_is_refused(tmp_path, text, message):
    path = tmp_path / "space.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spaces(path)


def test_a_space_file_may_be_for_all_kernels_or_by_kernel(tmp_path):
    path = tmp_path / "space.json"
    path.write_text('{"BLOCK": [32, 64]}')
    assert read_spaces(path).keys() == HEURISTICS.keys()
    path.write_text('{"ring_push_kernel": {"BLOCK": [32, 64]}}')
    assert read_spaces(path) == {PUSH: [LaunchConfig(32), LaunchConfig(64)]}
    with pytest.raises(ValueError, match="has nothing for ring_take_kernel, but for ring_push"):
        sweep(["ring_take_kernel"], [SHAPE], space=read_spaces(path), timer=small_blocks)


# Sweeps


def test_a_failure_is_a_row_and_no_end(tmp_path):
    rows = sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert len(rows) == 6
    failed = [row for row in rows if row.cost is None]
    assert [row.trial.config.BLOCK for row in failed] == [64, 64]
    assert failed[0].error == "RuntimeError: no such luck"
    assert best(rows)[PUSH, SHAPE, "float32"].trial.config == LaunchConfig(32, 2)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    content = [json.loads(line) for line in lines]
    assert [row["cost"] for row in content] == [row.cost for row in rows]
    assert [row["BLOCK"] for row in content] == [32, 32, 64, 64, 128, 128]
    assert content[0]["details"] == {"note": 1}
    assert read_rows(tmp_path / "results.jsonl") == rows


def test_a_sweep_goes_on_where_it_was_cut_off(tmp_path):
    tried = []

    def cut_off(trial):
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(trial)
        return small_blocks(trial)

    cut_off.__name__ = "t"
    with pytest.raises(KeyboardInterrupt):
        sweep([PUSH], [SHAPE], space=SPACE, timer=cut_off, out=tmp_path)
    path = tmp_path / "results.jsonl"
    assert len(read_rows(path)) == 3
    with path.open("a") as file:  # half a line, as a crash leaves it
        file.write(path.read_text()[:30])
    assert len(read_rows(path)) == 3

    def rest(trial):
        assert trial not in tried
        return small_blocks(trial)

    rest.__name__ = "t"
    assert len(sweep([PUSH], [SHAPE], space=SPACE, timer=rest, out=tmp_path)) == 6
    assert len(read_rows(path)) == 6
    # Another timer's results are no results of this one.
    rows = sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert {row.timer for row in rows} == {"small_blocks"}
    assert len(read_rows(path)) == 12


def test_a_results_file_cut_at_any_byte_is_gone_on_with(tmp_path):
    path = tmp_path / "results.jsonl"
    space = {"BLOCK": [32, 64, 128]}  # the second fails
    rows = sweep([PUSH], [SHAPE], space=space, timer=small_blocks, out=tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert read_rows(path) == rows[: whole[:length].count(b"\n")]
    for length in (0, 1, whole.index(b"\n"), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert sweep([PUSH], [SHAPE], space=space, timer=small_blocks, out=tmp_path) == rows
        assert path.read_bytes() == whole


DAMAGE = [
    (b'"cost": 8.0', b'"cost": "8"'),
    (b'"cost": 8.0', b'"cost": NaN'),
    (b'"cost": 8.0', b'"cost": 1' + 400 * b"0"),
    (b'"details": {', b'"details": [{'),
    (b'"details": {"note": 1}', b'"details": ["note", 1]'),
    (b'"timer": "small_blocks"', b'"timer": 3'),
    (b'"shape": "12x2x64"', b'"shape": null'),
    (b'"BLOCK": 32', b'"BLOCK": 33'),
    (b'"BLOCK": 32', b'"BLOCKS": 32'),
    (b'"error": ""', b'"error": "\xff"'),
    (b'"error": ""', b'"error": ' + 100_000 * b"["),
    (b'"error": ""', b'"error": "'),
]


@pytest.mark.parametrize(("old", "new"), DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_is_told_with_its_number(tmp_path, old, new):
    path = tmp_path / "results.jsonl"
    sweep([PUSH], [SHAPE], space={"BLOCK": [128, 32]}, timer=small_blocks, out=tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = first + second.replace(old, new) + first
    assert old in second
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"results\.jsonl is not a results file .*line 2: "):
        sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied", "/cache"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_a_failure_of_the_machine_is_no_result(tmp_path, error):
    def failing(trial):
        if trial.config.BLOCK == 128:
            raise error
        return small_blocks(trial)

    failing.__name__ = "small_blocks"
    with pytest.raises(type(error)):
        sweep([PUSH], [SHAPE], space=SPACE, timer=failing, out=tmp_path)
    blocks = [row.trial.config.BLOCK for row in read_rows(tmp_path / "results.jsonl")]
    assert blocks == [32, 32, 64, 64]
    rows = sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert [row.cost for row in rows] == [32, 16, None, None, 128, 64]


def test_a_cost_that_is_no_number_is_a_failure(tmp_path):
    def timer(trial):
        return {"cost": float("nan")}

    (row,) = sweep([PUSH], [SHAPE], space={"BLOCK": [32]}, timer=timer, out=tmp_path)
    assert (row.cost, row.error) == (None, "ValueError: the cost is nan")
    assert read_rows(tmp_path / "results.jsonl") == [row]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path, left, fresh = (tmp_path / name for name in ("a.json", "a.json.1.part", "a.json.2.part"))
    for file in (left, fresh):
        file.write_text("half")
    os.utime(left, (0, 0))
    write_whole(path, "whole")
    assert path.read_text() == "whole"
    assert {file.name for file in tmp_path.iterdir()} == {path.name, fresh.name}


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_rows_before_it(tmp_path, monkeypatch):
    line, written = search._line, []

    def full(row):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(row)
        return line(row)

    with monkeypatch.context() as patch:
        patch.setattr(search, "_line", full)
        with pytest.raises(OSError, match="No space left"):
            sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert len(read_rows(tmp_path / "results.jsonl")) == 2


def test_one_sweep_at_a_time_in_a_folder(tmp_path):
    def again(trial):
        with pytest.raises(ValueError, match="another sweep writes to"):
            sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
        return {"cost": 1.0}

    rows = sweep([PUSH], [SHAPE], space={"BLOCK": [32]}, timer=again, out=tmp_path)
    assert rows[0].cost == 1.0, rows[0].error


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"\xff\xfe\x00\x81", b"{}\n", b"[1]\n", b"one line"]
)
def test_a_file_of_something_else_is_not_overwritten(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a results file"):
        sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)
    assert path.read_bytes() == content


def test_an_empty_file_is_begun_anew(tmp_path):
    (tmp_path / "results.jsonl").touch()
    assert sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks, out=tmp_path)


def test_the_winner_is_used_once_it_is_installed(gpu):
    rows = sweep([PUSH], [SHAPE], space=SPACE, timer=small_blocks)
    assert config_for(PUSH, (2 * 64,), F32, gpu) != LaunchConfig(32, 2)
    assert install(rows, "sm_90") == tables.path("sm_90")
    assert config_for(PUSH, (2 * 64,), F32, gpu) == LaunchConfig(32, 2)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [*((kernel, SHAPE) for kernel in CALLS), *((kernel, LAYER) for kernel in PROJECTIONS)],
    ids=str,
)
def test_what_is_timed_launches_the_kernel(kernel, shape):
    """With the settings of the trial, in every dtype for which the kernel can be tuned."""
    settings = LaunchConfig(16, UNROLL=2, BLOCK_R=16, BLOCK_C=16, num_stages=2)
    for dtype in CALLS[kernel].dtypes:
        launches = launches_of(kernel, shape, dtype, settings)
        assert launches and {launch.name for launch in launches} == {kernel}
        assert {launch.config for launch in launches} == {settings}
        heuristic = main_launch(kernel, shape, dtype)
        assert heuristic.config == HEURISTICS[kernel](heuristic.work, heuristic.dtype)


@pytest.mark.parametrize("kernel", PROJECTIONS)
def test_a_trial_knows_the_programs_of_its_launch(kernel):
    trial = search.Trial(
        kernel, LAYER, "float32", LaunchConfig(16, chunks=2, BLOCK_R=16, BLOCK_C=16)
    )
    tiles = {  # of 33 places, 33 inputs, 20 outputs, 11 rows of a batch, 4 slots
        "shift_sum_kernel": 3 * 2,
        "shift_dot_kernel": 2 * 3 * 2,
        "temporal_gemm_kernel": 3 * 2,
        "temporal_gemm_dot_kernel": 2 * 3 * 4,
        "bit_sum_kernel": 2 * 3,
        "bit_dot_kernel": 4 * 2,
        "spike_sum_kernel": 11 * 2 * 2,
        "spike_dot_kernel": 33 * 2 * 2,
    }
    assert trial.programs == tiles[kernel]


def test_a_launch_passes_on_the_settings_that_its_kernel_has():
    def passed(kernel):
        return main_launch(kernel, SHAPE, "float32").options

    push, total = passed(PUSH), passed("shift_step_kernel")
    assert push == {"enable_fp_fusion": True, "BLOCK": 128, "num_warps": 1, "num_stages": 3}
    assert {"BLOCK", "BLOCK_R", "UNROLL", "num_warps"} <= total.keys()
    assert not {"BLOCK_C", "chunks"} & total.keys()


def test_settings_of_exact_products_are_not_those_of_others():
    keys = {
        tables.key("temporal_gemm_kernel", "float32", (passes, 4, 32, 32, 32))
        for passes in PASSES.values()
    }
    assert len(keys) == len(PASSES)


@pytest.mark.parametrize("text", ["12x2x64", "3x11x33x20x4"])
def test_a_shape_reads_as_it_is_written(text):
    assert str(Shape.parse(text)) == text


@pytest.mark.slow
def test_a_static_timer_ranks_projections():
    with StaticTimer() as timer:
        space = {k: [main_launch(k, LAYER, "float32").config] for k in PROJECTIONS}
        rows = sweep(PROJECTIONS, [LAYER], space=space, timer=timer)
    assert all(row.cost is not None and row.cost >= 1 for row in rows), [row.error for row in rows]


def test_a_device_timer_needs_a_device(monkeypatch):
    from tritonsyn.workbench.timers import DeviceTimer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU, and this machine has none"):
        DeviceTimer()


@pytest.mark.gpu
def test_a_device_timer_measures():
    from tritonsyn.workbench.timers import DeviceTimer

    space = {"BLOCK": [32, 64], "BLOCK_R": [16], "BLOCK_C": [16]}
    rows = sweep(list(CALLS), [SHAPE], space=space, timer=DeviceTimer())
    assert len(rows) == 2 * len(CALLS)
    assert all(row.cost for row in rows), [row.error for row in rows]


# The commands


def tune(out, *arguments):
    return cli.main(["tune", "--timer", "static", "--out", str(out), *arguments])


@pytest.mark.slow
def test_a_static_sweep_from_end_to_end(tmp_path, capsys):
    space, out = tmp_path / "space.json", tmp_path / "out"
    # The last has more elements than Triton allows: it cannot be compiled.
    space.write_text(f'{{"BLOCK": [128, 1024, {2**21}], "num_warps": [4]}}')
    arguments = ["--kernel", PUSH, "--shape", "1x64x1024", "--space", str(space), "--install"]
    assert tune(out, *arguments) == 0
    told = capsys.readouterr().out
    for words in (
        "an estimate, nothing is measured",
        "1024, 4 warps",
        "1 of 3 configurations failed, such as: CompileError",
        "installed 1 winners",
    ):
        assert words in told
    rows = read_rows(out / "results.jsonl")
    assert [row.timer for row in rows] == ["static sm_90"] * 3
    assert rows[0].cost > rows[1].cost >= 1  # one element of a thread against eight
    assert (out / "heatmap.png").read_bytes().startswith(b"\x89PNG")

    assert cli.main(["configs", "--device", "sm_90", "--shape", "1x64x1024"]) == 0
    told = capsys.readouterr().out
    assert f"user's cache {tables.path('sm_90')}" in told
    assert "cached: ring_push_kernel float32 65536: 1024, 4 warps (static sm_90)" in told


def test_configs_tells_what_differs(capsys):
    key = tables.key(PUSH, "float32", (64 * 1024,))
    tables.install("NVIDIA Test 1", {key: entry(64, 1)})
    command = ["configs", "--device", "NVIDIA Test 1", "--diff", "--json"]
    assert cli.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kernel"], row["config"]["BLOCK"], row["heuristic"]["BLOCK"]) == (PUSH, 64, 1024)
    assert cli.main(["configs", "--device", "NVIDIA Tset 1"]) == 2
    assert "nothing is tuned for the device 'NVIDIA Tset 1'" in capsys.readouterr().err
    assert cli.main(["configs", "--device", "sm_80", "--diff"]) == 0
    assert "all as the heuristics say" in capsys.readouterr().out


def test_configs_shows_the_entry_that_counts(capsys, monkeypatch):
    """That of the device, where its architecture has one for the same work, too."""
    monkeypatch.setattr(configs, "names", lambda device: ("NVIDIA Test 2", "sm_90"))
    key = tables.key(PUSH, "float32", (64 * 1024,))
    tables.install("NVIDIA Test 2", {key: entry(64, 1)})
    tables.install("sm_90", {key: entry(128, 1)})
    assert cli.main(["configs", "--shape", "1x64x1024"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "cached:" in line)
    assert f"{key}: 64 " in line


def test_configs_shows_an_entry_that_was_written_by_hand(capsys):
    key = tables.key(PUSH, "float32", (64 * 1024,))
    tables.install("sm_90", {key: {"config": {"BLOCK": 64}}})
    assert cli.main(["configs", "--device", "sm_90", "--shape", "1x64x1024"]) == 0
    assert f"cached: {key}: 64, 4 warps (by hand)" in capsys.readouterr().out
    tables.install("sm_90", {key: {"config": {"BLOCK": [64]}}})
    assert cli.main(["configs", "--device", "sm_90", "--shape", "9x9x9"]) == 2
    error = capsys.readouterr().err
    assert f"{tables.path('sm_90')}: {{'BLOCK': [64]}} is not a launch" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "nonsense"], "kernel is 'nonsense', but must be one of ring_push_kernel"),
        (["--shape", "12x3"], "shape is '12x3', but must be three positive sizes"),
        (["--shape", "3x4x5x6"], "shape is '3x4x5x6', but must be three positive sizes"),
        (["--shape", "0x1x1"], "shape is '0x1x1', but must be three positive sizes"),
        (["--dtype", "float"], "dtype is 'float', but must be one of float32"),
        (["--target", "sm_1"], "target is 'sm_1', but must be one of sm_75"),
        (["--space", "nowhere.json"], "space nowhere.json cannot be read: No such file"),
        (
            ["--kernel", "spike_sum_kernel", "--dtype", "bfloat16"],
            "must be one of float32, float64",
        ),
    ],
)
def test_tune_refuses_in_one_line(capsys, tmp_path, arguments, message):
    assert tune(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tune_measures_only_where_there_is_a_gpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune", "--timer", "device", "--out", str(tmp_path / "out")]) == 2
    assert "timer static ranks by the compiled code" in capsys.readouterr().err


def test_tune_refuses_a_folder_it_cannot_make(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert tune(tmp_path / "file" / "out", "--kernel", PUSH) == 2
    assert "file/out: Not a directory; rows so far stay" in capsys.readouterr().err


def test_settings_are_chosen_without_triton_or_what_only_sweeps_need():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import tritonsyn, tritonsyn.cli, tritonsyn.workbench\n"
        "heavy = {'triton', 'matplotlib', 'tqdm'} & (sys.modules.keys() - before)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tune_says_where_nothing_works_and_where_it_cannot_draw(capsys, tmp_path, monkeypatch):

    class Timer(contextlib.nullcontext):
        device = "a test"

        def __enter__(self):
            return self

        def __call__(self, trial):
            return small_blocks(trial)

    monkeypatch.setattr(cli.tune, "StaticTimer", lambda target: Timer())
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n in ("matplotlib", "tqdm") else find(n)
    )
    space = tmp_path / "space.json"
    for blocks, code in (("[64]", 2), ("[32, 64, 128]", 0)):
        space.write_text(f'{{"BLOCK": {blocks}, "num_warps": [4]}}')
        arguments = "--kernel", PUSH, "--shape", "1x64x1024", "--space", str(space)
        assert tune(tmp_path / str(code), *arguments) == code
        told = capsys.readouterr()
        assert "configurations failed, such as: RuntimeError: no such luck" in told.out
        assert ("no configuration worked" in told.err) == (code == 2)
        assert ("no heat map: pip install 'tritonsyn[tune]'" in told.out) == (code == 0)
    assert f"{PUSH:<26} {'1x64x1024':<14} float32   32, 4 warps" in told.out
