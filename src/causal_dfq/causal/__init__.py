"""The structural causal model and the losses defined on it."""
