"""Which terms of a vocabulary can weigh anything in a text, found in bytes before any logit is computed exactly.

The vocabulary head is more than half of the arithmetic of a small encoder, and nearly all terms weigh 0, because
their logits are below 0 for all tokens of a text. For max pooling it is enough to know which terms may have a logit
above 0. A `VocabularyScreen` computes all logits roughly, from codes of 6 and 7 bits, adds to the largest of each term
the most that the exact one can be above it, and leaves the terms where that is still above 0 to be computed in float32.
None is missed, and what is passed on in vain weighs 0.

The bound, for a hidden state ``h`` and the weights ``w`` of a term with bias ``b``, a centre ``c`` and an orthogonal
matrix ``R`` (which spreads single large columns over all, so that few bits do):

    h·w = c·w + r·v,   r = (h − c) R = s q + e,   v = w R = t p + f,   q and p whole
    r·v = s t q·p + e·(t p) + r·f  ≤  s t q·p + ‖e‖ ‖t p‖ + ‖r‖ ‖f‖            (Cauchy-Schwarz)

All norms are computed, not estimated, so that q may be cut off at any number. Products in float32 of n terms are within
``n 2⁻²⁴`` of the norms' product, whatever the order of addition: that much is added for ``(h − c) R``, for ``w R`` and
for the float32 logit itself, whose sign decides.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.kernels.byte_maxima import (
    LANES,
    TERM_LIMIT,
    TOKEN_LIMIT,
    packed_terms,
    raise_maxima,
)

CUT = 3.7
"""Codes of tokens end at so many times the root mean square. With a smaller number single tokens, whose largest values
are cut, loosen the bound of their whole text; with a larger one the rounding of all tokens does."""

UNIT = 2.0**-24
"""Largest relative error of one operation in float32."""

MIDDLE = TOKEN_LIMIT // 2
"""The code of 0 in tokens, which the kernel takes without a sign."""


class VocabularyScreen:
    """Codes of a decoder's weights and what bounds their errors.

    Holds a byte for each weight, a quarter of what the decoder itself takes. The weights must not change.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, centre: Tensor) -> None:
        """Round the weights.

        Args:
            weight: float32 ``[terms, width]``, on a CPU and finite.
            bias: ``[terms]`` or None.
            centre: ``[width]``, about the mean of hidden states; any gives a valid bound, a good one a tight one.
        """
        self.num_terms, width = weight.shape
        self._centre = centre
        # drawn anew, the same each time: 384 x 384 numbers take milliseconds
        drawn = np.random.default_rng(0).standard_normal((width, width))
        self._rotation = torch.from_numpy(np.linalg.qr(drawn)[0].astype(np.float32))
        self._rounding = math.sqrt(width) * (width + 4) * UNIT
        self._sum_rounding = (width + 4) * UNIT

        turned = (weight @ self._rotation).numpy()
        steps = np.abs(turned).max(axis=1, initial=0.0) / np.float32(TERM_LIMIT)
        steps[steps == 0] = 1.0
        codes = np.clip(np.rint(turned / steps[:, None]), -TERM_LIMIT, TERM_LIMIT).astype(np.int8)
        self._panels = packed_terms(codes)
        self._steps = steps.astype(np.float64)
        self._offsets = MIDDLE * codes.sum(axis=1, dtype=np.int64)
        norms = weight.double().norm(dim=1).numpy()
        rounded = np.empty(self.num_terms)
        errors = np.empty(self.num_terms)
        for first in range(0, self.num_terms, 4096):  # in float64, a part at a time
            part = slice(first, first + 4096)
            exact = codes[part] * self._steps[part, None]
            rounded[part] = np.linalg.norm(exact, axis=1)
            errors[part] = np.linalg.norm(turned[part] - exact, axis=1)
        self._rounded_norms = rounded
        self._error_norms = errors + self._rounding * norms
        self._norms = norms
        self._base = (weight.double() @ centre.double()).numpy()
        if bias is not None:
            self._base += bias.double().numpy()

    def candidates(self, hidden: Tensor, lengths: list[int]) -> list[NDArray[np.int64]]:
        """The terms of each row that may have a float32 logit above 0 in any of its tokens, ascending.

        Args:
            hidden: finite float32 ``[sum(lengths), width]``, as in `vocabulary_head.pooled_terms`.
        """
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        centred = hidden - self._centre
        turned = (centred @ self._rotation).numpy()
        columns = self._panels.shape[1] * 4
        codes = np.full((len(turned), columns), MIDDLE, np.uint8)
        # a little more than what float32 adds up to
        norms = centred.norm(dim=1).numpy().astype(np.float64) * (1 + 1e-4)
        steps, errors = _encode_tokens(turned, starts, norms, codes)
        maxima = np.full((len(lengths), len(self._panels) * LANES), np.iinfo(np.int32).min, np.int32)
        _raise_in_parts(codes, starts, self._panels, maxima)
        whole_norms = hidden.norm(dim=1).numpy().astype(np.float64) * (1 + 1e-4)
        found = []
        for row in range(len(lengths)):
            tokens = slice(starts[row], starts[row + 1])
            if not lengths[row]:
                found.append(np.zeros(0, np.int64))
                continue
            widest = float(norms[tokens].max())
            found.append(
                _above_zero(
                    maxima[row],
                    steps[row],
                    errors[row] + self._rounding * widest,
                    widest,
                    self._sum_rounding * float(whole_norms[tokens].max()) + 2 * UNIT * widest,
                    self._steps,
                    self._offsets,
                    self._rounded_norms,
                    self._error_norms,
                    self._norms,
                    self._base,
                )
            )
        return found


def _raise_in_parts(
    codes: NDArray[np.uint8], starts: NDArray[np.int64], panels: NDArray[np.int8], maxima: NDArray[np.int32]
) -> None:
    """`raise_maxima` for all panels, on as many threads as torch computes with."""
    parts = max(1, min(torch.get_num_threads(), len(panels)))
    if parts == 1:
        raise_maxima(codes, starts, panels, maxima, 0, len(panels))
        return
    bounds = [len(panels) * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as threads:
        for done in [
            threads.submit(raise_maxima, codes, starts, panels, maxima, *bounds[part : part + 2])
            for part in range(parts)
        ]:
            done.result()


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _encode_tokens(
    turned: NDArray[np.float32],
    starts: NDArray[np.int64],
    norms: NDArray[np.float64],
    codes: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Write the codes of all tokens; the step of each row, and the largest error of its tokens in L2."""
    width = turned.shape[1]
    steps, errors = np.ones(len(starts) - 1), np.zeros(len(starts) - 1)
    for row in range(len(starts) - 1):
        highest, widest = 0.0, 0.0
        for token in range(starts[row], starts[row + 1]):
            widest = max(widest, norms[token])
            for i in range(width):
                highest = max(highest, abs(turned[token, i]))
        highest = min(highest, CUT * widest / np.sqrt(width))
        if highest > 0:
            steps[row] = highest / MIDDLE
        for token in range(starts[row], starts[row + 1]):
            error = 0.0
            for i in range(width):
                level = min(max(np.rint(turned[token, i] / steps[row]), -MIDDLE), MIDDLE)
                codes[token, i] = np.uint8(level + MIDDLE)
                error += (turned[token, i] - steps[row] * level) ** 2
            errors[row] = max(errors[row], np.sqrt(error))
    return steps, errors


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _above_zero(
    maxima: NDArray[np.int32],
    row_step: float,
    row_error: float,
    row_norm: float,
    row_rounding: float,
    steps: NDArray[np.float64],
    offsets: NDArray[np.int64],
    rounded_norms: NDArray[np.float64],
    error_norms: NDArray[np.float64],
    norms: NDArray[np.float64],
    base: NDArray[np.float64],
) -> NDArray[np.int64]:
    found = np.empty(len(steps), np.int64)
    count = 0
    for term in range(len(steps)):
        rough = base[term] + row_step * steps[term] * (maxima[term] - offsets[term])
        above = row_error * rounded_norms[term] + row_norm * error_norms[term] + row_rounding * norms[term]
        found[count] = term
        # the bound itself is added up in float64
        count += rough + above * (1 + 1e-9) + 1e-12 * (1 + abs(base[term])) > 0
    return found[:count].copy()
