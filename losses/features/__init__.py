"""Losses between what two models compute on the way to their logits: hidden states, attention, relations."""
