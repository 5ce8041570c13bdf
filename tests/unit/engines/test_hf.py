"""The oracle's loading: whatever transformers or PEFT would pass over in silence is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evalcore.engines import create_engine
from evalcore.engines.hf_loading import line
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import IncompatibleError, InputError, SubjectError
from evalcore.identity import (
    adapter_fingerprint,
    checkpoint_fingerprint,
    numeric_config,
    open_checkpoint,
    weight_files,
    weight_layout,
)
from evalcore.identity.applying import check_adapter
from evalcore.types import (
    Adapter,
    Checkpoint,
    GenerateBatch,
    GenerationSettings,
    ScoreBatch,
    Subject,
    flatten,
)

ROWS = ScoreBatch.from_lists([([1, 5, 9], [[7, 8], [30]])])


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder))


def scores(folder: Path) -> np.ndarray:
    engine = create_engine(EngineSpec(kind="hf", device="cpu"))
    engine.load(Subject(Checkpoint("c", str(folder), checkpoint_fingerprint(folder), "tokenizer")))
    return engine.score(ROWS).token_logprobs


def change(folder: Path, **tensors: np.ndarray | None) -> Path:
    """Puts tensors (``__`` for a dot) into a checkpoint's file, or takes them out (None)."""
    file = folder / "model.safetensors"
    held = load_file(file)
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model__norm__weight": None}, r"lacks 1 tensors .*model\.norm\.weight"),
        ({"model__extra__weight": np.ones(3, np.float32)}, r"has 1 tensors .*model\.extra"),
        ({"model__norm__weight": np.ones(3, np.float32)}, r"of another shape .*model\.norm"),
    ],
)
def test_a_checkpoint_is_loaded_whole_or_refused(
    tiny_checkpoint: Path, tmp_path: Path, tensors: dict[str, np.ndarray | None], message: str
) -> None:
    folder = change(copy_of(tiny_checkpoint, tmp_path / "c"), **tensors)
    with pytest.raises(IncompatibleError, match=message) as caught:
        scores(folder)
    assert "\n" not in str(caught.value)


def test_what_transformers_configuration_refuses_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path / "c")
    edit_json(folder / "config.json", rms_norm_eps=0)
    with pytest.raises(IncompatibleError, match=r"cannot be loaded: .*rms_norm_eps.*float"):
        scores(folder)


def test_what_another_librarys_error_says_is_one_line() -> None:
    assert line(KeyError("novel")) == "nothing there is called 'novel'"
    assert "nothing there" not in line(KeyError("keys are missing in rope_parameters"))
    assert line(ValueError("one\ntwo")) == "one"
    assert line(ValueError()) == "ValueError"


def test_computed_buffers_of_old_files_are_no_extra_tensors(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    folder = change(copy_of(tiny_checkpoint, tmp_path / "c"), **{name: np.ones(8, np.float32)})
    np.testing.assert_array_equal(scores(folder), scores(tiny_checkpoint))


def test_scores_that_are_not_finite_are_nobodys(tiny_checkpoint: Path, tmp_path: Path) -> None:
    norm = np.full(32, np.nan, np.float32)
    folder = change(copy_of(tiny_checkpoint, tmp_path / "c"), model__norm__weight=norm)
    with pytest.raises(SubjectError, match="are NaN"):
        scores(folder)


def test_a_model_with_an_adapter_in_its_folder_is_ambiguous(
    tiny_checkpoint: Path, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path / "c")
    make_adapter(folder, tiny_checkpoint)
    with pytest.raises(InputError, match="whole model and an adapter"):
        open_checkpoint(str(folder))
    with pytest.raises(IncompatibleError, match="holds an adapter too"):
        scores(folder)


def test_two_sets_of_weights_are_ambiguous(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path / "c")
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert weight_files(folder) == [folder / "model.safetensors"]
    shard = "model-00001-of-00001.safetensors"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(InputError, match="two sets of weights"):
        weight_files(folder)


def test_nothing_of_generation_config_changes_greedy_texts(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """transformers fills what a GenerationConfig leaves open from the model's own."""
    folder = copy_of(tiny_checkpoint, tmp_path / "c")
    leak = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": [5]}
    (folder / "generation_config.json").write_text(json.dumps(leak))
    batch = GenerateBatch(*flatten([[1, 5, 9], [40, 41]]), GenerationSettings(12))
    texts = []
    for path in (tiny_checkpoint, folder):
        engine = create_engine(EngineSpec(kind="hf", device="cpu"))
        engine.load(Subject(Checkpoint("c", str(path), checkpoint_fingerprint(path), "tokenizer")))
        texts.append(engine.generate(batch).texts)
    assert texts[0] == texts[1]


def test_the_reference_keeps_gemma_2s_soft_cap(tmp_path: Path) -> None:
    """transformers' default attention leaves the cap out."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.agreement.families import save_family

    folder = save_family(tmp_path / "gemma2", "gemma2", 3)
    edit_json(folder / "config.json", attn_logit_softcapping=0.05)
    batch = ScoreBatch.from_lists([([5, 9, 100, 7, 8, 60, 61], [[7, 8, 30]])])
    engine = create_engine(EngineSpec(kind="hf", device="cpu"))
    engine.load(Subject(Checkpoint("c", str(folder), checkpoint_fingerprint(folder), "tokenizer")))
    found = engine.score(batch).token_logprobs

    def plain(**options: Any) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)
        ids = torch.tensor([[5, 9, 100, 7, 8, 60, 61, 7, 8, 30]])
        with torch.inference_mode():
            rows = model.float().eval()(ids).logits[0, 6:9].double().log_softmax(-1)
        return rows[range(3), [7, 8, 30]].numpy()

    np.testing.assert_allclose(found, plain(), atol=1e-5)
    assert np.abs(found - plain(attn_logit_softcapping=None)).max() > 1e-3, "the cap shows"


def test_rows_beside_longer_ones_keep_longropes_short_factors(tmp_path: Path) -> None:
    """transformers takes the long factors for a whole batch in which one row is longer."""
    import torch
    from transformers import AutoModelForCausalLM, Phi3Config

    torch.manual_seed(3)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = Phi3Config(
        vocab_size=320, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **small,
        max_position_embeddings=64, original_max_position_embeddings=12, rope_parameters=rope,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path / "phi3"
    made.save_pretrained(folder)
    rows = [list(range(3, 3 + length)) for length in (11, 14, 12, 13)]
    batch = ScoreBatch.from_lists([(row[:-2], [row[-2:]]) for row in rows])
    engine = create_engine(EngineSpec(kind="hf", device="cpu"))
    engine.load(Subject(Checkpoint("c", str(folder), checkpoint_fingerprint(folder), "tokenizer")))
    found = engine.score(batch).token_logprobs.reshape(4, 2)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for row, own in zip(rows, found, strict=True):
        with torch.inference_mode():
            logits = model.float().eval()(torch.tensor([row[:-1]])).logits[0, -2:].double()
        np.testing.assert_allclose(own, logits.log_softmax(-1)[[0, 1], row[-2:]], atol=1e-5)


def test_models_that_take_images_score_text_as_their_language_part(tmp_path: Path) -> None:
    """LLaVA is none of transformers' models of text alone; an adapter on its language part."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 320, "num_hidden_layers": 2, **size},
        vision_config={"model_type": "clip_vision_model", "num_hidden_layers": 1, "image_size": 28,
                       "patch_size": 14, "projection_dim": 32, **size},
        image_token_index=300,
    )  # fmt: skip
    made: Any = LlavaForConditionalGeneration(config)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(tmp_path / "llava")
    tuned: Any = get_peft_model(made, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    tuned.save_pretrained(tmp_path / "adapter")
    folder = str(tmp_path / "llava")
    base = Checkpoint("c", folder, checkpoint_fingerprint(folder), "tokenizer")
    rows = [[5, 9, 100, 7, 8, 60, 61], [4, 200, 30]]
    engine = create_engine(EngineSpec(kind="hf", device="cpu"))
    own = str(tmp_path / "adapter")
    subject = Subject(base, Adapter("a", own, adapter_fingerprint(own), 2))
    engine.load(subject)
    found = engine.score(ScoreBatch.from_lists([(row[:-1], [row[-1:]]) for row in rows]))
    for row, own in zip(rows, found.token_logprobs, strict=True):
        with torch.inference_mode():
            logits = tuned.eval()(input_ids=torch.tensor([row[:-1]])).logits[0, -1].double()
        assert own == pytest.approx(float(logits.log_softmax(-1)[row[-1]]), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: edit_json(folder / "adapter_config.json", use_dora=True),
            "has no lora_mag",
        ),
        (lambda folder: as_integers(folder / "adapter_model.safetensors"), "I32"),
    ],
)
def test_what_peft_would_only_warn_of_is_refused(
    tiny_checkpoint: Path, tiny_adapter: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = copy_of(tiny_adapter, tmp_path / "a")
    change(folder)
    layout, config = weight_layout(tiny_checkpoint), numeric_config(tiny_checkpoint)
    with pytest.raises(InputError, match=message) as caught:
        check_adapter(folder, layout, config, "base", "unmerged")
    assert "\n" not in str(caught.value)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def as_integers(file: Path) -> None:
    """The same bytes, said to be whole numbers."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"F32"', b'"I32"')
    file.write_bytes(data[:8] + header + data[8 + size :])
