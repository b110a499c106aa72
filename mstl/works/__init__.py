"""What the chapters of the four other works do with data sets, models and metrics: one module a chapter."""
