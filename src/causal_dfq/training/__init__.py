"""The alternation of generator and quantized network, its finish and its checkpoints."""
