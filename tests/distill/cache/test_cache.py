"""A teacher's predictions on disk are those of the live one, and are never another example's or teacher's."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.cache import CachedTeacher, CacheSpec, EachAlone, header_of, write_cache
from distill.cache import files as cache_files
from distill.cache.writer import estimated_bytes
from distill.engine import Engine
from distill.errors import CheckpointError, MismatchError
from distill.losses import ForwardKL, GhostTokenKL, Rows, SparseTeacher, most_likely
from distill.models import NextTokens, Prediction, TargetTokens, Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model
from distill.recipe import TrainRecipe

CLASSES = 300


class Tokens:
    """As much of a tokenizer as a data set needs."""

    pad_token_id = 0


class Formula:
    """Logits that are a function of an example's tokens alone."""

    def __init__(self, classes: int = CLASSES):
        self.classes, self.calls = classes, 0

    def __call__(self, batch) -> Prediction:
        self.calls += 1
        ids = batch.inputs["input_ids"].float()
        grid = torch.arange(self.classes, dtype=torch.float32)
        logits_BTC = 3 * torch.sin(ids.cumsum(-1)[..., None] * (grid + 1) * 0.37)
        return Prediction(logits_BTC[batch.rows_BT])


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Teacher:
    source = find_model(str(tiny_llama))
    model = load_model(source, kind="causal_lm", labels=(), seed=0, allow_new_head=False)
    return Teacher(model, load_tokenizer(source))


@pytest.fixture(scope="module")
def texts(llama: Teacher) -> NextTokens:
    draw = random.Random(1)
    ids = [[draw.randrange(2, 300) for _ in range(draw.randrange(2, 14))] for _ in range(30)]
    counted = [[draw.random() < 0.8 for _ in text] for text in ids]
    return NextTokens(ids, counted, llama.tokenizer)


def header(teacher: Teacher, **changed):
    return header_of(
        teacher.model, teacher.tokenizer, **{"labels": ("no", "yes"), "max_length": 32, **changed}
    )


@pytest.fixture(scope="module")
def head(llama: Teacher):
    return header(llama)


def batches(data, sizes=(7, 1, 4), seed=0):
    order = list(range(len(data)))
    random.Random(seed).shuffle(order)
    while order:
        for size in sizes:
            if order:
                yield data.batch(order[:size])
                order = order[size:]


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 2**26])
def test_a_full_cache_is_bitwise_the_live_teacher_in_any_order(tmp_path, llama, texts, head, shard_bytes):
    write_cache(tmp_path, head, texts, llama, CacheSpec(), shard_bytes=shard_bytes)
    cached, live = CachedTeacher.open(tmp_path, head), EachAlone(llama)
    for seed in (0, 1):
        for batch in batches(texts, seed=seed):
            assert torch.equal(cached(batch).logits_NC, live(batch).logits_NC)
            torch.testing.assert_close(cached(batch).logits_NC, llama(batch).logits_NC, atol=1e-5, rtol=1e-5)


def test_training_from_a_full_cache_is_bitwise_the_live_run(tmp_path, teacher, new_student, features):
    head = header(teacher)
    write_cache(tmp_path, head, features, teacher, CacheSpec())
    trained = []
    for source in (EachAlone(teacher), CachedTeacher.open(tmp_path, head)):
        train = TrainRecipe(
            num_train_epochs=2,
            learning_rate=1e-3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
        engine = Engine(new_student(), ForwardKL(temperature=2.0), features, train, teacher=source)
        trained.append(engine.run().model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_is_exactly_what_the_live_logits_give(tmp_path, llama, texts, head, temperature):
    write_cache(tmp_path, head, texts, llama, CacheSpec("top_k", 8, temperature))
    cached = CachedTeacher.open(tmp_path, head)
    loss = GhostTokenKL(temperature=temperature)
    for batch in batches(texts):
        logits_NC = EachAlone(llama)(batch).logits_NC
        live, read = most_likely(logits_NC, kept=8, temperature=temperature), cached(batch).sparse
        assert torch.equal(live.index, read.index)
        assert torch.equal(live.probability, read.probability)
        student = torch.randn_like(logits_NC)
        assert torch.equal(loss(Rows(student=student, sparse=live)), loss(Rows(student=student, sparse=read)))


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 1 / 128), ("float16", 1 / 1024)])
def test_short_probabilities_lose_no_more_than_promised_and_never_gain(dtype, relative):
    logits_NC = torch.randn(200, 500, generator=torch.Generator().manual_seed(0)) * 6
    kept = CacheSpec("top_k", 50, dtype=dtype).tensors(logits_NC, b"0" * 32)["probability"].float()
    exact = most_likely(logits_NC, kept=50).probability
    assert (kept <= exact).all()
    assert (exact - kept <= exact * relative + 2.0**-24).all()


def test_samples_are_unbiased_and_depend_on_content_alone():
    logits_1C = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0]])
    spec, sums = CacheSpec("sampled", 20), torch.zeros(1, 5)
    draws = 4000
    for number in range(draws):
        key = number.to_bytes(8, "big") + bytes(24)
        kept = spec.tensors(logits_1C, key)
        again = spec.tensors(logits_1C, key)
        assert torch.equal(kept["index"], again["index"])
        sums.scatter_add_(1, kept["index"].long(), kept["probability"])
    p = logits_1C.softmax(-1)
    error = (p * (1 - p) / (20 * draws)).sqrt()
    assert ((sums / draws - p).abs() < 5 * error).all()


def write_small(folder: Path, texts, head, spec=CacheSpec("top_k", 4)) -> None:  # noqa: B008 - frozen
    write_cache(folder, head, texts, Formula(), spec, shard_bytes=2_000)


def read_all(folder: Path, texts, head) -> None:
    cached = CachedTeacher.open(folder, head)
    for index in range(len(texts)):
        cached(texts.batch([index]))


def test_every_flipped_bit_and_every_truncation_is_named(tmp_path, texts, head):
    small = replace(head, weights={"w": "0" * 64})
    write_small(tmp_path, texts, small)
    draw = random.Random(0)
    names = ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        for _ in range(200):
            at = draw.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match=name) as caught:
                read_all(tmp_path, texts, small)
            assert "\n" not in str(caught.value)
        for share in (0.0, 0.01, 0.5, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(CheckpointError, match=name):
                read_all(tmp_path, texts, small)
        path.write_bytes(whole)
    first, second = tmp_path / names[1], tmp_path / names[2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two), second.write_bytes(one)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_all(tmp_path, texts, small)
    first.write_bytes(one), second.unlink()
    with pytest.raises(CheckpointError, match=r"shard-00001\.safetensors: is missing"):
        read_all(tmp_path, texts, small)


def _die_at(moment: int, folder: Path, texts, head) -> None:
    seen = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == moment:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    cache_files.save_file = counted(cache_files.save_file)
    os.fsync, os.replace, os.open = counted(os.fsync), counted(os.replace), counted(os.open)
    Path.write_text = counted(Path.write_text)
    write_small(folder, texts, head)
    os._exit(0)


def test_a_writer_killed_at_a_file_operation_goes_on_behind_its_last_whole_shard(tmp_path, texts, head):
    """At every fifth; at every one in `tests/trust/recovery/`."""
    step = 5
    texts = NextTokens(texts.texts[:16], None, Tokens())
    head = replace(head, weights={})
    write_small(tmp_path / "whole", texts, head)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    start = multiprocessing.get_context("fork")
    moment, code = 0, 9
    while code == 9:
        moment += step
        folder = tmp_path / str(moment)
        process = start.Process(target=_die_at, args=(moment, folder, texts, head))
        process.start()
        process.join()
        code = process.exitcode
        kept = cache_files.read_manifest(folder) if folder.exists() else None
        done = sum(shard.examples for shard in kept.shards) if kept else 0
        formula = Formula()
        write_cache(folder, head, texts, formula, CacheSpec("top_k", 4), shard_bytes=2_000)
        assert formula.calls == len(texts) - done
        found = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".writing")}
        assert found == whole
    assert code == 0
    assert moment > 20


def test_a_writer_asked_to_stop_keeps_what_it_has(tmp_path, texts, head):
    class Asked(Exception):
        """What this test's signal handler raises."""

    class Asking(Formula):
        def __call__(self, batch) -> Prediction:
            if self.calls == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(batch)

    def ask(number, frame):
        raise Asked

    before = signal.signal(signal.SIGTERM, ask)
    try:
        with pytest.raises(Asked):
            write_cache(tmp_path, head, texts, Asking(), CacheSpec())
        assert signal.getsignal(signal.SIGTERM) is ask
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [shard.examples for shard in cache_files.read_manifest(tmp_path).shards] == [7]
    formula = Formula()
    write_cache(tmp_path, head, texts, formula, CacheSpec())
    assert formula.calls == len(texts) - 7
    cached = CachedTeacher.open(tmp_path, head)
    for batch in batches(texts):
        assert torch.equal(cached(batch).logits_NC, EachAlone(Formula())(batch).logits_NC)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weight", r"another weights of model\.layers\.0\.mlp\.down_proj\.weight \("),
        ("vocabulary", r"another vocabulary \("),
        ("template", r"another template \(old in the cache, new here\)"),
        ("dtype", r"another dtype \(float32 in the cache, bfloat16 here\)"),
        ("labels", r"another labels"),
        ("max_length", r"another max length \(32 in the cache, 64 here\)"),
    ],
)
def test_another_teacher_is_refused_in_one_line(tmp_path, llama, texts, what, message):
    write_small(tmp_path, texts, header(llama, template="old"))
    other = Teacher(copy.deepcopy(llama.model), copy.deepcopy(llama.tokenizer))
    changed = {"template": "old"}
    if what == "weight":
        other.model.model.layers[0].mlp.down_proj.weight.view(-1)[5].add_(1e-6)
    elif what == "vocabulary":
        other.tokenizer.add_tokens(["newly"])
    elif what == "template":
        changed["template"] = "new"
    elif what == "labels":
        changed["labels"] = ("yes", "no")
    elif what == "max_length":
        changed["max_length"] = 64
    now = header(other, **changed)
    if what == "dtype":
        now = replace(now, dtype="bfloat16")
    for use in (lambda: CachedTeacher.open(tmp_path, now), lambda: write_small(tmp_path, texts, now)):
        with pytest.raises(CheckpointError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_one_other_token_or_counted_position_is_refused(tmp_path, llama, texts, head):
    write_small(tmp_path, texts, head)
    cached = CachedTeacher.open(tmp_path, head)
    batch = texts.batch([3, 5])
    token = {**batch.inputs, "input_ids": batch.inputs["input_ids"].clone()}
    token["input_ids"][1, 0] += 1
    rows_BT = batch.rows_BT.clone()
    rows_BT[1, 0] ^= True
    for other in (replace(batch, inputs=token), replace(batch, rows_BT=rows_BT)):
        with pytest.raises(CheckpointError, match="not asked about example 5"):
            cached(other)


def test_what_is_there_already_is_not_asked_again(tmp_path, texts, head):
    write_small(tmp_path, texts, head)
    formula = Formula()
    again = write_cache(tmp_path, head, texts, formula, CacheSpec("top_k", 4))
    assert (formula.calls, again.computed) == (0, 0)
    with pytest.raises(CheckpointError, match="choose another folder"):
        write_small(tmp_path, texts, head, CacheSpec("top_k", 5))


def _worker(folder: Path, texts, head, index: list[int], queue) -> None:
    queue.put((index, CachedTeacher.open(folder, head)(texts.batch(index)).sparse.probability.tolist()))


def test_two_processes_read_one_cache(tmp_path, texts, head):
    write_small(tmp_path, texts, head)
    start = multiprocessing.get_context("fork")
    queue = start.Queue()
    shares = ([9, 2, 4], [1, 9, 28])
    workers = [start.Process(target=_worker, args=(tmp_path, texts, head, s, queue)) for s in shares]
    for worker in workers:
        worker.start()
    for _ in workers:
        index, read = queue.get(timeout=60)
        live = most_likely(Formula()(texts.batch(index)).logits_NC, kept=4).probability
        assert torch.equal(torch.tensor(read), live)
    for worker in workers:
        worker.join()


@pytest.mark.parametrize("spec", [CacheSpec(), CacheSpec("top_k", 32), CacheSpec("sampled", 50)])
def test_the_estimate_is_the_size(tmp_path, texts, head, spec):
    summary = write_cache(tmp_path, head, texts, Formula(5000), spec)
    assert summary.bytes == pytest.approx(estimated_bytes(spec, texts, classes=5000), rel=0.05)


def _own_memory() -> int:
    """Bytes of this process that are no mapped file."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_cache(tmp_path, llama, head):
    data = NextTokens([[i + 2, *range(2, 40)] for i in range(60)], None, llama.tokenizer)
    before = _own_memory()
    summary = write_cache(tmp_path, head, data, Formula(10_000), CacheSpec(), shard_bytes=4 * 2**20)
    read_all(tmp_path, data, head)
    assert summary.bytes > 80 * 2**20
    assert _own_memory() - before < 40 * 2**20


def test_a_full_disk_is_one_line_and_is_gone_on_from(tmp_path, texts, head, monkeypatch):
    with monkeypatch.context() as patch:

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(cache_files, "save_file", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*run again") as caught:
            write_small(tmp_path, texts, head)
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]
    write_small(tmp_path, texts, head)
    read_all(tmp_path, texts, head)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
        with pytest.raises(CheckpointError, match="the disk has"):
            write_small(tmp_path / "new", texts, head)


def test_the_manifest_is_json_that_a_person_can_read(tmp_path, texts, head):
    write_small(tmp_path, texts, head)
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["spec"]["kept"] == "top_k"
    assert body["classes"] == CLASSES
    assert isinstance(CachedTeacher.open(tmp_path, head)(texts.batch([0])).sparse, SparseTeacher)


@pytest.fixture(scope="module")
def t5(tiny_llama: Path) -> Teacher:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return Teacher(T5ForConditionalGeneration(config), load_tokenizer(find_model(str(tiny_llama))))


def test_rows_of_targets_are_bitwise_the_live_encoder_decoders(tmp_path, t5):
    draw = random.Random(3)

    def ids(longest: int) -> list[int]:
        return [draw.randrange(2, 300) for _ in range(draw.randrange(1, longest))]

    data = TargetTokens([ids(12) for _ in range(20)], [ids(6) for _ in range(20)], t5.tokenizer, start=0)
    head = header(t5)
    summary = write_cache(tmp_path, head, data, t5, CacheSpec())
    assert summary.rows == data.rows_of(range(20))
    cached, live = CachedTeacher.open(tmp_path, head), EachAlone(t5)
    for batch in batches(data):
        assert torch.equal(cached(batch).logits_NC, live(batch).logits_NC)
        torch.testing.assert_close(cached(batch).logits_NC, t5(batch).logits_NC, atol=1e-5, rtol=1e-5)
    # The same target of another source is another example.
    other = TargetTokens(data.sources[1:], data.targets[:-1], t5.tokenizer, start=0)
    with pytest.raises(MismatchError, match="not asked about example 4"):
        cached(other.batch([4]))


def _as_nobody(folder: Path, texts, head, queue) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    formula = Formula()
    summary = write_cache(folder / "whole", head, texts, formula, CacheSpec("top_k", 4))
    read_all(folder / "whole", texts, head)
    more = NextTokens([*texts.texts, [7, 8, 9]], None, Tokens())
    messages = []
    for name, data in (("whole", more), ("none", texts)):
        try:
            write_cache(folder / name, head, data, formula, CacheSpec("top_k", 4))
        except CheckpointError as error:
            messages.append(str(error))
    queue.put((formula.calls, summary.computed, messages))


def test_a_folder_that_cannot_be_written_can_be_read(texts, head):
    texts = NextTokens(texts.texts[:6], None, Tokens())
    folder = Path(tempfile.mkdtemp())
    try:
        write_small(folder / "whole", texts, head)
        for path in (folder / "whole", folder):
            path.chmod(0o555)
        start = multiprocessing.get_context("fork")
        queue = start.Queue()
        process = start.Process(target=_as_nobody, args=(folder, texts, head, queue))
        process.start()
        calls, computed, messages = queue.get(timeout=60)
        process.join()
    finally:
        for path in (folder, folder / "whole"):
            path.chmod(0o755)
        shutil.rmtree(folder)
    assert (calls, computed) == (1, 0)
    assert len(messages) == 2
    for message in messages:
        assert "cannot be written" in message
        assert "\n" not in message


def _writes(folder: Path, texts, head, queue) -> None:
    queue.put(write_cache(folder, head, texts, Formula(), CacheSpec("top_k", 4), shard_bytes=2_000).computed)


def test_two_writers_take_turns_and_ask_once(tmp_path, texts, head):
    start = multiprocessing.get_context("fork")
    queue = start.Queue()
    workers = [start.Process(target=_writes, args=(tmp_path, texts, head, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(queue.get(timeout=60) for _ in workers) == [0, len(texts)]
    for worker in workers:
        worker.join()
    read_all(tmp_path, texts, head)
