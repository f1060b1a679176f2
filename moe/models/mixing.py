"""Mixing instead of attention: tokens exchange what they hold by a fixed or learned linear map over positions.

Both mixings stand for a map over a fixed number of positions N, as in the papers, in which a shorter sequence is
followed by zeros. Padding is set to zero as well, so the output at a token depends on the tokens of its own sequence
and on N, and not on how far the batch was padded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearMixing(nn.Module):
    """``S · X · H`` with learned maps over positions and over the width (Lee-Thorp et al. 2021, FNet, "Linear").

    Attributes:
        sequence: ``[positions, positions]``; a sequence of n tokens uses the first n rows and columns.
        hidden: ``[width, width]``.
    """

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.sequence = nn.Parameter(torch.empty(positions, positions))
        self.hidden = nn.Parameter(torch.empty(width, width))

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """Mix ``[batch, length, width]``; `mask` is boolean ``[batch, length]``, False at padding."""
        length = hidden_states.shape[1]
        return self.sequence[:length, :length] @ (without_padding(hidden_states, mask) @ self.hidden)


class FourierMixing(nn.Module):
    """Real part of the Fourier transform over positions and width, ``Re(F_N · X · F_width)`` (FNet, eq. 3)."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """As `LinearMixing.forward`; computed in float32 at least."""
        length = hidden_states.shape[1]
        states = without_padding(hidden_states, mask)
        states = states if states.dtype == torch.float64 else states.float()
        frequencies = torch.fft.fft(torch.fft.fft(states, dim=2), n=self.positions, dim=1)
        return frequencies[:, :length].real.to(hidden_states.dtype)


def without_padding(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """``[batch, length, width]`` with zeros at padding, whatever stood there, NaN too."""
    return hidden_states if mask is None else hidden_states.masked_fill(~mask[:, :, None], 0.0)
