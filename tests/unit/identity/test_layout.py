"""Which weights a checkpoint stores turned."""

from __future__ import annotations

import pytest

from evalcore.identity.layout import stored_transposed


@pytest.mark.parametrize(
    ("names", "turned"),
    [
        ({"h.0.attn.c_attn": (8, 24), "h.0.mlp.c_fc": (8, 4)}, True),  # n_inner below n_embd
        ({"h.0.attn.c_attn": (24, 8), "h.0.mlp.c_fc": (32, 8)}, False),  # GPT-BigCode
        ({"model.layers.0.mlp.c_fc": (4, 8)}, False),  # Starcoder2, a narrow one
    ],
)
def test_which_layers_are_stored_transposed(
    names: dict[str, tuple[int, int]], turned: bool
) -> None:
    layout = {f"{name}.weight": ("F32", shape) for name, shape in names.items()}
    assert {stored_transposed(name, layout) for name in layout} == {turned}
