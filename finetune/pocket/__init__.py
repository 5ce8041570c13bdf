"""The pocket model: text, tokenizer and pre-training of a one-million-parameter Llama."""
