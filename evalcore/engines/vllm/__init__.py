"""The fast engine: one vLLM engine kept alive over checkpoints and adapters.

Modules: environment (settings), resident (life cycle), engine (the protocol), strategies (ways to
score), requests and generation (through vLLM's scheduler), cached (with its prefix cache), packing
(pure plan of a prefix tree), growth (generations in it), packed (runs it), weights (streams), lora
(merges), adapters (beside the weights), proof (probes), worker (what runs inside vLLM's worker).
"""
