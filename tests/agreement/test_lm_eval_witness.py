"""What float32 does not decide is set aside, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval_compare import Apart, Comparison
from lm_eval_runs import make_models
from lm_eval_witness import Witness, ask_again

THEIRS = -20.0
REQUESTS = [["", f" {word} hill"] for word in ("under", "green", "the", "seven")]
COMPANY = [["", " a river"], ["", " the old house"], ["", " seven green hills"]]


def settled(ours: float, witness: Witness) -> Comparison:
    """A comparison of one document and request."""
    found = Comparison(documents=1, values=1, shares={(0, 0): abs(ours - THEIRS) / 1e-4})
    found.apart = [Apart(0, 0, ours, THEIRS)]
    found.settle(witness)
    return found


def test_only_what_lm_eval_cannot_say_itself_is_set_aside() -> None:
    unsure = Witness([THEIRS + 1e-5], [[THEIRS], [THEIRS + 2.1e-4]])
    sure = Witness([THEIRS + 1e-5], [[THEIRS], [THEIRS + 4e-5]])
    found = settled(THEIRS + 9e-4, unsure)
    found.check("task")
    assert found.largest == 0
    assert not found.apart
    assert found.values == 1
    (undecided,) = found.undecided
    assert undecided.noise == pytest.approx(2e-4)
    assert undecided.error == pytest.approx(8.9e-4)
    for ours, witness in ((THEIRS + 9e-4, sure), (THEIRS + 2e-3, unsure)):
        found = settled(ours, witness)
        assert not found.undecided
        assert found.largest > 1
        with pytest.raises(AssertionError, match="off by"):
            found.check("task")


def spoil(checkpoint: Path) -> None:
    """Lets half of the hidden numbers be large and cancel in the output head, pair by pair."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 32:] = 4.0
        for layer in model.model.layers:  # nothing is added to them
            layer.self_attn.o_proj.weight[32:] = 0
            layer.mlp.down_proj.weight[32:] = 0
        model.model.norm.weight[32:] = 1.0
        large = torch.randn(model.config.vocab_size, 16) * 1000
        order = torch.randperm(16)
        model.lm_head.weight[:, 32:48] = large
        model.lm_head.weight[:, 48:] = -large[:, order]
    model.save_pretrained(checkpoint)


@pytest.mark.slow
def test_lm_eval_is_asked_about_a_model_that_float32_does_not_decide(tmp_path: Path) -> None:
    """The same differences are set aside on such a model, and not on an ordinary one."""
    noise = {}
    for name in ("ordinary", "cancelling"):
        (checkpoint,) = make_models(tmp_path / name).checkpoints
        if name == "cancelling":
            spoil(checkpoint)
        peer = {"pretrained": str(checkpoint)}
        witness = ask_again(peer, REQUESTS, COMPANY, tmp_path / f"{name}.json")
        errors = [
            max(abs(answers[i] - exact) for answers in witness.rounded)
            for i, exact in enumerate(witness.exact)
        ]
        noise[name] = errors
        found = Comparison(documents=1, shares=dict.fromkeys([(0, i) for i in range(4)], 3.0))
        found.apart = [Apart(0, i, v + 3e-4, v) for i, v in enumerate(witness.exact)]
        found.settle(witness)
        assert len(found.undecided) == (4 if name == "cancelling" else 0), noise
    assert max(noise["ordinary"]) < 2e-5 < 1e-4 < max(noise["cancelling"]), noise
