"""Where a student comes from: it exists already, it is the teacher with fewer layers, or it is new."""

from limbeck.students.pretrained import load_pretrained
from limbeck.students.prune import block_influence, choose_layers, prune_layers
from limbeck.students.scratch import build_scratch

__all__ = ["block_influence", "build_scratch", "choose_layers", "load_pretrained", "prune_layers"]
