"""sigmaReparam as it stands in the paper, without thought of cost: the twin that ours is compared with.

Every forward pass takes a power step, divides the weight, and lets autograd go through sigma = v^T W u.

I  input features, O  output features
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NaiveSigmaLinear(nn.Module):
    """y = (gamma / sigma(W)) W x + b for one matrix W (O, I).

    The vector that is kept between steps is u, as in the reference code, or with `keep_left` v: the same iteration
    begun half a step later.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, gamma_init: str = "sigma", keep_left: bool = False
    ) -> None:
        super().__init__()
        self.keep_left = keep_left
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        left, sigma, right = torch.linalg.svd(self.weight.detach().double(), full_matrices=False)
        self.register_buffer("kept", (left[:, 0] if keep_left else right[0]).to(self.weight.dtype))
        self.kept: Tensor
        first = (
            sigma[0].to(self.weight.dtype)
            if gamma_init == "sigma"
            else torch.ones((), dtype=self.weight.dtype)
        )
        self.gamma = nn.Parameter(first.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x, self.effective(self.weight), self.bias)

    def effective(self, weight: Tensor) -> Tensor:
        """(gamma / sigma) W, after a power step."""
        with torch.no_grad():
            matrix = weight.T if self.keep_left else weight
            other = F.normalize(matrix @ self.kept, dim=0)
            kept = F.normalize(matrix.T @ other, dim=0)
            if self.training:
                self.kept.copy_(kept)
            v_O, u_I = (kept, other) if self.keep_left else (other, kept)
        sigma = torch.einsum("o,oi,i->", v_O, weight, u_I)
        return weight * (self.gamma / sigma)
