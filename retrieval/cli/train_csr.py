"""``lexpert train csr``: sparse codes over the vectors of a dense encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import Json, print_json
from retrieval.cli.training_data import Cache, Device, Seed
from retrieval.training import DEFAULT_CACHE
from runtime.errors import UsageError


def csr(
    dense: Annotated[
        Path, typer.Argument(metavar="DENSE", help="Folder of a dense encoder, or of a plain transformer.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the encoder to write.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="corpus.jsonl with texts to train on; may be repeated."),
    ] = None,
    training_set: Annotated[
        Path | None,
        typer.Option("--set", metavar="SET", help="Training set, whose pairs are to come close together."),
    ] = None,
    k: Annotated[int, typer.Option(help="Latents of a code, on average.", min=1)] = 32,
    hidden_factor: Annotated[int, typer.Option(help="Latents for each value of a dense vector.", min=1)] = 4,
    allocation: Annotated[str, typer.Option(help="top_k, mutual_choice or feature_choice.")] = "top_k",
    steps: Annotated[int, typer.Option(help="Batches to train on.", min=1)] = 2000,
    batch: Annotated[int, typer.Option(help="Vectors of a batch.", min=2)] = 512,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    auxiliary: Annotated[float, typer.Option(help="Weight of the loss on latents out of use.")] = 0.1,
    contrastive: Annotated[float, typer.Option(help="Weight of the contrastive loss.")] = 0.1,
    seed: Seed = 0,
    cache: Cache = DEFAULT_CACHE,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train an autoencoder whose few latents stand for a dense vector, and write it as a sparse encoder.

    Vectors are computed once and kept in the cache. The encoder that is written indexes and searches like any other.

    Example:

    lexpert train csr all-MiniLM-L6-v2 --corpus corpus.jsonl --out csr --k 32
    """
    import numpy as np

    from retrieval.documents import document_text, read_documents
    from retrieval.encoders.csr import CsrEncoder
    from retrieval.encoders.dense import DenseEncoder
    from retrieval.training.csr_autoencoder import CsrSettings, CsrStep, train_autoencoder
    from retrieval.training.row_cache import CacheUse
    from retrieval.training.teachers.dense import encode_dense
    from retrieval.training.training_set import TrainingSet
    from runtime.output_folder import new_folder, require_new

    if (training_set is None) == (not corpus):
        raise UsageError("give the texts to train on: either --corpus or --set")
    settings = CsrSettings(
        k, hidden_factor, allocation, steps, batch, learning_rate, auxiliary, contrastive, seed  # type: ignore[arg-type]  # checked there
    )  # fmt: skip
    require_new(out)
    encoder = DenseEncoder.load(dense, device=device)
    pairs = None
    queries: list[str] = []
    if training_set is not None:
        given = TrainingSet.load(training_set)
        queries, passages = given.queries, given.passages
        pairs = np.stack([np.arange(len(queries)), given.positives + len(queries)], 1).astype(np.int64)
    else:
        documents = (document_text(document) for path in corpus or [] for document in read_documents(path))
        passages = list(dict.fromkeys(text for text in documents if text.strip()))
    use = CacheUse()
    encoded = encode_dense(encoder, str(dense), queries, passages, cache, use)
    vectors = np.concatenate([encoded.queries, encoded.passages]).astype(np.float32)
    history: list[CsrStep] = []

    def report(step: CsrStep) -> None:
        history.append(step)
        if not as_json:
            typer.echo(
                f"step {step.step:,}: not restored {step.restored:.3f}, with 4k {step.restored_4k:.3f}, "
                f"contrastive {step.contrastive:.3f}, latents out of use {step.dead:,}",
                err=True,
            )

    trained = train_autoencoder(vectors, settings, pairs, report, every=max(steps // 10, 1))
    with new_folder(out) as folder:
        CsrEncoder(encoder, trained).save(folder)
    lit = np.diff(trained.codes(vectors[:: max(len(vectors) // 4096, 1)]).indptr)
    figures = {
        "out": str(out),
        "vectors": len(vectors),
        "latents": len(trained.weight),
        "latents_out_of_use": history[-1].dead,
        "mean_active": round(float(lit.mean()), 2),
        "largest_active": int(lit.max()),
        "not_restored": round(history[-1].restored, 4),
    }
    if as_json:
        print_json({**figures, "cache": vars(use)})
        return
    typer.echo(
        f"wrote {out}: {figures['latents']:,} latents ({figures['latents_out_of_use']:,} out of use), "
        f"{figures['mean_active']:g} in a code on average, {figures['largest_active']} at most; "
        f"{figures['not_restored']:.1%} of the vectors' variance is not restored"
    )
