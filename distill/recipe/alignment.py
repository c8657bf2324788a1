"""What a recipe says of a teacher that has other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .fields import check_fields
from .values import raise_all
from .wording import Mistake


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """How a language model is compared with a teacher that has other tokens.

    Tokens are aligned by the bytes of the text that they cover. Terms of the loss that need no teacher see the
    student's own tokens as ever.

    Attributes:
        kind: "match" (the same token at the same place, over the tokens both have: MATCH of arXiv:2205.02340),
            "shared" (the same with one more class for all other tokens: nothing is renormalised; for vocabularies that
            are much alike, since the other tokens of long and of short pieces mean different things), "reduce" (the
            student reads the teacher's tokens cut into its own pieces, and a token's logits are pooled from its pieces':
            REDUCE of that paper; encoders), "spans" (where both have read the same bytes, over all tokens of both: for
            sorted_transport and multi_level_transport; decoders), "chunks" (the probability of the shortest
            stretches of text that both have: ALM, arXiv:2503.20083; decoders) or "cross_attention" (the tokens of each
            attend to the other's: for dual_space, DSKD, arXiv:2406.17328; decoders).
        chunk_temperature: Of kind chunks: divides the log-probability of a chunk. Default 100.
        word_boundaries: Of kind chunks: count the end of a word into the chunk before it. Default false.
        pool: Of kind reduce: the "sum" or the "mean" of the pieces' logits. Default "sum".
    """

    kind: Literal["match", "shared", "reduce", "spans", "chunks", "cross_attention"]
    chunk_temperature: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    word_boundaries: bool = False
    pool: Literal["sum", "mean"] = "sum"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        for key, default, kind in (
            ("chunk_temperature", 100.0, "chunks"),
            ("word_boundaries", False, "chunks"),
            ("pool", "sum", "reduce"),
        ):
            if getattr(self, key) != default and self.kind != kind:
                mistakes.append(((key,), f"is only for kind {kind}, found kind {self.kind}; leave it out"))
        raise_all(mistakes)
