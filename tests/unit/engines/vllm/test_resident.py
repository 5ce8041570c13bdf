"""What vLLM refuses beside the weights: merged in float32, refused in 16-bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.engines.vllm.resident import Resident
from evalcore.errors import SubjectError
from tests.agreement.engine_models import save_adapter, save_model, subject


class Refusing:
    """Slots of an engine that takes no adapter."""

    def holds(self, adapter: Any) -> bool:
        return False

    def attach(self, adapter: Any) -> Any:
        raise ValueError("module 'triton.language' has no attribute 'bfloat16'\nmore")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_vllm_refuses_when_it_is_attached(tmp_path: Path, dtype: Any) -> None:
    base = save_model(tmp_path / "base", "llama-tied", 1, layers=1)
    plain = subject(base, save_adapter(tmp_path / "plain", base, 2))
    dora = subject(base, save_adapter(tmp_path / "dora", base, 3, use_dora=True))
    resident: Any = object.__new__(Resident)  # no engine is started
    resident._spec = EngineSpec(device="cpu", dtype=dtype, adapters="batched", max_lora_rank=8)
    resident._device, resident._slots = "cpu", Refusing()
    details: dict[str, str] = {}
    if dtype == "float32":
        assert not resident._attach(plain, details)
        assert details["adapter"].startswith("merged: vllm refuses it (module 'triton.language'")
        assert not resident._can_attach(dora, details)
        assert details["adapter"] == "merged: DoRA"
        return
    for ask, who in ((resident._attach, plain), (resident._can_attach, dora)):
        with pytest.raises(SubjectError, match=f"other numbers in {dtype}") as caught:
            ask(who, details)
        assert "\n" not in str(caught.value)
    assert not details
