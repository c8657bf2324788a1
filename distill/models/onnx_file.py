"""A model as one ONNX file, which onnxruntime and what stands on it (optimum, transformers.js) run without torch.

The file is where the hub looks for it, `onnx/model.onnx` beside config and tokenizer, with the names of inputs, output and
axes that optimum uses. It has no cache of keys and values: a language model that writes reads its whole text for each token.

B examples, K choices (multiple choice only), T positions.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.disk import sha256_of, whole
from distill.errors import ModelError
from distill.manifest import relist, verified
from distill.models.adapter import is_adapted
from distill.models.source import MODEL_KIND
from distill.recipe.packages import missing_for_onnx
from distill.run_folder import ONNX_FILE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Largest difference of a logit, of the largest logit where that is above 1: in float32 torch itself is no nearer to what
# its weights say in float64 (SmolLM2-135M: logits up to 39, both within 2e-4 of it).
TOLERANCE = 1e-4
LARGEST_FILE = 2**31 - 1  # bytes that protobuf can hold
OUTPUT = "logits"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
# What the model is traced on: no axis has a length that tracing takes for special (0 and 1) or two axes share.
TRACED = (3, 2, 11, 7)
# B, T and the length of the decoder's text.
TRIED = ((1, 1, 1), (1, 12, 3), (2, 5, 9), (5, 33, 2), (3, 96, 20))


@dataclass(frozen=True)
class OnnxFile:
    """A file that says what its model says.

    Attributes:
        bytes: its size.
        sha256: its digest.
        opset: the version of ONNX's operators.
        inputs: their names.
        batches: on how many its logits were compared with torch's.
        max_difference: the largest difference of a logit that was found.
        max_logit: the largest size of a logit in the batch where that was.
    """

    bytes: int
    sha256: str
    opset: int
    inputs: tuple[str, ...]
    batches: int
    max_difference: float
    max_logit: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"inputs": list(self.inputs)}


class OnnxModel:
    """A session of onnxruntime on the CPU that is called as the torch model is.

    Args:
        path: the file.
        threads: that work on one operation.
    """

    def __init__(self, path: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised too
        self._session = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(each.name for each in self._session.get_inputs())

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Logits; a segment that a batch does not name is the first, as in torch."""
        first = inputs["input_ids"]
        given = {
            name: (inputs[name] if name in inputs else _unnamed(name, first)).cpu().numpy()
            for name in self.inputs
        }
        return torch.from_numpy(self._session.run([OUTPUT], given)[0])


def check_onnx_packages() -> None:
    """Refuse to begin where a package is missing.

    Raises:
        ModelError: one line that says what to install.
    """
    if missing := missing_for_onnx():
        raise ModelError(f"onnx: {missing}")


def write_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    batches: Sequence[Mapping[str, Tensor]] = (),
) -> OnnxFile:
    """Write `onnx/model.onnx` into a model's folder, if onnxruntime then says what torch says.

    It is written aside, checked, run on batches of several shapes with padding, and only then put in its place and on the
    list of the folder's manifest. The same model gives the same bytes.

    Args:
        model: the folder's own, read from there for this: on the CPU, in float32. Its cache is switched off.
        tokenizer: which inputs there are.
        folder: that `Student.save` wrote.
        batches: of real examples, to be compared on besides random tokens.

    Raises:
        ModelError: a package is missing, this model cannot be exported, or its logits differ by more than
            1e-4 (of the largest logit, where that is above 1); an older file stays.
        CheckpointError: the folder is not what was written there.
        ResourceError: it cannot be written.
    """
    check_onnx_packages()
    if is_adapted(model):
        raise ModelError(f"{folder}: an adapter that cannot be merged is not exported to ONNX")
    weights = sum(each.nbytes for each in {t.data_ptr(): t for t in model.state_dict().values()}.values())
    if weights > LARGEST_FILE:
        raise ModelError(
            f"{folder}: {weights / 1e9:.1f} GB of weights do not fit into one ONNX file, which holds 2 GB"
        )
    listed = verified(folder, MODEL_KIND)
    model.train(mode=False)
    model.config.use_cache = False
    names = input_names(model, tokenizer)
    target = folder / ONNX_FILE
    try:
        with whole(target) as aside:
            opset = _export(model, names, aside)
            tried = [*_drawn(model, names), *batches]
            found, largest = _difference(model, aside, tried)
            if not found <= TOLERANCE * max(1.0, largest):  # nor NaN
                raise ModelError(
                    f"{folder}: its ONNX file answers otherwise than torch, by up to {found:.2g} of logits up to "
                    f"{largest:.2g} (at most {TOLERANCE * max(1.0, largest):.2g} is allowed); it was not kept"
                )
            size, digest = aside.stat().st_size, sha256_of(aside)
            if listed.pop(
                ONNX_FILE, None
            ):  # not listed while it is replaced: the folder is whole at any moment
                relist(folder, MODEL_KIND, listed)
    finally:
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # if nothing is in it
    relist(folder, MODEL_KIND, {**listed, ONNX_FILE: digest})
    return OnnxFile(size, digest, opset, names, len(tried), found, largest)


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What the file is given: whatever the tokenizer makes that the model reads, and a decoder's own text."""
    reads = inspect.signature(model.forward).parameters
    made = {*tokenizer.model_input_names, *(["decoder_input_ids"] if model.config.is_encoder_decoder else [])}
    return tuple(name for name in INPUTS if name in made and name in reads)


class _Logits(torch.nn.Module):
    """A model that takes its inputs in order and returns its logits alone."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _export(model: PreTrainedModel, names: Sequence[str], path: Path) -> int:
    """Write the file; the version of its operators."""
    import onnx

    batch, choices, length, written = TRACED
    example = tuple(_inputs(model, names, (batch, choices, length), written).values())
    free = torch.export.Dim.DYNAMIC
    with _quiet_exporter(), torch.no_grad(), _refusing(model, path, "torch cannot export"):
        made = torch.onnx.export(
            _Logits(model, names).eval(),
            example,
            dynamo=True,
            optimize=True,
            input_names=list(names),
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(dict.fromkeys(range(each.dim()), free) for each in example),),
            external_data=False,
            verbose=False,
        )
        assert made is not None  # noqa: S101 - with dynamo it is a program
        file = made.model_proto
        _tidy(file)
        content = file.SerializeToString(deterministic=True)
    path.write_bytes(content)
    with _refusing(model, path, "onnx finds fault with the export of"):
        onnx.checker.check_model(str(path), full_check=True)
    return int(next(each.version for each in file.opset_import if not each.domain))


@contextlib.contextmanager
def _refusing(model: PreTrainedModel, path: Path, what: str) -> Iterator[None]:
    """One line for what the libraries raise."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path.parents[2]}: {what} a {type(model).__name__} to ONNX ({_line(error)}); the model itself is as it was"
        ) from error


def _tidy(file: Any) -> None:
    """Name the axes as optimum does, and leave out what is no part of the model: where each node came from in the source.

    The exporter writes stack traces with the folders of this machine into every node, and names an axis anew in each input.
    """
    axes: dict[str, str] = {}
    for each in file.graph.input:
        for place, axis in enumerate(each.type.tensor_type.shape.dim):
            if axis.dim_param:
                axes[axis.dim_param] = _axis(each.name, place, len(each.type.tensor_type.shape.dim))
    for each in (*file.graph.input, *file.graph.output):
        for axis in each.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = axes.get(axis.dim_param, axis.dim_param)
    for part in _parts(file):
        for field in ("metadata_props", "doc_string", "value_info"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)


def _parts(message: Any) -> Iterator[Any]:
    """A protobuf message and all inside it that may carry remarks."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name == "TensorShapeProto":
            continue
        many = not hasattr(value, "DESCRIPTOR")
        for inside in value if many else (value,):
            yield from _parts(inside)


def _axis(name: str, place: int, rank: int) -> str:
    if place == 0:
        return "batch_size"
    if place < rank - 1:
        return "num_choices"
    return "decoder_sequence_length" if name == "decoder_input_ids" else "sequence_length"


def _difference(
    model: PreTrainedModel, path: Path, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[float, float]:
    """How far a logit of onnxruntime is from torch's, and the largest logit, of the batch where that counts most."""
    try:
        session = OnnxModel(path)
    except Exception as error:
        raise ModelError(f"{path.parents[2]}: onnxruntime cannot read its file ({_line(error)})") from error
    found = []
    for batch in batches:
        with torch.inference_mode():
            expected = model(**batch).logits
        try:
            said = session(**batch)
        except Exception as error:
            shape = tuple(batch["input_ids"].shape)
            raise ModelError(
                f"{path.parents[2]}: onnxruntime cannot run its file on a batch of shape {shape} ({_line(error)})"
            ) from error
        if said.shape != expected.shape:
            return math.inf, 0.0
        found.append((float((said - expected).abs().max()), float(expected.abs().max())))
        if math.isnan(found[-1][0]):
            return found[-1]
    return max(found, key=lambda each: each[0] / max(1.0, each[1]))


def _drawn(model: PreTrainedModel, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Random tokens in batches of several shapes, with padding behind all rows but the first of each."""
    most = getattr(model.config, "max_position_embeddings", None) or max(length for _, length, _ in TRIED)
    room = most - 2  # RoBERTa counts positions from 2
    return [
        _inputs(model, names, (count, 2 + count % 2, min(length, room)), min(written, room))
        for count, length, written in TRIED
    ]


def _inputs(
    model: PreTrainedModel, names: Sequence[str], shape: tuple[int, int, int], written: int
) -> dict[str, Tensor]:
    """Tokens drawn from a shape `(B, K, T)` alone, `[B, T]` or of multiple choice `[B, K, T]`."""
    count, choices, length = shape
    draw = torch.Generator().manual_seed(count * 1000 + length)
    words = model.config.get_text_config().vocab_size
    is_choice = type(model).__name__.endswith("ForMultipleChoice")
    size = (count, choices, length) if is_choice else (count, length)
    found = {"input_ids": torch.randint(words, size, generator=draw)}
    mask = torch.ones(size, dtype=torch.long)
    for row in range(1, count):
        mask[row, ..., max(1, length * row // count) :] = 0
    found["attention_mask"] = mask
    kinds = max(1, getattr(model.config, "type_vocab_size", 0) or 1)
    segment = (torch.arange(length) >= length // 2).long().clamp(max=kinds - 1)
    found["token_type_ids"] = segment.expand(size).contiguous()
    found["decoder_input_ids"] = torch.randint(words, (count, written), generator=draw)
    return {name: found[name] for name in names}


def _unnamed(name: str, like: Tensor) -> Tensor:
    return torch.ones_like(like) if name == "attention_mask" else torch.zeros_like(like)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """No advice of the exporter's, whose packages' own deprecations nobody here can do anything about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    """What an error says in one line: torch's exporter wraps the cause in a page of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0].strip()[:200]}" if lines else type(cause).__name__
