"""Fingerprints: content decides; names, paths and file layout do not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity import (
    Layout,
    NumericsClass,
    adapter_fingerprint,
    adapter_is_zero,
    adapter_rank,
    cell_key,
    check_adapter,
    checkpoint_fingerprint,
    differences,
    document_id,
    numeric_config,
    rows_fingerprint,
    text_fingerprint,
    weight_layout,
)
from evalcore.identity.adapter_names import AdapterName, parse_name
from evalcore.identity.weights import is_finite, nonfinite_tensor
from evalcore.types import (
    Adapter,
    Checkpoint,
    EncodingSettings,
    GenerationSettings,
    Subject,
    Task,
    Variant,
)

Make = Callable[..., Path]


def edit_json(file: Path, **changes: object) -> None:
    data = json.loads(file.read_text())
    data.update(changes)
    file.write_text(json.dumps(data))


def test_golden_ids() -> None:
    """These may change only together with a version number in identity (old results go stale)."""
    assert text_fingerprint({"b": [1, 2.5, None, True], "a": "ä"}) == (
        "4eb19c622c22719799eac097123b02b9"
    )
    own = document_id({"premise": "A", "hypothesis": "B"}, ["yes", "no"], 1, [], 0)
    assert own == "e7854e18a43498d19054c3599526d358"
    checkpoint = Checkpoint("c", "/x", "0" * 32, "1" * 32)
    adapter = Adapter("a", "/y", "2" * 32, 8)
    task = Task("t", 1, "g", "multiple_choice", ("acc",), "acc", spec={"source": {"path": "p"}})
    variant = Variant("default", "g", "{{ premise }}", fingerprint="3" * 32)
    numerics = NumericsClass("vllm", "float32", "float32", "cpu", "merged")
    key = cell_key(Subject(checkpoint, adapter), task, variant, EncodingSettings(), numerics)
    assert key == "e43d06b656751b873fc19fff9f00da3a"


def test_golden_keys_of_what_is_generated_in_a_chat() -> None:
    checkpoint = Checkpoint(
        "c", "/x", "0" * 32, "1" * 32, template_fingerprint="5" * 32, template_dated=True,
        end_tokens=(2, 7),
    )  # fmt: skip
    task = Task("t", 1, "g", "generate_until", ("rouge_l",), "rouge_l",
                generation=GenerationSettings(9, ("\n", "#")))  # fmt: skip
    variant = Variant("v", "g", "{{ q }}", chat=True, chat_date="2030-01-31", fingerprint="3" * 32)
    numerics = NumericsClass("hf", "bfloat16", "float32", "cuda", "batched")
    key = cell_key(
        Subject(checkpoint), task, variant, EncodingSettings(max_length=99), numerics,
        data=rows_fingerprint(["a", "b"]), shots="8" * 32, unconditional=True,
    )  # fmt: skip
    assert key == "69930d571d5a7ff13953d25d0ae05deb"


def test_cell_key_covers_what_decides_scores_and_nothing_else() -> None:
    checkpoint = Checkpoint("c", "/x", "0" * 32, "1" * 32, end_tokens=(1,))
    task = Task("t", 1, "g", "generate_until", ("rouge_l",), "rouge_l", spec={"fields": {"a": "b"}})
    variant = Variant("v", "g", "x", fingerprint="3" * 32)
    settings = EncodingSettings()
    numerics = NumericsClass("vllm", "bfloat16", "float32", "cuda", "merged")
    base = cell_key(Subject(checkpoint), task, variant, settings, numerics, data="d")
    other = [
        (replace(checkpoint, fingerprint="9" * 32), task, variant, settings, numerics),
        (replace(checkpoint, tokenizer_fingerprint="9" * 32), task, variant, settings, numerics),
        (replace(checkpoint, end_tokens=(1, 2)), task, variant, settings, numerics),
        (checkpoint, replace(task, version=2), variant, settings, numerics),
        (checkpoint, replace(task, generation=replace(task.generation, max_tokens=9)), variant,
         settings, numerics),
        (checkpoint, task, replace(variant, fingerprint="4" * 32), settings, numerics),
        (checkpoint, task, variant, replace(settings, max_length=99), numerics),
        (checkpoint, task, variant, settings, replace(numerics, head_dtype="bfloat16")),
        (checkpoint, task, variant, settings, replace(numerics, adapters="batched")),
    ]  # fmt: skip
    keys = {cell_key(Subject(c), t, v, s, n, data="d") for c, t, v, s, n in other}
    keys.add(cell_key(Subject(checkpoint), task, variant, settings, numerics, data="e"))
    keys.add(cell_key(Subject(checkpoint), task, variant, settings, numerics, data="d", shots="s"))
    keys.add(
        cell_key(
            Subject(checkpoint), task, variant, settings, numerics, data="d", unconditional=True
        )
    )
    assert base not in keys
    assert len(keys) == len(other) + 3
    same = cell_key(
        Subject(replace(checkpoint, name="n", path="/p", step=3, source="s",
                        template_fingerprint="9" * 32)),
        replace(task, metrics=("rouge_l", "exact_match"), description="d", tuned_by="x",
                spec={"source": {"revision": "pinned since"}}),
        replace(variant, name="renamed"),
        settings,
        numerics,
        data="d",
    )  # fmt: skip
    assert same == base


def test_template_and_end_tokens_count_where_they_are_used() -> None:
    task = Task("t", 1, "g", "multiple_choice", ("acc",), "acc")
    plain = Variant("v", "g", "x", fingerprint="3" * 32)
    chat = replace(plain, chat=True, fingerprint="4" * 32)
    free = replace(plain, answer="free", fingerprint="5" * 32)
    one = Checkpoint("c", "/x", "0" * 32, "1" * 32, template_fingerprint="a", end_tokens=(1,))
    other_template = replace(one, template_fingerprint="b")
    other_end = replace(one, end_tokens=(1, 7))
    numerics = NumericsClass("hf", "float32", "float32", "cpu")

    def key(checkpoint: Checkpoint, variant: Variant) -> str:
        return cell_key(Subject(checkpoint), task, variant, EncodingSettings(), numerics)

    assert key(one, plain) == key(other_template, plain) == key(other_end, plain)
    assert key(one, chat) != key(other_template, chat)
    assert key(one, chat) == key(other_end, chat)
    assert key(one, free) != key(other_end, free)
    assert key(one, free) == key(other_template, free)


def test_rows_are_known_by_content_in_any_order() -> None:
    assert rows_fingerprint(["a", "b"]) == rows_fingerprint(iter(["b", "a"]))
    assert rows_fingerprint(["a", "b"]) != rows_fingerprint(["a", "b", "c"])


def test_only_what_differs_from_its_default_is_hashed() -> None:
    @dataclass(frozen=True)
    class Now:
        name: str
        depth: int = 3

    @dataclass(frozen=True)
    class Later(Now):
        width: int = 1
        words: tuple[str, ...] = ()

    assert differences(Now("a")) == differences(Later("a")) == {"name": "a"}
    assert differences(Later("a", 3, 2)) == {"name": "a", "width": 2}
    assert differences(Later("a", 4), leave_out=("name",)) == {"depth": 4}


def test_numerics_label_counts_adapters_outside_float32_only() -> None:
    exact = [NumericsClass("hf", "float32", "float32", "cpu", a).label for a in (None, "merged")]
    assert exact[0] == exact[1]
    rounded = [NumericsClass("hf", "bfloat16", "float32", "cpu", a).label for a in ("b", "merged")]
    assert rounded[0] != rounded[1]


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none()), max_size=4))
def test_document_id_ignores_key_order_only(fields: dict[str, object]) -> None:
    turned = dict(reversed(list(fields.items())))
    first = document_id(fields, ["a", "b"], 0, [], 0)
    assert first == document_id(turned, ("a", "b"), 0, (), 0)
    assert first != document_id(fields, ["a", "b"], 1, [], 0)
    assert first != document_id(fields, ["a", "b"], 0, [], 1)
    assert first != document_id({**fields, "new key": 1}, ["a", "b"], 0, [], 0)


def test_checkpoint_fingerprint_is_of_content(tmp_path: Path, make_checkpoint: Make) -> None:
    one = make_checkpoint(tmp_path / "one", tokenizer=False)
    print_one = checkpoint_fingerprint(one)
    assert len(print_one) == 32
    shutil.copytree(one, tmp_path / "renamed")
    edit_json(tmp_path / "renamed/config.json", _name_or_path="x", transformers_version="9")
    assert checkpoint_fingerprint(tmp_path / "renamed") == print_one
    other = make_checkpoint(tmp_path / "other", seed=5, tokenizer=False)
    assert checkpoint_fingerprint(other) != print_one
    edit_json(tmp_path / "renamed/config.json", rms_norm_eps=1e-5)
    assert checkpoint_fingerprint(tmp_path / "renamed") != print_one
    assert "rms_norm_eps" in numeric_config(one)
    assert "torch_dtype" not in numeric_config(one)


def test_shards_do_not_count(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    names = sorted(tensors)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(tiny_checkpoint / "config.json", sharded)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, str(sharded / file))
        weight_map.update(dict.fromkeys(part, file))
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert checkpoint_fingerprint(sharded) == checkpoint_fingerprint(tiny_checkpoint)
    assert weight_layout(sharded) == weight_layout(tiny_checkpoint)
    expected = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
    assert weight_layout(sharded) == expected
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-1\.safetensors"):
        weight_layout(sharded)


def test_a_changed_file_is_read_again(tmp_path: Path, make_checkpoint: Make) -> None:
    """Same path, same size, other bytes: also when the old value is in the cache."""
    folder = make_checkpoint(tmp_path / "c", tokenizer=False)
    file = folder / "model.safetensors"
    old = 1_600_000_000
    os.utime(file, (old, old))  # settled: this one is remembered
    before = checkpoint_fingerprint(folder)
    entries = list((Path(os.environ["EVALCORE_CACHE"]) / "fingerprints").glob("*.json"))
    assert entries
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert checkpoint_fingerprint(folder) != before


def test_cache_is_used_and_survives_rubbish(
    tmp_path: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "cache"))
    folder = make_checkpoint(tmp_path / "c", tokenizer=False)
    os.utime(folder / "model.safetensors", (1_600_000_000, 1_600_000_000))
    before = checkpoint_fingerprint(folder)
    entries = [*(tmp_path / "cache/fingerprints").glob("*.json")]  # one is the file's sha256
    (entry,) = (e for e in entries if isinstance(json.loads(e.read_text())["value"], dict))
    known = json.loads(entry.read_text())
    other = known | {"value": {"x": "y"}}
    entry.write_text(json.dumps(other))  # its sum does not fit
    assert checkpoint_fingerprint(folder) == before
    del other["sum"]  # shows that the entry is what is read
    entry.write_text(json.dumps(other))
    assert checkpoint_fingerprint(folder) != before
    entry.write_text("{not json")
    assert checkpoint_fingerprint(folder) == before
    monkeypatch.setenv("EVALCORE_CACHE", "/proc/nowhere")
    assert checkpoint_fingerprint(folder) == before


def test_unreadable_weights_are_one_clear_line(tmp_path: Path, make_checkpoint: Make) -> None:
    with pytest.raises(InputError, match="base missing on disk"):
        checkpoint_fingerprint(tmp_path / "nowhere")
    folder = make_checkpoint(tmp_path / "c", tokenizer=False)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for broken in (b"", whole[:4], whole[:200], whole[:-10], b"\xff" * 100):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"model\.safetensors") as caught:
            checkpoint_fingerprint(folder)
        assert "\n" not in str(caught.value)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        checkpoint_fingerprint(folder)


def test_adapter_fingerprint_is_of_content(tmp_path: Path, make_adapter: Make) -> None:
    one = make_adapter(tmp_path / "one", "org/base")
    before = adapter_fingerprint(one)
    twin = make_adapter(tmp_path / "two", "/elsewhere", revision="abc", lora_dropout=0.5)
    edit_json(twin / "adapter_config.json", target_modules=["v_proj", "q_proj"])
    assert adapter_fingerprint(twin) == before
    changes: list[dict[str, object]] = [
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
    ]
    for number, change in enumerate(changes):
        other = make_adapter(tmp_path / f"changed-{number}", "org/base", **change)
        assert adapter_fingerprint(other) != before, change
    assert adapter_fingerprint(make_adapter(tmp_path / "seed", "b", seed=7)) != before
    assert adapter_rank(one) == 4


def test_zero_adapters_are_found(tmp_path: Path, make_adapter: Make) -> None:
    assert adapter_is_zero(make_adapter(tmp_path / "zero", "b", zero=True))
    one = make_adapter(tmp_path / "one", "b")
    assert not adapter_is_zero(one)
    name = "base_model.model.m.q_proj"
    negative = -np.zeros((8, 2), np.float32)
    rows, columns = np.zeros((2, 8), np.float32), np.zeros((8, 2), np.float32)
    rows[0], columns[:, 1] = 1, 1  # A uses component 0, B component 1: the product is zero
    file = str(one / "adapter_model.safetensors")
    for down, up, zero in [
        (rows + 1, negative, True),
        (rows, columns, True),
        (rows, np.roll(columns, 1, axis=1), False),
    ]:
        save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
        assert adapter_is_zero(one) == zero == (not (up @ down).any())


def test_an_adapter_of_other_shapes_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, tiny_adapter: Path, make_adapter: Make
) -> None:
    layout = weight_layout(tiny_checkpoint)

    def check(adapter: Path, own: Layout) -> None:
        check_adapter(adapter, own, {}, "base", "merged")

    check(tiny_adapter, layout)
    # A base saved without the model's prefix is the same base.
    check(tiny_adapter, {name.removeprefix("model."): info for name, info in layout.items()})
    deep = make_adapter(tmp_path / "deep", "b", layers=3)
    with pytest.raises(IncompatibleError, match=r"not fit base base: .* model\.layers\.2"):
        check(deep, layout)
    wide = {
        name: (dtype, (64, 64)) if "q_proj" in name else (dtype, shape)
        for name, (dtype, shape) in layout.items()
    }
    with pytest.raises(IncompatibleError, match=r"does not fit model.*q_proj.weight \[64, 64\]"):
        check(tiny_adapter, wide)


def test_names_of_adapter_tensors_are_read_through_wrappers() -> None:
    module, weight = "model.layers.0.mlp.up_proj", "lora_A.weight"
    for name in (
        f"base_model.model.{module}.{weight}",
        f"base_model.model.{module}.lora_A.default.weight",
        f"base_model.model.base_model.model.{module}.{weight}",
        f"module.base_model.model.{module}.{weight}",
        f"base_model.model._orig_mod.{module}.{weight}",
        f"base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj.{weight}",
        f"{module}.{weight}",
    ):
        assert parse_name(name) == AdapterName(module, "lora_A", "weight"), name
    for before in ("model.language_model.", "language_model.model.", "transformer.", ""):
        assert parse_name(f"{before}layers.0.mlp.up_proj.{weight}").core == "layers.0.mlp.up_proj"
    assert parse_name("vision_tower.layers.0.q.lora_A.weight").core == "vision_tower.layers.0.q"
    for name in ("lm_head.weight", "lm_head.modules_to_save.default.weight"):
        assert parse_name(f"base_model.model.{name}") == AdapterName("lm_head", "saved", "weight")
    assert parse_name("m.lm_head.original_module.weight").part == "original"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save

    file = tmp_path / "a.safetensors"
    for value, word in ((1.0, None), (float("nan"), "NaN"), (float("-inf"), "infinity")):
        bad = torch.ones(7, dtype=getattr(torch, dtype))
        bad[3] = value
        save({"a": torch.full((5,), torch.finfo(bad.dtype).max, dtype=bad.dtype), "b": bad}, file)
        assert nonfinite_tensor(file) == (None if word is None else ("b", word))
        assert is_finite(file) == (word is None)
        save({"a": bad, "b": torch.ones(3, dtype=torch.int32)}, file)
        assert is_finite(file) == (word is None), "types are mixed"


def test_another_answer_rule_counts_where_answers_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(Checkpoint("c", "/x", "0" * 32, "1" * 32, end_tokens=(2,)))
    numerics = NumericsClass("hf", "float32", "float32", "cpu")
    picks = Task("t", 1, "g", "multiple_choice", ("acc",), "acc")
    free = Variant("v", "g", "x", fingerprint="3" * 32, answer="free")
    ways = (free, replace(free, answer="choices"))
    before = [cell_key(subject, picks, way, EncodingSettings(), numerics) for way in ways]
    monkeypatch.setattr("evalcore.identity.cells.ANSWER_RULE", 99)
    after = [cell_key(subject, picks, way, EncodingSettings(), numerics) for way in ways]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_another_stop_rule_counts_where_text_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(Checkpoint("c", "/x", "0" * 32, "1" * 32, end_tokens=(2,)))
    variant = Variant("v", "g", "x", fingerprint="3" * 32)
    numerics = NumericsClass("hf", "float32", "float32", "cpu")
    ours = GenerationSettings(run_on=True)
    writes = Task("t", 1, "g", "generate_until", ("rouge_l",), "rouge_l", generation=ours)
    picks = Task("t", 1, "g", "multiple_choice", ("acc",), "acc")
    before = [cell_key(subject, t, variant, EncodingSettings(), numerics) for t in (writes, picks)]
    monkeypatch.setattr("evalcore.identity.cells.STOP_RULE", 99)
    after = [cell_key(subject, t, variant, EncodingSettings(), numerics) for t in (writes, picks)]
    assert before[0] != after[0]
    assert before[1] == after[1]
