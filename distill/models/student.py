"""The model that learns."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.disk import refused, remove, sync
from distill.errors import ModelError
from distill.losses import Vocabularies
from distill.manifest import MANIFEST, seal
from distill.models.adapter import adapt, is_adapted, is_mergeable, merged, save_adapter
from distill.models.batch import Batch
from distill.models.depth import Layers, choose_layers
from distill.models.layers import keep_layers, rows_of
from distill.models.loading import HeadKind, load_model, load_tokenizer, model_from_config, quiet_transformers
from distill.models.onnx_file import OnnxFile, check_onnx_packages, write_onnx
from distill.models.prediction import Prediction
from distill.models.recording import model_shape, run, token_weights, unwrapped
from distill.models.smaller_tokenizer import pieces_of
from distill.models.source import MODEL_KIND, PROVENANCE_FILE, ModelSource, find_model
from distill.models.vocabulary import keep_tokenizer_tokens, keep_tokens, needed_tokens, replace_tokens
from distill.models.width import Activity, choose_width, keep_width
from distill.run_folder import ONNX_FILE
from distill.upload import upload_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.losses import ModelShape, Wanted
    from distill.models.teacher import Teacher


class Student:
    """A model to train, and where its weights came from.

    Args:
        model: a transformers model with the head its task needs, in float32.
        tokenizer: the one it reads.
        provenance: which of the teacher's parts each of its own started from, or the model it was loaded from.
            Written beside the weights. `{"teacher": …, "layers": [0, 2, 5]}`: its layer 1 was the teacher's 2. Where
            some were left out also `"tokens": [0, 100, …]`, `"channels": [1, 2, 5, …]` of the hidden states, and
            `"heads": [[0, 3], …]` and `"neurons": [[4, …], …]` with a list for each of its own layers. An
            encoder–decoder model's `"decoder_layers"` stand beside the encoder's `"layers"`, and its heads and neurons
            are of the encoder's layers, then the decoder's. `"refitted"` names the teacher's weights that were fitted
            anew to stand in for dropped layers.
            Where it has a tokenizer of its own, `"pieces": [[0], [7, 12], …]` instead of tokens: each started as the
            mean of these. `"adapter"`: what alone was trained, see `with_adapter`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        provenance: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.provenance = dict(provenance or {})
        self._base: str | None = None  # where the weights under an adapter can be had as they are

    @classmethod
    def from_teacher(
        cls,
        source: ModelSource | str,
        *,
        layers: Layers = None,
        decoder_layers: Layers = None,
        importance: Mapping[str, Tensor] | None = None,
        refitted: Mapping[str, Tensor] | None = None,
        kind: HeadKind,
        labels: tuple[str, ...],
        seed: int = 0,
        hidden: int | None = None,
        heads: int | None = None,
        intermediate: int | None = None,
        activity: Activity | None = None,
        used_tokens: Iterable[int] | None = None,
        at_least: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Student:
        """A student that keeps a part of a teacher's files; a classifier the files lack is drawn from `seed`.

        Args:
            source: the teacher's files.
            layers: how many, or which; None keeps all. Of an encoder–decoder model the encoder's, and the decoder's
                where nothing else is said of these.
            decoder_layers: the same for an encoder–decoder model's decoder.
            importance: of the teacher's layers: a number of them are the most important (`layer_importance`). None
                spaces them evenly.
            refitted: weights of the teacher's layers before dropped ones, by name, that take their own weights' place
                (`refit_before_dropped`).
            kind: the head the task needs.
            labels: the task's labels.
            seed: of a new classifier's weights.
            hidden: channels of the hidden states; attention heads keep their size. None keeps all.
            heads: attention heads of each layer, where these do not follow from `hidden`. None keeps all.
            intermediate: neurons of each layer's feed-forward network. None keeps all.
            activity: of the teacher's parts, which are then ranked by it (`measure_activity`). None keeps the first.
            used_tokens: ids of the teacher's tokens that the student must read: it keeps these, the special tokens
                and the letters of words (`needed_tokens`), under ids of its own. None keeps all.
            at_least: with `used_tokens`, fill up to so many tokens with the most useful others.
            tokenizer: one of the same kind as the teacher's to read with instead (`smaller_tokenizer`): each of its
                tokens starts as the mean of the teacher's pieces of its text. None reads the teacher's tokens.

        Raises:
            ModelError: the teacher has fewer layers or no stack of layers to choose from, cannot have that width,
                or its tokenizer cannot be changed.
        """
        source = find_model(source) if isinstance(source, str) else source
        whole = _load_plain(source, kind, labels, seed)
        kept = choose_layers(whole, layers, decoder_layers, importance)
        provenance: dict[str, Any] = {"teacher": source.public_name, "teacher_digest": source.digest}
        provenance |= {part: list(chosen) for part, chosen in kept.items()}
        if refitted:
            provenance["refitted"] = sorted(refitted)
            whole.load_state_dict(dict(refitted), strict=False)
        if (hidden, heads, intermediate) != (None, None, None):
            width = choose_width(whole, hidden, intermediate, activity, heads)
            own = rows_of(whole, kept)
            whole = keep_width(whole, width)
            provenance["channels"] = list(width.channels)
            provenance["heads"] = [list(width.heads[layer]) for layer in own]
            provenance["neurons"] = [list(width.neurons[layer]) for layer in own]
        model, theirs = keep_layers(whole, **kept), load_tokenizer(source)
        if tokenizer is not None:
            pieces = pieces_of(theirs, tokenizer)
            provenance["pieces"] = [list(ids) for ids in pieces]
            return cls(replace_tokens(model, pieces), tokenizer, provenance)
        if used_tokens is not None:
            tokens = needed_tokens(theirs, used_tokens, at_least)
            provenance["tokens"] = list(tokens)
            return cls(keep_tokens(model, tokens), keep_tokenizer_tokens(theirs, tokens), provenance)
        return cls(model, theirs, provenance)

    @classmethod
    def load(
        cls, source: ModelSource | str, *, kind: HeadKind, labels: tuple[str, ...], seed: int = 0
    ) -> Student:
        """A student that starts from a pretrained model: a folder, `package:…`, a hub id, or what `find_model` found."""
        source = find_model(source) if isinstance(source, str) else source
        model = _load_plain(source, kind, labels, seed)
        student = cls(
            model, load_tokenizer(source), {"model": source.public_name, "model_digest": source.digest}
        )
        if source.base is None:
            student._base = (
                source.name if source.digest.startswith("hub:") else str(Path(source.location).resolve())
            )
        return student

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: HeadKind,
        labels: tuple[str, ...],
        seed: int = 0,
    ) -> Student:
        """A student with random weights drawn from `seed`."""
        model = model_from_config(
            config,
            kind=kind,
            labels=labels,
            tokenizer=tokenizer,
            seed=seed,
        )
        return cls(model, tokenizer, {"config": dict(config)})

    def with_adapter(self, settings: Mapping[str, Any], *, kind: HeadKind, seed: int = 0) -> Student:
        """The student with an adapter of peft, drawn from `seed`: it and a task's head are all that is trained.

        The provenance says how many parameters that is, of how many while training.

        Args:
            settings: `peft_type` and the fields of peft's configuration class of that type.
            kind: the head.
            seed: of the adapter's weights.

        Raises:
            ModelError: `adapt`'s.
        """
        model = adapt(self.model, settings, kind, seed)
        counts = {
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "training_parameters": sum(p.numel() for p in model.parameters()),
        }
        adapter = {**settings, **counts, "exported": "merged" if is_mergeable(model) else "beside its base"}
        student = Student(model, self.tokenizer, {**self.provenance, "adapter": adapter})  # type: ignore[arg-type]
        student._base = self._base
        return student

    def merge(self) -> None:
        """Compute an adapter into the weights; one that cannot be merged stays."""
        if is_mergeable(self.model):
            self.model = merged(self.model, in_place=True)  # type: ignore[arg-type]

    @property
    def shape(self) -> ModelShape:
        """Layers, width and heads."""
        return model_shape(self.model)

    @property
    def origin(self) -> tuple[int, ...] | None:
        """The teacher layer that each of its layers started from; None unless it was made of a teacher's."""
        return self._kept("layers")

    @property
    def channels(self) -> tuple[int, ...] | None:
        """The teacher's channel that each of its channels started from; None unless some were left out."""
        return self._kept("channels")

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The teacher's id of each of its tokens; None unless some of the teacher's tokens were left out."""
        return self._kept("tokens")

    def vocabularies(
        self, teacher: Teacher, shared: tuple[Tensor, Tensor] | None = None
    ) -> Vocabularies | None:
        """What it and a teacher read and say tokens with; None unless both are language models.

        Args:
            teacher: with this student's tokenizer, or one that it was trimmed from.
            shared: with another tokenizer: the ids of the tokens in common, the student's and the teacher's.
        """
        own = token_weights(self.model)
        others = token_weights(teacher.model, None if shared else self.tokens)
        return None if own is None or others is None else Vocabularies(own, others, shared)

    def _kept(self, part: str) -> tuple[int, ...] | None:
        kept = self.provenance.get(part)
        return None if kept is None else tuple(kept)

    @property
    def start(self) -> dict[str, Any]:
        """The provenance in few words: of tokens, channels, heads and neurons (a layer) only how many there are."""
        listed = ("tokens", "pieces", "channels")
        whole = {part: self.provenance[part] for part in listed if part in self.provenance}
        a_layer = {part: self.provenance[part][0] for part in ("heads", "neurons") if part in self.provenance}
        refitted = {"refitted": self.provenance["refitted"]} if "refitted" in self.provenance else {}
        return {**self.provenance, **{part: len(kept) for part, kept in (whole | a_layer | refitted).items()}}

    def __call__(self, batch: Batch, wanted: Wanted | None = None) -> Prediction:
        """Logits for a batch and the wanted activations, differentiable while the model is in training mode."""
        return Prediction(*run(self.model, batch.inputs, wanted, batch.rows_BT))

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers' own auto classes load: config, safetensors, tokenizer, provenance.

        An adapter is merged into the weights. One with virtual tokens cannot be: it is written in peft's own format
        with the place of its base model, for peft's AutoPeftModel… classes.

        `manifest.json` names every file with its sha256 (see `distill.manifest`): `find_model` refuses a folder whose
        files are not the ones that were written. They are put there one by one when all are written, the manifest
        first, so that a folder that was left half replaced is refused too. Other files there stay.

        Raises:
            ResourceError: the folder cannot be written; what is there of it is not a whole model.
        """
        folder = Path(folder)
        with refused(folder):
            aside = folder / ".writing"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                self._write(aside, folder)
                seal(aside, MODEL_KIND)
                remove(folder / ONNX_FILE)  # of other weights
                for file in [aside / MANIFEST, *(path for path in aside.rglob("*") if path.is_file())]:
                    if file.exists():  # the manifest comes twice
                        target = folder / file.relative_to(aside)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        file.replace(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            sync(folder)

    def export_onnx(self, folder: str | Path, batches: Sequence[Mapping[str, Tensor]] = ()) -> OnnxFile:
        """Save it as `save` does, with `onnx/model.onnx` beside: what onnxruntime, transformers.js and optimum run.

        The file has dynamic batch and sequence axes and no cache of keys and values. It is kept if onnxruntime's logits on
        batches of several shapes are torch's to 1e-4 (of the largest logit, where that is above 1), and `manifest.json` holds
        its sha256.

        Args:
            folder: where to.
            batches: inputs of real examples, as a forward pass takes them, to compare on besides random tokens.

        Raises:
            ModelError: the extra `onnx` is not installed, the adapter cannot be merged, or the student is saved but torch
                cannot export it, or its logits differ.
            ResourceError: the folder cannot be written.
        """
        check_onnx_packages()
        if is_adapted(self.model) and not is_mergeable(self.model):
            raise ModelError("export_onnx: an adapter that cannot be merged is not exported to ONNX")
        self.save(folder)
        with quiet_transformers():
            own = type(unwrapped(self.model)).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        return write_onnx(own, self.tokenizer, Path(folder), batches)

    def _write(self, folder: Path, home: Path) -> None:
        """The files of a folder that will stand at `home`."""
        with quiet_transformers():
            if is_adapted(self.model) and not is_mergeable(self.model):
                save_adapter(self.model, folder, self._base, home)  # type: ignore[arg-type]
            else:
                plain = merged(self.model) if is_adapted(self.model) else self.model  # type: ignore[arg-type]
                plain.save_pretrained(folder)
            if self.tokenizer.is_fast:
                # Whatever text it read last may have left these in it.
                self.tokenizer.backend_tokenizer.no_truncation()
                self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.save_pretrained(folder)
        (folder / PROVENANCE_FILE).write_text(json.dumps(self.provenance, indent=1) + "\n")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        private: bool = True,
        commit_message: str = "Upload student",
    ) -> str:
        """Save it into a repository of the Hugging Face hub, in one commit; nothing is sent that is there already.

        The card says where the student comes from, and that nothing was measured of it. A finished run's student is
        better published with its figures: `distill.publish_run`, which also looks at the licences of its teachers.

        Args:
            repo_id: OWNER/NAME. A repository that is not there is made.
            license: of the student, as the hub writes it: "apache-2.0".
            private: what a new repository is.
            commit_message: of the commit.

        Returns:
            The address of the repository.

        Raises:
            PublishError: the hub refuses.
            HubError: the hub cannot be reached.
            ModelError: an adapter that cannot be merged, whose base is a folder of this machine.
        """
        if is_adapted(self.model) and not is_mergeable(self.model) and (self._base or "/").startswith("/"):
            raise ModelError(
                "push_to_hub: the adapter's base is a folder of this machine, which nobody else has; start the student "
                "from a model of the hub"
            )
        with tempfile.TemporaryDirectory(prefix="distill-push-") as made:
            folder = Path(made)
            self.save(folder)
            (folder / "README.md").write_text(self._card(repo_id, license), encoding="utf-8")
            return upload_folder(folder, repo_id, private=private, message=commit_message).url

    def _card(self, repo_id: str, license: str) -> str:
        from huggingface_hub import ModelCardData

        start = self.start
        origin = start.get("teacher") or start.get("model")
        digest = str(start.get("teacher_digest") or start.get("model_digest") or "")
        hub = re.fullmatch(r"hub:(.+)@[0-9a-f]{40}", digest)
        data = ModelCardData(
            license=license,
            library_name="transformers",
            base_model=hub[1] if hub else None,
            tags=["distillation", "knowledge-distillation"],
            distillation={"student_start": start},
        )
        return (
            f"---\n{data.to_yaml()}\n---\n\n# {repo_id.partition('/')[2]}\n\nA student made with distill"
            f"{f', started from {origin}' if origin else ''}. Nothing was measured of it.\n"
        )


def _load_plain(source: ModelSource, kind: HeadKind, labels: tuple[str, ...], seed: int) -> PreTrainedModel:
    model = load_model(source, kind=kind, labels=labels, seed=seed)
    if is_adapted(model):
        raise ModelError(
            f"model {source.name}: its adapter cannot be merged, and no student starts from it; name its base instead"
        )
    return model
