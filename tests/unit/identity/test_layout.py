"""Which weights a checkpoint stores turned, and which families share embeddings and head."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from evalcore.identity.layout import shares_embeddings, stored_transposed


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


def test_families_that_are_tied_by_default_are_transformers_own() -> None:
    """Read in its sources: importing some four hundred configurations takes too long."""
    home = Path(str(metadata.distribution("transformers").locate_file("transformers"))) / "models"
    auto = (home / "auto/modeling_auto.py").read_text()
    causal = auto[auto.index("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES") :].split("\n)")[0]
    named = re.findall(r'\("([\w-]+)", "\w*For(?:CausalLM|ConditionalGeneration)"\)', causal)
    tied = set()
    for file in home.glob("*/configuration_*.py"):
        for kind in re.split(r"\nclass ", file.read_text())[1:]:
            name = re.search(r'^    model_type(?:: str)? = "([\w-]+)"', kind, re.M)
            default = re.search(r"tie_word_embeddings(?:: [\w |]+)? ?= ?(True|False)", kind)
            if name is not None and default is not None and default[1] == "True":
                tied.add(name[1])
    encoders = re.compile(
        r"bert|bart|ernie$|electra|pegasus|former|big_bird|data2vec|marian|mvp|xlm|trocr|whisper"
        r"|xmod|prophet|blender|got_ocr|compass|cpmant|assistant|vision"
    )
    head = {"lm_head.weight": ("F32", (9, 4))}
    expected = {name: name in tied for name in named if not encoders.search(name)}
    assert sum(expected.values()) > 30
    assert {name: shares_embeddings({"model_type": name}, head) for name in expected} == expected
