"""Completions and text-to-text rows as token ids. The tokenizers are trained here, on a few lines."""

import hashlib
import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.errors import DataError, ModelError
from distill.tasks import (
    SUPERGLUE,
    TASKS,
    chat_template_sha256,
    encode_completions,
    encode_text_to_text,
    load_task,
    scored,
)

LINES = [
    "the rain fell on the old house by the river, and nobody had closed the windows of it",
    "Question: is it wet? Answer: yes no True False Neither\nIs the answer correct? Passage: does the pronoun",
]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level(*, trim: bool = True, bos: bool = False, split: bool = True) -> PreTrainedTokenizerFast:
    """As GPT-2; without the split into words, tokens may reach over any boundary."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES if split else ["Answer: yes Answer: no"] * 50, trainer)
    level = processors.ByteLevel(trim_offsets=trim)
    if bos:
        template = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        level = processors.Sequence([level, template])
    made.post_processor = level
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


def t5_like() -> PreTrainedTokenizerFast:
    """As T5: Unigram over ▁words, and </s> behind every text."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    letters = sorted(set("".join(map(chr, range(33, 127)))))
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=letters,
        show_progress=False,
    )
    made.train_from_iterator([*LINES, " ".join(letters)], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "gpt2": byte_level(),
    "untrimmed": byte_level(trim=False),
    "bos": byte_level(bos=True),
    "t5": t5_like(),
}


@pytest.fixture(scope="module", params=SUPERGLUE)
def demo(request):
    name = request.param
    return TASKS[name], load_task(name, source="demo", validation_examples=12).validation


def chosen(ids, counted, value):
    return [token for token, mask in zip(ids, counted, strict=True) if mask is value]


@pytest.mark.parametrize("name", ["gpt2", "untrimmed", "bos"])
def test_counted_tokens_are_exactly_the_answer_and_the_others_the_prompt(demo, name):
    task, examples = demo
    tokenizer = TOKENIZERS[name]
    made = encode_completions(task, examples, tokenizer, max_length=4096, answers="all")
    assert (made.truncated, made.merged) == (0, 0)
    expected = [(n, a) for n, e in enumerate(examples) for a in range(len(task.completion(e).answers))]
    assert list(zip(made.index, made.answer, strict=True)) == expected
    for ids, counted, index, answer in zip(
        made.input_ids, made.counted, made.index, made.answer, strict=True
    ):
        completion = task.completion(examples[index])
        assert tokenizer.decode(chosen(ids, counted, True)) == completion.answers[answer]
        prompt = chosen(ids, counted, False)
        assert tokenizer.decode(prompt, skip_special_tokens=True) == completion.prompt.text
        assert (prompt[0] == tokenizer.bos_token_id) == (name == "bos")
        assert ids[-1] != tokenizer.eos_token_id
        # One text, tokenized as a whole.
        whole = tokenizer(completion.prompt.text + completion.answers[answer], add_special_tokens=False)
        assert ids[name == "bos" :] == whole["input_ids"]


def test_training_rows_are_the_evaluation_rows_of_the_gold_answers(demo):
    task, examples = demo
    every = encode_completions(task, examples, TOKENIZERS["bos"], max_length=4096, answers="all")
    gold = encode_completions(task, examples, TOKENIZERS["bos"], max_length=4096, answers="gold")
    wanted = [
        row
        for row in zip(every.input_ids, every.counted, every.index, every.answer, strict=True)
        if task.completion(examples[row[2]]).gold == row[3]
    ]
    assert list(zip(gold.input_ids, gold.counted, gold.index, gold.answer, strict=True)) == wanted
    assert {examples[n].label for n in gold.index} == (
        {1} if task.name == "record" else set(range(len(task.labels)))
    )


def test_batches_do_not_show(demo, monkeypatch):
    task, examples = demo
    whole = encode_completions(task, examples, TOKENIZERS["bos"], max_length=200, answers="all")
    written = encode_text_to_text(task, examples, TOKENIZERS["t5"], max_length=400, rows="targets")
    monkeypatch.setattr("distill.tasks.completions.BATCH", 5)
    monkeypatch.setattr("distill.tasks.text_to_text.BATCH", 5)
    assert encode_completions(task, examples, TOKENIZERS["bos"], max_length=200, answers="all") == whole
    assert encode_text_to_text(task, examples, TOKENIZERS["t5"], max_length=400, rows="targets") == written


@pytest.mark.parametrize("name", ["gpt2", "bos"])
def test_a_long_passage_loses_its_beginning_and_nothing_else(name):
    tokenizer = TOKENIZERS[name]
    task = TASKS["wsc"]
    (short,) = load_task("wsc", source="demo", validation_examples=1).validation
    long = replace(short, fields=short.fields | {"text": "Once upon a time. " * 40 + short.fields["text"]})
    made = encode_completions(task, [short, long], tokenizer, max_length=160, answers="all")
    assert made.truncated == 1
    assert [len(ids) for ids in made.input_ids[2:]] == [160, 160]
    for ids, counted, answer in zip(made.input_ids[2:], made.counted[2:], (" no", " yes"), strict=True):
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        assert shown.startswith("Passage: ")
        assert shown.endswith(task.completion(long).prompt.after + answer)
        assert task.completion(long).prompt.text.endswith(
            shown.removeprefix("Passage: ").removesuffix(answer)
        )
        assert tokenizer.decode(chosen(ids, counted, True)) == answer
    written = encode_text_to_text(task, [long], TOKENIZERS["t5"], max_length=100, rows="questions")
    (ids,) = written.source_ids
    assert (len(ids), written.truncated, ids[-1]) == (100, 1, TOKENIZERS["t5"].eos_token_id)
    assert TOKENIZERS["t5"].decode(ids[:3]).startswith("w")


def test_answers_of_an_example_share_the_prompt_when_it_is_cut():
    (example,) = load_task("copa", source="demo", validation_examples=1).validation
    fields = example.fields | {
        "premise": "It rained. " * 60,
        "choice2": "A far longer choice than the other one.",
    }
    made = encode_completions(
        TASKS["copa"], [replace(example, fields=fields)], TOKENIZERS["gpt2"], max_length=90, answers="all"
    )
    prompts = [chosen(ids, mask, False) for ids, mask in zip(made.input_ids, made.counted, strict=True)]
    assert prompts[0] == prompts[1]
    assert max(map(len, made.input_ids)) == 90
    assert made.truncated == 1


def test_an_exact_fit_is_not_cut_and_one_token_less_is(demo):
    task, examples = demo
    lengths = encode_completions(task, examples, TOKENIZERS["bos"], max_length=4096, answers="all")
    most = max(map(len, lengths.input_ids))
    assert encode_completions(task, examples, TOKENIZERS["bos"], max_length=most, answers="all") == lengths
    tighter = encode_completions(task, examples, TOKENIZERS["bos"], max_length=most - 1, answers="all")
    longest = {n for n, ids in zip(lengths.index, lengths.input_ids, strict=True) if len(ids) == most}
    assert tighter.truncated == len(longest)


def test_a_length_that_holds_no_question_is_refused_with_the_length_that_is_enough():
    task = TASKS["wsc"]
    examples = load_task("wsc", source="demo", validation_examples=5).validation
    with pytest.raises(DataError, match=r"WSC \d+: .*raise max_length to (\d+) at least") as error:
        encode_completions(task, examples, TOKENIZERS["gpt2"], max_length=20, answers="all")
    enough = int(str(error.value).split(" at least")[0].split()[-1])
    made = encode_completions(task, examples, TOKENIZERS["gpt2"], max_length=enough, answers="all")
    assert max(map(len, made.input_ids)) == enough
    record = load_task("record", source="demo", validation_examples=2).validation
    with pytest.raises(DataError, match="ReCoRD"):
        encode_text_to_text(TASKS["record"], record, TOKENIZERS["t5"], max_length=10, rows="questions")


def test_a_token_over_the_boundary_is_counted_and_told():
    tokenizer = byte_level(split=False)
    examples = load_task("boolq", source="demo", validation_examples=3).validation
    made = encode_completions(TASKS["boolq"], examples, tokenizer, max_length=4096, answers="all")
    whole = 0
    for ids, counted, n, a in zip(made.input_ids, made.counted, made.index, made.answer, strict=True):
        completion = TASKS["boolq"].completion(examples[n])
        assert tokenizer.decode(chosen(ids, counted, True)).endswith(completion.answers[a])
        whole += tokenizer.decode(chosen(ids, counted, False)) == completion.prompt.text
    assert made.merged == len(made.input_ids) - whole > 0


def test_scores_become_the_answers_the_metrics_read(demo):
    task, examples = demo
    made = encode_completions(task, examples, TOKENIZERS["gpt2"], max_length=4096, answers="all")
    right = [
        -1.0 if task.completion(examples[n]).gold == a else -20.0
        for n, a in zip(made.index, made.answer, strict=True)
    ]
    answers = scored(task, examples, made, right)
    assert [answer.id for answer in answers] == [example.id for example in examples]
    assert task.score(answers) == dict.fromkeys(task.metrics, 1.0)


def test_the_chat_template_frames_the_prompt_and_the_answer_begins_the_reply(demo):
    task, examples = demo
    tokenizer = TOKENIZERS["bos"]
    made = encode_completions(task, examples, tokenizer, max_length=4096, answers="all", chat=True)
    for ids, counted, n, a in zip(made.input_ids, made.counted, made.index, made.answer, strict=True):
        completion = task.completion(examples[n])
        message = [{"role": "user", "content": completion.prompt.text}]
        shown = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        prompt, answer = chosen(ids, counted, False), chosen(ids, counted, True)
        assert tokenizer.decode(prompt) == shown
        assert tokenizer.decode(answer) == completion.answers[a].lstrip()
    assert made.merged == 0


def test_the_chat_template_has_a_digest_and_has_to_be_there():
    tokenizer = TOKENIZERS["gpt2"]
    assert chat_template_sha256(tokenizer) == hashlib.sha256(json.dumps(CHAT).encode()).hexdigest()
    examples = load_task("cb", source="demo", validation_examples=1).validation
    with pytest.raises(ModelError, match="has no chat template"):
        encode_completions(TASKS["cb"], examples, TOKENIZERS["t5"], max_length=400, answers="all", chat=True)


def test_sources_and_targets_read_back_as_they_were_written(demo):
    task, examples = demo
    tokenizer = TOKENIZERS["t5"]
    made = encode_text_to_text(task, examples, tokenizer, max_length=4096, rows="targets")
    expected = [
        (n, target) for n in task.questions(examples) for target in task.text_to_text(examples[n]).targets
    ]
    assert [n for n, _ in expected] == made.index
    for (n, target), source_ids, target_ids in zip(expected, made.source_ids, made.target_ids, strict=True):
        source = task.text_to_text(examples[n]).source.text
        assert source_ids == tokenizer(source)["input_ids"]
        assert source_ids[-1] == target_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(target_ids, skip_special_tokens=True) == target
        assert len(target_ids) <= made.longest_target
    asked = encode_text_to_text(task, examples, tokenizer, max_length=4096, rows="questions")
    assert asked.index == task.questions(examples)
    assert asked.target_ids == [[]] * len(asked.index)
    answers = [
        task.read_answer(examples[n], tokenizer.decode(ids, skip_special_tokens=True))
        for n, ids in zip(made.index, made.target_ids, strict=True)
    ]
    assert task.score(answers) == dict.fromkeys(task.metrics, 1.0)


def test_tokenizers_keep_their_own_truncation():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    examples = load_task("cb", source="demo", validation_examples=2).validation
    made = encode_completions(TASKS["cb"], examples, tokenizer, max_length=400, answers="all")
    assert min(map(len, made.input_ids)) > 9
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 7
    assert tokenizer.backend_tokenizer.padding["length"] == 9


def test_official_rows_keep_their_boundaries_with_a_llama_tokenizer(superglue, official):
    folder = superglue.parent / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in SUPERGLUE:
        data = official(name)
        examples = data.validation[:30]
        made = encode_completions(data.task, examples, tokenizer, max_length=8192, answers="all")
        assert (made.truncated, made.merged) == (0, 0)
        for ids, counted, n, a in zip(made.input_ids, made.counted, made.index, made.answer, strict=True):
            assert ids[0] == tokenizer.bos_token_id
            completion = data.task.completion(examples[n])
            shown = tokenizer.decode(chosen(ids, counted, True))
            assert shown.strip() == completion.answers[a].strip()
