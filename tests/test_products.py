"""Whatever computes a product, it is the product: values, gradients of any order, and who may be chosen when."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from xmodal import products
from xmodal.heads import SCAN, VSRN, bfan_scores, scan_scores
from xmodal.products import Linear, chosen_product, chosen_products, inner_products, linear, products_as, use_product
from xmodal.scoring import score_all

AVAILABLE = [name for name in products.PRODUCTS if name != "onednn" or products._has_onednn()]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """No choice made, none kept, and everything is large enough to be worth one."""
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(products, "_forced", [None])
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.delenv(products.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def draw(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("rows_shape", [(5, 33), (2, 3, 33), (1, 33), (2, 0, 33)])
def test_products_are_those_of_float64(name, rows_shape):
    use_product(name)
    rows, columns, bias = draw(rows_shape, (7, 33), (7,))
    wanted = rows.double() @ columns.double().T
    for found in (inner_products(rows, columns), inner_products(rows, columns, out=torch.empty(*rows_shape[:-1], 7))):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(rows, columns, bias).double(), wanted + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", AVAILABLE)
def test_factors_may_lie_in_memory_in_any_way(name):
    use_product(name)
    (square,) = draw((8, 8))
    views = [square, square.T, square[::2], square[:, ::2].T, square[1:, 2:], square[:1].expand(5, -1)]
    for rows in views:
        for columns in (view for view in views if view.shape[1] == rows.shape[1]):
            torch.testing.assert_close(inner_products(rows, columns), rows @ columns.T)
    torch.testing.assert_close(inner_products(square[0], square), square @ square[0])


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_gradients_are_those_of_float64(name, needed):
    use_product(name)
    rows, columns, weights = draw((2, 3, 33), (7, 33), (2, 3, 7))
    leaves = [side.clone().requires_grad_(need) for side, need in zip((rows, columns), needed, strict=True)]
    exact = [side.double().requires_grad_(need) for side, need in zip((rows, columns), needed, strict=True)]

    def both_orders(rows, columns, product):
        wanted = [side for side in (rows, columns) if side.requires_grad]
        value = (product(rows, columns) ** 3 * weights).sum()
        first = torch.autograd.grad(value, wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(each.square().sum() for each in first), wanted)]

    found = both_orders(*leaves, inner_products)
    for one, other in zip(found, both_orders(*exact, lambda rows, columns: rows @ columns.T), strict=True):
        assert float(((one - other).abs().max() / other.abs().max()).detach()) < 1e-5


def test_gradients_of_float64_are_those_of_differences():
    use_product("numpy")
    rows, columns, bias = (t.requires_grad_() for t in draw((2, 3, 5), (4, 5), (4,), dtype=torch.float64))
    assert torch.autograd.gradcheck(linear, (rows, columns, bias))
    assert torch.autograd.gradgradcheck(inner_products, (rows, columns))


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_layer_is_the_layer_of_torch(name):
    use_product(name)
    ours, theirs = Linear(16, 4), nn.Linear(16, 4)
    ours.load_state_dict(theirs.state_dict())
    (items,) = draw((2, 9, 16))
    torch.testing.assert_close(ours(items), theirs(items))
    for layer in (ours, theirs):
        layer(items).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    for layer in (ours, theirs):
        parametrizations.weight_norm(layer, dim=None)
    torch.testing.assert_close(ours(items), theirs(items))


@pytest.mark.parametrize("name", AVAILABLE)
def test_heads_score_alike_whatever_multiplies(name):
    regions, words = (nn.functional.normalize(side, dim=-1) for side in draw((4, 9, 32), (5, 7, 32)))
    # Of a single word all regions that it is near to have equal weights, and BFAN's choice among them is rounding's.
    real = torch.arange(7) < torch.tensor([7, 3, 5, 2, 6])[:, None]
    for compare in (partial(scan_scores, word_mask=real), partial(bfan_scores, word_mask=real), VSRN(32).eval()):
        use_product("torch")
        wanted = compare(regions, words)
        use_product(name)
        torch.testing.assert_close(compare(regions, words), wanted, rtol=1e-5, atol=1e-5)
    wanted = scan_scores(regions, words, None, real)
    torch.testing.assert_close(score_all(SCAN(), regions, words, None, real), wanted, rtol=1e-5, atol=1e-5)


def measured(monkeypatch, **seconds):
    monkeypatch.setattr(products, "candidates", lambda dtype, threads: list(seconds))
    monkeypatch.setattr(products, "_seconds", lambda *_: seconds)


def test_the_fastest_is_chosen_where_it_is_much_faster(monkeypatch, caplog):
    measured(monkeypatch, torch=2.0, onednn=0.9, numpy=1.0)
    with caplog.at_level(logging.INFO, "xmodal"):
        assert chosen_product() == "onednn"
    assert "by onednn: torch 2000.00 ms, onednn 900.00 ms" in caplog.text
    monkeypatch.setattr(products, "_chosen", {})
    caplog.clear()
    measured(monkeypatch, torch=0.0, onednn=1.0, numpy=1.0)  # not measured again: the choice was kept
    with caplog.at_level(logging.INFO, "xmodal"):
        assert chosen_product() == "onednn"
    assert "measured before" in caplog.text


def test_numpy_is_no_candidate_beside_threads_of_torch(monkeypatch):
    """Its own threads spin between products and take the cores from torch's."""
    monkeypatch.setattr(products, "_numpy_threads", lambda: 2)
    assert "numpy" not in products.candidates(torch.float32, 2)
    monkeypatch.setattr(products, "_numpy_threads", lambda: 1)
    assert "numpy" in products.candidates(torch.float32, 1)


def test_torch_stays_where_it_is_about_as_fast(monkeypatch):
    measured(monkeypatch, torch=1.0, onednn=0.95)
    assert chosen_product() == "torch"


def test_what_is_kept_is_for_this_machine_dtype_and_threads(monkeypatch, tmp_path):
    measured(monkeypatch, torch=2.0, numpy=1.0)
    assert chosen_product(torch.float64, 3) == "numpy"
    kept = json.loads((tmp_path / "xmodal" / "products.json").read_text())
    assert list(kept) == [products._key(torch.float64, 3)]
    assert f"torch {torch.__version__}" in next(iter(kept))
    measured(monkeypatch, torch=1.0, numpy=2.0)
    assert chosen_product(torch.float64, 2) == "torch"


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', b"\xff"])
def test_a_damaged_file_of_choices_is_measured_anew(monkeypatch, tmp_path, content):
    (tmp_path / "xmodal").mkdir()
    file = tmp_path / "xmodal" / "products.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    measured(monkeypatch, torch=2.0, onednn=1.0)
    assert chosen_product() == "onednn"
    assert "onednn" in json.loads(file.read_text()).values()


def test_without_a_place_for_the_file_every_process_measures(monkeypatch, tmp_path, caplog):
    (tmp_path / "xmodal").write_text("in the way")
    measured(monkeypatch, torch=2.0, onednn=1.0)
    with caplog.at_level(logging.INFO, "xmodal"):
        assert chosen_product() == "onednn"
    assert "is not kept" in caplog.text


def test_where_the_file_cannot_be_replaced_nothing_is_left_beside_it(monkeypatch, tmp_path, caplog):
    (tmp_path / "xmodal" / "products.json").mkdir(parents=True)
    measured(monkeypatch, torch=2.0, onednn=1.0)
    with caplog.at_level(logging.INFO, "xmodal"):
        assert chosen_product() == "onednn"
    assert "is not kept" in caplog.text
    assert [path.name for path in (tmp_path / "xmodal").iterdir()] == ["products.json"]


def test_a_product_that_fails_or_errs_is_not_even_timed(monkeypatch, caplog):
    def fails(rows, columns, bias, out):
        raise RuntimeError("no such operation")

    rough = lambda rows, columns, bias, out: (rows.bfloat16() @ columns.bfloat16().T).float()  # noqa: E731
    monkeypatch.setattr(products, "PRODUCTS", {"torch": products._by_torch, "onednn": fails, "numpy": rough})
    with caplog.at_level(logging.INFO, "xmodal"):
        assert list(products._seconds(torch.float32, 1, ["torch", "onednn", "numpy"])) == ["torch"]
    assert "products by onednn fail here: no such operation" in caplog.text


def test_measuring_for_other_threads_leaves_the_number_as_it_was():
    before = torch.get_num_threads()
    with products._threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_environment_and_the_function_choose_by_hand(monkeypatch):
    measured(monkeypatch, torch=2.0, onednn=1.0)
    monkeypatch.setenv(products.VARIABLE, "numpy")
    assert chosen_product() == chosen_product(torch.float64) == "numpy"
    use_product("torch")
    assert chosen_product() == "torch"
    use_product(None)
    monkeypatch.setenv(products.VARIABLE, "cublas")
    with pytest.raises(ValueError, match="XMODAL_PRODUCT must be one of torch, onednn, numpy; got 'cublas'"):
        inner_products(*draw((2, 3), (2, 3)))
    with pytest.raises(ValueError, match="product must be one of"):
        use_product("mkl")
    monkeypatch.setattr(products, "_has_onednn", lambda: False)
    with pytest.raises(ValueError, match="does not offer here; use 'torch'"):
        use_product("onednn")


def test_what_others_do_not_take_is_left_to_torch(monkeypatch):
    def never(*_):
        raise AssertionError

    use_product("onednn" if "onednn" in AVAILABLE else "numpy")
    monkeypatch.setattr(products, "PRODUCTS", dict.fromkeys(products.PRODUCTS, never) | {"torch": products._by_torch})
    rows, columns = draw((3, 8), (4, 8))
    with pytest.raises(AssertionError):
        inner_products(rows, columns)
    with torch.autocast("cpu", torch.bfloat16):
        assert inner_products(rows, columns).dtype == torch.bfloat16
    assert inner_products(rows.bfloat16(), columns.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        inner_products(rows, columns.double())
    with pytest.raises(RuntimeError):
        inner_products(rows, columns[:, :7])
    monkeypatch.setattr(products, "SMALLEST", 3 * 8 * 4 + 1)
    torch.testing.assert_close(inner_products(rows, columns), rows @ columns.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_measurement_refuses_no_product_for_the_order_of_its_sums(dtype):
    able = [name for name in AVAILABLE if name == "torch" or dtype in products.DTYPES[name]]
    assert list(products._seconds(dtype, 1, able)) == able


def test_a_run_that_goes_on_multiplies_as_before(monkeypatch):
    measured(monkeypatch, torch=2.0, onednn=1.0, numpy=1.5)
    before = dict.fromkeys(chosen_products(), "numpy")
    with products_as(before) as lost:
        assert chosen_products() == before
        assert lost == []
    assert set(chosen_products().values()) == {"onednn"}
    use_product("torch")
    with products_as(before) as lost:
        assert lost == ["float32 products on 1 threads were numpy's, now they are torch's"]
    with products_as({}) as lost:
        assert lost == []
