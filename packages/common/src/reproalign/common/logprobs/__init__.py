"""Log-probabilities of completions under a causal language model.

``plain`` is the readable oracle, ``chunked`` the computation that never holds the logits of all tokens, and ``model``
fits either to a model so that it works under DDP, FSDP and DeepSpeed.
"""
