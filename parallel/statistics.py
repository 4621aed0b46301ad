"""Formulas of what probes measure: on one rank, without communication.

W  rows of a table on this rank, D  its width
B  samples, H  query heads, G  key heads, S  keys, R  sampled query rows, K  head size
"""

from typing import Literal

import torch
from torch import Tensor

_ROWS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 2**22


def row_std(table_WD: Tensor) -> Tensor:
    """Population standard deviation of each row over its D entries, (W,), fp32: token embedding variability.

    TEV_i = sqrt(mean_j (e_ij - mean_j e_ij)^2) of the rows e_i of the embedding (Chung et al. 2024, arXiv
    2409.07787, section 2). In two passes: a direction that all rows share would eat the digits of one.
    """
    return row_moments(table_WD)[1]


def row_moments(table_WD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each row, 2 x (W,), fp32."""
    means = [table_WD.new_empty(0, dtype=torch.float32)]
    norms = [table_WD.new_empty(0, dtype=torch.float32)]
    for rows in table_WD.split(_ROWS_AT_ONCE):
        rows = rows.float()
        mean = rows.mean(dim=1, keepdim=True)
        means.append(mean[:, 0])
        norms.append(torch.linalg.vector_norm(rows - mean, dim=1))
    return torch.cat(means), torch.cat(norms) / table_WD.shape[1] ** 0.5


def sampled_rows(length: int, count: int | Literal["all"]) -> Tensor:
    """Positions of at most `count` query rows (R,), evenly spread over those that see more than one key."""
    available = length - 1
    taken = available if count == "all" else min(count, available)
    return 1 + (2 * torch.arange(taken) + 1) * available // (2 * max(taken, 1))


@torch.no_grad()
def attention_entropy(q_BHSK: Tensor, k_BGSK: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats, and length of the centred logits, of sampled rows of causal attention: 2 x (B, H, R).

    Ent = log sum exp(s) - sum softmax(s) s over the visible keys, s = q k^T / sqrt(K). Logits in fp32, sums in fp64.
    The logits take bounded memory, however many rows there are.
    """
    logits_per_row = q_BHSK.shape[0] * q_BHSK.shape[1] * k_BGSK.shape[2]
    parts = rows_R.to(q_BHSK.device).split(max(_LOGITS_AT_ONCE // logits_per_row, 1))
    pairs = [_entropy_of_logits(*_causal_logits(q_BHSK, k_BGSK, rows)) for rows in parts]
    entropies, spreads = zip(*pairs, strict=True)
    return torch.cat(entropies, dim=-1), torch.cat(spreads, dim=-1)


def _causal_logits(q_BHSK: Tensor, k_BGSK: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, H, R, S), and which of them are visible (R, S); head h attends to key head h // (H / G)."""
    groups, (length, size) = k_BGSK.shape[1], k_BGSK.shape[2:]
    q_BGNK = q_BHSK[:, :, rows_R].float().unflatten(1, (groups, -1)).flatten(2, 3)
    logits_BGNS = q_BGNK @ k_BGSK.float().transpose(-1, -2) * size**-0.5
    visible_RS = torch.arange(length, device=rows_R.device) <= rows_R[:, None]
    return logits_BGNS.unflatten(2, (-1, len(rows_R))).flatten(1, 2), visible_RS


def _entropy_of_logits(logits_BHRS: Tensor, visible_RS: Tensor) -> tuple[Tensor, Tensor]:
    peaks = logits_BHRS.masked_fill(~visible_RS, float("-inf")).amax(-1, keepdim=True)
    shifted = (logits_BHRS - peaks).double().masked_fill(~visible_RS, 0.0)
    weights = shifted.exp() * visible_RS
    total = weights.sum(-1)
    entropy = total.log() - (weights * shifted).sum(-1) / total
    mean = shifted.sum(-1, keepdim=True) / visible_RS.sum(-1, keepdim=True)
    spread = torch.linalg.vector_norm((shifted - mean) * visible_RS, dim=-1)
    return entropy, spread


def entropy_lower_bound(spread: Tensor, visible: Tensor) -> Tensor:
    """The least entropy of a row of T = `visible` logits, at least 2, within a ball of radius S = `spread`.

    Theorem 3.1 of Zhai et al. 2023 (arXiv 2303.06296): Ent >= log(1 + (T-1) b) + S sqrt(T (T-1)) b / (1 + (T-1) b),
    b = exp(-S sqrt(T / (T-1))). Entropy does not feel a constant added to all logits, hence S may be the length of
    the logits less their mean: the smallest S for which the theorem holds, which makes its tightest bound.
    """
    others = visible - 1
    b = torch.exp(-spread * (visible / others).sqrt())
    total = 1 + others * b
    return total.log() + spread * (visible * others).sqrt() * b / total


def sample_variance(mean_of_squares: Tensor, square_of_mean: Tensor, count: int) -> Tensor:
    """Unbiased trace of the covariance of `count` vectors: (mean_i |g_i|^2 - |mean_i g_i|^2) n / (n - 1)."""
    return (mean_of_squares - square_of_mean) * count / (count - 1)
