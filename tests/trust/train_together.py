"""Trains one small student a case, on all processes together, in float64, and saves what comes of it.

Started as `python train_together.py FOLDER` or by `accelerate launch --multi_gpu --num_processes 2 train_together.py
FOLDER`; FOLDER holds models `bert` and `llama`. A batch has as many examples on two processes as on one. Each process
writes `FOLDER/COUNT/CASE.RANK.safetensors` and `.json`.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from distill.alignment import TokenReader
from distill.cache import CachedEnsemble, CachedTeacher, CacheSpec, EachAlone, header_of, write_cache
from distill.engine import Engine
from distill.engine.comparison import Aligned, CrossAttention, Reduced
from distill.engine.reading import reading_of
from distill.losses import (
    AdaptiveKL,
    DualSpace,
    Ensemble,
    ForwardKL,
    HiddenStates,
    Labels,
    MultiLevelTransport,
    Relations,
    ReverseKL,
    Sinkhorn,
)
from distill.models import (
    EnsembleTeacher,
    Features,
    MaskedTokens,
    NextTokens,
    Student,
    TargetTokens,
    Teacher,
    keep_tokenizer_tokens,
    needed_tokens,
    train_tokenizer,
)
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model
from distill.processes import new_accelerator
from distill.recipe import AlignmentRecipe, OnPolicy, TrainRecipe
from distill.tasks import PLAIN_TEXT

FOLDER = Path(sys.argv[1])
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
SHARDED = "sharded" if os.environ.get("SHARDED") == "1" else ""
BATCH = 8
TRAIN = TrainRecipe(
    max_steps=6,
    learning_rate=1e-3,
    per_device_train_batch_size=BATCH // PROCESSES,
    group_by_length=False,
    dropout=0.0,
    logging_steps=2,
)
BERT = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32}
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 32, "max_position_embeddings": 256}
LABELS = ("no", "yes")
LAYERS = ("LlamaDecoderLayer", "BertLayer", "T5Block")
whole, llama = (load_tokenizer(find_model(str(FOLDER / name))) for name in ("bert", "llama"))
bert = keep_tokenizer_tokens(whole, needed_tokens(whole, range(60)))
other = train_tokenizer(["a license to copy the work, and the works of the licensor"] * 9, 330)


def double(reader: Any) -> Any:
    reader.model.double()
    return reader


def opinionated(model: Any) -> Any:
    with torch.no_grad():
        for name in ("classifier", "lm_head"):
            if hasattr(model, name):
                getattr(model, name).weight.mul_(20)
    return model


def classifier(seed: int = 7) -> Teacher:
    wide = {**BERT, "hidden_size": 32, "num_hidden_layers": 4}
    model = Student.from_config(wide, bert, kind="classification", labels=LABELS, seed=seed).model
    return double(Teacher(opinionated(model), bert))


def decoder(seed: int = 0) -> Teacher:
    model = load_model(
        find_model(str(FOLDER / "llama")), kind="causal_lm", labels=(), seed=0, allow_new_head=False
    )
    if seed:
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    return double(Teacher(opinionated(model), llama))


def student(config: dict[str, Any], tokenizer: Any, kind: str) -> Student:
    labels = LABELS if kind == "classification" else ()
    return double(Student.from_config(config, tokenizer, kind=kind, labels=labels, seed=1))


def reads(config: dict[str, Any]) -> Callable[[], Student]:
    tokenizer, kind = (bert, "classification") if config["model_type"] == "bert" else (llama, "causal_lm")
    return lambda: student(config, tokenizer, kind)


DRAW = random.Random(0)
# The last batch of an epoch has 3 examples: on two processes the second one is left with nothing in it.
EXAMPLES = 27
rows = [
    [{"input_ids": ids, "attention_mask": [1] * len(ids)}]
    for ids in (
        [
            bert.cls_token_id,
            *(DRAW.randrange(80, 88) for _ in range(DRAW.randrange(3, 14))),
            bert.sep_token_id,
        ]
        for _ in range(EXAMPLES)
    )
]
FEATURES = Features(rows, [int(84 in row[0]["input_ids"]) for row in rows], bert)
texts = [[DRAW.randrange(2, 300) for _ in range(DRAW.choice([3, 4, 20]))] for _ in range(EXAMPLES)]
TEXTS = NextTokens(texts, None, llama)
# Half of the texts have no token that counts: a process often has none at all.
SILENT = NextTokens(
    texts, [[n % 2 == 0 and at > 1 for at in range(len(t))] for n, t in enumerate(texts)], llama
)
PROMPTS = NextTokens(texts, [[at >= len(t) - 2 for at in range(len(t))] for t in texts], llama)
HIDDEN = MaskedTokens([row[0]["input_ids"] for row in rows], bert, seed=3)
PAIRS = TargetTokens(
    [row[0]["input_ids"] for row in rows],
    [[DRAW.randrange(80, 88), *[90] * DRAW.randrange(6), bert.sep_token_id] for _ in rows],
    bert,
    start=0,
)
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
T5 |= {"num_decoder_layers": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}


def t5(width: int, seed: int) -> Student:
    made = Student.from_config({**T5, "d_model": width}, bert, kind="seq2seq_lm", labels=(), seed=seed)
    return double(made)


def cached(number: int | None = None) -> CachedTeacher:
    live = decoder(number or 0)
    folder = FOLDER / f"cache-{number or 0}"
    header = header_of(live.model, llama, labels=(), max_length=32)
    if int(os.environ.get("RANK", "0")) == 0:
        write_cache(folder, header, TEXTS, live, CacheSpec())
    if PROCESSES > 1:
        torch.distributed.barrier()
    return CachedTeacher.open(folder, header)


def aligned(kind: str) -> tuple[Student, Any, Teacher, Any]:
    words = [
        "The",
        "Licensor",
        "grants",
        "you",
        "a",
        "copyright",
        "license",
        "to",
        "reproduce",
        "the",
        "Work",
        "and",
        "its",
        "works",
        ",",
        "and",
        "so",
        "on",
    ]
    made = [" ".join(DRAW.choices(words, k=3 + n % 9)) for n in range(EXAMPLES)]
    examples = PLAIN_TEXT.examples([{"text": text} for text in made])
    if kind == "reduce":
        learner, teacher = student(LLAMA, other, "causal_lm"), decoder()
        reading = reading_of("decoder", PLAIN_TEXT, max_length=64, batch_size=8)
    else:
        learner, teacher = student(LLAMA, other, "causal_lm"), decoder()
        reading = reading_of("decoder", PLAIN_TEXT, max_length=64, batch_size=8)
    own, theirs, groups = reading.together(examples, learner, teacher, seed=0)
    readers = TokenReader(other), TokenReader(llama)
    if kind == "cross_attention":
        return learner, own, teacher, CrossAttention(own, theirs, readers=readers)
    wanted = AlignmentRecipe(kind=kind)  # type: ignore[arg-type]
    if kind == "reduce":
        return learner, own, teacher, Reduced(own, theirs, tokenizer=other, readers=readers, wanted=wanted)
    comparison = Aligned(own, theirs, groups, shift=1, readers=readers, wanted=wanted, temperature=1.0)
    return learner, own, teacher, comparison


ACCUMULATED = replace(
    TRAIN, per_device_train_batch_size=BATCH // PROCESSES // 2, gradient_accumulation_steps=2
)
OWN = replace(TRAIN, on_policy=OnPolicy(fraction=0.5, max_new_tokens=5))
KL = 0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0)

# Student, loss, data, teacher, training.
CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "forward_kl": lambda: (reads(BERT)(), KL, FEATURES, classifier(), TRAIN),
    "accumulated": lambda: (reads(LLAMA)(), KL, TEXTS, decoder(), ACCUMULATED),
    "sinkhorn over devices": lambda: (reads(BERT)(), Sinkhorn() + KL, FEATURES, classifier(), TRAIN),
    "sinkhorn alone over devices": lambda: (
        reads(BERT)(),
        Sinkhorn(debias=False),
        FEATURES,
        classifier(),
        TRAIN,
    ),
    "sinkhorn of 4, accumulated": lambda: (
        reads(BERT)(),
        Sinkhorn(group_size=4) + KL,
        FEATURES,
        classifier(),
        ACCUMULATED,
    ),
    "multi-level over devices": lambda: (
        reads(LLAMA)(),
        MultiLevelTransport() + Labels(),
        TEXTS,
        decoder(),
        TRAIN,
    ),
    "projections": lambda: (
        reads(BERT)(),
        Labels() + HiddenStates() + Relations(heads=8),
        FEATURES,
        classifier(),
        TRAIN,
    ),
    "features alone": lambda: (
        reads(BERT)(),
        HiddenStates(layers=((0, 1),)),
        FEATURES,
        classifier(),
        TRAIN,
    ),
    "projections, few counted": lambda: (
        reads(LLAMA)(),
        Labels() + HiddenStates(),
        SILENT,
        decoder(),
        ACCUMULATED,
    ),
    "few counted": lambda: (reads(LLAMA)(), KL, SILENT, decoder(), TRAIN),
    "live alone": lambda: (reads(LLAMA)(), KL, TEXTS, EachAlone(decoder()), ACCUMULATED),
    "cached": lambda: (reads(LLAMA)(), KL, TEXTS, cached(), ACCUMULATED),
    "ensemble": lambda: (
        reads(LLAMA)(),
        KL,
        TEXTS,
        EnsembleTeacher([decoder(), decoder(4)], Ensemble(of="logits")),
        TRAIN,
    ),
    "cached ensemble": lambda: (
        reads(LLAMA)(),
        KL,
        TEXTS,
        CachedEnsemble([cached(), cached(4)], Ensemble(of="logits")),
        TRAIN,
    ),
    "scheduled": lambda: (reads(LLAMA)(), Labels() + AdaptiveKL(), TEXTS, decoder(), ACCUMULATED),
    "on policy": lambda: (reads(LLAMA)(), 0.5 * Labels() + 0.5 * ReverseKL(), PROMPTS, decoder(), OWN),
    "hidden tokens": lambda: (
        student(BERT, bert, "masked_lm"),
        KL,
        HIDDEN,
        double(Teacher(student({**BERT, "hidden_size": 32}, bert, "masked_lm").model, bert)),
        TRAIN,
    ),
    "encoder-decoder": lambda: (t5(16, 1), KL, PAIRS, double(Teacher(t5(24, 2).model, bert)), ACCUMULATED),
    "match": lambda: (*aligned("match"),),
    "reduce": lambda: (*aligned("reduce"),),
    "cross attention": lambda: (*aligned("cross_attention"),),
    "tied": lambda: (reads({**LLAMA, "tie_word_embeddings": True})(), KL, TEXTS, decoder(), TRAIN),
    "frozen embeddings": lambda: (
        reads(BERT)(),
        KL,
        FEATURES,
        classifier(),
        replace(TRAIN, freeze_embeddings=True),
    ),
    "unused weights": lambda: (with_unused(reads(BERT)()), KL, FEATURES, classifier(), TRAIN),
}


def with_unused(made: Student) -> Student:
    made.model.spare = torch.nn.Linear(3, 3).double()
    with torch.no_grad():
        for parameter in made.model.spare.parameters():
            parameter.fill_(0.5)
    return made


def accelerator(learner: Student) -> Any:
    """Accelerate; with SHARDED=1 as it would be with FSDP 2, which its launcher leaves out on a machine without GPUs."""
    made = new_accelerator()
    if SHARDED:
        from accelerate import FullyShardedDataParallelPlugin
        from accelerate.utils import DistributedType

        names = {type(module).__name__ for module in learner.model.modules()}
        made.state._shared_state["distributed_type"] = DistributedType.FSDP
        made.state.distributed_type = DistributedType.FSDP
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[layer for layer in LAYERS if layer in names],
            cpu_ram_efficient_loading=False,
        )
    return made


def train(name: str) -> None:
    engine, lines, started = engine_of(name)
    learner = engine.run()
    engine.accelerator.free_memory()
    trained = dict(learner.model.state_dict())
    assert any(not torch.equal(trained[key], started[key]) for key in trained)
    if engine.checkpoints:
        again, *_ = engine_of(name)
        assert again.resume() == 4
        continued = again.run().model.state_dict()
        again.accelerator.free_memory()
        assert all(torch.equal(continued[key], trained[key]) for key in trained)
    trained |= {f"loss.{key}": value for key, value in engine.projections.state_dict().items()}
    out = FOLDER / (str(PROCESSES) + SHARDED)
    out.mkdir(exist_ok=True)
    rank = engine.accelerator.process_index
    save_file({key: t.contiguous().clone() for key, t in trained.items()}, out / f"{name}.{rank}.safetensors")
    (out / f"{name}.{rank}.json").write_text(json.dumps({"lines": lines}))


def engine_of(name: str) -> tuple[Engine, list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What trains a case's student, the lines it will log, and the weights it starts from."""
    DRAW.seed(name)
    made = CASES[name]()
    comparison = None
    if isinstance(made[-1], TrainRecipe):
        learner, loss, data, teacher, how = made
    else:
        learner, data, teacher, comparison = made
        loss = 0.5 * Labels() + 0.5 * (DualSpace() if name == "cross attention" else ForwardKL())
        how = ACCUMULATED
    started = {key: value.clone() for key, value in learner.model.state_dict().items()}
    lines: list[dict[str, Any]] = []

    def first_logit() -> dict[str, float]:
        with torch.inference_mode():
            return {"validation/logit": float(learner(data.batch([0, 1])).logits_NC[0, 0])}

    kept = name == "accumulated"
    engine = Engine(
        learner,
        loss,
        data,
        replace(how, save_steps=4, eval_steps=3) if kept else how,
        teacher=teacher,
        comparison=comparison,
        evaluate=first_logit,
        checkpoints=FOLDER / f"checkpoints-{PROCESSES}{SHARDED}" if kept else None,
        log=lines.append,
        accelerator=accelerator(learner),
    )
    engine.projections.double()
    assert engine.plan.devices == PROCESSES, engine.plan
    assert engine.plan.batch == BATCH
    assert engine.sharded == bool(SHARDED)
    return engine, lines, started


for case in sys.argv[2:] or CASES:
    train(case)
