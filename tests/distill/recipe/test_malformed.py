"""Malformed recipes: one line a mistake, with the exact position, at once, and never another exception."""

import re
import time
from pathlib import Path

import pytest

from distill.errors import RecipeError
from distill.recipe import read_recipe

GOOD = """\
name: good
teacher:
  model: org/teacher-{task}
student:
  from_teacher:
    layers: 2
loss:
  - kind: labels
    weight: 0.5
  - kind: forward_kl
    temperature: 2.0
"""


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def added(text: str) -> str:
    return GOOD + text


# (what it is, the file, the expected lines: "line:column: start of the message")
MALFORMED: list[tuple[str, str | bytes, list[str]]] = [
    # the file itself
    ("empty file", "", ["1:1: is empty"]),
    ("only comments", "# nothing\n\n", ["1:1: is empty"]),
    ("a list", "- a\n- b\n", ["1:1: a recipe is a mapping of keys to values, found a list"]),
    ("a word", "hello\n", ["1:1: a recipe is a mapping of keys to values, found a single value"]),
    ("null", "~\n", ["1:1: a recipe is a mapping"]),
    (
        "not UTF-8",
        GOOD.encode() + b"description: caf\xe9\n",
        ["12:17: is not UTF-8 text, found the byte 0xe9"],
    ),
    ("UTF-16", GOOD.encode("utf-16"), ["1:1: is not UTF-8 text, found the byte 0xff"]),
    ("a NUL", added("output: a\0b\n"), ["12:10: has the control character U+0000"]),
    ("an escape character", added("description: \x1b[31mred\n"), ["12:14: has the control character U+001B"]),
    ("an escaped NUL", added('output: "a\\0b"\n'), ["12:9: has the control character U+0000 in a value"]),
    ("an escaped surrogate", added('description: "\\ud800"\n'), ["12:14: has the control character U+D800"]),
    ("10 MB", b"a" * 10_000_000, ["1:1: is larger than 256 kB"]),
    ("flow depth 10,000", "name: " + "[" * 10_000, ["1:39: is more than 32 levels deep"]),
    ("closed flow depth 40", "name: " + "[" * 40 + "]" * 40, ["1:39: is more than 32 levels deep"]),
    (
        "block depth 10,000",
        "".join(" " * depth + "a:\n" for depth in range(400)),
        ["32:32: is more than 32 levels deep"],
    ),
    ("50,000 lines", "a: 1\n" * 50_000, ["10000:1: has more than 10,000 lines"]),
    ("9,000 values", "a: [" + "1, " * 9_000 + "1]", ["1:14996: has more than 5,000 values"]),
    # YAML that is refused
    ("a Python tag", added("output: !!python/object/apply:os.system [id]\n"), ["12:9: has the tag"]),
    ("a plain tag", changed("name: good", "name: !!str good"), ["1:7: has the tag"]),
    ("an anchor", changed("name: good", "name: &a good"), ["1:7: has the anchor &a"]),
    (
        "an alias",
        added("seeds: &a [1]\ncache: *a\n"),
        ["12:8: has the anchor &a", "13:8: has the alias *a"],
    ),
    (
        "a billion laughs",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        [
            "1:1: loss: is missing",
            "1:1: name: is missing",
            "1:1: student: is missing",
            "1:1: teacher: is missing",
            "1:4: has the anchor &a",
            "2:4: has the anchor &b",
            "2:8: has the alias *a",
            "2:12: has the alias *a",
            "3:1: c: is not a key here",
            "3:5: has the alias *b",
            "3:9: has the alias *b",
        ],
    ),
    (
        "a merge key",
        changed("    layers: 2", "    <<: {layers: 2}\n    layers: 2"),
        ["6:5: student.from_teacher.<<: is not"],
    ),
    ("two documents", added("---\nname: other\n"), ["12:1: starts a second document"]),
    ("a directive", "%YAML 1.1\n---\n" + GOOD, ["1:1: starts with a YAML directive"]),
    ("a duplicate key", added("name: again\n"), ["12:1: name: stands there twice, first in line 1"]),
    (
        "a duplicate key inside",
        changed("    layers: 2", "    layers: 2\n    layers: 3"),
        ["7:5: layers: stands there twice, first in line 6"],
    ),
    ("a list as a key", added("? [a, b]\n: 1\n"), ["12:3: has a list, mapping or alias for a key"]),
    ("a tab", changed("  model", "\tmodel"), ["3:1: has a tab where spaces are wanted"]),
    (
        "an open quote",
        changed("name: good", "name: 'good"),
        ["1:7: has a quote or bracket that is never closed"],
    ),
    ("an open bracket", added("seeds: [1, 2\n"), ["12:8: has a list [...] that is never closed"]),
    ("an open brace", added("data: {seed: 1\n"), ["12:7: has a mapping {...} that is never closed"]),
    (
        "a missing comma",
        added("seeds: [1 2, [3] 4]\n"),
        ["12:18: has a list [...] that is never closed, or lacks a comma"],
    ),
    ("two colons", changed("name: good", "name: good: better"), ["1:11: has a second ': ' in one line"]),
    (
        "wrong indentation",
        changed("  - kind: forward_kl", " - kind: forward_kl"),
        ["10:2: is indented unlike"],
    ),
    (
        "a key without a colon",
        changed("good\nteacher:\n", "good\nteacher\n"),
        ["3:8: has a key without ': '"],
    ),
    ("an unknown escape", added('description: "\\q"\n'), ["12:16: has an unknown escape"]),
    # keys
    ("a typo", added("trian: {}\n"), ["12:1: trian: is not a key here; did you mean train?"]),
    (
        "a nested typo",
        added("train:\n  learning_rat: 1e-4\n"),
        ["13:3: train.learning_rat: is not a key here; did you mean learning_rate?"],
    ),
    (
        "nothing like any key",
        changed("    layers: 2", "    layers: 2\n    zzz: 1"),
        [
            "7:5: student.from_teacher.zzz: is not a key here; the keys are layers, decoder_layers, choose, dropped, target_parameters, weights, vocabulary, hidden, heads, intermediate, keep"
        ],
    ),
    ("an empty key", added(": 1\n"), ["12:1: has a ':' without a key before it"]),
    ("a number as a key", added("1: 1\n"), ["12:1: 1: is not a key here"]),
    (
        "three missing keys",
        "name: a\n",
        ["1:1: loss: is missing", "1:1: student: is missing", "1:1: teacher: is missing"],
    ),
    (
        "a missing nested key",
        changed("  model: org/teacher-{task}", "  revision: main"),
        ["2:1: teacher: must have one of model, config and members"],
    ),
    # types
    (
        "text for a number",
        added("train: {learning_rate: fast}\n"),
        ["12:9: train.learning_rate: must be a number, found the text 'fast'"],
    ),
    (
        "a quoted number",
        added("train: {learning_rate: '1e-4'}\n"),
        ["12:9: train.learning_rate: must be a number, found the text '1e-4'"],
    ),
    (
        "true for a number",
        added("train: {weight_decay: true}\n"),
        ["12:9: train.weight_decay: must be a number, found true"],
    ),
    (
        "true for a whole number",
        added("data: {max_length: true}\n"),
        ["12:8: data.max_length: must be a whole number, found true"],
    ),
    (
        "yes for true",
        added("baseline: yes\n"),
        ["12:1: baseline: must be true or false, found the text 'yes'; write true"],
    ),
    (
        "Off for false",
        added("baseline: Off\n"),
        ["12:1: baseline: must be true or false, found the text 'Off'; write false"],
    ),
    ("1 for true", added("baseline: 1\n"), ["12:1: baseline: must be true or false, found 1"]),
    (
        "a fraction for a whole number",
        added("train: {save_steps: 1.5}\n"),
        ["12:9: train.save_steps: must be a whole number, found 1.5"],
    ),
    (
        "a sexagesimal",
        added("train: {save_steps: 1:30}\n"),
        ["12:9: train.save_steps: must be a whole number, found the text '1:30'"],
    ),
    (
        "an octal",
        added("train: {save_steps: 010}\n"),
        ["12:9: train.save_steps: must be a whole number, found the text '010'"],
    ),
    (
        "a NaN",
        added("train: {learning_rate: .nan}\n"),
        ["12:9: train.learning_rate: must be a number, found the text '.nan'"],
    ),
    ("an infinity", added("train: {learning_rate: 1e999}\n"), ["12:24: has the number '1e999', too large"]),
    (
        "5,000 digits",
        added("data: {seed: " + "9" * 5_000 + "}\n"),
        ["12:14: has a whole number of 5000 digits"],
    ),
    (
        "a number for text",
        changed("name: good", "name: 12"),
        ["1:1: name: must be text, found 12; put it in quotes"],
    ),
    ("null for text", changed("name: good", "name:"), ["1:1: name: must be text, found nothing (null)"]),
    (
        "a word for a mapping",
        added("data: demo\n"),
        ["12:1: data: must be a mapping of keys to values, found the text 'demo'"],
    ),
    ("a number for a list", added("seeds: 0\n"), ["12:1: seeds: must be a list, found 0; write [...]"]),
    (
        "a word for the losses",
        GOOD[: GOOD.index("loss:")] + "loss: forward_kl\n",
        ["7:1: loss: must be a list"],
    ),
    (
        "a word among layers",
        changed("layers: 2", "layers: [0, two]"),
        ["6:17: student.from_teacher.layers.1: must be a whole number, found the text 'two'"],
    ),
    (
        "a word for layers",
        changed("layers: 2", "layers: two"),
        ["6:5: student.from_teacher.layers: must be a whole number or a list, found the text 'two'"],
    ),
    # ranges
    (
        "a rate of 2",
        added("train: {learning_rate: 2}\n"),
        ["12:9: train.learning_rate: must be at most 1, found 2"],
    ),
    (
        "a rate of 0",
        added("train: {learning_rate: 0}\n"),
        ["12:9: train.learning_rate: must be above 0, found 0"],
    ),
    (
        "max_length 7",
        added("data: {max_length: 7}\n"),
        ["12:8: data.max_length: must be at least 8, found 7"],
    ),
    (
        "max_length 8193",
        added("data: {max_length: 8193}\n"),
        ["12:8: data.max_length: must be at most 8192, found 8193"],
    ),
    (
        "no layers",
        changed("layers: 2", "layers: 0"),
        ["6:5: student.from_teacher.layers: must be at least 1, found 0"],
    ),
    (
        "an empty list of layers",
        changed("layers: 2", "layers: []"),
        ["6:5: student.from_teacher.layers: must be given something"],
    ),
    (
        "layers out of order",
        changed("layers: 2", "layers: [0, 5, 3]"),
        ["6:20: student.from_teacher.layers.2: must be above the layer before it (5), found 3"],
    ),
    (
        "a vocabulary of one's own",
        changed("    layers: 2", "    layers: 2\n    vocabulary: corpse"),
        [
            "7:5: student.from_teacher.vocabulary: must be 'teacher' or 'corpus' or a mapping of keys to values, found the "
            "text 'corpse'; did you mean corpus?"
        ],
    ),
    *(
        (
            f"a vocabulary that is {vocabulary}",
            changed("    layers: 2", f"    layers: 2\n    vocabulary: {{{vocabulary}}}"),
            [f"7:{column}: student.from_teacher.vocabulary{line}"],
        )
        for vocabulary, column, line in (
            ("", 5, ": needs exactly one of at_least (keep tokens) and train (make new ones)"),
            ("at_least: 8000, train: 900", 5, ": needs exactly one of at_least (keep tokens) and train"),
            ("at_least: 8000, texts: a.txt", 34, ".texts: is only for a new tokenizer; give train"),
            ("trian: 8000", 18, ".trian: is not a key here; did you mean train?"),
            ("train: 20", 18, ".train: must be at least 100, found 20"),
            (
                "train: 900, texts: no/a.txt",
                30,
                ".texts: must be a text file or a folder of .txt files, found",
            ),
        )
    ),
    (
        "no width",
        changed("    layers: 2", "    layers: 2\n    hidden: 0"),
        ["7:5: student.from_teacher.hidden: must be at least 1, found 0"],
    ),
    (
        "the first of everything",
        changed("    layers: 2", "    layers: 2\n    keep: first"),
        [
            "7:5: student.from_teacher.keep: is only for a narrower student; give hidden, heads or intermediate"
        ],
    ),
    (
        "a choice of listed layers",
        changed("layers: 2", "layers: [0, 2]\n    choose: linearity"),
        ["7:5: student.from_teacher.choose: is for a number of layers; give layers: N"],
    ),
    (
        "a stand-in for nothing",
        changed("layers: 2", "dropped: linear"),
        ["6:5: student.from_teacher.dropped: is for a student with fewer layers; give layers"],
    ),
    (
        "an amount in words",
        changed("layers: 2", "target_parameters: ten million"),
        ["6:5: student.from_teacher.target_parameters: must be an amount such as 10M, 0.5B or 300k, found"],
    ),
    (
        "a target with nothing to find",
        changed("layers: 2", "layers: 2\n    hidden: 4\n    intermediate: 8\n    target_parameters: 10M"),
        ["9:5: student.from_teacher.target_parameters: leaves nothing to find beside layers"],
    ),
    ("a negative seed", added("seeds: [-1]\n"), ["12:9: seeds.0: must be at least 0, found -1"]),
    ("no seeds", added("seeds: []\n"), ["12:1: seeds: must be given something"]),
    ("a seed twice", added("seeds: [1, 2, 1]\n"), ["12:15: seeds.2: 1 stands there twice"]),
    ("no tasks", added("data: {tasks: []}\n"), ["12:8: data.tasks: must be given something"]),
    ("a task twice", added("data: {tasks: [rte, rte]}\n"), ["12:21: data.tasks.1: 'rte' stands there twice"]),
    (
        "an unknown task",
        added("data: {tasks: [RTEE]}\n"),
        [
            "12:16: data.tasks.0: must be one of boolq, cb, copa, multirc, record, rte, wic, wsc, terra, text, found the text 'RTEE'; did you mean rte?"
        ],
    ),
    ("no losses", GOOD[: GOOD.index("loss:")] + "loss: []\n", ["7:1: loss: must be given something"]),
    (
        "a name with a slash",
        changed("name: good", "name: ../good"),
        ["1:1: name: must be a name of at most 100"],
    ),
    ("a home folder", added("cache: ~/cache\n"), ["12:1: cache: must be a path"]),
    (
        "a share above 1",
        added("train: {warmup_steps: 1.5}\n"),
        ["12:9: train.warmup_steps: must be a share below 1 or a whole number of steps, found 1.5"],
    ),
    (
        "a warm-up longer than the run",
        added("train: {max_steps: 10, warmup_steps: 20}\n"),
        ["12:24: train.warmup_steps: must not be longer than max_steps (10), found 20"],
    ),
    # losses
    (
        "an unknown kind",
        changed("kind: labels", "kind: lables"),
        ["8:5: loss.0.kind: must be one of labels, "],
    ),
    ("no kind", changed("kind: labels\n    weight", "weight"), ["8:5: loss.0.kind: is missing"]),
    (
        "a key of another loss",
        changed("weight: 0.5", "temperature: 2.0"),
        ["9:5: loss.0.temperature: is not a key here"],
    ),
    (
        "a typo in a loss",
        changed("temperature", "temprature"),
        ["11:5: loss.1.temprature: is not a key here; did you mean temperature?"],
    ),
    (
        "a loss that is a word",
        changed("- kind: labels\n    weight: 0.5", "- labels"),
        ["8:5: loss.0: must be a mapping"],
    ),
    (
        "true for a temperature",
        changed("2.0", "true"),
        ["11:5: loss.1.temperature: must be a number, found true"],
    ),
    ("a negative temperature", changed("2.0", "-2.0"), ["11:5: loss.1.temperature: must be"]),
    (
        "an unknown scale",
        added("    scale: squared\n"),
        ["12:5: loss.1.scale: must be a number or 'temperature_squared', found the text 'squared'"],
    ),
    (
        "a layer without its partner",
        added("  - {kind: pkd, layers: [[0, 1], [2]]}\n"),
        ["12:34: loss.2.layers.1.1: is missing"],
    ),
    (
        "layers that are no pairs",
        added("  - {kind: hidden_states, layers: [0]}\n"),
        ["12:36: loss.2.layers.0: must be a list, found 0"],
    ),
    (
        "relations of something else",
        added("  - {kind: relations, of: [query, quest]}\n"),
        ["12:35: loss.2.of.1: must be one of query, key, value, found the text 'quest'"],
    ),
    # fields that go together
    (
        "a folder without its path",
        added("data: {source: folder}\n"),
        ["12:1: data.path: is missing; source folder needs"],
    ),
    (
        "a path without its source",
        added("data: {path: x}\n"),
        ["12:8: data.path: is only for source folder and text, found source demo"],
    ),
    (
        "a revision without a hub",
        added("data: {revision: x}\n"),
        ["12:8: data.revision: is only for source hub"],
    ),
    (
        "no student",
        changed("  from_teacher:\n    layers: 2", "  {}"),
        ["4:1: student: must have one of from_teacher, model and config"],
    ),
    (
        "two students",
        changed("    layers: 2", "    layers: 2\n  model: org/student"),
        ["7:3: student.model: stands beside from_teacher"],
    ),
    (
        "a tokenizer without its student",
        changed("    layers: 2", "    layers: 2\n  tokenizer: org/student"),
        ["7:3: student.tokenizer: is only for a student given by config"],
    ),
    (
        "a config without a model type",
        changed("  from_teacher:\n    layers: 2", "  config: {hidden_size: 8}"),
        ["5:3: student.config: must have the model_type"],
    ),
    (
        "a nested config",
        changed("  from_teacher:\n    layers: 2", "  config: {model_type: bert, rope: {a: 1}}"),
        ["5:30: student.config.rope: must be text or a number or true or false, found a mapping"],
    ),
    ("a teacher nobody fine-tunes", changed("-{task}", ""), ["3:3: teacher.model: must hold {task}"]),
    (
        "a name in braces",
        changed("{task}", "{seed}"),
        ["3:3: teacher.model: may hold {task} and no other name"],
    ),
    (
        "a teacher fine-tuned twice",
        changed("{task}\n", "{task}\n  train: {}\n"),
        ["4:3: teacher.train: would train again"],
    ),
    # a student's own texts
    (
        "own texts of an encoder",
        added("train: {on_policy: {}}\n"),
        ["12:9: train.on_policy: is only for a decoder, which continues texts, found architecture encoder"],
    ),
    (
        "own texts that nobody judges",
        GOOD[: GOOD.index("  - kind: forward_kl")] + "architecture: decoder\ntrain: {on_policy: {}}\n",
        ["11:9: train.on_policy: needs a loss with a term that compares with the teacher"],
    ),
    (
        "a teacher's own texts",
        changed("-{task}\n", "\n  train: {on_policy: {}}\n"),
        ["4:11: teacher.train.on_policy: is only for a student, which has a teacher; leave it out"],
    ),
    (
        "own texts of one task",
        added("architecture: decoder\ntrain: {per_task: {cb: {on_policy: {}}}}\n"),
        ["13:25: train.per_task.cb.on_policy: is not a key here"],
    ),
    (
        "own texts out of range",
        added("architecture: decoder\ntrain: {on_policy: {fraction: 1.5, top_p: 0, max_tokens: 3}}\n"),
        [
            "13:21: train.on_policy.fraction: must be at most 1, found 1.5",
            "13:36: train.on_policy.top_p: must be above 0, found 0",
            "13:46: train.on_policy.max_tokens: is not a key here; did you mean max_new_tokens?",
        ],
    ),
    # one task's own training
    (
        "a task nobody knows",
        added("train: {per_task: {bc: {max_steps: 1}}}\n"),
        ["12:20: train.per_task.bc: is not a key here; the keys are boolq, cb"],
    ),
    (
        "a typo for one task",
        added("train: {per_task: {cb: {max_step: 1}}}\n"),
        ["12:25: train.per_task.cb.max_step: is not a key here; did you mean max_steps?"],
    ),
    (
        "a range for one task",
        added("train: {per_task: {cb: {max_steps: 0}}}\n"),
        ["12:25: train.per_task.cb.max_steps: must be at least 1"],
    ),
    (
        "per_task in per_task",
        added("train: {per_task: {cb: {per_task: {}}}}\n"),
        ["12:25: train.per_task.cb.per_task: is not a key here"],
    ),
    (
        "a warm-up too long for one task",
        added("train: {warmup_steps: 20, per_task: {cb: {max_steps: 10}}}\n"),
        ["12:38: train.per_task.cb.warmup_steps: must not be longer than max_steps (10), found 20"],
    ),
    # the whole recipe
    (
        "accumulation that cuts a batch-wise loss",
        added("  - kind: sinkhorn\ntrain: {gradient_accumulation_steps: 2}\n"),
        [
            "13:9: train.gradient_accumulation_steps: must be 1, found 2: loss.2 compares the rows of a whole batch"
        ],
    ),
    (
        "a batch that cuts a group",
        added("  - kind: sinkhorn\n    group_size: 5\n"),
        ["1:1: train.per_device_train_batch_size: must be a multiple of loss.2.group_size (5), found 16"],
    ),
    (
        "one task's batch that cuts a group",
        added(
            "  - kind: sinkhorn\n    group_size: 8\ntrain: {per_task: {cb: {per_device_train_batch_size: 4}}}\n"
        ),
        [
            "14:25: train.per_task.cb.per_device_train_batch_size: must be a multiple of loss.2.group_size (8), found 4"
        ],
    ),
    (
        "two batch-wise losses with different groups",
        added("  - {kind: sinkhorn, group_size: 8}\n  - {kind: sinkhorn, group_size: 4}\n"),
        ["13:22: loss.3.group_size: must equal that of loss.2 (8), found 4"],
    ),
    # this machine
    (
        "a folder that is not there",
        added("data: {source: folder, path: no/such}\n"),
        ["12:24: data.path: must be a folder, found nothing at 'no/such'"],
    ),
    (
        "a teacher's folder that is not there",
        changed("org/teacher-{task}", "./no/{task}"),
        ["3:3: teacher.model: must be a folder"] * 8,
    ),
    (
        "a package that is not installed",
        changed("  from_teacher:\n    layers: 2", "  model: package:no-such-package-here"),
        [
            "5:3: student.model: names a package that is not installed, found 'package:no-such-package-here'; type: pip install no-such-package-here"
        ],
    ),
    ("output elsewhere", added("output: /etc/x\n"), ["12:1: output: must stay in the working directory"]),
    ("output above", added("output: a/../../x\n"), ["12:1: output: must stay in the working directory"]),
    ("a cache elsewhere", added("cache: 'C:\\x'\n"), ["12:1: cache: must stay in the working directory"]),
    # several at once, across sections and across the file's own rules
    (
        "many mistakes",
        "name: a b\ndata: {source: foldr}\ndata: 3\nteacher:\n  model: org/x\nstudent:\n  from_teacher: {layers: -1}\n"
        "loss:\n  - kind: labels\n    wieght: 1\n",
        [
            "1:1: name: must be a name",
            "2:8: data.source: must be one of demo, folder, hub, text, found the text 'foldr'; did you mean folder?",
            "3:1: data: stands there twice",
            "7:18: student.from_teacher.layers: must be at least 1, found -1",
            "10:5: loss.0.wieght: is not a key here; did you mean weight?",
        ],
    ),
    (
        "whole-recipe checks beside a typo elsewhere",
        added("  - kind: sinkhorn\ntrain: {gradient_accumulation_steps: 2}\ndescripton: x\n"),
        [
            "13:9: train.gradient_accumulation_steps: must be 1",
            "14:1: descripton: is not a key here; did you mean description?",
        ],
    ),
]


def test_the_recipe_that_the_malformed_ones_start_from_is_good(tmp_path: Path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert read_recipe(path).name == "good"


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_a_malformed_recipe_costs_one_line_a_mistake(tmp_path: Path, text: str | bytes, expected: list[str]):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    seconds = time.process_time() - start
    problems = raised.value.problems
    assert len(problems) == len(expected), problems
    for problem, start_of_line in zip(problems, expected, strict=True):
        assert problem.startswith(f"{path}:{start_of_line}")
    assert str(raised.value).splitlines() == problems
    assert all(re.fullmatch(r"[ -~]{1,600}", problem) for problem in problems)
    assert seconds < 0.5


def test_pydantic_is_never_heard(tmp_path: Path):
    for name, text, _ in MALFORMED:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(RecipeError) as raised:
            read_recipe(path)
        for word in (
            "Input should",
            "pydantic",
            "Traceback",
            "instance of",
            "keyword argument",
            "union_tag",
            "different (",
        ):
            assert word not in str(raised.value).replace(str(path), ""), name


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "missing.yaml", "no such file; the recipes that come with distill are "),
        (lambda folder: folder, "cannot be read: Is a directory"),
        (lambda folder: folder / ("x" * 300), "cannot be read: File name too long"),
        (lambda folder: str(folder / "a\0b"), "cannot be read: "),
    ],
    ids=["missing", "a folder", "too long a name", "a NUL in the name"],
)
def test_a_file_that_cannot_be_read_costs_one_line(tmp_path: Path, make, expected: str):
    with pytest.raises(RecipeError) as raised:
        read_recipe(make(tmp_path))
    (problem,) = raised.value.problems
    assert expected in problem
    assert problem.isprintable()


def test_a_name_close_to_a_shipped_recipe_is_answered_with_it():
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        read_recipe("quikstart")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_recipe(path).loss[1].temperature == 2.0
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").replace("name:", "nam:").encode())
    with pytest.raises(RecipeError, match=r":1:1: nam: is not a key here; did you mean name\?"):
        read_recipe(path)


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", ".0001", "1.e-4", "+1e-4"])
def test_numbers_are_numbers_however_they_are_written(tmp_path: Path, number: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(added(f"train: {{learning_rate: {number}}}\n"))
    assert read_recipe(path).train.learning_rate == 1e-4


def test_a_key_with_odd_characters_still_costs_one_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(added('"a\\nb\\tc": 1\n"' + "k" * 200 + '": 1\n'))
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    assert [problem.isprintable() and len(problem) < 400 for problem in raised.value.problems] == [True, True]


def test_the_surroundings_may_be_left_unchecked(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(added("data: {source: folder, path: no/such}\noutput: /scratch/run\n"))
    recipe = read_recipe(path, check_surroundings=False)
    assert (recipe.data.path, recipe.output) == ("no/such", "/scratch/run")
