"""The dual encoder: image and text towers, tokenizer, weights in and out. Imports torch, never Ray."""
