"""Teachers, students, and what they say about a batch."""

from distill.models.batch import Batch, DataSet, Features
from distill.models.budget import parameter_budget
from distill.models.depth import block_influence, choose_layers, layer_importance, linearity
from distill.models.dropout import set_dropout
from distill.models.ensemble import EnsembleInTurn, EnsembleTeacher
from distill.models.layers import evenly_spaced, keep_layers
from distill.models.new_tokenizer import train_tokenizer
from distill.models.onnx_file import OnnxFile
from distill.models.outline import outline
from distill.models.prediction import Prediction, SparsePrediction
from distill.models.refit import refit_before_dropped
from distill.models.sequences import MaskedTokens, NextTokens, TargetTokens
from distill.models.smaller_tokenizer import pieces_of, smaller_tokenizer
from distill.models.source import ModelSource, find_model
from distill.models.student import Student
from distill.models.teacher import RememberedTeacher, Teacher
from distill.models.vocabulary import keep_tokenizer_tokens, keep_tokens, needed_tokens, replace_tokens
from distill.models.width import Activity, Width, choose_width, keep_width, measure_activity

__all__ = [
    "Activity",
    "Batch",
    "DataSet",
    "EnsembleInTurn",
    "EnsembleTeacher",
    "Features",
    "MaskedTokens",
    "ModelSource",
    "NextTokens",
    "OnnxFile",
    "Prediction",
    "RememberedTeacher",
    "SparsePrediction",
    "Student",
    "TargetTokens",
    "Teacher",
    "Width",
    "block_influence",
    "choose_layers",
    "choose_width",
    "evenly_spaced",
    "find_model",
    "keep_layers",
    "keep_tokenizer_tokens",
    "keep_tokens",
    "keep_width",
    "layer_importance",
    "linearity",
    "measure_activity",
    "needed_tokens",
    "outline",
    "parameter_budget",
    "pieces_of",
    "refit_before_dropped",
    "replace_tokens",
    "set_dropout",
    "smaller_tokenizer",
    "train_tokenizer",
]
