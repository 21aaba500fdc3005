"""The offline batch processor: datasets, questions, replies, scores and money in one DuckDB file."""
