"""Aligned predictions become rows of the right numbers: hand-made cases, brute force, and the laws."""

from __future__ import annotations

import difflib
import itertools
import math

import numpy as np
import pytest
import torch

from distill.alignment import (
    CountedRows,
    PieceMap,
    SharedHead,
    SharedVocabulary,
    TokenSplitter,
    align_spans,
    chunk_rows,
    chunk_tokens,
    match_rows,
    matching_rows,
    pooled,
    reduce_rows,
    same_rows,
    shared_rows,
    span_rows,
    split_rows,
    starting_rows,
)
from distill.alignment.batch_rows import AlignedChunks
from distill.errors import AlignmentError
from distill.losses import ForwardKL, Labels, MultiLevelTransport, Rows, SortedTransport

KINDS = ("byte_level", "wordpiece", "unigram", "sentencepiece")
TEXTS = [
    "the other cat sat, reading café books  on the mat",
    "",
    "Привет мир 🙂 hello",
    "it's the theatre of 東京",
    "½ ﬁ",
]


class Side:
    """One model on a padded batch: random logits at every position that predicts a token of the text."""

    def __init__(self, reader, texts, *, shift=1, left=False, seed=0, counted=lambda b, t: True):
        self.reader = reader
        self.encodings = [reader.encode(text) for text in texts]
        self.spans = [reader.read(text) for text in texts]
        self.shift = shift
        longest = max(len(encoding.ids) for encoding in self.encodings)
        self.first = [longest - len(e.ids) if left else 0 for e in self.encodings]
        rows = torch.zeros(len(texts), longest, dtype=torch.bool)
        mask = torch.zeros_like(rows)
        for b, encoding in enumerate(self.encodings):
            mask[b, self.first[b] : self.first[b] + len(encoding.ids)] = True
            for place in range(shift, len(encoding.ids)):
                if counted(b, place):
                    rows[b, self.first[b] + place - shift] = True
        self.rows_BT = rows
        self.counted = CountedRows(rows, shift, mask if left else None)
        torch.manual_seed(seed)
        self.logits_MV = torch.randn(int(rows.sum()), len(reader.surfaces), dtype=torch.float64) * 3

    def row(self, b: int, place: int) -> int:
        """Brute force: the number of the True before this one."""
        at = self.first[b] + place - self.shift
        if place < self.shift or not self.rows_BT[b, at]:
            return -1
        return int(self.rows_BT.flatten()[: b * self.rows_BT.shape[1] + at].sum())

    def log_probability(self, b: int, place: int) -> torch.Tensor:
        token = self.encodings[b].ids[place]
        return self.logits_MV[self.row(b, place)].log_softmax(-1)[token]


def examples(student: Side, teacher: Side):
    return [align_spans(own, other) for own, other in zip(student.spans, teacher.spans, strict=True)]


def pairs_by_dynamic_programming(own, other, shared) -> list[tuple[int, int]]:
    """The longest common subsequence of (end byte, shared token)."""
    a = [(e, shared.column_V[i]) for e, i in zip(own.end_T.tolist(), own.id_T, strict=True)]
    b = [(e, shared.column_W[i]) for e, i in zip(other.end_T.tolist(), other.id_T, strict=True)]
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in itertools.product(range(len(a) - 1, -1, -1), range(len(b) - 1, -1, -1)):
        same = a[i] == b[j] and a[i][1] >= 0
        table[i, j] = max(table[i + 1, j], table[i, j + 1], table[i + 1, j + 1] + 1 if same else 0)
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j] and a[i][1] >= 0 and table[i, j] == table[i + 1, j + 1] + 1:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif table[i + 1, j] >= table[i, j + 1]:
            i += 1
        else:
            j += 1
    return found


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("shift", [0, 1])
def test_matches_are_the_longest_common_sequence_and_their_rows_the_models(readers, first, second, shift):
    student = Side(readers[first], TEXTS, shift=shift, left=True, seed=1)
    teacher = Side(readers[second], TEXTS, shift=shift, seed=2)
    shared = SharedVocabulary.of(student.reader.surfaces, teacher.reader.surfaces)
    made = examples(student, teacher)
    aligned = matching_rows(made, student.counted, teacher.counted, shared)
    expected, dropped = [], 0
    for b, (own, other) in enumerate(zip(student.spans, teacher.spans, strict=True)):
        kept = set(
            itertools.chain(
                *(
                    range(f, f + c)
                    for f, c in zip(made[b].student_first_G, made[b].student_count_G, strict=True)
                )
            )
        )
        for i, j in pairs_by_dynamic_programming(own, other, shared):
            place = int(own.position_T[i])
            if place in kept:
                rows = student.row(b, place), teacher.row(b, int(other.position_T[j]))
                if min(rows) < 0:
                    dropped += 1
                else:
                    expected.append((*rows, int(own.id_T[i]), b))
    found = zip(aligned.student_row_N, aligned.teacher_row_N, aligned.label_N, aligned.example_N, strict=True)
    assert [tuple(map(int, pair)) for pair in found] == expected
    assert aligned.unpredicted == dropped
    rows = match_rows(student.logits_MV, teacher.logits_MV, aligned, shared)
    for n, (own_row, other_row, token, _) in enumerate(expected):
        assert torch.equal(rows.student[n], student.logits_MV[own_row][shared.student_C])
        assert torch.equal(rows.teacher[n], teacher.logits_MV[other_row][shared.teacher_C])
        assert shared.student_C[rows.label[n]] == token
    # difflib finds no more than there are.
    own, other = student.spans[0], teacher.spans[0]
    keys = [
        [
            (int(e), int(c)) if c >= 0 else (n, side)
            for n, (e, c) in enumerate(zip(s.end_T, column[s.id_T], strict=True))
        ]
        for s, column, side in ((own, shared.column_V, "own"), (other, shared.column_W, "other"))
    ]
    blocks = difflib.SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks()
    assert sum(block.size for block in blocks) == len(pairs_by_dynamic_programming(own, other, shared))


@pytest.mark.parametrize(("first", "second"), [("byte_level", "wordpiece"), ("sentencepiece", "unigram")])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_rest_column_makes_the_exact_divergence_of_the_coarse_grained_distributions(
    readers, first, second, temperature
):
    student, teacher = Side(readers[first], TEXTS, seed=3), Side(readers[second], TEXTS, seed=4)
    shared = SharedVocabulary.of(student.reader.surfaces, teacher.reader.surfaces)
    aligned = matching_rows(examples(student, teacher), student.counted, teacher.counted, shared)
    rows = shared_rows(student.logits_MV, teacher.logits_MV, aligned, shared, temperature=temperature)
    values = ForwardKL(temperature=temperature)(rows)
    assert len(values) > 5
    for n in range(len(aligned)):
        sides = []
        for side, row, columns in (
            (teacher, aligned.teacher_row_N, shared.teacher_C),
            (student, aligned.student_row_N, shared.student_C),
        ):
            whole = (side.logits_MV[row[n]] / temperature).softmax(-1)
            part = whole[columns]
            sides.append(torch.cat([part, (1 - part.sum()).reshape(1)]))
        p, q = sides
        torch.testing.assert_close(values[n], (p * (p / q).log()).sum(), rtol=1e-9, atol=1e-12)


def test_spans_start_where_both_have_read_the_same_and_pad_the_smaller_vocabulary(readers):
    student, teacher = Side(readers["byte_level"], TEXTS, seed=5), Side(readers["unigram"], TEXTS, seed=6)
    made = examples(student, teacher)
    aligned = starting_rows(made, student.counted, teacher.counted)
    expected, dropped = [], 0
    for b, example in enumerate(made):
        for f, g in zip(example.student_first_G, example.teacher_first_G, strict=True):
            rows = student.row(b, int(f)), teacher.row(b, int(g))
            if min(rows) < 0:
                dropped += 1
            else:
                expected.append((*rows, student.encodings[b].ids[f]))
    assert dropped == aligned.unpredicted > 0  # byte level has nothing before a text's first token
    found = zip(aligned.student_row_N, aligned.teacher_row_N, aligned.label_N, strict=True)
    assert [tuple(map(int, row)) for row in found] == expected
    rows = span_rows(
        student.logits_MV, teacher.logits_MV, aligned, group_M=torch.arange(len(student.logits_MV)) // 4
    )
    wide = max(len(student.reader.surfaces), len(teacher.reader.surfaces))
    assert rows.student.shape == rows.teacher.shape == (len(aligned), wide)
    p = teacher.logits_MV[aligned.teacher_row_N].softmax(-1).sort(descending=True).values
    q = student.logits_MV[aligned.student_row_N].softmax(-1).sort(descending=True).values
    narrow = min(p.shape[1], q.shape[1])
    distance = (p[:, :narrow] - q[:, :narrow]).abs().sum(-1) + p[:, narrow:].sum(-1) + q[:, narrow:].sum(-1)
    torch.testing.assert_close(SortedTransport()(rows), distance)
    assert MultiLevelTransport()(rows).isfinite().all()
    torch.testing.assert_close(
        Labels()(rows), -student.logits_MV.log_softmax(-1)[aligned.student_row_N, aligned.label_N]
    )


@pytest.mark.parametrize(("first", "second"), [("byte_level", "sentencepiece"), ("wordpiece", "unigram")])
@pytest.mark.parametrize("boundary", [False, True])
def test_chunks_have_the_likelihood_of_their_tokens(readers, first, second, boundary):
    student, teacher = Side(readers[first], TEXTS, seed=7), Side(readers[second], TEXTS, left=True, seed=8)
    made = examples(student, teacher)
    surfaces = student.reader.surfaces, teacher.reader.surfaces
    aligned = chunk_tokens(made, student.counted, teacher.counted, surfaces)
    starts = tuple(torch.from_numpy(side.starts_word_V) for side in surfaces)
    rows = chunk_rows(
        student.logits_MV,
        teacher.logits_MV,
        aligned,
        temperature=10.0,
        starts_word=starts if boundary else None,
    )
    n, corrected = 0, 0
    for b, example in enumerate(made):
        columns = (
            example.student_first_G,
            example.student_count_G,
            example.student_next_G,
            example.teacher_first_G,
            example.teacher_count_G,
            example.teacher_next_G,
        )
        for f, c, nf, g, d, ng in zip(*(column.tolist() for column in columns), strict=True):
            places = [(student, f, c), (teacher, g, d)]
            if any(side.row(b, p) < 0 for side, start, count in places for p in range(start, start + count)):
                continue
            logs = [sum(side.log_probability(b, p) for p in range(s, s + k)) for side, s, k in places]
            after = []
            for (side, s, k), following, begins in zip(places, (nf, ng), starts, strict=True):
                there = s + k < len(side.encodings[b].ids) and side.row(b, s + k) >= 0
                after.append(there and (following < 0 or bool(begins[following])))
            if boundary and all(after):
                corrected += 1
                for k, ((side, s, count), begins) in enumerate(zip(places, starts, strict=True)):
                    probability = side.logits_MV[side.row(b, s + count)].softmax(-1)
                    logs[k] = logs[k] + probability[begins].sum().log()
            for log, found in zip(logs, (rows.student[n], rows.teacher[n]), strict=True):
                x = log / 10
                torch.testing.assert_close(found, torch.stack([x, (1 - x.exp()).log()]))
            n += 1
    assert n == len(aligned) == len(rows)
    assert (corrected > 3) == boundary


def golden(temperature: float) -> Rows:
    """Chunks of log-likelihoods (−1, −.1, −5) and (−.5, −2, −5), each one token of a vocabulary of two."""
    logs = [torch.tensor(x, dtype=torch.float64) for x in ((-1.0, -0.1, -5.0), (-0.5, -2.0, -5.0))]
    logits = [torch.stack([x, (1 - x.exp()).log()], -1) for x in logs]
    three, zero = torch.arange(3), torch.zeros(3, dtype=torch.long)
    aligned = AlignedChunks(three, zero, three, zero - 1, three, three, zero, three, zero - 1, zero)
    return chunk_rows(*logits, aligned, temperature=temperature)


def alm(student: float, teacher: float, temperature: float, below: float) -> float:
    """The published binary cross-entropy, written with Python's own functions."""
    x, y = student / temperature - below, teacher / temperature - below
    return -(math.exp(y) * x - math.expm1(y) * math.log(-math.expm1(x)))


def test_forward_kl_of_chunks_is_alm_without_the_teachers_entropy():
    pairs = list(zip((-1.0, -0.1, -5.0), (-0.5, -2.0, -5.0), strict=True))
    published = [alm(*pair, 100, 1e-6) for pair in pairs]  # which moves both sides by 1e-6
    assert published == pytest.approx([0.032948, 0.137761, 0.194882], abs=1e-6)
    rows = golden(100.0)
    entropy = -(rows.teacher.exp() * rows.teacher).sum(-1)
    assert (ForwardKL()(rows) + entropy).tolist() == pytest.approx([alm(*pair, 100, 0) for pair in pairs])
    limit = torch.tensor([0.153426, 4.091449, 0.0], dtype=torch.float64)
    torch.testing.assert_close(3e4 * ForwardKL()(golden(3e4)), limit, rtol=1e-3, atol=1e-12)
    exact = [y - x + y * math.log(x / y) for x, y in pairs]
    assert limit.tolist() == pytest.approx(exact, abs=2e-5)


def test_a_chunk_that_is_certain_has_a_gradient():
    student, teacher = torch.tensor([[200.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    one, zero = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    aligned = AlignedChunks(zero, zero, zero, -one, zero, zero, zero, zero, -one, zero)
    for ours, theirs in ((student, teacher), (student, student), (1 * student, 200 * teacher)):
        rows = chunk_rows(ours, theirs, aligned)
        assert rows.student.isfinite().all()
        (slope,) = torch.autograd.grad(rows.mean(ForwardKL()(rows)), student)
        assert slope.isfinite().all()


def every_kind(student: Side, teacher: Side, student_MV, teacher_LW) -> dict[str, Rows]:
    surfaces = student.reader.surfaces, teacher.reader.surfaces
    shared, made = SharedVocabulary.of(*surfaces), examples(student, teacher)
    counted = student.counted, teacher.counted
    matches = matching_rows(made, *counted, shared)
    chunks = chunk_tokens(made, *counted, surfaces)
    starts = tuple(torch.from_numpy(side.starts_word_V) for side in surfaces)
    return {
        "match": match_rows(student_MV, teacher_LW, matches, shared),
        "shared": shared_rows(student_MV, teacher_LW, matches, shared),
        "spans": span_rows(student_MV, teacher_LW, starting_rows(made, *counted)),
        "chunks": chunk_rows(student_MV, teacher_LW, chunks),
        "chunks with boundaries": chunk_rows(student_MV, teacher_LW, chunks, starts_word=starts),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_compared_with_itself_is_at_distance_zero(readers, kind):
    side = Side(readers[kind], TEXTS, seed=9)
    for name, rows in every_kind(side, side, side.logits_MV, side.logits_MV).items():
        assert len(rows) > 3, name
        assert (ForwardKL()(rows) == 0).all(), name


@pytest.mark.parametrize("texts", [["", ""], ["🦄", "\u200b"]])
def test_nothing_aligned_gives_no_rows_and_a_zero_that_has_a_gradient(readers, texts):
    student, teacher = Side(readers["wordpiece"], texts), Side(readers["byte_level"], texts)
    student.logits_MV.requires_grad_()
    for rows in every_kind(student, teacher, student.logits_MV, teacher.logits_MV).values():
        assert len(rows) == 0
        rows.mean(ForwardKL()(rows)).backward()
    assert (student.logits_MV.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_values_and_gradients(readers, dtype):
    student, teacher = Side(readers["byte_level"], TEXTS), Side(readers["unigram"], TEXTS)
    student_MV, teacher_LW = student.logits_MV.to(dtype), teacher.logits_MV.to(dtype)
    shared = SharedVocabulary.of(student.reader.surfaces, teacher.reader.surfaces)
    rest = torch.ones(student_MV.shape[1], dtype=torch.bool)
    rest[shared.student_C] = False
    student_MV[0, rest] = -math.inf
    student_MV[1] = 6e4 * student_MV[1].sign()
    student_MV[2, shared.student_C] = -math.inf
    teacher_LW[::3, 5:] = -math.inf
    teacher_LW[1::3] *= 1e4
    student_MV.requires_grad_()
    for name, rows in every_kind(student, teacher, student_MV, teacher_LW).items():
        loss = SortedTransport() if name == "spans" else ForwardKL()
        if name == "match":  # a row may have no shared token at all
            rows = rows.select(rows.student.amax(-1).isfinite() & rows.teacher.amax(-1).isfinite())
        student_MV.grad = None
        values = loss(rows)
        assert values.isfinite().all(), name
        rows.mean(values).backward()
        assert student_MV.grad.isfinite().all(), name


def test_gradients_of_chunks_and_rest_columns_are_right(readers):
    student, teacher = Side(readers["sentencepiece"], TEXTS[:1]), Side(readers["unigram"], TEXTS[:1])
    student.logits_MV.requires_grad_()

    def value(logits, name):
        rows = every_kind(student, teacher, logits, teacher.logits_MV)[name]
        return rows.mean(ForwardKL()(rows))

    direction = torch.randn_like(student.logits_MV)
    for name in ("match", "shared", "chunks", "chunks with boundaries"):
        (slope,) = torch.autograd.grad(value(student.logits_MV, name), student.logits_MV)
        with torch.no_grad():
            ahead, behind = (value(student.logits_MV + h * direction, name) for h in (1e-5, -1e-5))
        torch.testing.assert_close((slope * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-9)


def test_teacher_rows_do_not_depend_on_how_its_batch_is_ordered(readers):
    order = [3, 0, 4, 2, 1]
    shared = SharedVocabulary.of(readers["byte_level"].surfaces, readers["unigram"].surfaces)
    found = []
    for texts in (TEXTS, [TEXTS[i] for i in order]):
        student, teacher = Side(readers["byte_level"], texts), Side(readers["unigram"], texts)
        aligned = matching_rows(examples(student, teacher), student.counted, teacher.counted, shared)
        found.append((teacher, aligned))
    (one, first), (two, second) = found
    places = [{}, {}]
    for into, (side, aligned), names in zip(
        places, ((one, first), (two, second)), (range(5), order), strict=True
    ):
        number = side.rows_BT.nonzero()
        for row, b in zip(aligned.teacher_row_N, aligned.example_N, strict=True):
            into.setdefault(list(names)[int(b)], []).append(int(number[row][1]))
    assert places[0] == places[1]


def test_rows_that_are_not_counted_are_left_out_and_reported(readers):
    student = Side(readers["byte_level"], TEXTS, counted=lambda b, t: t % 2 == 0)
    teacher = Side(readers["byte_level"], TEXTS)
    shared = SharedVocabulary.of(student.reader.surfaces, teacher.reader.surfaces)
    made = examples(student, teacher)
    aligned = matching_rows(made, student.counted, teacher.counted, shared)
    assert len(aligned) == len(student.logits_MV)
    assert len(aligned) + aligned.unpredicted == sum(map(len, made))
    with pytest.raises(AlignmentError, match="4 aligned examples do not belong to batches of 5"):
        matching_rows(made[1:], student.counted, teacher.counted, shared)


def test_padded_heads_are_compared_over_the_tokens_alone():
    torch.manual_seed(0)
    logits = torch.randn(6, 20, dtype=torch.float64)
    student = torch.cat([logits[:, :17], torch.full((6, 1), 9.0)], -1)
    head = SharedHead(18, 20, 17)
    rows = same_rows(student, logits, head, label_N=torch.arange(6))
    assert (ForwardKL()(rows) == 0).all()
    other = torch.randn(6, 18, dtype=torch.float64)
    narrow = [other.clone(), logits.clone()]
    for side in narrow:
        side[:, 17:] = -math.inf
    whole = Rows(student=torch.nn.functional.pad(narrow[0], (0, 2), value=-math.inf), teacher=narrow[1])
    torch.testing.assert_close(ForwardKL()(same_rows(other, logits, head)), ForwardKL()(whole))
    assert "18 (student) and 20 (teacher)" in head.describe()
    assert SharedHead(18, 18, 17).describe() is None
    assert SharedHead(18, 18, 17).columns == 18
    with pytest.raises(AlignmentError, match="no columns for the last"):
        SharedHead(16, 20, 17)
    with pytest.raises(AlignmentError, match="same tokens"):
        same_rows(student[1:], logits, head)
    with pytest.raises(AlignmentError, match="not of the heads"):
        same_rows(student, logits, SharedHead(19, 20, 17))


@pytest.mark.parametrize(
    ("first", "second"),
    [("byte_level", "wordpiece"), ("wordpiece", "wordpiece"), ("sentencepiece", "byte_level")],
)
@pytest.mark.parametrize("how", ["sum", "mean"])
def test_reduced_rows_are_the_pieces_pooled(readers, first, second, how):
    own, other = readers[first].surfaces, readers[second].surfaces
    splitter, shared = TokenSplitter(own, other), SharedVocabulary.of(own, other)
    teacher = Side(readers[second], TEXTS, shift=0, seed=1)
    split = [splitter.split(encoding.ids) for encoding in teacher.encodings]
    for encoding, example in zip(teacher.encodings, split, strict=True):
        for t, token in enumerate(encoding.ids):
            pieces = example.student_id_S[example.owner_S == t].tolist()
            surface = other.surface_V[token]
            if surface is not None and own.unknown not in pieces:
                assert b"".join(own.surface_V[piece] for piece in pieces) == surface
            if surface is not None and token in shared.teacher_C:
                assert len(pieces) == 1
    longest = max(len(example.student_id_S) for example in split)
    rows_BT = torch.tensor([[t < len(e.student_id_S) for t in range(longest)] for e in split])
    student_MV = torch.randn(int(rows_BT.sum()), len(own), dtype=torch.float64)
    found = split_rows(split, CountedRows(rows_BT, 0), teacher.counted)
    assert len(found) + found.unpredicted == len(teacher.logits_MV)
    rows = reduce_rows(student_MV, teacher.logits_MV, found, shared, how=how)
    n = row = base = 0
    for example in split:
        for t in range(example.tokens):
            row += 1
            if t not in example.owner_S:
                continue
            part = student_MV[base : base + len(example.owner_S)][torch.from_numpy(example.owner_S) == t]
            expected = part.sum(0) if how == "sum" else part.mean(0)
            torch.testing.assert_close(rows.student[n], expected[shared.student_C])
            assert torch.equal(rows.teacher[n], teacher.logits_MV[row - 1][shared.teacher_C])
            n += 1
        base += len(example.owner_S)
    assert n == len(found)
    if first == second:
        assert (
            ForwardKL()(reduce_rows(teacher.logits_MV, teacher.logits_MV, found, shared, how=how)) == 0
        ).all()


def test_a_token_whose_pieces_are_not_all_counted_is_left_out(readers):
    splitter = TokenSplitter(readers["byte_level"].surfaces, readers["wordpiece"].surfaces)
    example = splitter.split(readers["wordpiece"].read("hello theatre").id_T.tolist())
    rows_BT = torch.ones(1, len(example.student_id_S), dtype=torch.bool)
    rows_BT[0, -1] = False
    found = split_rows([example], CountedRows(rows_BT, 0), CountedRows(torch.ones(1, example.tokens), 0))
    assert len(found) == example.tokens - 1
    assert found.unpredicted == 1


def test_mapped_logits_are_the_sums_of_the_pieces(readers):
    splitter = TokenSplitter(readers["byte_level"].surfaces, readers["wordpiece"].surfaces)
    logits_NV = torch.randn(3, len(splitter.student), dtype=torch.float64, requires_grad=True)
    for how in ("sum", "mean"):
        mapped = PieceMap(splitter, how)
        found_NC = mapped(logits_NV)
        for column, token in enumerate(mapped.teacher_C.tolist()):
            part = logits_NV[:, list(splitter.pieces(token))]
            expected = part.sum(-1) if how == "sum" else part.mean(-1)
            torch.testing.assert_close(found_NC[:, column], expected)
        assert torch.autograd.grad(found_NC.square().sum(), logits_NV)[0].isfinite().all()


def test_a_token_that_cannot_be_written_has_no_pieces(readers):
    splitter = TokenSplitter(readers["byte_level"].surfaces, readers["wordpiece"].surfaces)
    assert splitter.pieces(1) == splitter.pieces(2) == ()  # [UNK] and [CLS]
    assert splitter.pieces(3) == (readers["byte_level"].surfaces.end,)
    other = TokenSplitter(readers["unigram"].surfaces, readers["wordpiece"].surfaces)
    assert [other.pieces(token) for token in (1, 2, 3)] == [(2,), (0,), (1,)]
    assert TokenSplitter(readers["wordpiece"].surfaces, readers["unigram"].surfaces).pieces(0) == (2,)


def test_pooling_by_hand():
    part, owner = torch.ones(3, 2), torch.tensor([0, 0, 2])
    assert pooled(part, owner, 3).tolist() == [[2, 2], [0, 0], [1, 1]]
    assert pooled(part, owner, 3, "mean").tolist() == [[1, 1], [0, 0], [1, 1]]
