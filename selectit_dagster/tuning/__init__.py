"""Tuning: templates, LoRA and full fine-tuning, checkpoints."""
