"""MEMORY. What a run needs, from the configurations of its two models alone. No trl, no tokenizer, no weights."""
