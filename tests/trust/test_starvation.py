"""A machine with too little: the run says so in one line, leaves nothing half-done, and goes on once there is more.

Disk space and the size of files, memory, and what 20,000 steps may leave behind.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import operator
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.trust


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A BERT of 2 layers and 8 dimensions: 1 MB of weights."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=30522,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Everything that a run writes, in seconds: three fits of four steps, with a checkpoint after each step."""
    from distill.losses import ForwardKL, Labels
    from distill.recipe import (
        DataRecipe,
        FromTeacher,
        Recipe,
        StudentRecipe,
        TeacherRecipe,
        TrainRecipe,
        write_recipe,
    )

    train = TrainRecipe(max_steps=4, save_steps=1, logging_steps=1, per_device_train_batch_size=8)
    wanted = Recipe(
        name="starved",
        data=DataRecipe(
            source="demo", tasks=("rte",), max_length=32, train_examples=24, validation_examples=12
        ),
        teacher=TeacherRecipe(model=str(tiny_teacher), train=train),
        student=StudentRecipe(from_teacher=FromTeacher(layers=1)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=train,
    )
    file = tmp_path_factory.mktemp("recipe") / "starved.yaml"
    file.write_text(write_recipe(wanted))
    return file


@pytest.fixture
def distill(
    distill: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., tuple[int, list[str]]]:
    """The command line: its exit code and its complaints."""

    def call(*arguments: str) -> tuple[int, list[str]]:
        done = distill(*arguments)
        return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("distill: ")]

    return call


@pytest.fixture(scope="module")
def straight(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run with room enough ends with."""
    from distill.recipe import read_recipe
    from distill.runs import run

    folder = tmp_path_factory.mktemp("straight")
    run(replace(read_recipe(recipe_file), cache=str(folder / "shared")), folder / "run")
    return results(folder / "run")


def results(folder: Path) -> dict[str, str]:
    """Digests of all weights and answers, and of the figures but for times and places."""
    files = [*folder.glob("*/rte/model.safetensors"), *folder.glob("predictions/*.jsonl")]
    found = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        found[f"{figures['fit']} {figures['step']}"] = str(figures.get("loss"))
    assert len(files) == 5
    return found


def check_no_damage(root: Path) -> None:
    """Nothing half-written anywhere, and every checkpoint there is whole."""
    assert not [path for path in root.rglob("*") if ".writing" in path.name or path.suffix == ".tmp"]
    for manifest in root.glob("run/checkpoints/*/step-*/manifest.json"):
        for name, digest in json.loads(manifest.read_text())["files"].items():
            assert hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() == digest
    for checkpoint in root.glob("run/checkpoints/*/step-*"):
        assert (checkpoint / "manifest.json").is_file()


def starve(
    distill: Callable[..., tuple[int, list[str]]], recipe_file: Path, root: Path, reason: str
) -> str | None:
    """Run until the disk refuses; the path that it refused, or None when the run came to its end."""
    code, complaints = distill(
        "run", str(recipe_file), "--out", str(root / "run"), "--set", f"cache={root / 'shared'}"
    )
    check_no_damage(root)
    if code == 0:
        assert complaints == []
        return None
    assert code == 1
    (line,) = complaints
    found = re.match(
        rf"distill: (?:checkpoint |cache )?({re.escape(str(root))}\S*): cannot be written \({reason}\); \w+ .*",
        line,
    )
    assert found, line
    return found[1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a file system of its own is mounted; its size grows with `grow`."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"this machine mounts no file system: {tried.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def grow(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True, capture_output=True)


def test_a_run_on_a_disk_that_is_full_again_and_again_ends_with_the_same_bits(
    distill, recipe_file, straight, disk
):
    refused = []
    for kilobytes in (16, 60, 300, *range(1_000, 40_000, 1_100)):
        grow(disk, kilobytes)
        path = starve(distill, recipe_file, disk, "No space left on device")
        if path is None:
            break
        refused.append(Path(path).relative_to(disk).as_posix())
    assert results(disk / "run") == straight
    assert len(refused) >= 8, refused
    assert any(path.startswith("run/checkpoints/") for path in refused), refused


def test_a_run_whose_files_are_cut_short_ends_with_the_same_bits(distill, recipe_file, straight, tmp_path):
    resource = pytest.importorskip("resource", reason="this platform limits no files")
    refused = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (40, 400, 1_500, 20_000, 400_000, 960_000, 990_000, 1_200_000, before[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            refused.append(starve(distill, recipe_file, tmp_path, "File too large"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused[-1] is None
    assert sum(path is not None for path in refused) >= 6, refused
    assert results(tmp_path / "run") == straight


@pytest.mark.parametrize(
    ("call", "error", "reason", "path"),
    [
        (
            "transformers.PreTrainedTokenizerBase.save_pretrained",
            Exception("No space left on device (os error 28)"),
            "No space left on device",
            "student/rte",
        ),
        (
            "matplotlib.figure.Figure.savefig",
            OSError(errno.EDQUOT, "?"),
            "Disk quota exceeded",
            "compression.png",
        ),
    ],
    ids=["export", "report"],
)
def test_a_student_or_report_that_does_not_fit_is_written_later(
    distill, recipe_file, straight, tmp_path, monkeypatch, call, error, reason, path
):
    module, _, name = call.partition(".")
    real = operator.attrgetter(name)(importlib.import_module(module))
    tried = []

    def full(writer, target, **options):
        place = str(target).replace(".writing-", "").removesuffix("/.writing")
        if not place.endswith(path):  # the teacher's folder is written before
            return real(writer, target, **options)
        tried.append(target)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        assert starve(distill, recipe_file, tmp_path, reason) == str(tmp_path / "run" / path)
    assert len(tried) == 1
    assert not (tmp_path / "run" / path).is_file()
    assert not list((tmp_path / "run" / path).glob("*"))
    assert starve(distill, recipe_file, tmp_path, "") is None
    assert (tmp_path / "run" / path).exists()
    assert results(tmp_path / "run") == straight


def test_a_finished_run_on_a_disk_that_can_only_be_read(distill, recipe_file, straight, disk):
    grow(disk, 60_000)
    assert starve(distill, recipe_file, disk, "") is None
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
    code, (line,) = distill("report", str(disk / "run"))
    assert (code, line) == (
        1,
        f"distill: {disk / 'run' / 'compression.png'}: cannot be written (Read-only file system); choose a folder that "
        "can be written",
    )
    assert starve(distill, recipe_file, disk, "Read-only file system") == str(disk / "run")
    assert results(disk / "run") == straight


SHORT_OF_MEMORY = """
    import json, re, resource, sys
    from pathlib import Path

    import torch

    torch.set_num_threads(1)
    from distill.engine import Engine
    from distill.losses import ForwardKL, Labels
    from distill.models import Features, RememberedTeacher, Student
    from distill.recipe import TrainRecipe

    folder, room = sys.argv[1], int(sys.argv[2])
    student = Student.from_teacher(folder, layers=2, kind="classification", labels=("no", "yes"), seed=0)
    rows = [
        [{"input_ids": [101, *[2000 + (i * at) % 7 for at in range(60)], 102], "attention_mask": [1] * 62}]
        for i in range(8192)
    ]
    data = Features(rows, [i % 2 for i in range(8192)], student.tokenizer)
    torch.manual_seed(1)
    teacher = RememberedTeacher(torch.randn(8192, 2))
    lines, said = [], []

    def engine(**changes):
        train = TrainRecipe(learning_rate=1e-3, dropout=0.0, logging_steps=1, max_steps=3, **changes)
        made = Engine(student, Labels() + ForwardKL(), data, train, teacher=teacher, log=lines.append)
        made.progress.say = said.append
        return made

    trained = engine(per_device_train_batch_size=4096)
    if room:
        # What is only made once is made before memory gets short.
        warm = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
        engine(per_device_train_batch_size=2).step([0, 1])
        student.model.load_state_dict(warm)
        size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
    trained.run()
    print(json.dumps({"losses": [line["loss"] for line in lines], "said": said, "held": trained.plan.held}))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux limits a process's memory in this way"
)
def test_the_system_refuses_memory_and_the_losses_stay_the_same(tiny_teacher, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(SHORT_OF_MEMORY))

    def trained(room: int) -> dict:
        ended = subprocess.run(
            [sys.executable, str(file), str(tiny_teacher), str(room)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    enough, short = trained(0), trained(150_000_000)
    assert enough["said"] == []
    assert len(short["said"]) >= 1, short
    assert all("step 1: out of memory with" in line for line in short["said"]), short["said"]
    assert "can't allocate memory: you tried to allocate" in short["said"][0]
    assert short["held"] == 4096 >> len(short["said"])
    assert short["losses"] == pytest.approx(enough["losses"], rel=1e-6)


ONE_PROCESS_OF_TWO = """
    import sys

    import torch
    from distill.engine import Engine
    from distill.errors import ResourceError
    from distill.losses import Labels
    from distill.models import Features, Student
    from distill.recipe import TrainRecipe

    class Starved(Engine):
        def _parts(self, work, micro):
            if self.step_number == 2 and self.accelerator.process_index == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super()._parts(work, micro)

    student = Student.from_teacher(sys.argv[1], layers=1, kind="classification", labels=("no", "yes"), seed=0)
    rows = [[{"input_ids": [101, 2000 + i, 102], "attention_mask": [1] * 3}] for i in range(32)]
    data = Features(rows, [i % 2 for i in range(32)], student.tokenizer)
    engine = Starved(student, Labels(), data, TrainRecipe(per_device_train_batch_size=4, max_steps=4))
    try:
        engine.run()
    except ResourceError as error:
        print(error, flush=True)
        sys.exit(1)
"""


def test_a_process_among_others_that_runs_out_of_memory_ends_the_run(tiny_teacher, tmp_path):
    """Nobody waits for gradients that will not come."""
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(ONE_PROCESS_OF_TWO))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(2):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, "-P", str(file), str(tiny_teacher)]
        running.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        said, errors = running[1].communicate(timeout=200)
        running[0].communicate(timeout=60)
    finally:
        for process in running:
            process.kill()
    assert running[1].returncode == 1, errors
    assert running[0].returncode != 0
    assert said == (
        "training: step 3: out of memory with 4 examples a forward pass (CUDA out of memory) in process 1 of 2; halve "
        "train.per_device_train_batch_size and double train.gradient_accumulation_steps: the gradient stays the same\n"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_twenty_thousand_steps_leave_nothing_behind(minilm_folder, tmp_path):
    import torch
    from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    from distill.engine import Engine
    from distill.losses import ForwardKL, Labels
    from distill.models import Features, RememberedTeacher, Student
    from distill.recipe import TrainRecipe
    from distill.runs.metrics_log import MetricsLog

    class Bag(PreTrainedModel):
        """A mean of embeddings and one layer: what is to be measured is the engine."""

        config_class = PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.table = torch.nn.Embedding(2048, 4)
            self.classifier = torch.nn.Linear(4, 2)
            self.post_init()

        def forward(self, input_ids, attention_mask):
            return SequenceClassifierOutput(logits=self.classifier(self.table(input_ids).mean(1)))

    steps, warm = 20_000, 2_000
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    rows = [[{"input_ids": [101, 2000 + i % 7, 102], "attention_mask": [1] * 3}] for i in range(64)]
    data = Features(rows, [i % 2 for i in range(64)], tokenizer)
    student = Student(Bag(PretrainedConfig()), tokenizer, {})
    seen: dict[int, tuple[int, int, int]] = {}
    log = MetricsLog(tmp_path / "metrics.jsonl", "student")

    def logged(figures: dict) -> None:
        log(figures)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
        seen[figures["step"]] = (pages * os.sysconf("SC_PAGE_SIZE"), files, threads)

    train = TrainRecipe(
        max_steps=steps, save_steps=500, logging_steps=50, eval_steps=1000, per_device_train_batch_size=2
    )
    Engine(
        student,
        Labels() + ForwardKL(),
        data,
        train,
        teacher=RememberedTeacher(torch.randn(64, 2)),
        checkpoints=tmp_path / "checkpoints",
        owner="student",
        evaluate=lambda: {"validation/x": 0.0},
        log=logged,
    ).run()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == steps // 50 + steps // 1000
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    memory, files, threads = zip(*(seen[step] for step in seen if step >= warm), strict=True)
    assert max(memory) - memory[0] < 20e6, f"{(max(memory) - memory[0]) / 1e6:.1f} MB more"
    assert len(set(files)) == 1, sorted(set(files))
    assert len(set(threads)) == 1, sorted(set(threads))
