"""Text: the same completion in the tokens of two models. Nothing here imports torch or trl."""
