"""Adapters whose start changed their base, as plain LoRA: the same model, as PEFT has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from evalcore.app.plain import to_plain
from evalcore.errors import InputError
from evalcore.identity import resolve_subjects

CASES: dict[str, dict[str, Any]] = {
    "pissa": {},
    "olora": {"use_rslora": True},
    "pissa_niter_4": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
}


def tuned(base: Path, folder: Path, init: str, options: dict[str, Any]) -> torch.Tensor:
    """Saves an adapter before (``start``) and after tuning; logits of what was tuned."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=init, **options
    )
    peft = get_peft_model(model, config).eval()
    peft.save_pretrained(folder / "start")
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(folder / "tuned")
    return logits(peft)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("init", CASES)
def test_the_same_model_over_the_unchanged_base(
    tiny_checkpoint: Path, tmp_path: Path, init: str
) -> None:
    wanted = tuned(tiny_checkpoint, tmp_path, init, CASES[init])
    (problem,) = resolve_subjects(
        [tmp_path / "tuned"], [str(tiny_checkpoint)], applied="merged"
    ).problems
    assert "changed its base" in problem.message
    ways: dict[str, dict[str, Any]] = {"start": {"initial": tmp_path / "start"}}
    if init in ("pissa", "olora"):
        ways["base"] = {"base": str(tiny_checkpoint)}
        assert "evalcore convert ADAPTER -o NEW --base BASE" in problem.message
    else:
        assert "--initial FOLDER" in problem.message
    for way, given in ways.items():
        to_plain(tmp_path / "tuned", tmp_path / f"by-{way}" / "plain", **given)
        assert not resolve_subjects([tmp_path / f"by-{way}"], applied="merged").problems
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        plain = PeftModel.from_pretrained(model, tmp_path / f"by-{way}" / "plain").eval()
        torch.testing.assert_close(logits(plain), wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_made_plain_says_why(
    tiny_checkpoint: Path, tmp_path: Path, make_adapter: Any
) -> None:
    plain = make_adapter(tmp_path / "plain", tiny_checkpoint)
    corda = make_adapter(tmp_path / "corda", tiny_checkpoint, init_lora_weights="corda")
    other = make_adapter(tmp_path / "other", tiny_checkpoint, seed=2, lora_alpha=3)
    for source, given, reason in (
        (plain, {"base": str(tiny_checkpoint)}, "nothing to convert"),
        (corda, {"base": str(tiny_checkpoint)}, "give --initial FOLDER"),
        (corda, {}, "needs --initial FOLDER"),
        (corda, {"initial": other}, "key lora_alpha is 3 there"),
        (corda, {"initial": tmp_path / "none"}, "adapter_config.json"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            to_plain(source, tmp_path / "new", **given)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()
    to_plain(corda, tmp_path / "zero", initial=corda)  # not tuned at all: no change is left
    config = json.loads((tmp_path / "zero/adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
