"""Argument types and sample constants of every kernel, for compiling without a GPU.

``SIGNATURES`` maps a kernel's name to some of the ways in which :mod:`tritonsyn.launch` calls it:
together they take every branch on a dtype, a flag or an absent pointer. Tiles are not in here: they
come from the launch configuration (``tritonsyn.launch.config``).
"""

from typing import Any, NamedTuple

import triton.language as tl

_TYPES = {"fp32": tl.float32, "fp64": tl.float64}
_EPSILONS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
_RATED = ("expdecay", "alpha")
_FLAGS = ("GAIN_PER_SYNAPSE", "DECAY_PER_SYNAPSE", "RISE_PER_SYNAPSE")


class Stream(NamedTuple):
    """How often a kernel touches each element of an array that it goes through in order."""

    loads: int = 0
    stores: int = 0


_READ, _WRITE, _UPDATE = Stream(loads=1), Stream(stores=1), Stream(loads=1, stores=1)
_ITEMSIZES = {
    "i1": 1, "i8": 1, "u8": 1, "i16": 2, "fp16": 2, "bf16": 2,
    "i32": 4, "fp32": 4, "i64": 8, "fp64": 8,
}  # fmt: skip


class Variant(NamedTuple):
    """One way to call a kernel."""

    types: dict[str, str]
    """Type of each argument that is passed at run time, in Triton's notation."""
    constants: dict[str, Any]
    """Value of each compile-time argument but the tiles that the launch configuration gives; None
    for a pointer that is absent."""
    enable_fp_fusion: bool = True
    aligned: bool = True
    """Whether pointers, and sizes that may be specialised, are multiples of 16."""
    dtype: str = "fp32"
    """By which a launch looks its configuration up."""
    work: tuple[int, ...] = (1 << 10, 1 << 20)
    """Sizes, large ones, by which a launch looks its configuration up."""
    streams: dict[str, Stream] = {}  # noqa: RUF012 (no one changes it)
    """The pointers that make up the traffic. Not in here: coefficients, which programs share;
    what is touched once per chunk or program; and gathers, whose neighbours may lie apart."""
    elements: tuple[str | int, ...] = ("BLOCK",)
    """Tiles and numbers, whose product is the elements of each stream that a program touches in one
    pass of its code: the kernel, or the body of its loop."""

    def itemsize(self, pointer: str) -> int:
        """Bytes of an element behind a pointer."""
        return _ITEMSIZES[self.types[pointer].removeprefix("*")]

    @property
    def bytes_per_element(self) -> int:
        """What the streams cannot do without: each element once per load and store."""
        return sum(self.itemsize(p) * (s.loads + s.stores) for p, s in self.streams.items())


def _streams(pointers, **touched):
    """Streams by the stems of their pointers, without those that are absent."""
    named = {f"{stem}_ptr": stream for stem, stream in touched.items()}
    return {name: stream for name, stream in named.items() if pointers.get(name) is not None}


def _variant(pointers, sizes, constants, **options):
    """``pointers``: their element types (None: absent). ``sizes``: names of integers."""
    types = {name: f"*{element}" for name, element in pointers.items() if element is not None}
    types.update(dict.fromkeys(sizes.split(), "i32"))
    absent = dict.fromkeys(name for name, element in pointers.items() if element is None)
    return Variant(types, {**absent, **constants}, **options)


def _on_device(variant, *slots):
    """The same with slots that the device keeps."""
    return variant._replace(types={**variant.types, **dict.fromkeys(slots, "*i64")})


def _narrower(*elements):
    """The type that a scan's tiles must suit: half precision, unless the arithmetic is double."""
    halves = [element for element in elements if element in ("fp16", "bf16")]
    return halves[0] if halves and "fp64" not in elements else elements[-1]


def _arithmetic(element):
    return "fp64" if element == "fp64" else "fp32"


def _push(value, record, **options):
    pointers = {"value_ptr": value, "record_ptr": record}
    streams = _streams(pointers, value=_READ, record=_WRITE)
    return _variant(pointers, "slot size", {}, dtype=record, streams=streams, **options)


def _take(element):
    pointers = {"drecord_ptr": element, "dvalue_ptr": element}
    streams = _streams(pointers, drecord=_UPDATE, dvalue=_WRITE)
    return _variant(pointers, "slot size", {}, dtype=element, streams=streams)


def _pack(element):
    pointers = {"x_ptr": element, "words_ptr": "i32"}
    streams = _streams(pointers, x=_READ)
    elements = ("BLOCK", 32)
    return _variant(pointers, "rows N W", {}, dtype=element, streams=streams, elements=elements)


def _transpose():
    pointers = {"words_ptr": "i32", "out_ptr": "i32"}
    return _variant(pointers, "rows N W V", {}, dtype="i32", elements=("BLOCK", 32))


def _coefficients(element, per_synapse):
    pointers = dict.fromkeys(("gain_ptr", "decay_ptr", "rise_ptr"), element)
    return pointers, dict.fromkeys(_FLAGS, per_synapse)


def _step_fwd(x, state, double, per_synapse, arrivals=None, **options):
    coefficients, flags = _coefficients(_arithmetic(state), per_synapse)
    pointers = {"x_ptr": x, "y_ptr": state, "spike_ptr": "i1", "pos_ptr": state, "neg_ptr": state}
    pointers["arrivals_ptr"] = arrivals
    streams = _streams(pointers, x=_READ, y=_WRITE, spike=_WRITE, pos=_UPDATE)
    if double:
        streams |= _streams(pointers, neg=_UPDATE)
    sizes = "pos_pointer neg_pointer spike_pointer K size N"
    constants = {"DOUBLE": double, **flags}
    options = {"dtype": state, "streams": streams, **options}
    return _variant({**pointers, **coefficients}, sizes, constants, **options)


def _step_bwd(dy, dx, state, double, per_synapse, want_z):
    acc = _arithmetic(state)
    coefficients, flags = _coefficients(acc, per_synapse)
    pointers = {"dy_ptr": dy, "dx_ptr": dx, "dpos_ptr": state, "dneg_ptr": state}
    pointers.update(dict.fromkeys(("pos_z_ptr", "neg_z_ptr"), acc if want_z else None))
    both = Stream(loads=2, stores=2)  # the slot that was written, and the one before it
    streams = _streams(pointers, dy=_READ, dx=_WRITE, dpos=both, pos_z=_WRITE)
    if double:
        streams |= _streams(pointers, dneg=both, neg_z=_WRITE)
    sizes = "pos_pointer neg_pointer K size N"
    constants = {"DOUBLE": double, **flags}
    pointers |= coefficients
    return _variant(pointers, sizes, constants, dtype=state, streams=streams)


def _read(pointers, time, record, mode, double, overbound, per_synapse, more="", **options):
    acc = _arithmetic(record)
    rates = dict.fromkeys(("pos_rate_ptr", "neg_rate_ptr"), acc if mode in _RATED else None)
    constants = {
        "STEP": 1.3, "LIMIT": 5.2, "TOLERANCE": 0.0, "EPSILON": _EPSILONS[time],
        "OVERBOUND": overbound, "MODE": mode, "DOUBLE": double,
        "POS_RATE_PER_SYNAPSE": per_synapse, "NEG_RATE_PER_SYNAPSE": per_synapse,
        "TIME": _TYPES[_arithmetic(time)], "ACC": _TYPES[acc],
    }  # fmt: skip
    sizes = f"pos_pointer neg_pointer K B N D sel_rows {more}"
    options = {"dtype": record, "enable_fp_fusion": False, **options}
    return _variant({**pointers, **rates}, sizes, constants, **options)


def _select_fwd(time, record, mode, double, overbound, per_synapse, slopes, **options):
    acc = _arithmetic(record)
    pointers = {"sel_ptr": time, "pos_ptr": record, "neg_ptr": record, "value_ptr": record}
    pointers["slope_ptr"] = acc if slopes else None
    rate_slopes = acc if slopes and mode in _RATED else None
    pointers.update(dict.fromkeys(("pos_rate_slope_ptr", "neg_rate_slope_ptr"), rate_slopes))
    streams = _streams(pointers, sel=_READ, value=_WRITE, slope=_WRITE, pos_rate_slope=_WRITE)
    if double:
        streams |= _streams(pointers, neg_rate_slope=_WRITE)
    options["streams"] = streams
    return _read(pointers, time, record, mode, double, overbound, per_synapse, **options)


def _select_bwd(time, record, mode, double, overbound, per_synapse, many=False, value=None):
    """``many``: a synapse is read at more than one time, so that neighbours lie apart."""
    pointers = {"sel_ptr": time, "dvalue_ptr": value or record}
    pointers |= {"dpos_ptr": record, "dneg_ptr": record}
    streams = {} if many else _streams(pointers, sel=_READ, dvalue=_READ)
    variant = _read(
        pointers, time, record, mode, double, overbound, per_synapse, streams=streams, more="steps"
    )
    return variant if many else _with_one(variant, "D")


def _with_one(variant, *sizes):
    """The same with sizes that are 1, which a launch takes for constants."""
    types = {name: kind for name, kind in variant.types.items() if name not in sizes}
    return variant._replace(types=types, constants={**variant.constants, **dict.fromkeys(sizes, 1)})


def _batch_dot(element):
    pointers = dict.fromkeys(("a_ptr", "b_ptr", "partial_ptr"), element)
    streams = _streams(pointers, a=_READ, b=_READ)
    constants = {"ROWS": 16, "ACC": _TYPES[element]}
    return _variant(pointers, "B M", constants, dtype=element, streams=streams)


def _scan_variant(pointers, per_synapse, acc, **options):
    coefficients, flags = _coefficients(acc, per_synapse)
    constants = {**options.pop("constants"), **flags}
    # What the caller leaves out (a pointer that is None) stays left out.
    pointers = {**coefficients, **pointers}
    elements = ("BLOCK", "UNROLL")
    return _variant(pointers, "T L keep size N W", constants, elements=elements, **options)


def _scan(x, y, acc, double, reverse, packed, per_synapse, ends):
    names = ("pos_tail_ptr", "neg_tail_ptr", "pos_in_ptr", "neg_in_ptr")
    names += ("pos_out_ptr", "neg_out_ptr")
    pointers = {"x_ptr": x, "y_ptr": y, **dict.fromkeys(names, acc if ends else None)}
    if not ends:  # the scan over the carries of chunks has no gain
        pointers["gain_ptr"] = None
    constants = {"DOUBLE": double, "REVERSE": reverse, "PACKED": packed}
    # Lanes share the words of packed spikes: 1/8 byte per element, a gather to the code.
    streams = _streams(pointers, y=_WRITE) if packed else _streams(pointers, x=_READ, y=_WRITE)
    dtype = _narrower(x, acc if y is None else y)
    return _scan_variant(
        pointers, per_synapse, acc, constants=constants, dtype=dtype, streams=streams
    )


def _scan_constants(x, dy, acc, double, packed, per_synapse, ends):
    names = ("pos_dtail_ptr", "neg_dtail_ptr", "pos_in_ptr", "neg_in_ptr")
    names += ("pos_dcarry_ptr", "neg_dcarry_ptr")
    pointers = {"x_ptr": x, "dy_ptr": dy, **dict.fromkeys(names, acc if ends else None)}
    pointers.update(dict.fromkeys(("ddecay_ptr", "drise_ptr", "dgain_ptr"), acc))
    constants = {"DOUBLE": double, "PACKED": packed}
    streams = _streams(pointers, dy=_READ) if packed else _streams(pointers, x=_READ, dy=_READ)
    return _scan_variant(
        pointers, per_synapse, acc, constants=constants, dtype=_narrower(x, dy), streams=streams
    )


_STRIDES = "stride_w_r stride_w_c"


def _shift_sum(source, out, acc, adjoint=False, ring=False, **options):
    pointers = {"src_ptr": source, "out_ptr": out, "weight_ptr": acc, "back_ptr": "i32"}
    sizes = f"first R C J L unit slots stride_src_c stride_out_j {_STRIDES}"
    constants = {"stride_src_j": 1, "stride_out_r": 1, "ADJOINT": adjoint, "RING": ring}
    if ring:
        sizes += " stride_src_j"
        del constants["stride_src_j"]
    work = (1 if ring else 1 << 10, 1 << 10, 1 << 10, 1 << 20)
    # Of a record, neighbours in a row lie apart by the inputs.
    streams = {} if ring else _streams(pointers, src=_READ)
    options |= {"dtype": source, "work": work, "elements": ("BLOCK_R", "BLOCK", "UNROLL")}
    return _variant(pointers, sizes, constants, streams=streams, **options)


def _shift_dot(source, acc):
    pointers = {"dy_ptr": acc, "src_ptr": source, "back_ptr": "i32", "partial_ptr": acc}
    sizes = "first R C J share unit stride_dy_r stride_src_c"
    constants = {"stride_dy_j": 1, "stride_src_j": 1, "ACC": _TYPES[acc]}
    options = {"dtype": source, "work": (1 << 10, 1 << 10, 1 << 20)}
    options |= {"streams": _streams(pointers, src=_READ)}
    elements = ("BLOCK_R", "BLOCK_C", "BLOCK")
    return _variant(pointers, sizes, constants, elements=elements, **options)


def _product(source, precision):
    """By which launches look up the configuration of a product of matrices."""
    passes = {"ieee": 0, "tf32": 1, "tf32x3": 3}[precision]
    return {"dtype": source, "work": (passes, 1 << 4, 1 << 10, 1 << 10, 1 << 20)}


def _temporal_gemm(source, precision, adjoint=False, acc="fp32"):
    pointers = {"src_ptr": source, "out_ptr": acc, "weight_ptr": acc, "back_ptr": "i32"}
    near, far = ("stride_w_r", "stride_w_c") if adjoint else ("stride_w_c", "stride_w_r")
    constants = {near: 1, "ADJOINT": adjoint, "PRECISION": precision}
    sizes = f"first slots R C J L unit {far}"
    return _variant(pointers, sizes, constants, **_product(source, precision))


def _temporal_gemm_dot(source, precision, acc="fp32"):
    pointers = {"dy_ptr": acc, "src_ptr": source, "back_ptr": "i32", "dweight_ptr": acc}
    constants = {"PRECISION": precision}
    return _variant(pointers, "first R C J unit", constants, **_product(source, precision))


def _spike_sum(acc):
    pointers = {"words_ptr": "i32", "weight_ptr": acc, "back_ptr": "i32", "out_ptr": acc}
    options = {"dtype": acc, "work": (1 << 10, 1 << 5, 1 << 10, 1 << 10)}
    return _variant(pointers, "T share slots B W N", {}, **options)


def _spike_dot(acc):
    pointers = {"words_ptr": "i32", "dy_ptr": acc, "back_ptr": "i32", "partial_ptr": acc}
    options = {"dtype": acc, "work": (1 << 15, 1 << 10, 1 << 10)}
    return _variant(pointers, "V share J unit C N", {"ACC": _TYPES[acc]}, **options)


SIGNATURES: dict[str, list[Variant]] = {
    "ring_push_kernel": [
        _push("fp32", "fp32"),
        _push("fp32", "fp32", aligned=False),
        _push("u8", "fp64"),
        _push("i64", "bf16"),
        _push("bf16", "i1"),
        _on_device(_push("i1", "fp16"), "slot"),
    ],
    "ring_take_kernel": [_take("fp32"), _take("fp64"), _on_device(_take("bf16"), "slot")],
    "pack_bits_kernel": [_pack("i1"), _pack("fp32"), _pack("i64")],
    "transpose_bits_kernel": [_transpose()],
    "synapse_step_fwd_kernel": [
        _step_fwd("i1", "fp32", double=False, per_synapse=False),
        _step_fwd("fp32", "fp32", double=True, per_synapse=True, aligned=False),
        _step_fwd("bf16", "bf16", double=True, per_synapse=False),
        _step_fwd("u8", "fp16", double=False, per_synapse=True),
        _on_device(
            _step_fwd("fp64", "fp64", double=True, per_synapse=True, arrivals="i32"),
            "pos_pointer", "neg_pointer", "spike_pointer",
        ),
    ],
    "synapse_step_bwd_kernel": [
        _step_bwd("fp32", "fp32", "fp32", double=False, per_synapse=False, want_z=False),
        _step_bwd("fp32", None, "fp32", double=True, per_synapse=True, want_z=True),
        _step_bwd("bf16", "bf16", "bf16", double=True, per_synapse=False, want_z=True),
        _step_bwd(None, "fp32", "fp16", double=False, per_synapse=True, want_z=False),
        _on_device(
            _step_bwd("fp64", "fp64", "fp64", double=True, per_synapse=True, want_z=True),
            "pos_pointer", "neg_pointer",
        ),
    ],
    "select_fwd_kernel": [
        _select_fwd("fp32", "i1", "previous", False, 0.0, False, slopes=False),
        _select_fwd("fp16", "i1", "nearest", False, None, False, slopes=False),
        _select_fwd("fp32", "fp32", "expdecay", False, 0.0, False, slopes=False),
        _select_fwd("fp32", "fp32", "expdecay", True, 0.0, True, slopes=True, aligned=False),
        _select_fwd("fp32", "fp16", "linear", False, 0.0, False, slopes=True),
        _select_fwd("fp64", "fp32", "next", True, -1.0, False, slopes=True),
        _select_fwd("bf16", "bf16", "expdecay", True, None, True, slopes=True),
        _on_device(
            _select_fwd("fp64", "fp64", "linear", True, None, False, slopes=True),
            "pos_pointer", "neg_pointer",
        ),
        _select_fwd("fp64", "fp64", "expdecay", True, 0.0, True, slopes=True),
        _select_fwd("fp32", "fp32", "alpha", True, 0.0, True, slopes=True),
    ],
    "select_bwd_kernel": [
        _select_bwd("fp32", "fp32", "expdecay", False, 0.0, False),
        _select_bwd("fp32", "fp32", "nearest", False, None, False, many=True),
        _select_bwd("fp32", "fp32", "linear", True, 0.0, False),
        _select_bwd("bf16", "bf16", "next", True, None, False),
        _select_bwd("fp32", "fp32", "alpha", True, None, True),
        _select_bwd("fp16", "fp32", "expdecay", False, 0.0, False, many=True, value="fp16"),
        _on_device(
            _select_bwd("fp64", "fp64", "expdecay", True, 0.0, True, many=True),
            "pos_pointer", "neg_pointer",
        ),
    ],
    "batch_dot_kernel": [_batch_dot("fp32"), _batch_dot("fp64")],
    "exp_scan_kernel": [
        _scan("i1", "fp32", "fp32", False, False, False, per_synapse=False, ends=True),
        _scan("i32", "bf16", "fp32", True, False, True, per_synapse=True, ends=True),
        _scan("bf16", "fp16", "fp32", True, True, False, per_synapse=True, ends=True),
        _scan("fp32", "fp32", "fp32", False, False, False, per_synapse=False, ends=False),
        _scan("fp32", None, "fp32", True, True, False, per_synapse=False, ends=True),
        _scan("fp64", "fp64", "fp64", True, False, False, per_synapse=True, ends=True),
    ],
    "exp_scan_constants_kernel": [
        _scan_constants("fp32", "fp32", "fp32", False, False, per_synapse=False, ends=False),
        _scan_constants("i32", "bf16", "fp32", True, True, per_synapse=True, ends=True),
        _scan_constants("bf16", "fp32", "fp32", True, False, per_synapse=True, ends=True),
        _scan_constants("fp64", "fp64", "fp64", True, False, per_synapse=True, ends=True),
    ],
    "shift_sum_kernel": [
        _shift_sum("fp32", "fp32", "fp32"),
        _shift_sum("fp32", "fp32", "fp32", aligned=False),
        _shift_sum("bf16", "fp32", "fp32", ring=True),
        _on_device(_shift_sum("fp64", "fp64", "fp64", ring=True), "first"),
        _shift_sum("fp32", "fp32", "fp32", adjoint=True),
        _shift_sum("fp64", "fp64", "fp64", adjoint=True),
    ],
    "shift_dot_kernel": [
        _shift_dot("fp32", "fp32"),
        _shift_dot("bf16", "fp32"),
        _shift_dot("fp64", "fp64"),
    ],
    "temporal_gemm_kernel": [
        _temporal_gemm("fp32", "ieee"),
        _temporal_gemm("fp32", "tf32"),
        _temporal_gemm("bf16", "ieee"),
        _temporal_gemm("fp32", "tf32x3", adjoint=True),
        _temporal_gemm("fp64", "ieee", acc="fp64"),
    ],
    "temporal_gemm_dot_kernel": [
        _temporal_gemm_dot("fp32", "ieee"),
        _temporal_gemm_dot("fp32", "tf32"),
        _temporal_gemm_dot("fp32", "tf32x3"),
        _temporal_gemm_dot("fp16", "ieee"),
        _temporal_gemm_dot("bf16", "tf32x3"),
        _temporal_gemm_dot("fp64", "ieee", acc="fp64"),
    ],
    "spike_sum_kernel": [_spike_sum("fp32"), _spike_sum("fp64")],
    "spike_dot_kernel": [_spike_dot("fp32"), _spike_dot("fp64")],
}  # fmt: skip
"""The variants of each kernel."""
