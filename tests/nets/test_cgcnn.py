"""The layers against PyG's own and against the paper's equation edge by edge; what must not change a prediction."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch_geometric.nn import CGConv

from src.nets.cgcnn import CGCNN, CrystalConv, PaperConv

F, D = 6, 5
X = dict[str, Tensor]


def graph(seed: int = 0, atoms: int = 7, edges: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(atoms - 1, (2, edges), generator=generator)  # the last atom has no neighbour
    return torch.randn(atoms, F, generator=generator), edge_index, torch.rand(edges, D, generator=generator)


def crystal(positions: NDArray[np.float64], numbers: list[int], cell: NDArray[np.float64], cutoff: float = 5.0) -> X:
    """All neighbours within the cutoff, by brute force over the images."""
    edges, distances = [], []
    for centre, neighbour in itertools.product(range(len(numbers)), repeat=2):
        for image in itertools.product((-2, -1, 0, 1, 2), repeat=3):
            distance = float(np.linalg.norm(positions[neighbour] + np.array(image) @ cell - positions[centre]))
            if 1e-8 < distance < cutoff:
                edges.append((neighbour, centre))
                distances.append(distance)
    return {
        "z": torch.tensor(numbers),
        "edge_index": torch.tensor(edges).T.contiguous(),
        "distance": torch.tensor(distances, dtype=torch.float32),
        "num_nodes": torch.tensor([len(numbers)]),
    }


def joined(*crystals: X) -> X:
    offsets = np.cumsum([0, *(len(one["z"]) for one in crystals)])
    return {
        "z": torch.cat([one["z"] for one in crystals]),
        "edge_index": torch.cat([one["edge_index"] + n for one, n in zip(crystals, offsets, strict=False)], dim=1),
        "distance": torch.cat([one["distance"] for one in crystals]),
        "num_nodes": torch.cat([one["num_nodes"] for one in crystals]),
    }


CELL = np.array([[4.0, 0.0, 0.0], [0.5, 3.6, 0.0], [0.2, 0.4, 4.2]])
POSITIONS = np.random.default_rng(1).uniform(0, 3.5, (4, 3))
NUMBERS = [13, 28, 29, 13]


def net(**arguments: Any) -> CGCNN:
    torch.manual_seed(0)
    return CGCNN(["energy", "gap"], cutoff=5.0, hidden_channels=16, num_layers=2, head_sizes=[8], **arguments)


# --- layers


@pytest.mark.parametrize("batch_norm", [True, False])
def test_layer_equals_stock_cgconv(batch_norm: bool) -> None:
    torch.manual_seed(0)
    stock = CGConv(F, D, batch_norm=batch_norm)
    layer = CrystalConv(F, D, batch_norm=batch_norm)
    layer.load_state_dict(stock.state_dict())
    x, edge_index, edge = graph()
    output, expected = layer(x, edge_index, edge), stock(x, edge_index, edge)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    for name in ("lin_f", "lin_s"):
        gradients = [
            torch.autograd.grad(out.sum(), getattr(conv, name).weight, retain_graph=True)[0]
            for conv, out in ((layer, output), (stock, expected))
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_layer_of_the_paper() -> None:
    """The equation, edge by edge, with batch norms written out."""
    torch.manual_seed(0)
    layer = PaperConv(F, D)
    x, (source, target), edge = graph()
    z = torch.cat([x[target], x[source], edge], dim=1)
    gated = torch.cat([layer.lin_f(z), layer.lin_s(z)], dim=1)
    gated = (gated - gated.mean(0)) / (gated.var(0, unbiased=False) + 1e-5).sqrt()
    messages = gated[:, :F].sigmoid() * functional.softplus(gated[:, F:])
    summed = torch.stack([messages[target == atom].sum(0) for atom in range(len(x))])
    summed = (summed - summed.mean(0)) / (summed.var(0, unbiased=False) + 1e-5).sqrt()
    expected = functional.softplus(x + summed)
    torch.testing.assert_close(layer(x, torch.stack([source, target]), edge), expected, rtol=0, atol=1e-5)


def test_gaussians() -> None:
    distance = torch.tensor([0.3, 4.96])
    expected = np.exp(-(((distance.double().numpy()[:, None] - 0.2 * np.arange(26)) / 0.2) ** 2))
    features = net().expand(distance)
    np.testing.assert_allclose(features, np.where(expected > 1e-12, expected, 0), rtol=2e-5, atol=1e-30)
    assert (features == 0).sum() == (expected <= 1e-12).sum() > 20


# --- what must not change a prediction


@pytest.mark.parametrize("layer", ["cgconv", "cgcnn"])
def test_moving_turning_and_renumbering_change_nothing(layer: str) -> None:
    model = net(layer=layer).eval()
    reference = model(crystal(POSITIONS, NUMBERS, CELL))
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    order = [2, 0, 3, 1]
    for same in (
        crystal(POSITIONS + np.array([0.3, -0.2, 0.1]), NUMBERS, CELL),
        crystal(POSITIONS @ turn, NUMBERS, CELL @ turn),
        crystal(POSITIONS[order], [NUMBERS[atom] for atom in order], CELL),
    ):
        torch.testing.assert_close(model(same), reference, rtol=0, atol=1e-5)
    assert not torch.allclose(model(crystal(1.05 * POSITIONS, NUMBERS, 1.05 * CELL)), reference, atol=1e-4)


def test_a_supercell_is_the_same_material() -> None:
    model = net().eval()
    double = np.concatenate([POSITIONS, POSITIONS + CELL[0]])
    supercell = crystal(double, 2 * NUMBERS, CELL * [[2], [1], [1]])
    torch.testing.assert_close(model(supercell), model(crystal(POSITIONS, NUMBERS, CELL)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pool", "expected"), [("mean", [[1.5], [5.0]]), ("sum", [[3.0], [5.0]])])
def test_pooling(pool: str, expected: list[list[float]]) -> None:
    assert net(pool=pool).pooled(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([2, 1])).tolist() == expected


def test_a_batch_is_its_crystals() -> None:
    model = net().eval()
    parts = [crystal(POSITIONS, NUMBERS, CELL), crystal(POSITIONS[:1], [79], CELL)]
    torch.testing.assert_close(model(joined(*parts)), torch.cat([model(part) for part in parts]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", ["cgconv", "cgcnn"])
@pytest.mark.parametrize("atoms", [[], [1], [2, 1]])
def test_crystals_without_edges_or_none_at_all(layer: str, atoms: list[int]) -> None:
    number = sum(atoms)
    batch = {
        "z": torch.full((number,), 29),
        "edge_index": torch.zeros(2, 0, dtype=torch.int64),
        "distance": torch.zeros(0),
        "num_nodes": torch.tensor(atoms, dtype=torch.int64),
    }
    output = net(layer=layer).eval()(batch)
    assert output.shape == (len(atoms), 2)
    assert output.isfinite().all()


# --- sizes and export


def test_outputs_and_embeddings() -> None:
    batch = crystal(POSITIONS, [1, 2, 0, 1], CELL)
    assert net()(batch).shape == (1, 2)
    classifier = CGCNN(num_classes=3, cutoff=5.0, dropout=0.5, head_sizes=[8, 4])
    assert classifier(batch).shape == (1, 3)
    fixed = net(atom_features=[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    columns = fixed.embedding.weight.T + fixed.embedding.bias
    torch.testing.assert_close(fixed.embed(torch.tensor([0, 2])), columns[[2, 0]])
    assert net().embed(torch.tensor([0, 100])).shape == (2, 16)


@pytest.mark.parametrize("layer", ["cgconv", "cgcnn"])
def test_export_leaves_every_size_open(layer: str) -> None:
    model = net(layer=layer).eval()
    two = joined(crystal(POSITIONS, NUMBERS, CELL), crystal(POSITIONS[:2], [47, 79], CELL))
    free = torch.export.Dim.DYNAMIC
    sizes = {"z": {0: free}, "edge_index": {1: free}, "distance": {0: free}, "num_nodes": {0: free}}
    exported = torch.export.export(model, (two,), dynamic_shapes=(sizes,)).module()
    three = joined(two, crystal(POSITIONS[1:], NUMBERS[1:], CELL))
    torch.testing.assert_close(exported(three), model(three))
