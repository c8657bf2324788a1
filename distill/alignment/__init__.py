"""Two predictions → the rows a loss compares."""

from distill.alignment.activations import align_activations
from distill.alignment.classes import align_classes, class_order

__all__ = ["align_activations", "align_classes", "class_order"]
