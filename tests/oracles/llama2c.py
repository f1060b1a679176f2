"""llama2.c's forward pass and tokenizer, straight from its file formats, in plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logits(checkpoint: Path, ids: list[int]) -> Array:
    """Logits ``[tokens, vocabulary]`` of one sequence."""
    content = checkpoint.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, _ = np.frombuffer(content[:28], "<i4").tolist()
    values = np.frombuffer(content[28:], "<f4").astype(np.float64)
    head = dim // heads
    place = 0

    def take(*shape: int) -> Array:
        nonlocal place
        start, place = place, place + int(np.prod(shape))
        return values[start:place].reshape(shape)

    embedding = take(abs(vocabulary), dim)
    rms_attention = take(layers, dim)
    wq, wk, wv = take(layers, dim, dim), *(take(layers, kv_heads * head, dim) for _ in range(2))
    wo = take(layers, dim, dim)
    rms_ffn = take(layers, dim)
    w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    rms_final = take(dim)

    x = embedding[ids]
    for layer in range(layers):
        normal = rms_norm(x, rms_attention[layer])
        query = rotate((normal @ wq[layer].T).reshape(len(ids), heads, head))
        key = rotate((normal @ wk[layer].T).reshape(len(ids), kv_heads, head))
        value = (normal @ wv[layer].T).reshape(len(ids), kv_heads, head)
        mixed = np.zeros((len(ids), heads, head))
        for number in range(heads):
            of = number // (heads // kv_heads)
            for token in range(len(ids)):
                scores = key[: token + 1, of] @ query[token, number] / np.sqrt(head)
                weights = np.exp(scores - scores.max())
                mixed[token, number] = weights / weights.sum() @ value[: token + 1, of]
        x = x + mixed.reshape(len(ids), dim) @ wo[layer].T
        normal = rms_norm(x, rms_ffn[layer])
        gate = normal @ w1[layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (normal @ w3[layer].T)) @ w2[layer].T
    classifier = embedding if vocabulary > 0 else values[-abs(vocabulary) * dim :].reshape(-1, dim)
    return rms_norm(x, rms_final) @ classifier.T


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def rotate(x: Array) -> Array:
    """Neighbouring pairs of ``[tokens, heads, head]``, turned by the token's place."""
    head = x.shape[-1]
    angle = np.arange(len(x))[:, None, None] / 10000 ** (np.arange(0, head, 2) / head)
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
    turned[..., 1::2] = x[..., 0::2] * np.sin(angle) + x[..., 1::2] * np.cos(angle)
    return turned


def encode(tokens: list[tuple[bytes, float]], text: str) -> list[int]:
    """Token ids, the start token first: merge the neighbours whose union scores highest, over and over."""
    known = {token: place for place, (token, _) in enumerate(tokens)}
    ids = [1]
    for character in (" " + text) if text else "":
        piece = character.encode()
        ids += [known[piece]] if piece in known else [byte + 3 for byte in piece]
    while True:
        best, place = -1e10, -1
        for at in range(len(ids) - 1):
            merged = known.get(tokens[ids[at]][0] + tokens[ids[at + 1]][0], -1)
            if merged >= 0 and tokens[merged][1] > best:
                best, place = tokens[merged][1], at
        if place < 0:
            return ids
        ids[place : place + 2] = [known[tokens[ids[place]][0] + tokens[ids[place + 1]][0]]]
