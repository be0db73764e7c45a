"""Keras layers: they hold weights and call the rooms. Import this module to load saved models."""

from blocksparse.layers.lstm import FusedBasicLSTMCell
from blocksparse.layers.mlstm import MLSTM, MLSTMCell

__all__ = ["MLSTM", "FusedBasicLSTMCell", "MLSTMCell"]
