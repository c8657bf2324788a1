"""The code of a model card: a student's answer to one example, in the form in which it was trained to read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.publish.subject import Subject
from distill.run_folder import ONNX_FILE
from distill.tasks import TASKS, Example
from distill.tasks.demo import FAMILIES, rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of the tasks that the demo does not have.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "terra": {"premise": "Собака спит на диване.", "hypothesis": "Собака не бегает.", "idx": 0},
    "text": {"text": "The sun rose over the hills, and the"},
}
INDENT = "\n    "


def code(subject: Subject, repository: str, tokenizer: PreTrainedTokenizerBase, *, adapter: bool) -> str:
    """Python that loads the published student and lets it answer one example.

    Args:
        subject: what is published.
        repository: OWNER/NAME, or a folder.
        tokenizer: the student's.
        adapter: whether an adapter is published that stands beside its base model.
    """
    example = example_of(subject.task.name)
    write = {
        "classification": _classify,
        "multiple_choice": _choose,
        "causal_lm": _continue if subject.task.name == "text" else _compare,
        "masked_lm": _fill,
        "seq2seq_lm": _write,
    }[subject.head]
    load = subject.auto_class
    imports, settings = f"from transformers import {load}, AutoTokenizer", ", use_safetensors=True"
    if adapter:
        load = f"AutoPeft{load.removeprefix('Auto')}"
        imports = f"from peft import {load}\nfrom transformers import AutoTokenizer"
        settings = f", num_labels={len(subject.task.labels)}" if subject.head == "classification" else ""
    return (
        f"import torch\n{imports}\n\n"
        f"name = {repository!r}\n"
        f"tokenizer = AutoTokenizer.from_pretrained(name)\n"
        f"model = {load}.from_pretrained(name{settings}).eval()\n\n" + write(subject, example, tokenizer)
    )


def onnx_code(subject: Subject, repository: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Python that lets onnxruntime answer the same example, without torch.

    Args:
        subject: what is published, with its ONNX file.
        repository: OWNER/NAME, or a folder.
        tokenizer: the student's.
    """
    example, task = example_of(subject.task.name), subject.task
    cut = f"max_length={subject.recipe.data.max_length}"
    if subject.head == "classification":
        first, second = example.texts[0]
        texts = f"{first!r},{INDENT}" + (
            "" if second is None else f"{_between(tokenizer) + second!r},{INDENT}"
        )
        answer = (
            f"inputs = tokenizer({INDENT}{texts}truncation={_cut(subject, second)!r}, {cut}, "
            'return_tensors="np",\n)\n'
            "logits = said(inputs)[0]\n"
            "shares = np.exp(logits - logits.max())\n"
            "for number, label in AutoConfig.from_pretrained(name).id2label.items():\n"
            '    print(f"{label}: {shares[number] / shares.sum():.3f}")\n'
        )
    elif subject.head == "multiple_choice":
        choices = [_between(tokenizer) + (second or "") for _, second in example.texts]
        answer = (
            f"question = {example.texts[0][0]!r}\nchoices = {choices!r}\n"
            "inputs = tokenizer(\n    [question] * len(choices), choices, padding=True, "
            f'truncation={_cut(subject, choices[0])!r}, {cut}, return_tensors="np",\n)\n'
            "logits = said({key: value[None] for key, value in inputs.items()})[0]\n"
            "shares = np.exp(logits - logits.max())\n"
            "for choice, share in zip(choices, shares / shares.sum()):\n"
            '    print(f"{choice.strip()}: {share:.3f}")\n'
        )
    elif subject.head == "masked_lm":
        answer = (
            f'inputs = tokenizer({example.texts[0][0]!r} + " " + tokenizer.mask_token, return_tensors="np")\n'
            'hidden = (inputs["input_ids"][0] == tokenizer.mask_token_id).argmax()\n'
            "best = said(inputs)[0, hidden].argsort()[::-1][:5]\n"
            "print([tokenizer.decode([token]) for token in best])\n"
        )
    elif subject.head == "causal_lm":
        text = repr(example.texts[0][0] if task.name == "text" else task.completion(example).prompt.text)
        prompt, special = f"prompt = {text}\n", ""
        if subject.recipe.data.chat:
            special = ", add_special_tokens=False"
            prompt = (
                f"message = [{{'role': 'user', 'content': {text}}}]\n"
                "prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)\n"
            )
        answer = (
            f"{prompt}"
            f'ids = tokenizer(prompt{special}, return_tensors="np")["input_ids"]\n'
            "for _ in range(20):  # the whole text is read again for each token\n"
            '    token = said({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0, -1].argmax()\n'
            "    if token == tokenizer.eos_token_id:\n        break\n"
            "    ids = np.append(ids, [[token]], axis=1)\n"
            "print(tokenizer.decode(ids[0], skip_special_tokens=True))\n"
        )
    else:
        answer = (
            f"inputs = tokenizer({task.text_to_text(example).source.text!r}, truncation=True, {cut}, "
            'return_tensors="np")\n'
            "ids = np.array([[AutoConfig.from_pretrained(name).decoder_start_token_id]])\n"
            "for _ in range(20):  # all that is written is read again for each token\n"
            '    token = said({**inputs, "decoder_input_ids": ids})[0, -1].argmax()\n'
            "    if token == tokenizer.eos_token_id:\n        break\n"
            "    ids = np.append(ids, [[token]], axis=1)\n"
            "print(tokenizer.decode(ids[0], skip_special_tokens=True))\n"
        )
    config = "AutoConfig, " if "AutoConfig" in answer else ""
    return (
        "import numpy as np\nimport onnxruntime\nfrom huggingface_hub import hf_hub_download\n"
        f"from transformers import {config}AutoTokenizer\n\n"
        f"name = {repository!r}\n"
        f"path = hf_hub_download(name, {ONNX_FILE!r})\n"
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        'session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])\n\n\n'
        "def said(inputs):\n"
        "    return session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})[0]\n\n\n"
        + answer
    )


def example_of(task: str) -> Example:
    """An example of a task that is nobody's data."""
    row = rows(task, "validation")[0] if task in FAMILIES else EXAMPLES[task]
    return TASKS[task].examples([row])[0]


# What a model writes behind `inputs`.
GENERATE = (
    'written = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], '
    "max_new_tokens=20, do_sample=False)\n"
    "print(tokenizer.decode(written[0], skip_special_tokens=True))\n"
)


def _between(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between the texts of a pair where the tokenizer itself puts nothing there."""
    paired, single = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (True, False))
    return "" if paired > single else "\n"


def _classify(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    first, second = example.texts[0]
    texts = f"{first!r},{INDENT}" + ("" if second is None else f"{_between(tokenizer) + second!r},{INDENT}")
    return (
        f"inputs = tokenizer({INDENT}{texts}truncation={_cut(subject, second)!r}, "
        f"max_length={subject.recipe.data.max_length}, "
        'return_tensors="pt",\n)\n'
        "with torch.inference_mode():\n"
        "    shares = model(**inputs).logits.softmax(-1)[0]\n"
        "for number, label in model.config.id2label.items():\n"
        '    print(f"{label}: {shares[number]:.3f}")\n'
    )


def _choose(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    first = example.texts[0][0]
    choices = [_between(tokenizer) + (second or "") for _, second in example.texts]
    return (
        f"question = {first!r}\nchoices = {choices!r}\n"
        "inputs = tokenizer(\n    [question] * len(choices), choices, padding=True, "
        f"truncation={_cut(subject, choices[0])!r}, max_length={subject.recipe.data.max_length}, "
        'return_tensors="pt",\n)\n'
        "with torch.inference_mode():\n"
        "    shares = model(**{key: value[None] for key, value in inputs.items()}).logits.softmax(-1)[0]\n"
        "for choice, share in zip(choices, shares.tolist()):\n"
        '    print(f"{choice.strip()}: {share:.3f}")\n'
    )


def _cut(subject: Subject, second: str | None) -> str:
    return "longest_first" if second is None else subject.task.truncate


def _compare(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    completion = subject.task.completion(example)
    answers = list(completion.answers)
    prompt, special = f"prompt = {completion.prompt.text!r}\n", ""
    if subject.recipe.data.chat:
        answers = [answer.lstrip() for answer in answers]
        special = ", add_special_tokens=False"
        prompt = (
            f"message = [{{'role': 'user', 'content': {completion.prompt.text!r}}}]\n"
            "prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)\n"
        )
    return (
        f"{prompt}answers = {answers!r}\n"
        "for answer in answers:\n"
        f'    inputs = tokenizer(prompt + answer, return_offsets_mapping=True, return_tensors="pt"{special})\n'
        "    of_answer = inputs.pop('offset_mapping')[0, 1:, 1] > len(prompt)\n"
        "    with torch.inference_mode():\n"
        "        logits = model(inputs['input_ids']).logits[0, :-1]\n"
        "    said = logits.log_softmax(-1).gather(1, inputs['input_ids'][0, 1:, None])[:, 0]\n"
        '    print(f"{answer.strip()}: log-probability {said[of_answer].sum():.3f}")\n'
    )


def _continue(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    return f'inputs = tokenizer({example.texts[0][0]!r}, return_tensors="pt")\n' + GENERATE


def _fill(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f'inputs = tokenizer({example.texts[0][0]!r} + " " + tokenizer.mask_token, return_tensors="pt")\n'
        "with torch.inference_mode():\n"
        "    logits = model(**inputs).logits[0]\n"
        'hidden = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]\n'
        "print([tokenizer.decode([token]) for token in logits[hidden].topk(5).indices.tolist()])\n"
    )


def _write(subject: Subject, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    source = subject.task.text_to_text(example).source.text
    return (
        f'inputs = tokenizer({source!r}, truncation=True, max_length={subject.recipe.data.max_length}, return_tensors="pt")\n'
        + GENERATE
    )
