"""What the pictures show: positions, counts, labels and colours of what is drawn, not pixels."""

import sys
import time
from pathlib import Path

import pytest
import torch
from synapses import every_kind, make, same, snapshot, spikes, uniform

pytest.importorskip("matplotlib")

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import same_color
from torch.testing import assert_close

import tritonsyn.plot as plot
from tritonsyn import DelayedLinear, SingleExponentialCurrent
from tritonsyn.functional import pack_spikes

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))
import draw_gallery  # noqa: E402

matplotlib.use("Agg")
PHYSICS = SingleExponentialCurrent.partialconstructor(10.0, 5.0)


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    plt.close("all")


def drawn(ax):
    """The picture is made, so that errors of drawing show."""
    ax.figure.canvas.draw()
    return ax


def points(line):
    """Marks ``[n, 2]`` of a line, in order."""
    return torch.tensor(line.get_xydata())


def layer(**options):
    torch.manual_seed(0)
    return DelayedLinear(4, 3, 1.0, synapse=PHYSICS, delay=8.0, **options)


def pasts(kind, *shape, steps=30, batch=2, **options):
    """Synapses that have received spikes."""
    synapse = make(kind, shape, delay=6.5, batch_size=batch, dtype=torch.float64, **options)
    synapse.scan(spikes(steps, batch, *shape, rate=0.15))
    return synapse


# -- spikes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_raster_has_a_mark_for_each_spike_of_the_sample(packed):
    x = spikes(20, 3, 2, 5)
    ax = drawn(plot.raster(pack_spikes(x) if packed else x.float(), 0.5, sample=1))
    (line,) = ax.lines
    step, neuron = x[:, 1].flatten(1).nonzero(as_tuple=True)
    assert_close(points(line), torch.stack((0.5 * step, neuron), 1).double())
    assert line.get_marker() == "|" and line.get_linestyle() == "None"
    assert ax.get_xlim() == (-0.25, 9.75) and ax.get_ylim() == (-0.5, 9.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (ms)", "neuron")


@pytest.mark.parametrize(("shape", "count"), [((6,), 1), ((6, 1), 1), ((6, 3), 3)])
def test_a_raster_without_a_batch(shape, count):
    ax = drawn(plot.raster(torch.ones(shape)))
    assert len(points(ax.lines[0])) == 6 * count
    assert set(points(ax.lines[0])[:, 1].tolist()) == set(range(count))


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 2, 0)])
def test_nothing_is_drawn_of_nothing(shape):
    x = torch.zeros(shape)
    assert not len(points(drawn(plot.raster(x)).lines[0]))
    ax = drawn(plot.currents(x, x))
    assert all(not len(line.get_xdata()) for line in ax.lines)


def test_marks_fit_the_rows_and_are_pixels_where_rows_are_smaller():
    few, many = (
        plot.raster(spikes(10, n, rate=rate)).lines[0] for n, rate in ((5, 0.5), (1000, 0.01))
    )
    row = few.axes.get_window_extent().height * 72 / few.figure.dpi / 5
    assert few.get_markersize() < row
    assert many.get_marker() == "," and many.get_alpha() == 1


def test_a_large_raster_is_quick_and_not_all_black():
    x = spikes(1000, 10_000, rate=0.05)
    start = time.process_time()
    ax = drawn(plot.raster(x))
    assert time.process_time() - start < 2
    assert len(ax.lines[0].get_xdata()) == x.count_nonzero()
    size = ax.get_window_extent()
    assert_close(ax.lines[0].get_alpha(), size.width * size.height / int(x.sum()), rtol=0.3, atol=0)


# -- currents -------------------------------------------------------------------------------------


def test_each_current_is_a_line_of_its_own_colour():
    y = uniform(12, 2, 3)
    ax = drawn(plot.currents(y.clone().requires_grad_(), dt=0.5, sample=1))
    assert len(ax.lines) == 3
    for n, line in enumerate(ax.lines):
        assert_close(points(line)[:, 0], 0.5 * torch.arange(12, dtype=torch.float64))
        assert_close(points(line)[:, 1], y[:, 1, n])
        assert same_color(line.get_color(), plot.COLOURS[n])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (ms)", "current (nA)")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"synapse {n}" for n in range(3)]


def test_spikes_stand_below_their_currents_in_their_colours():
    x, y = spikes(12, 3), uniform(12, 3, low=-1.0)
    ax = drawn(plot.currents(y, pack_spikes(x[:, None]), 0.5))
    marks = ax.collections
    assert len(marks) == 3
    lowest = ax.transData.transform((0, y.min()))[1]
    feet = []
    for n, line in enumerate(marks):
        at = torch.tensor(np.array(line.get_segments()))
        assert_close(at[:, 0, 0], 0.5 * x[:, n].nonzero().flatten().double())
        assert_close(at[:, 0, 0], at[:, 1, 0])
        top = ax.transAxes.transform((0, at[0, 1, 1]))[1]
        assert top < lowest
        assert same_color(line.get_color(), ax.lines[n].get_color())
        feet.append((at[0, 0, 1].item(), at[0, 1, 1].item()))
    assert 0 <= feet[2][0] < feet[2][1] < feet[1][0] < feet[1][1] < feet[0][0]


def test_what_is_not_finite_leaves_a_gap_in_a_current():
    y = torch.tensor([1.0, torch.nan, 2.0, torch.inf])
    (line,) = drawn(plot.currents(y)).lines
    assert np.isnan(line.get_ydata()[1]) and line.get_ydata()[2] == 2


def test_looks_go_to_the_lines_in_any_spelling():
    ax = plot.currents(torch.ones(4, 2), lw=5, c="black", label=["a", "b"])
    assert all(line.get_linewidth() == 5 and line.get_color() == "black" for line in ax.lines)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert plot.raster(torch.ones(4, 2), ms=3, color="red").lines[0].get_markersize() == 3


# -- delays ---------------------------------------------------------------------------------------


def counts(patches):
    return [patch.get_height() for patch in patches]


def test_the_delays_of_a_layer_are_counted_from_0_to_the_longest():
    net = layer()
    ax = drawn(plot.delays(net, bins=8))
    wanted = torch.histc(net.delay.detach(), 8, 0, 8)
    assert counts(ax.patches) == wanted.tolist()
    assert [patch.get_x() for patch in ax.patches] == list(range(8))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("delay (ms)", "count")
    assert ax.get_legend() is None


def test_delays_before_and_after_share_their_bins():
    net, before = layer(), 8 * torch.rand(3, 4)
    ax = drawn(plot.delays(net, before, bins=4, lw=7))
    *bars, step = ax.patches
    assert counts(bars) == torch.histc(before, 4, 0, 8).tolist()
    edges, heights = torch.tensor(step.get_xy()).unbind(1)
    assert edges.unique().tolist() == [0, 2, 4, 6, 8]
    assert heights[1:-1:2].tolist() == torch.histc(net.delay.detach(), 4, 0, 8).tolist()
    assert step.get_linewidth() == 7
    assert same_color(step.get_edgecolor(), plot.ORANGE)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(texts) == ["after", "before"]


def test_connections_that_a_layer_lacks_do_not_count():
    net = layer(mask=torch.eye(3, 4).bool())
    before = net.delay.detach().clone()
    ax = plot.delays(net, before, histtype="bar")
    assert sum(counts(ax.patches)) == 3 + 3
    ax = plot.delays(layer(), net, histtype="bar")
    assert sum(counts(ax.patches)) == 12 + 3


def test_delays_out_of_bounds_are_counted_and_those_not_finite_are_not():
    values = torch.tensor([-1.0, 0.0, 9.0, torch.nan, torch.inf])
    ax = drawn(plot.delays(values, layer().delay.detach()[:0], bins=10, histtype="bar"))
    assert sum(counts(ax.patches)) == 3
    assert ax.get_xlim() == (-1, 9)


def test_densities_have_the_area_1():
    ax = drawn(plot.delays(8 * torch.rand(100), torch.zeros(0), density=True, histtype="bar"))
    assert_close(sum(p.get_height() * p.get_width() for p in ax.patches), 1.0)
    assert ax.get_ylabel() == "density"


# -- connections ----------------------------------------------------------------------------------


def corners(ax):
    """Of each connection the four corners of its mark, relative to its place."""
    (marks,) = (c for c in ax.collections if c.get_array() is not None)
    vertices = torch.tensor(np.array([path.vertices[:4] for path in marks.get_paths()]))
    places = vertices.mean(1).round()
    return marks, places.long().tolist(), vertices - places.unsqueeze(1)


def area(vertices):
    x, y = vertices.unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1).abs()


def test_the_map_has_colours_for_delays_and_areas_for_weights():
    net = layer(delay_init=lambda d: d.copy_(torch.arange(12.0).view(3, 4)))
    net.weight.data.copy_(torch.arange(12.0).view(3, 4) - 6)
    ax = drawn(plot.delay_weight_map(net))
    marks, places, vertices = corners(ax)
    assert places == [[i, o] for o in range(3) for i in range(4)]
    assert marks.get_array().tolist() == net.delay.flatten().tolist()
    assert marks.get_clim() == (0, 8)
    weight = net.weight.detach().flatten().double()
    square = vertices[:, 0, 1] == vertices[:, 1, 1]
    assert square.tolist() == (weight >= 0).tolist()
    largest = area(vertices)[0]
    assert 0.5 < largest < 1
    assert_close(area(vertices), largest * weight.abs() / 6, rtol=1e-6, atol=1e-9)
    within = vertices.abs().amax((1, 2))
    assert within.max() < 0.6
    bar = next(axes for axes in ax.figure.axes if axes is not ax)
    assert bar.get_ylabel() == "delay (ms)"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 3.5), (2.5, -0.5))
    assert ax.get_xlabel().startswith("input") and ax.get_ylabel() == "output"


def test_the_map_shows_where_there_is_no_connection():
    mask = torch.eye(3, 4).bool()
    ax = drawn(plot.delay_weight_map(layer(mask=mask)))
    assert corners(ax)[1] == [[0, 0], [1, 1], [2, 2]]
    (ground,) = ax.images
    assert ground.get_array().tolist() == mask.tolist()
    colours = ground.cmap(ground.norm(np.array([0, 1])))
    assert same_color(colours[0], plot.ABSENT) and same_color(colours[1], "white")
    assert not plot.delay_weight_map(layer()).images


def test_the_map_of_a_sparse_layer_with_a_weight_that_is_not_finite():
    net = layer(mask=torch.eye(3, 4).bool())
    net.weight.data[1, 1] = torch.nan
    assert corners(drawn(plot.delay_weight_map(net)))[1] == [[0, 0], [2, 2]]


@pytest.mark.parametrize(("delays", "axis"), [("input", 0), ("output", 1)])
def test_the_map_of_shared_delays(delays, axis):
    net = layer(delays=delays)
    marks, _, _ = corners(plot.delay_weight_map(net))
    wanted = net.delay.detach().unsqueeze(axis).expand(3, 4).flatten()
    assert marks.get_array().tolist() == wanted.tolist()


def test_the_map_of_weights_that_are_0_or_not_finite():
    net = layer(bias=True)
    torch.nn.init.zeros_(net.weight)
    _, places, vertices = corners(drawn(plot.delay_weight_map(net)))
    assert len(places) == 12 and not vertices.any()
    net.weight.data[1, 2] = torch.nan
    net.weight.data[0, 0] = 1.0
    _, places, vertices = corners(drawn(plot.delay_weight_map(net, cmap="plasma")))
    assert len(places) == 11 and [2, 1] not in places
    assert area(vertices)[0] > 0.5
    net.weight.data.fill_(torch.nan)
    drawn(plot.delay_weight_map(net))


def test_the_map_of_one_connection_without_delays():
    net = DelayedLinear(1, 1, 1.0, synapse=PHYSICS, delay=0.0)
    assert corners(drawn(plot.delay_weight_map(net)))[1] == [[0, 0]]


# -- reads ----------------------------------------------------------------------------------------


@every_kind
def test_a_read_shows_what_the_synapse_sees(kind):
    synapse = pasts(kind, 2, 3)
    times = torch.tensor([0.0, 2.3, 4.0, 6.5], dtype=torch.float64)
    ax = drawn(plot.read(synapse, times, sample=1, index=4))
    curve, recorded, values, *stems = (points(line) for line in ax.lines)
    ages = torch.arange(8.0, dtype=torch.float64)
    seen = synapse.current_at(ages[:7].expand(2, 2, 3, -1))[1, 1, 1]
    assert_close(recorded[:, 0], ages)
    assert_close(recorded[:7, 1], seen)
    components = [record.read(0)[1, 1, 1] for record in synapse.component_records()]
    oldest = {"single": components[0], "alpha": components[-1]}
    assert_close(recorded[7, 1], oldest.get(kind, components[0] - components[-1]))
    assert_close(values[:, 0], times)
    assert_close(values[:, 1], synapse.current_at(times.expand(2, 2, 3, -1))[1, 1, 1])
    assert_close(torch.stack(stems)[:, 1], values)
    assert not torch.stack(stems)[:, 0, 1].any()
    assert_close(curve[:, 1], synapse.current_at(curve[:, 0].expand(2, 2, 3, -1))[1, 1, 1])
    assert curve[0, 0] == 0 and curve[-1, 0] == 6.5
    assert curve[:, 0].diff().max() <= 0.11
    assert ax.get_xlim()[0] > ax.get_xlim()[1], "the present is at the right"
    assert ax.get_xlabel() == "time before the present (ms)"
    assert ax.get_ylabel() == "current (nA)"


def test_the_curve_jumps_at_a_spike_only():
    """In between it decays, up to just before the next observation."""
    synapse = make("single", 1, delay=3.0, dtype=torch.float64)
    synapse.scan(torch.tensor([1.0, 0.0, 1.0, 0.0]).view(4, 1, 1))
    curve = points(plot.read(synapse, 0.5).lines[0])
    age, current = curve.unbind(1)
    wanted = 2.0 * torch.exp(-(3 - age) / 5) + torch.where(
        age <= 1, 2 * torch.exp((age - 1) / 5), 0
    )
    assert_close(current, wanted)
    assert (age - 1.001).abs().min() < 1e-9


@pytest.mark.parametrize("overbound", [0.0, 7.0, None])
def test_a_read_out_of_bounds_and_one_at_no_time(overbound):
    synapse = pasts("double", 2, current_overbound=overbound)
    values = points(drawn(plot.read(synapse, torch.tensor([9.0, torch.nan]))).lines[2])
    assert_close(values[0, 1], synapse.current_at(9.0)[0, 0] if overbound is None else
                 torch.tensor(overbound, dtype=torch.float64))  # fmt: skip
    assert values[1].isnan().all()


def test_constants_of_each_synapse_count():
    tau = torch.nn.Parameter(torch.tensor([2.0, 9.0], dtype=torch.float64))
    synapse = pasts("single", 2, time_constant=tau)
    for index in range(2):
        value = points(plot.read(synapse, 3.4, index=index).lines[2])[0, 1]
        assert_close(value, synapse.current_at(3.4)[0, index].detach())


@every_kind
@pytest.mark.parametrize("capturable", [False, True])
def test_reading_for_a_picture_changes_nothing(kind, capturable):
    synapse, twin = (pasts(kind, 3, capturable=capturable) for _ in range(2))
    x = uniform(2, 3).requires_grad_()
    for each in (synapse, twin):
        each.detach_state()
        each(x)
    plot.read(synapse, 2.0)
    plot.read(synapse, 2.0)
    assert same(snapshot(synapse), snapshot(twin))
    ours, theirs = (torch.autograd.grad(each.current_at(0.5).sum(), x) for each in (synapse, twin))
    assert_close(ours, theirs)


def test_a_record_without_a_past_and_one_of_half_precision():
    drawn(plot.read(make("single", 1), 0.0))
    synapse = make("alpha", 2, delay=3.0, dtype=torch.bfloat16)
    synapse.scan(spikes(5, 1, 2))
    value = points(drawn(plot.read(synapse, 1.5)).lines[2])[0, 1]
    assert_close(value, synapse.current_at(1.5)[0, 0].double())


# -- all ------------------------------------------------------------------------------------------

PICTURES = {
    "raster": lambda **how: plot.raster(spikes(9, 2, 3), **how),
    "currents": lambda **how: plot.currents(uniform(9, 2, 3), spikes(9, 2, 3), **how),
    "delays": lambda **how: plot.delays(layer(), layer(), **how),
    "delay_weight_map": lambda **how: plot.delay_weight_map(layer(fan_in=2), **how),
    "read": lambda **how: plot.read(pasts("single", 2), 1.5, **how),
}
every_picture = pytest.mark.parametrize("picture", PICTURES)


@every_picture
def test_a_picture_goes_into_the_axes_given(picture):
    figure, (left, right) = plt.subplots(1, 2)
    assert PICTURES[picture](ax=right) is right
    assert plt.get_fignums() == [figure.number]
    assert right.has_data() and not left.has_data()
    figure.canvas.draw()


@every_picture
def test_a_picture_without_axes_makes_a_figure_and_changes_no_setting(picture):
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    ax = PICTURES[picture]()
    assert plt.get_fignums() == [ax.figure.number]
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend
    drawn(ax)


def test_a_default_device_does_not_matter():
    net, x = layer(fan_in=2), spikes(9, 2, 4)
    y = net(x)
    with torch.device("meta"):
        drawn(plot.raster(x))
        drawn(plot.currents(y, x[..., :3]))
        drawn(plot.delays(net, net.delay))
        drawn(plot.delay_weight_map(net))
        drawn(plot.read(net.synapse, 1.5))


@every_picture
def test_axes_of_another_kind_are_refused(picture):
    with pytest.raises(TypeError, match="ax must be matplotlib axes"):
        PICTURES[picture](ax="axes")
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plot.raster([1]), TypeError, "spikes must be a tensor"),
        (lambda: plot.raster(torch.tensor(1)), ValueError, "spikes has shape"),
        (lambda: plot.raster(torch.ones(2, 2, device="meta")), ValueError, "spikes is on meta"),
        (lambda: plot.raster(torch.ones(2, 2), 0), ValueError, "dt must be greater than 0"),
        (lambda: plot.raster(torch.ones(2, 2), sample=1), ValueError, "sample must be in 0 to 0"),
        (
            lambda: plot.raster(torch.ones(2, 3, 2), sample=3),
            ValueError,
            "sample must be in 0 to 2",
        ),
        (lambda: plot.currents("x"), TypeError, "currents must be a tensor"),
        (lambda: plot.currents(torch.ones(3, 2), torch.ones(2, 3)), ValueError, "spikes has shape"),
        (lambda: plot.currents(torch.ones(3, 2), dt=-1.0), ValueError, "dt must be"),
        (lambda: plot.delays(1.0), TypeError, "delays must be a tensor"),
        (lambda: plot.delays(torch.ones(2), "x"), TypeError, "before must be a tensor"),
        (lambda: plot.delays(torch.ones(2), bins=0), ValueError, "bins must be a positive integer"),
        (lambda: plot.delay_weight_map(torch.ones(2)), TypeError, "layer must be a DelayedLinear"),
        (lambda: plot.read(layer(), 1.0), TypeError, "synapse must be a synapse"),
        (lambda: plot.read(make("single"), "x"), TypeError, "times must be"),
        (lambda: plot.read(make("single"), torch.ones(1).long()), TypeError, "times must be"),
        (lambda: plot.read(make("single"), 0.0, index=3), ValueError, "index must be in 0 to 2"),
        (lambda: plot.read(make("single"), 0.0, sample=1), ValueError, "sample must be in 0 to 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert not plt.get_fignums()


def test_the_gallery_shows_what_the_block_before_each_picture_draws():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    found = draw_gallery.BLOCK_OR_IMAGE.findall(page)
    images = [n for n, (_, image) in enumerate(found) if image]
    assert len(images) == page.count("](images/") == len(PICTURES)
    for n in images:
        assert "plot." in found[n - 1][0]
        assert (DOCS / found[n][1]).stat().st_size < 80_000


@pytest.mark.gpu
def test_tensors_and_modules_on_a_gpu():
    net = layer(device="cuda", fan_in=2)
    drawn(plot.raster(spikes(9, 2, 3).cuda()))
    drawn(plot.currents(net(spikes(9, 2, 4).cuda()), pack_spikes(spikes(9, 2, 3).cuda())))
    drawn(plot.delays(net, net.delay))
    drawn(plot.delay_weight_map(net))
    value = points(drawn(plot.read(net.synapse, 1.5)).lines[2])[0, 1]
    assert_close(value, net.synapse.current_at(1.5)[0, 0].double().cpu())
