"""Text in, token rows out: corpora, evaluation problems, prompts, packing, and ``MathDataModule``."""
