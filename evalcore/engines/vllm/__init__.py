"""The fast engine: one vLLM engine kept alive over checkpoints and adapters.

Modules: environment (settings), engine (life cycle), strategies (scoring and generation), packing
(pure plan of shared-context steps), packed (runs them), weights (streams), lora (merges), proof
(probes), worker (what runs inside vLLM's worker).
"""
