"""Cross-attention vision-language models: the model, its processing and its inference engine."""
