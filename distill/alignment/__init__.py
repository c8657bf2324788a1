"""Two predictions → the rows a loss compares."""

from distill.alignment.activations import align_activations
from distill.alignment.batch_rows import (
    AlignedChunks,
    AlignedRows,
    CountedRows,
    chunk_tokens,
    matching_rows,
    starting_rows,
)
from distill.alignment.classes import align_classes, class_order
from distill.alignment.groups import AlignedExample, Coverage, align_spans, align_texts
from distill.alignment.pieces import (
    PieceMap,
    SplitExample,
    SplitRows,
    TokenSplitter,
    pooled,
    reduce_rows,
    split_rows,
)
from distill.alignment.shared_vocabulary import SharedVocabulary
from distill.alignment.spans import SourceText, TokenReader, TokenSpans, read_texts
from distill.alignment.surfaces import TokenSurfaces
from distill.alignment.token_rows import (
    SharedHead,
    chunk_rows,
    match_rows,
    same_rows,
    shared_rows,
    span_rows,
)

__all__ = [
    "AlignedChunks",
    "AlignedExample",
    "AlignedRows",
    "CountedRows",
    "Coverage",
    "PieceMap",
    "SharedHead",
    "SharedVocabulary",
    "SourceText",
    "SplitExample",
    "SplitRows",
    "TokenReader",
    "TokenSpans",
    "TokenSplitter",
    "TokenSurfaces",
    "align_activations",
    "align_classes",
    "align_spans",
    "align_texts",
    "chunk_rows",
    "chunk_tokens",
    "class_order",
    "match_rows",
    "matching_rows",
    "pooled",
    "read_texts",
    "reduce_rows",
    "same_rows",
    "shared_rows",
    "span_rows",
    "split_rows",
    "starting_rows",
]
