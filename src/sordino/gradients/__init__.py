"""Estimators: per-record contributions along public directions, and the tensors that move."""
