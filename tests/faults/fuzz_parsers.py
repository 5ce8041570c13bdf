"""Every parser of what comes from outside, fed with broken versions of good files.

A parser may give a value or an ``EvalcoreError`` of one line; anything else, a case that takes too
long, or a process that grows beyond a gigabyte is a fault. Run in a process of its own:
``python fuzz_parsers.py FOLDER SECONDS SEED PARSER...``; the case being tried is on disk when the
process dies.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalcore.errors import EvalcoreError, InputError

Fuzzer = Callable[[Path, random.Random], Callable[[], Any]]
MAX_CASE_S = 30.0  # a busy machine, not a loop
MAX_RESIDENT_BYTES = 1_000_000_000
_LIMIT_BYTES = 4_000_000_000  # of private memory, so that a bomb ends this process alone
_BYTES = (
    b"\x00", b"\xff\xfe", b"\n", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"-1", b"0",
    b"1e999", b"NaN", b"9" * 400, b"null", b"true", b'"\\ud800"', b"[" * 300, b'{"a":' * 300,
    b"&a ", b"*a ", b"<<: ", b"!!python/name:os.system ", b"{{", b"}}", b"{% for i in range(9) %}",
    b"{% endfor %}", b"../", b"\x1b[2J", "é\u202e".encode(), b"(a+)+", b".*",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "../../x", "\x00", "\ud800", "a" * 3000, "(a+)+$", "(((", ".*" * 9, "~nobody-there/x", [],
    {}, [[]], [None], {"": {}}, {"a": [1, {"b": None}]}, ["q_proj", 3], [[0, 99]], [-1],
    "0" * 5000, "NaN", "\n", "float99", "auto",
)  # fmt: skip


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in; now and then the end is missing."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 40)))
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + rng.choice(_BYTES) + data[at:]
        elif kind == 3:
            data = data[:end] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.choice(_BYTES) + data[end:]
        elif rng.random() < 0.3:
            data = data[:at]
    return data


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """A JSON text with values of other kinds, keys gone or doubled; sometimes broken as text."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        holder = value
        while True:
            inner = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not inner:
                break
            key = rng.choice(inner)
            if isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.7:
                holder = holder[key]
                continue
            if rng.random() < 0.15:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(_VALUES))  # it may be put into itself
            break
    data = json.dumps(value).encode()
    return mutated_bytes(data, rng) if rng.random() < 0.2 else data


_FAMILIES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "olmoe": "OlmoeForCausalLM", "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM", "mpt": "MPTForCausalLM", "phi3": "Phi3ForCausalLM",
    "cohere2": "Cohere2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM", "bloom": "BloomForCausalLM",
    "ministral3": "Ministral3ForCausalLM", "llama4_text": "Llama4ForCausalLM",
    "lfm2": "Lfm2ForCausalLM", "stablelm": "StableLmForCausalLM", "mixtral": "MixtralForCausalLM",
    "opt": "OPTForCausalLM", "granitemoe": "GraniteMoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM", "mamba": "MambaForCausalLM",
}  # fmt: skip
"""Model types -> an architecture of each, for what is asked of a configuration by family."""
_FAMILY_KEYS = {
    "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32, "rope_theta": 1e4},
    "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    "clip_qkv": None, "norm_topk_prob": False, "attention_bias": False, "hidden_act": "silu",
    "hidden_activation": "gelu", "partial_rotary_factor": 0.5, "rotary_pct": 0.25, "alibi": False,
    "use_bidirectional_attention": False, "max_window_layers": 2, "use_sliding_window": False,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "config_groups": {}},
    "original_max_position_embeddings": 64, "floor_scale": 8192, "attn_scale": 0.1,
    "attn_config": {"alibi": True, "clip_qkv": None}, "kv_lora_rank": 8, "qk_layernorm": False,
    "use_parallel_residual": False, "scale_attn_weights": True, "activation_function": "gelu_new",
    "no_rope_layers": [1, 0], "block_dim": 8, "tie_word_embeddings": False, "n_inner": None,
}  # fmt: skip


def _raise_problems(resolved: Any) -> None:
    for problem in resolved.problems:
        raise InputError(problem.message)


def _adapter_config(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.identity import resolve_subjects

    file = folder / "adapter/adapter_config.json"
    good = json.loads(file.read_bytes())
    good |= {
        "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 8.0}, "modules_to_save": None,
        "layer_replication": None, "layers_to_transform": None, "exclude_modules": ["lm_head"],
        "init_lora_weights": True, "use_dora": False, "trainable_token_indices": None,
    }  # fmt: skip

    def one() -> None:
        file.write_bytes(mutated_json(good, rng))
        _raise_problems(resolve_subjects([folder / "adapter"], [str(folder / "model")]))

    return one


def _header(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.identity import resolve_subjects
    from evalcore.identity.header import read_header

    file = folder / "adapter/adapter_model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def one() -> None:
        if rng.random() < 0.5:
            text = mutated_json(header, rng)
            data = len(text).to_bytes(8, "little") + text + whole[8 + length :]
        else:
            data = mutated_bytes(whole[: 8 + length], rng) + whole[8 + length :]
        file.write_bytes(data)
        _raise_problems(resolve_subjects([folder / "adapter"], [str(folder / "model")]))
        read_header(file)

    return one


def _config(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.app.lengths import encoding_settings
    from evalcore.engines.vllm.bases import refused
    from evalcore.identity import describe_checkpoint, numeric_config

    file = folder / "model/config.json"
    good = json.loads(file.read_bytes())
    good |= {"rope_scaling": None, "head_dim": 4, "text_config": {"hidden_size": 16}}
    plain = {key: value for key, value in good.items() if key != "text_config"}

    def one() -> None:
        if rng.random() < 0.5:
            file.write_bytes(mutated_json(good, rng))
            encoding_settings(describe_checkpoint(folder / "model"), None)
            return
        kind, name = rng.choice(list(_FAMILIES.items()))
        keys = dict(rng.sample(list(_FAMILY_KEYS.items()), 6))
        named = {"model_type": kind, "architectures": [name]}
        file.write_bytes(mutated_json(plain | keys | named, rng))
        reason = refused(str(folder / "model"), numeric_config(folder / "model"), "cpu", 2048)
        if reason is not None:
            raise InputError(reason)

    return one


def _tokenizer(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.identity import describe_checkpoint

    model = folder / "model"
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (model / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    names = (
        "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "special_tokens_map.json",
    )  # fmt: skip
    whole = {name: (model / name).read_bytes() for name in names}

    def one() -> None:
        name = rng.choice(names)
        (model / name).write_bytes(mutated_json(json.loads(whole[name]), rng))
        try:
            describe_checkpoint(model)
        finally:
            (model / name).write_bytes(whole[name])

    return one


def _chat_template(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.identity import load_tokenizer
    from evalcore.prompting.chat import chat_text
    from evalcore.types import Variant

    tokenizer = load_tokenizer(folder / "model")
    good = str(tokenizer.chat_template).encode()
    pieces = (
        b"{% for a in range(99999) %}{% for b in range(99999) %}", b"{% endfor %}{% endfor %}",
        b"{{ 'a' * 9999999 }}", b"{% set x = x ~ x %}", b"{{ messages }}",
        b"{{ raise_exception(1) }}",
        b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", b"{{ strftime_now('%Y') }}",
        b"{{ ''.__class__.__mro__ }}", b"{{ x | tojson }}", b"{% break %}",
    )  # fmt: skip
    variant = Variant("v", "g", "{{ q }}", chat=True, system="be kind")

    def one() -> None:
        data = mutated_bytes(good, rng)
        if rng.random() < 0.3:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(pieces) + data[at:]
        (folder / "case.jinja").write_bytes(data)
        tokenizer.chat_template = data.decode("utf-8", "replace")
        chat_text(variant, [("q", "a")], "question", tokenizer)

    return one


def _yaml(
    folder: Path, rng: random.Random, good: list[bytes], read: Callable[[Path], Any]
) -> Callable[[], Any]:
    file = folder / "case.yaml"

    def one() -> None:
        file.write_bytes(mutated_bytes(rng.choice(good), rng))
        read(file)

    return one


def _files_under(folder: Path) -> list[bytes]:
    files = sorted(folder.rglob("*.yaml"))
    assert files, folder
    return [file.read_bytes() for file in files[:40]]


def _task(folder: Path, rng: random.Random) -> Callable[[], Any]:
    import evalcore.tasks
    from evalcore.tasks.registry import read_task

    return _yaml(folder, rng, _files_under(Path(evalcore.tasks.__file__).parent), read_task)  # type: ignore[attr-defined]


def _prompt(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from evalcore.prompting.variants import prompts_root, read_prompt

    return _yaml(folder, rng, _files_under(prompts_root()), read_prompt)


def _study(folder: Path, rng: random.Random) -> Callable[[], Any]:
    import finetune
    from finetune.reading import load_study

    studies = Path(finetune.__file__).parents[1] / "studies"
    return _yaml(folder, rng, _files_under(studies), load_study)


def _data(folder: Path, rng: random.Random) -> Callable[[], Any]:
    import gzip

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from evalcore.tasks.rows import read_rows

    rows = [{"q": f"text {i}", "n": i, "c": ["a", "b"], "x": None} for i in range(20)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "good.parquet")
    pyarrow.csv.write_csv(table.select(["q", "n"]), folder / "good.csv")
    with (
        pa.OSFile(str(folder / "good.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "good.jsonl").write_bytes(lines)
    (folder / "good.json").write_bytes(json.dumps(rows).encode())
    (folder / "good.jsonl.gz").write_bytes(gzip.compress(lines))
    whole = {file.name: file.read_bytes() for file in folder.glob("good.*")}

    def one() -> None:
        name = rng.choice(sorted(whole))
        file = folder / name.replace("good", "case")
        file.write_bytes(mutated_bytes(whole[name], rng))
        read_rows(file)

    return one


def _store(part: str) -> Fuzzer:
    """Of a results folder: its record, the tables of cells, the segments."""

    def make(folder: Path, rng: random.Random) -> Callable[[], Any]:
        from evalcore.store import ResultStore

        good = folder / "results"
        case = folder / "case-results"
        files = sorted(
            file
            for file in good.rglob("*")
            if file.is_file()
            and (file.name == "store.json" if part == "record" else part in file.parts)
        )
        assert files, part

        def one() -> None:
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(good, case)
            chosen = rng.choice(files)
            (case / chosen.relative_to(good)).write_bytes(mutated_bytes(chosen.read_bytes(), rng))
            store = ResultStore(case)
            store.coverage()
            store.cells()
            store.read().validate(full=True)

        return one

    return make


FUZZERS: dict[str, Fuzzer] = {
    "adapter_config": _adapter_config, "safetensors_header": _header, "config": _config,
    "tokenizer": _tokenizer, "chat_template": _chat_template, "task": _task, "prompt": _prompt,
    "study": _study, "data": _data, "store": _store("record"), "cells": _store("cells"),
    "segments": _store("segments"),
}  # fmt: skip


def fuzz(name: str, folder: Path, seconds: float, seed: int) -> tuple[int, int]:
    """Tries one parser for so long.

    Returns:
        (cases, of them refused).
    """
    rng = random.Random(seed)
    if name in ("adapter_config", "safetensors_header", "config", "tokenizer", "chat_template"):
        from evalcore.identity import load_tokenizer

        load_tokenizer(folder / "model")("text")  # libraries are imported before time is taken
    one = FUZZERS[name](folder, rng)
    cases = refused = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or cases < 10:
        cases += 1
        faulthandler.dump_traceback_later(MAX_CASE_S, exit=True)
        try:
            one()
        except EvalcoreError as error:
            refused += 1
            if name != "study" and "\n" in str(error):  # a study names every mistake, a line each
                raise AssertionError(f"{name}, case {cases}: lines: {error!r}") from error
        except BaseException:
            print(f"{name}: seed {seed}, case {cases}", file=sys.stderr)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
    return cases, refused


def _peak_resident_bytes() -> int:
    """Of this program alone: ``ru_maxrss`` also counts the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def main(arguments: list[str]) -> None:
    """Tries parsers one after the other; prints a line of figures for each."""
    folder, seconds, seed, *names = arguments
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, _LIMIT_BYTES))
    faulthandler.enable()
    for name in names:
        own = Path(shutil.copytree(folder, Path(folder).parent / f"fuzz-{name}"))
        cases, refused = fuzz(name, own, float(seconds), int(seed))
        resident = _peak_resident_bytes()
        print(json.dumps([name, cases, refused, resident]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
