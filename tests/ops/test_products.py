"""Products by oneDNN are the products that torch makes, forwards and backwards."""

import pytest
import torch

from tutelage.ops import products

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN"
)


@pytest.fixture
def by_onednn(monkeypatch):
    """Whatever the processor, and however small the product."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "_WORTH", 0)
    monkeypatch.setattr(products, "_WORTH_DECODING", 0)


def both_ways(inputs, weight, bias, above):
    found = []
    for linear in (products.linear, torch.nn.functional.linear):
        leaves = [None if t is None else t.detach().clone() for t in (inputs, weight, bias)]
        leaves = [None if t is None else t.requires_grad_() for t in leaves]
        output = linear(*leaves)
        output.backward(above)
        found.append([output.detach(), *(t.grad for t in leaves if t is not None)])
    return found


@needs_onednn
@pytest.mark.parametrize("shape", [(16,), (2, 9), (3, 1, 8), (33,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_outputs_and_gradients_are_those_of_torch(by_onednn, shape, with_bias):
    generator = torch.Generator().manual_seed(len(shape))
    inputs = torch.randn(*shape, 24, generator=generator)
    weight = torch.randn(40, 24, generator=generator)
    bias = torch.randn(40, generator=generator) if with_bias else None
    above = torch.randn(*shape, 40, generator=generator)
    assert products._is_worth_it(inputs, weight)
    for ours, theirs in zip(*both_ways(inputs, weight, bias, above), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@needs_onednn
def test_gradients_that_nobody_wants_are_not_computed(by_onednn):
    inputs, weight = torch.randn(16, 24), torch.randn(40, 24, requires_grad=True)
    products.linear(inputs, weight).sum().backward()
    assert inputs.grad is None
    torch.testing.assert_close(weight.grad, inputs.sum(0).expand(40, 24), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    ("inputs", "weight"),
    [
        (torch.randn(16, 24, dtype=torch.float64), torch.randn(40, 24, dtype=torch.float64)),
        (torch.randn(16, 24).bfloat16(), torch.randn(40, 24).bfloat16()),
        (torch.randn(1, 24), torch.randn(40, 24)),
        (torch.randn(0, 24), torch.randn(40, 24)),
        (torch.randn(16, 24, device="meta"), torch.randn(40, 24, device="meta")),
    ],
    ids=["float64", "bfloat16", "one row", "no row", "no CPU"],
)
def test_what_onednn_does_not_do_better_is_left_to_torch(by_onednn, inputs, weight):
    assert not products._is_worth_it(inputs, weight)
    output = products.linear(inputs, weight)
    assert output.shape == (len(inputs), 40)
    assert output.dtype == inputs.dtype


@needs_onednn
def test_a_model_keeps_its_weights_and_its_kind(by_onednn):
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 8))
    inputs = torch.randn(16, 24)
    before, names = model(inputs), list(model.state_dict())
    products.speed_up(model)
    assert list(model.state_dict()) == names
    assert all(isinstance(model[i], torch.nn.Linear) for i in (0, 2))
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_the_same_product_twice_is_the_same_to_the_bit(by_onednn):
    inputs, weight = torch.randn(65, 24), torch.randn(40, 24)
    first = products.linear(inputs, weight)
    again = products.linear(inputs.clone(), weight.clone())
    assert torch.equal(first, again)


def test_one_processor_always_answers_alike():
    assert products.prefers_onednn() is products.prefers_onednn()


def test_other_processors_keep_their_layers(monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40))
    products.speed_up(model)
    assert type(model[0]) is torch.nn.Linear
