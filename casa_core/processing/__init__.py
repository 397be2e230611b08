"""Conversations to token ids, pictures to patches: the processor, its templates and tokenizer."""
