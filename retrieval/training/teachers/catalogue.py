"""Which models can teach and mine, and how a command names them: ``bm25``, ``KIND=FOLDER``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.training.mining.mine import Miner
from retrieval.training.row_cache import CacheUse
from retrieval.training.training_set import TrainingSet
from runtime.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder
    from retrieval.training.teachers.cross_encoder import CrossEncoderScores
    from retrieval.training.teachers.vectors import DenseTeacher, SparseTeacher

KINDS = {
    "dense": "a sentence-transformers folder or a plain encoder folder",
    "sparse": "any sparse encoder: a folder, or a name that lexpert encode takes",
    "cross": "a *ForSequenceClassification folder",
}


@dataclass(frozen=True)
class ModelName:
    """A model as a command names it.

    Attributes:
        kind: one of `KINDS`.
        place: its folder, or ``"bm25"``.
    """

    kind: str
    place: str

    def __str__(self) -> str:
        return self.place if self.place == "bm25" else f"{self.kind}={self.place}"

    @classmethod
    def parse(cls, written: str, kinds: tuple[str, ...] = tuple(KINDS)) -> ModelName:
        """Read ``bm25`` or ``KIND=FOLDER``.

        Raises:
            UsageError: another form, or a kind that is not among `kinds`.
            NotFoundError: there is no such folder.
        """
        if written == "bm25":
            return cls("sparse", "bm25")
        kind, separator, place = written.partition("=")
        if not separator or kind not in kinds or not place:
            raise UsageError(f"{written!r} must be bm25 or {', '.join(f'{known}=FOLDER' for known in kinds)}")
        if kind != "sparse" and not Path(place).is_dir():
            raise NotFoundError(f"there is no folder {place}; {kind}= takes {KINDS[kind]}")
        return cls(kind, place)


@dataclass(frozen=True)
class Models:
    """Loads models for one training set.

    Attributes:
        cache: folder of all that models made of texts.
        device: a torch device; None for CUDA where there is one.
    """

    training_set: TrainingSet
    cache: Path
    device: str | None = None

    def teacher(self, model: ModelName, use: CacheUse) -> DenseTeacher | SparseTeacher | CrossEncoderScores:
        """A teacher for the set's texts; bi-encoders have encoded all of them when this returns."""
        if model.kind == "dense":
            return self._dense(model, use)
        if model.kind == "sparse":
            return self._sparse(model, use)[0]
        from retrieval.training.teachers.cross_encoder import CrossEncoder, CrossEncoderScores

        encoder = CrossEncoder(Path(model.place), device=self.device)
        texts = self.training_set.queries, self.training_set.passages
        return CrossEncoderScores(encoder, str(model), *texts, self.cache, use)

    def miner(self, model: ModelName, use: CacheUse, threads: int | None = None) -> Miner:
        """A miner, which has encoded all texts when this returns."""
        if model.kind == "dense":
            from retrieval.training.mining.dense import rank_dense

            dense = self._dense(model, use)
            return Miner(str(model), lambda depth: rank_dense(dense, depth))
        from retrieval.training.mining.sparse import rank_sparse

        sparse, encoder = self._sparse(model, use)
        return Miner(str(model), lambda depth: rank_sparse(sparse, encoder, depth, threads))

    def _dense(self, model: ModelName, use: CacheUse) -> DenseTeacher:
        from retrieval.encoders.dense import DenseEncoder
        from retrieval.training.teachers.dense import encode_dense

        encoder = DenseEncoder.load(model.place, device=self.device)
        texts = self.training_set.queries, self.training_set.passages
        return encode_dense(encoder, str(model), *texts, self.cache, use)

    def _sparse(self, model: ModelName, use: CacheUse) -> tuple[SparseTeacher, SparseEncoder]:
        from retrieval.encoders.encoder import SparseEncoder
        from retrieval.training.teachers.sparse import encode_sparse

        neural = model.place != "bm25" and self.device is not None
        encoder = SparseEncoder.load(model.place, **({"device": self.device} if neural else {}))
        texts = self.training_set.queries, self.training_set.passages
        return encode_sparse(encoder, str(model), *texts, self.cache, use), encoder
