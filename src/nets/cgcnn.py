"""Crystal graph convolutional networks (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018; arXiv:1710.10324).

Tensor suffixes: N atoms, E edges, B crystals, F features of an atom, D Gaussians of a distance, A entries of a fixed
atom vector, T outputs.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its import calls torch.jit.script, which is deprecated
    from torch_geometric.nn import CGConv  # type: ignore[import-untyped]

NUM_ELEMENTS = 101  # rows of an embedding: atomic numbers 0 (none) to 100
SMALLEST_FEATURE = 1e-12


class CrystalConv(CGConv):  # type: ignore[misc]
    """The layer of `torch_geometric.nn.CGConv`, with the same parameters, four times as fast.

    ``x'_i = x_i + sum_j sigmoid(z_ij W_f + b_f) * softplus(z_ij W_s + b_s)`` with ``z_ij = [x_i; x_j; e_ij]`` (equation
    5 of the paper, without its batch norms). As ``W z_ij = W_i x_i + W_j x_j + W_e e_ij``, atoms can be projected once
    each, before they are gathered along the edges, of which there are twelve times as many.

    Args:
        channels: F.
        dim: D.
        batch_norm: Of the sum over the neighbours.
    """

    def forward(self, x_NF: Tensor, edge_index_2E: Tensor, edge_ED: Tensor) -> Tensor:
        """Returns the new features ``[N, F]``; edges go from ``edge_index[0]``, the neighbour, to ``edge_index[1]``."""
        source_E, target_E = edge_index_2E.unbind(0)
        messages_EF = self.gate(self.project(x_NF, source_E, target_E, edge_ED))
        sum_NF = messages_EF.new_zeros(x_NF.shape).index_add(0, target_E, messages_EF)
        return self.combine(x_NF, sum_NF)

    def project(self, x_NF: Tensor, source_E: Tensor, target_E: Tensor, edge_ED: Tensor) -> Tensor:
        """Returns ``W z + b`` of both parts of the gate side by side, ``[E, 2F]``."""
        weight = torch.cat([self.lin_f.weight, self.lin_s.weight])
        bias = torch.cat([self.lin_f.bias, self.lin_s.bias])
        weight_i, weight_j, weight_e = torch.split(weight, [x_NF.shape[1], x_NF.shape[1], edge_ED.shape[1]], dim=1)
        centre_E2F = functional.linear(x_NF, weight_i, bias).index_select(0, target_E)
        neighbour_E2F = functional.linear(x_NF, weight_j).index_select(0, source_E)
        return torch.addmm(centre_E2F, edge_ED, weight_e.t()).add_(neighbour_E2F)

    def gate(self, gated_E2F: Tensor) -> Tensor:
        """Returns the messages ``[E, F]``: how much passes, times what passes."""
        filter_EF, core_EF = gated_E2F.chunk(2, dim=1)
        return filter_EF.sigmoid() * functional.softplus(core_EF)

    def combine(self, x_NF: Tensor, sum_NF: Tensor) -> Tensor:
        """Adds what the neighbours sent."""
        return x_NF + (sum_NF if self.bn is None else self.bn(sum_NF))


class PaperConv(CrystalConv):
    """The layer of the paper's code: batch norms of the gate and of the sum, and a softplus after the residual.

    ``x'_i = softplus(x_i + BN(sum_j sigmoid(f_ij) * softplus(s_ij)))`` with ``[f_ij; s_ij] = BN(z_ij W + b)``.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels, dim, batch_norm=True)
        self.bn_gate = nn.BatchNorm1d(2 * channels)

    def gate(self, gated_E2F: Tensor) -> Tensor:  # noqa: D102
        return super().gate(self.bn_gate(gated_E2F))

    def combine(self, x_NF: Tensor, sum_NF: Tensor) -> Tensor:  # noqa: D102
        return functional.softplus(super().combine(x_NF, sum_NF))


LAYERS = {"cgconv": CrystalConv, "cgcnn": PaperConv}


class CGCNN(nn.Module):
    """Atoms embedded by element, convolutions over their neighbours, pooled to one vector a crystal, and a small head.

    The prediction depends on elements and distances only, so neither translation, rotation nor the order of the atoms
    change it.

    Args:
        target_names: One output for each, for regression.
        num_classes: Or this many logits, for classification.
        cutoff: Å; Gaussians of width `step` stand every `step` from 0 to here.
        atom_features: ``[101][A]`` fixed vector of each element by atomic number, which a learned map embeds; none: a
            learned vector of each element.
        layer: ``cgconv`` (PyG's) or ``cgcnn`` (the paper's code).
        hidden_channels: F.
        num_layers: Convolutions.
        head_sizes: Widths of the hidden layers of the head.
        pool: ``mean`` for intensive targets (per atom); ``sum`` for those that grow with the crystal, though not in
            proportion, since the head follows.
        dropout: Before the head's second layer.
        step: Å.
    """

    centers: Tensor
    atom_features: Tensor

    def __init__(
        self,
        target_names: Sequence[str] = (),
        num_classes: int | None = None,
        cutoff: float = 8.0,
        atom_features: Sequence[Sequence[float]] = (),
        layer: Literal["cgconv", "cgcnn"] = "cgconv",
        hidden_channels: int = 64,
        num_layers: int = 3,
        head_sizes: Sequence[int] = (64,),
        pool: Literal["mean", "sum"] = "mean",
        dropout: float = 0.0,
        step: float = 0.2,
    ) -> None:
        super().__init__()
        self.pool, self.step = pool, step
        num_gaussians = round(cutoff / step) + 1
        self.register_buffer("centers", step * torch.arange(num_gaussians), persistent=False)
        self.register_buffer("atom_features", torch.tensor(atom_features, dtype=torch.float32), persistent=False)
        self.embedding: nn.Module
        if len(atom_features):
            self.embedding = nn.Linear(len(atom_features[0]), hidden_channels)
        else:
            self.embedding = nn.Embedding(NUM_ELEMENTS, hidden_channels)
        self.convs = nn.ModuleList(LAYERS[layer](hidden_channels, num_gaussians) for _ in range(num_layers))
        body: list[nn.Module] = [nn.Softplus()]
        widths = [hidden_channels, *head_sizes]
        for number, (width_in, width_out) in enumerate(pairwise(widths)):
            body += [nn.Linear(width_in, width_out), nn.Softplus()]
            body += [nn.Dropout(dropout)] if dropout and number == 0 else []
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(widths[-1], num_classes or len(target_names))

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """Returns the outputs of some crystals.

        Args:
            x: ``z`` [N] atomic numbers, ``edge_index`` [2, E] from neighbour to centre, ``distance`` [E] in Å,
                ``num_nodes`` [B] atoms of each crystal, whose atoms follow one another.

        Returns:
            ``[B, T]`` (standardised) values or logits.
        """
        edge_ED = self.expand(x["distance"])
        x_NF = self.embed(x["z"])
        for conv in self.convs:
            x_NF = conv(x_NF, x["edge_index"], edge_ED)
        output_BT: Tensor = self.head(self.body(self.pooled(x_NF, x["num_nodes"])))
        return output_BT

    def expand(self, distance_E: Tensor) -> Tensor:
        """Returns ``exp(-((d - mu) / step)^2)`` for each centre mu, ``[E, D]``, and 0 below 1e-12.

        So small a feature changes no sum, but float32 subnormals make the matrix products five times as slow.
        """
        exponent_ED = -(((distance_E[:, None] - self.centers) / self.step) ** 2)
        # The clamp lies below the threshold: it changes nothing, but exp itself is slow where its result is subnormal.
        return functional.threshold(exponent_ED.clamp(min=-30.0).exp(), SMALLEST_FEATURE, 0.0)

    def embed(self, z_N: Tensor) -> Tensor:
        """Returns the first features of each atom, ``[N, F]``."""
        x_NF: Tensor = self.embedding(self.atom_features[z_N] if len(self.atom_features) else z_N)
        return x_NF

    def pooled(self, x_NF: Tensor, num_nodes_B: Tensor) -> Tensor:
        """Returns the mean or sum over the atoms of each crystal, ``[B, F]``."""
        num_crystals = num_nodes_B.shape[0]  # not len(): torch.export would take the example's for a constant
        # An atom is of the crystal with the number of those that end before it. ONNX has no repeat_interleave.
        ends_N1 = num_nodes_B.new_zeros(x_NF.shape[0] + 1)
        ends_N1 = ends_N1.index_add(0, num_nodes_B.cumsum(0), torch.ones_like(num_nodes_B))
        crystal_N = ends_N1.cumsum(0)[:-1]
        sum_BF = x_NF.new_zeros(num_crystals, x_NF.shape[1]).index_add(0, crystal_N, x_NF)
        return sum_BF / num_nodes_B[:, None] if self.pool == "mean" else sum_BF

    @staticmethod
    def import_arguments(raw: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments for a checkpoint of the paper's code (``.pth.tar``), read from its ``args``."""
        args, weights = raw["args"], raw["state_dict"]
        rows, columns = weights["convs.0.fc_full.weight"].shape  # twice the width; two atoms and the Gaussians
        step = 0.2  # of that code's CIFData, which stores it nowhere; its cutoff follows from the number of Gaussians
        return {
            "layer": "cgcnn",
            "hidden_channels": args["atom_fea_len"],
            "num_layers": args["n_conv"],
            "head_sizes": [args["h_fea_len"]] * args["n_h"],
            "dropout": 0.5 if args["task"] == "classification" else 0.0,
            "cutoff": round((columns - rows - 1) * step, 6),
            "step": step,
        }

    @staticmethod
    def import_weights(raw: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the weights of a checkpoint of the paper's code under the names of this net.

        Raises:
            ValueError: It is no such checkpoint.
        """
        if not {"args", "normalizer", "state_dict"} <= raw.keys() or "convs.0.fc_full.weight" not in raw["state_dict"]:
            raise ValueError("not a checkpoint of the CGCNN code (args, normalizer, state_dict with fc_full)")
        dropout = raw["args"]["task"] == "classification"
        renamed: dict[str, Tensor] = {}
        for name, tensor in raw["state_dict"].items():
            layer, _, kind = name.rpartition(".")
            match layer.split("."):
                case ["convs", number, "fc_full"]:  # the rows of the filter, then those of the core
                    for part, rows in zip(("lin_f", "lin_s"), tensor.chunk(2), strict=True):
                        renamed[f"convs.{number}.{part}.{kind}"] = rows
                case ["convs", number, "bn1" | "bn2" as norm]:
                    norm = f"convs.{number}.{'bn_gate' if norm == 'bn1' else 'bn'}"
                    renamed[f"{norm}.{kind}"] = tensor
                    renamed.setdefault(f"{norm}.num_batches_tracked", torch.tensor(0))  # torch 0.3 had none
                case ["conv_to_fc"]:
                    renamed[f"body.1.{kind}"] = tensor
                case ["fcs", number]:
                    renamed[f"body.{3 + dropout + 2 * int(number)}.{kind}"] = tensor
                case ["fc_out"]:
                    renamed[f"head.{kind}"] = tensor
                case _:
                    renamed[name] = tensor
        return renamed
