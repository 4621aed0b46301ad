"""These are the formulas of what probes measure, on one rank and without communication.

W  rows of a table on this rank, D  its width
B  samples, H  query heads, G  key heads, T  queries, S  keys, R  sampled query rows, K  head size
P  B where samples are padded, else 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_ADDED_AT_ONCE = 2**16
"""Squares that a CPU adds in fp32 (torch 2.13 adds them one after the other: of 2^24 random numbers the norm would be
6e-4 off, and of 2^16 it is 2e-7). GPUs add by trees."""
_ROWS_AT_ONCE = 8192
_LOGITS_AT_ONCE = {"cpu": 2**17, "cuda": 2**25}  # on a CPU they are to stay in its cache


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """It returns the sum of the squares of each tensor's elements, float64, on their device; there must be some."""
    parts = [pieces_of(tensor) for tensor in tensors]
    norms = norms_of([piece for pieces in parts for piece in pieces])
    squares = torch.stack(list(norms)).double().square()
    if len(norms) == len(tensors):
        return squares
    return torch.stack([own.sum() for own in squares.split([len(pieces) for pieces in parts])])


def pieces_of(tensor: Tensor) -> Sequence[Tensor]:
    """It returns a tensor in pieces whose squares its device adds up without losing digits in fp32."""
    if tensor.numel() <= _ADDED_AT_ONCE or tensor.device.type != "cpu":
        return [tensor]
    return tensor.reshape(-1).split(_ADDED_AT_ONCE)


def norms_of(pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """It returns the norm of each of `pieces_of` tensors, in fp32 at least."""
    return torch._foreach_norm(list(pieces), 2, torch.promote_types(pieces[0].dtype, torch.float32))


def row_std(table_WD: Tensor) -> Tensor:
    """Token embedding variability is the population standard deviation of each row over its D entries, (W,), fp32.

    TEV_i = sqrt(mean_j (e_ij - mean_j e_ij)^2) of the rows e_i of the embedding (Chung et al. 2024, arXiv
    2409.07787, section 2). It takes two passes: a direction that all rows share would eat the digits of one.
    """
    return row_moments(table_WD)[1]


def row_moments(table_WD: Tensor) -> tuple[Tensor, Tensor]:
    """It returns mean and population standard deviation of each row, 2 x (W,), fp32."""
    means = [table_WD.new_empty(0, dtype=torch.float32)]
    norms = [table_WD.new_empty(0, dtype=torch.float32)]
    for rows in table_WD.split(_ROWS_AT_ONCE):
        rows = rows.float()
        mean = rows.mean(dim=1, keepdim=True)
        means.append(mean[:, 0])
        norms.append(torch.linalg.vector_norm(rows - mean, dim=1))
    return torch.cat(means), torch.cat(norms) / table_WD.shape[1] ** 0.5


def sampled_rows(length: int, count: int | Literal["all"], *, first: int = 1) -> Tensor:
    """It returns positions of at most `count` query rows (R,), evenly spread over those from `first` on.

    Of causal attention the row before position 1 sees one key alone.
    """
    available = max(length - first, 0)
    taken = available if count == "all" else min(count, available)
    return first + (2 * torch.arange(taken) + 1) * available // (2 * max(taken, 1))


@dataclass(frozen=True)
class Visibility:
    """It says which keys the queries of an attention see."""

    causal: bool = True
    """Whether queries see only the keys up to their own position; there are then as many keys as queries."""
    keys_BS: Tensor | None = None
    """Boolean: which keys are not padding; none: all."""
    queries_BT: Tensor | None = None
    """The same of queries; those of padding count as if they saw nothing."""

    def of_rows(self, rows_R: Tensor, length: int) -> Tensor:
        """It tells which of the first `length` keys each row sees, (P, R, S)."""
        keys = torch.arange(length, device=rows_R.device)
        seen_PRS = (keys <= rows_R[:, None] if self.causal else (keys >= 0).expand(len(rows_R), -1))[None]
        if self.keys_BS is not None:
            seen_PRS = seen_PRS & self.keys_BS[:, None, :length]
        if self.queries_BT is not None:
            seen_PRS = seen_PRS & self.queries_BT[:, rows_R, None]
        return seen_PRS


@dataclass(frozen=True)
class RowEntropies:
    """It holds what is known of some rows of an attention.

    Of rows that see no key nothing is known, and their values may be NaN.
    """

    entropy_BHR: Tensor
    """In nats, float64."""
    spread_BHR: Tensor
    """Length of the centred logits."""
    visible_PR: Tensor
    """Keys that the row sees."""


@torch.no_grad()
def attention_entropy(q_BHTK: Tensor, k_BGSK: Tensor, rows_R: Tensor, visibility: Visibility) -> RowEntropies:
    """It measures the entropy of sampled rows of an attention; see `entropy_of_rows`."""
    rows_R = rows_R.to(q_BHTK.device)
    return entropy_of_rows(q_BHTK[:, :, rows_R], k_BGSK, rows_R, visibility)


@torch.no_grad()
def entropy_of_rows(q_BHRK: Tensor, k_BGSK: Tensor, rows_R: Tensor, visibility: Visibility) -> RowEntropies:
    """It measures the entropy of some rows of an attention, by their queries and positions.

    Ent = log sum exp(s) - sum softmax(s) s over the visible keys, s = q k^T / sqrt(K). Logits in fp32, sums in fp64.
    The logits take bounded memory, however many rows there are.
    """
    logits_per_row = q_BHRK.shape[0] * q_BHRK.shape[1] * k_BGSK.shape[2]
    at_once = _LOGITS_AT_ONCE["cpu" if q_BHRK.device.type == "cpu" else "cuda"]
    count = max(at_once // max(logits_per_row, 1), 1)
    parts = zip(q_BHRK.split(count, dim=2), rows_R.split(count), strict=True)
    return _joined([_entropy_of_rows(q, k_BGSK, rows, visibility) for q, rows in parts])


def _joined(parts: Sequence[RowEntropies]) -> RowEntropies:
    return RowEntropies(
        torch.cat([part.entropy_BHR for part in parts], dim=-1),
        torch.cat([part.spread_BHR for part in parts], dim=-1),
        torch.cat([part.visible_PR for part in parts], dim=-1),
    )


def _entropy_of_rows(q_BHRK: Tensor, k_BGSK: Tensor, rows_R: Tensor, visibility: Visibility) -> RowEntropies:
    # Keys behind the last row are hidden from all; to find it on a device would be a host read.
    if visibility.causal and rows_R.device.type == "cpu" and len(rows_R):
        k_BGSK = k_BGSK[:, :, : int(rows_R.max()) + 1]
    visible_PRS = visibility.of_rows(rows_R, k_BGSK.shape[2])
    entropy, spread = _entropy_of_logits(_logits(q_BHRK, k_BGSK), visible_PRS[:, None])
    return RowEntropies(entropy, spread, visible_PRS.sum(-1))


def _logits(q_BHRK: Tensor, k_BGSK: Tensor) -> Tensor:
    """It returns (B, H, R, S); head h attends to key head h // (H / G)."""
    rows, groups, size = q_BHRK.shape[2], k_BGSK.shape[1], k_BGSK.shape[3]
    q_BGNK = q_BHRK.float().unflatten(1, (groups, -1)).flatten(2, 3)
    logits_BGNS = q_BGNK @ k_BGSK.float().transpose(-1, -2) * size**-0.5
    return logits_BGNS.unflatten(2, (-1, rows)).flatten(1, 2)


def _entropy_of_logits(logits_BHRS: Tensor, visible_P1RS: Tensor) -> tuple[Tensor, Tensor]:
    hidden_P1RS = ~visible_P1RS
    logits_BHRS = logits_BHRS.masked_fill(hidden_P1RS, float("-inf"))
    shifted = (logits_BHRS - logits_BHRS.amax(-1, keepdim=True)).double()
    weights = shifted.exp()
    shifted.masked_fill_(hidden_P1RS, 0.0)  # where 0 times -inf would be no number
    total = weights.sum(-1)
    entropy = total.log() - weights.mul_(shifted).sum(-1) / total
    centred = shifted.sub_(shifted.sum(-1, keepdim=True) / visible_P1RS.sum(-1, keepdim=True))
    spread = torch.linalg.vector_norm(centred.masked_fill_(hidden_P1RS, 0.0), dim=-1)
    return entropy, spread


def entropy_lower_bound(spread: Tensor, visible: Tensor) -> Tensor:
    """It returns the least entropy of a row of T = `visible` logits, at least 2, within a ball of radius S = `spread`.

    Theorem 3.1 of Zhai et al. 2023 (arXiv 2303.06296): Ent >= log(1 + (T-1) b) + S sqrt(T (T-1)) b / (1 + (T-1) b),
    b = exp(-S sqrt(T / (T-1))). Entropy does not feel a constant added to all logits, hence S may be the length of
    the logits less their mean: the smallest S for which the theorem holds, which makes its tightest bound.
    """
    others = visible - 1
    b = torch.exp(-spread * (visible / others).sqrt())
    total = 1 + others * b
    return total.log() + spread * (visible * others).sqrt() * b / total


def sample_variance(mean_of_squares: Tensor, square_of_mean: Tensor, count: int) -> Tensor:
    """It returns the unbiased trace of the covariance of n = `count` vectors g_i.

    The trace is (mean_i |g_i|^2 - |mean_i g_i|^2) n / (n - 1).
    """
    return (mean_of_squares - square_of_mean) * count / (count - 1)
