"""Multistage transfer learning in medical imaging: data sets, models, training and statistics."""

__version__ = "0.1.0"
