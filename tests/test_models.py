"""The reference models: shapes, published layouts and parameter counts, and their one generator."""

import pytest
import torch
from torch import nn

from gradsift.errors import UsageError
from gradsift.models import build_model, describe
from gradsift.models.convolutional import cnn
from gradsift.models.initialise import initialise
from gradsift.models.normalisation import by_batch, by_group
from gradsift.models.recurrent import TokenLstm, as_sequence
from gradsift.models.sparse import SparseLinear
from gradsift.models.wide_resnet import WideBlock, parse_wide

SHAPES = {
    "linear": [(5,), (1, 8, 8), (2, 3, 4, 5)],
    "mlp": [(5,), (1, 8, 8), (3, 28, 28)],
    "cnn": [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 20)],
    "wrn-10-1": [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 20)],
    "lstm": [(6,), (6, 2), (1, 8, 8), (3, 8, 6)],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def layers_without_storage(name, shape=(3, 32, 32), norm: str | None = "batch"):
    with torch.device("meta"):
        return describe(name, shape, 10, norm)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_model_maps_its_inputs_to_one_row_per_example(name, shape):
    model = build_model(name, shape, 7, generator=seeded())
    outputs = model(torch.randn(4, *shape, generator=seeded(1)))
    assert outputs.shape == (4, 7)
    assert bool(torch.isfinite(outputs).all())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_parameter_receives_a_gradient(name, shape):
    model = build_model(name, shape, 3, generator=seeded())
    model(torch.randn(8, *shape, generator=seeded(1))).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_examples_do_not_see_each_other(name, shape):
    model = build_model(name, shape, 3, generator=seeded()).eval()
    inputs = torch.randn(5, *shape, generator=seeded(1))
    together = model(inputs)
    alone = torch.cat([model(inputs[place : place + 1]) for place in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "wrn-10-1", "lstm"])
def test_a_model_is_a_function_of_its_generator_alone(name):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = build_model(name, (1, 8, 8), 10, generator=seeded(4)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    again = build_model(name, (1, 8, 8), 10, generator=seeded(4)).state_dict()
    other = build_model(name, (1, 8, 8), 10, generator=seeded(5)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_linear_and_mlp_have_the_parameters_of_a_hand_count():
    assert count(layers_without_storage("linear", (1, 8, 8), norm=None)) == 64 * 10 + 10
    expected = (64 * 256 + 256) + (256 * 256 + 256) + (256 * 10 + 10)
    assert count(layers_without_storage("mlp", (1, 8, 8), norm=None)) == expected


def test_the_cnn_has_the_parameters_of_a_hand_count():
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 32 + 32)
    expected = convolutions + (32 * 7 * 7 * 128 + 128) + (128 * 10 + 10)
    assert count(cnn((1, 28, 28), 10)) == expected


def test_the_lstm_has_the_parameters_of_a_hand_count():
    gates = 4 * (128 * (3 * 6 + 128) + 2 * 128)
    assert count(layers_without_storage("lstm", (3, 8, 6), norm=None)) == gates + 128 * 10 + 10


def wrn_by_hand(depth, factor, channels=3, outputs=10):
    """Counts layer by layer from table 1 of the paper, with the code's 1 x 1 shortcuts."""
    total, width = 9 * channels * 16, 16
    for thin in (16, 32, 64):
        wide = thin * factor
        for _ in range((depth - 4) // 6):
            total += 2 * width + 9 * width * wide + 2 * wide + 9 * wide * wide
            total += width * wide if width != wide else 0
            width = wide
    return total + 2 * width + width * outputs + outputs


@pytest.mark.parametrize(
    ("depth", "factor", "millions"),
    [
        *((40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5)),
        *((16, 4, 2.7), (16, 8, 11.0), (16, 10, 17.1), (22, 8, 17.2)),
    ],
)
def test_wide_residual_networks_have_the_published_number_of_parameters(depth, factor, millions):
    found = count(layers_without_storage(f"wrn-{depth}-{factor}"))
    assert found == wrn_by_hand(depth, factor)
    assert found / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 4), (28, 10)])
def test_wide_residual_networks_have_the_published_layout(depth, factor):
    model = layers_without_storage(f"wrn-{depth}-{factor}")
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    spatial = [layer for layer in convolutions if layer.kernel_size == (3, 3)]
    blocks = [layer for layer in model.children() if isinstance(layer, WideBlock)]
    each = (depth - 4) // 6
    widths = [block.conv2.out_channels for block in blocks]
    assert widths == [16 * factor] * each + [32 * factor] * each + [64 * factor] * each
    strides = [block.conv1.stride[0] for block in blocks]
    assert strides == ([1] * each + [2] + [1] * (each - 1) + [2] + [1] * (each - 1))
    assert len(spatial) == 1 + 2 * 3 * each
    assert all(layer.bias is None for layer in convolutions)


def test_the_depth_counts_the_convolutions_of_the_path_the_shortcuts_and_the_head():
    model = layers_without_storage("wrn-28-10")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 28 + 1


def test_a_block_adds_its_input_unchanged_where_the_shape_stays():
    block = WideBlock(8, 8, 1, by_group)
    nn.init.zeros_(block.conv2.weight)
    inputs = torch.randn(2, 8, 6, 6, generator=seeded())
    assert block.shortcut is None
    assert torch.equal(block(inputs), inputs)


def test_a_block_that_changes_shape_starts_from_the_activated_input():
    block = WideBlock(8, 16, 2, by_group)
    nn.init.zeros_(block.conv2.weight)
    inputs = torch.randn(2, 8, 6, 6, generator=seeded())
    assert block.shortcut is not None
    expected = block.shortcut(torch.relu(block.norm1(inputs)))
    assert torch.equal(block(inputs), expected)
    assert expected.shape == (2, 16, 3, 3)


def test_the_norm_is_by_groups_unless_asked_otherwise():
    def kinds(norm):
        modules = layers_without_storage("wrn-10-1", norm=norm).modules()
        return {type(m) for m in modules if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)}

    assert kinds(None) == kinds("group") == {nn.GroupNorm}
    assert kinds("batch") == {nn.BatchNorm2d}


def test_rows_of_an_image_are_the_steps_of_a_sequence():
    images = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    steps = as_sequence(images)
    for row in range(4):
        expected = torch.cat([images[:, channel, row] for channel in range(3)], dim=1)
        assert torch.equal(steps[:, row], expected)
    assert as_sequence(torch.zeros(2, 7)).shape == (2, 7, 1)


def test_parameters_are_drawn_on_the_published_scales():
    convolution = nn.Conv2d(64, 128, 3)
    initialise(convolution, seeded())
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    dense = nn.Linear(400, 300)
    initialise(dense, seeded())
    assert dense.weight.abs().max().item() <= 1 / 20
    assert dense.weight.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    memory = nn.LSTM(4, 100)
    initialise(memory, seeded())
    assert max(p.abs().max().item() for p in memory.parameters()) <= 0.1
    batch_norm = by_batch(8)
    batch_norm(torch.randn(4, 8, 3, 3, generator=seeded()))
    initialise(batch_norm, seeded())
    assert batch_norm.running_mean is not None
    assert not batch_norm.running_mean.any()


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="Bilinear"):
        initialise(nn.Bilinear(3, 2, 1), seeded())


def as_pairs(rows):
    """Every column of dense rows as a pair, the zeros too."""
    columns = torch.arange(rows.shape[1], dtype=torch.float32).expand_as(rows)
    return torch.stack([columns, rows], dim=2)


@pytest.mark.parametrize("name", ["linear", "mlp", "lstm"])
def test_a_model_of_sparse_rows_is_the_model_of_dense_rows(name):
    sparse = build_model(name, (6,), 3, generator=seeded(2), sparse=True)
    dense = build_model(name, (6,), 3, generator=seeded(2))
    for ours, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
        with torch.no_grad():
            theirs.copy_(ours if ours.shape == theirs.shape else ours.T)
    rows = torch.randn(5, 6, generator=seeded(1)) * torch.tensor([1, 0, 1, 1, 0, 1])
    torch.testing.assert_close(sparse(as_pairs(rows)), dense(rows))
    padding = torch.zeros(5, 3, 2)
    torch.testing.assert_close(sparse(torch.cat([as_pairs(rows), padding], dim=1)), dense(rows))
    for model, inputs in ((sparse, as_pairs(rows)), (dense, rows)):
        model(inputs).square().sum().backward()
    for ours, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        same = ours.grad if ours.shape == theirs.shape else ours.grad.T
        torch.testing.assert_close(same, theirs.grad)


def test_sparse_weights_are_drawn_as_wide_as_dense_ones():
    layer = SparseLinear(400, 50)
    initialise(layer, seeded())
    assert 0.049 < float(layer.weight.detach().abs().max()) <= 1 / 20
    assert not layer.bias.detach().any()


def test_tokens_are_looked_up_and_nothing_else():
    model = build_model("lstm", (6,), 9, generator=seeded(), vocabulary=9)
    assert isinstance(model, TokenLstm)
    assert abs(float(model.embedding.weight.detach().std()) - 1) < 0.1
    tokens = torch.randint(9, (4, 6), generator=seeded(1))
    states, _ = model.memory(model.embedding.weight[tokens])
    torch.testing.assert_close(model(tokens), model.head(states[:, -1]))
    gates = 4 * (128 * (64 + 128) + 2 * 128)
    assert count(model) == 9 * 64 + gates + 128 * 9 + 9


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "wrn-10-1", "nonsense"])
def test_numbers_of_tokens_are_no_numbers(name):
    with pytest.raises(UsageError, match="choose lstm"):
        build_model(name, (6,), 9, generator=seeded(), vocabulary=9)


@pytest.mark.parametrize(
    ("name", "columns", "norm", "message"),
    [
        ("lstm", 4097, None, "choose linear or mlp"),
        ("cnn", 6, None, "expected images"),
        ("nonsense", 6, None, "unknown"),
        ("mlp", 6, "batch", "no normalisation"),
    ],
)
def test_sparse_rows_are_refused_with_the_way_out(name, columns, norm, message):
    with pytest.raises(UsageError, match=message):
        build_model(name, (columns,), 2, generator=seeded(), norm=norm, sparse=True)


@pytest.mark.parametrize(
    ("name", "shape", "norm", "message"),
    [
        ("mpl", (4,), None, "linear, mlp, cnn, wrn-D-K, lstm"),
        ("", (4,), None, "unknown"),
        ("wrn", (1, 8, 8), None, "wrn-DEPTH-WIDTH"),
        ("wrn-16", (1, 8, 8), None, "wrn-DEPTH-WIDTH"),
        ("wrn-15-2", (1, 8, 8), None, "10, 16, 22"),
        ("wrn-4-2", (1, 8, 8), None, "10, 16, 22"),
        ("wrn-16-0", (1, 8, 8), None, "width factor"),
        ("wrn-16-4-2", (1, 8, 8), None, "wrn-DEPTH-WIDTH"),
        ("wrn-16-4", (64,), None, "choose mlp"),
        ("cnn", (64,), None, "choose mlp"),
        ("cnn", (1, 7, 8), None, "at least 8 x 8"),
        ("lstm", (2, 3, 4, 5), None, "choose mlp"),
        ("wrn-10-1", (1, 8, 8), "layer", "group, batch"),
        ("mlp", (4,), "batch", "no normalisation"),
    ],
)
def test_impossible_models_are_refused_with_the_way_out(name, shape, norm, message):
    with pytest.raises(UsageError, match=message):
        build_model(name, shape, 2, generator=seeded(), norm=norm)


def test_wide_names_are_parsed():
    assert [parse_wide(f"wrn-{depth}-2")[0] for depth in (10, 16, 22, 40)] == [10, 16, 22, 40]
