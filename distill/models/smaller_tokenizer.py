"""A tokenizer like a teacher's, of its kind and with its rules, but made for other texts; and its tokens in the teacher's."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.errors import ModelError
from distill.models.tokenizer_layout import FIELD, layout_of, load_layout, renumber, token_ids
from distill.models.tokenizer_parts import BYTES, WORD_START, ordinary_letters

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

LONGEST_PIECE = 16  # as SentencePiece's
SEEDS = 10  # pieces that Unigram's training begins with, for each that it ends with
SHRINK = 0.75  # what a round of it leaves, as in SentencePiece


def smaller_tokenizer(
    teacher: PreTrainedTokenizerBase, texts: Iterable[str], size: int
) -> PreTrainedTokenizerBase:
    """A tokenizer of `size` tokens trained on these texts, of the same kind as the teacher's.

    Normaliser, pre-tokenizer, decoder, special tokens, post-processor and chat template are the teacher's. The special
    and other added tokens come first, in their old order. The same texts in the same order give the same tokenizer.
    Letters that the teacher does not know are not learnt: they are read as bytes, or stay unknown.

    Args:
        teacher: a fast WordPiece, Unigram or BPE tokenizer.
        texts: what to find frequent pieces in.
        size: all tokens; fewer where the texts hold no more.

    Raises:
        ModelError: the tokenizer is of another kind, or the size leaves no room for words beside special tokens and
            letters.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    layout = layout_of(teacher)
    old = layout["model"]
    theirs = teacher.get_vocab()
    reserved = [added["content"] for added in sorted(layout["added_tokens"], key=lambda added: added["id"])]
    if old.get("unk_id") is not None:
        reserved.append(old["vocab"][old["unk_id"]][0])
    if old.get("unk_token") is not None:
        reserved.append(old["unk_token"])
    if old.get("byte_fallback"):
        reserved += [byte for byte in BYTES if byte in theirs]
    reserved = list(dict.fromkeys(reserved))

    learner = Tokenizer.from_str(teacher.backend_tokenizer.to_str())
    if learner.pre_tokenizer is None:
        # Words end where SentencePiece's would; the merges that are found then never reach over an end.
        learner.pre_tokenizer = pre_tokenizers.Split(WORD_START, "merged_with_next")
    texts = list(texts)
    words = count_words(learner, texts)
    inside = old.get("continuing_subword_prefix") or ""
    letters = ordinary_letters(layout).union(*words)
    known = sorted(letter for letter in letters if letter in theirs or inside + letter in theirs)
    if old["type"] == "Unigram":
        taken = set(reserved)
        pieces = train_unigram(
            words, size - len(reserved), [letter for letter in known if letter not in taken]
        )
        made: dict[str, Any] = {"vocab": [[name, 0.0] for name in reserved] + [[*piece] for piece in pieces]}
        unknown = old["unk_id"]
        made["unk_id"] = None if unknown is None else reserved.index(old["vocab"][unknown][0])
    else:
        wordpiece = old["type"] == "WordPiece"
        # Letters inside of words stand here so that they are not found in the order in which the trainer happens to
        # look at words: ids break ties.
        within = set().union(*(word[1:] for word in words)) if wordpiece else set()
        forms = [
            form
            for letter in known
            for form in (letter, inside + letter)
            if wordpiece and (form in theirs or letter in within)
        ]
        settings: dict[str, Any] = {
            "vocab_size": size,
            "special_tokens": list(dict.fromkeys([*reserved, *forms])),
            "initial_alphabet": known,
            "limit_alphabet": len(known),
            "show_progress": False,
        }
        if wordpiece:
            learner.model = models.WordPiece(unk_token=old["unk_token"], continuing_subword_prefix=inside)
            trainer: Any = trainers.WordPieceTrainer(continuing_subword_prefix=inside, **settings)
        else:
            learner.model = models.BPE()
            trainer = trainers.BpeTrainer(**settings)
        learner.train_from_iterator(texts, trainer)
        found = json.loads(learner.to_str())["model"]
        made = {key: found[key] for key in ("vocab", "merges") if key in found}
    names = token_ids({**old, **made})
    if len(names) > size:
        raise ModelError(
            f"{FIELD}.train: must be at least {len(names)} for special tokens and letters alone, found {size}"
        )
    renumber(layout, {token: names[name] for name, token in theirs.items() if name in reserved})
    return load_layout(teacher, {**layout, "model": {**old, **made}}, names)


def pieces_of(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], ...]:
    """For each of the student's tokens the ids of the pieces that the teacher's tokenizer cuts its text into.

    A token that the teacher has too is that one piece. The text is cut in the form in which the token stands in words:
    WordPiece's "##ing" into pieces that continue a word, "▁the" or "Ġthe" into pieces that begin with one.

    Args:
        teacher: a fast WordPiece, Unigram or BPE tokenizer.
        student: one of the same kind, with the same rules (`smaller_tokenizer`).

    Raises:
        ModelError: they are of different kinds.
    """
    from tokenizers.models import WordPiece

    model, kind = layout_of(teacher)["model"], layout_of(student)["model"]["type"]
    if kind != model["type"]:
        raise ModelError(
            f"{FIELD}: the new tokenizer must be a {model['type']} tokenizer as the teacher's, found {kind}"
        )
    theirs = teacher.get_vocab()
    cut = teacher.backend_tokenizer.model.tokenize
    inside = model.get("continuing_subword_prefix") or ""
    if model["type"] == "WordPiece":
        # A tokenizer of its own for what stands inside of words: there every piece has the mark.
        unknown = model["unk_token"]
        forms = {
            name.removeprefix(inside): token for name, token in theirs.items() if name.startswith(inside)
        }
        cut_inside = WordPiece(
            vocab={unknown: theirs[unknown], **forms}, unk_token=unknown, continuing_subword_prefix=""
        ).tokenize
    found: list[tuple[int, ...]] = []
    for name in sorted(student.get_vocab(), key=student.get_vocab().__getitem__):
        if name in theirs:
            found.append((theirs[name],))
        elif inside and name.startswith(inside):
            found.append(tuple(piece.id for piece in cut_inside(name.removeprefix(inside))))
        else:
            found.append(tuple(piece.id for piece in cut(name)))
    return tuple(found)


def count_words(rules: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as a tokenizer's model is given it: normalised and pre-tokenized."""
    words: Counter[str] = Counter()
    for text in texts:
        if rules.normalizer is not None:
            text = rules.normalizer.normalize_str(text)
        words.update(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(text))
    return words


def train_unigram(words: Mapping[str, int], size: int, letters: Sequence[str]) -> list[tuple[str, float]]:
    """Pieces and their log-probabilities, the most probable first, letters always among them.

    Kudo's algorithm (arXiv:1804.10959, section 3.2): begin with the frequent substrings of words; again and again
    estimate probabilities, and drop the pieces without which the likelihood of the words falls least. Probabilities are
    estimated from the best cut of each word (Viterbi training) rather than from all cuts: these counts are whole
    numbers, so that they do not depend on the order in which words are added up, as those of the tokenizers library's
    own trainer do, and the same words give the same pieces everywhere.

    Args:
        words: how often each occurs.
        size: how many pieces; fewer where the words hold no more.
        letters: the letters of pieces; words are cut where others stand.
    """
    always = set(letters)
    spelled: Counter[str] = Counter()
    other = re.compile("[^" + "".join(re.escape(letter) for letter in letters) + "]+")
    for word, count in words.items():
        for part in other.split(word):
            spelled[part] += count
    del spelled[""]
    order = sorted(spelled)
    counts: Counter[str] = Counter()
    for word in order:
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST_PIECE, len(word)) + 1):
                counts[word[start:end]] += spelled[word]
    longer = (piece for piece, count in counts.items() if len(piece) > 1 and count > 1)
    seeds = sorted(longer, key=lambda piece: (-counts[piece] * len(piece), piece))[: SEEDS * max(size, 0)]
    pieces = {piece: counts[piece] for piece in [*letters, *seeds]}
    while True:
        for _ in range(2):
            scores = _scores(pieces)
            pieces = dict.fromkeys(pieces, 0) | _best_cuts(scores, order, spelled)
        room = max(size, len(always))
        if len(pieces) <= room:
            break
        scores = _scores(pieces)
        dear = {piece: count * _loss(piece, scores) for piece, count in pieces.items() if piece not in always}
        # In the order of the seeds where nothing is lost: such pieces fill the room that others leave.
        ranked = sorted(dear, key=dear.__getitem__, reverse=True)
        left = always.union(ranked[: max(room, int(SHRINK * len(pieces))) - len(always)])
        pieces = {piece: count for piece, count in pieces.items() if piece in left}
    return sorted(_scores(pieces).items(), key=lambda piece: (-piece[1], piece[0]))


def _scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Log-probabilities; what did not occur is half as probable as what occurred once."""
    total = sum(counts.values())
    return {piece: math.log(max(count, 0.5) / max(total, 1)) for piece, count in counts.items()}


def _best_cuts(scores: Mapping[str, float], order: Sequence[str], words: Mapping[str, int]) -> dict[str, int]:
    """How often each piece occurs in the best cuts of the words."""
    from tokenizers.models import Unigram

    # The library wants a piece for what is unknown, though nothing is; it has no letter in common with any word.
    model = Unigram([("\0unknown", 0.0), *scores.items()], 0, False)
    counts: Counter[str] = Counter()
    for word in order:
        times = words[word]
        for token in model.tokenize(word):
            counts[token.value] += times
    return dict(counts)


def _loss(piece: str, scores: Mapping[str, float]) -> float:
    """What one occurrence of a piece loses in log-likelihood where it is cut into two others, or into letters."""
    halves = (
        scores[piece[:at]] + scores[piece[at:]]
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    )
    return scores[piece] - max(halves, default=sum(scores[letter] for letter in piece))
