"""Patterns that PEFT matches with module names: those that end pass, the others are refused."""

from __future__ import annotations

import random
import re
import time
from multiprocessing import get_context

import pytest

from evalcore.identity.patterns import MAX_LENGTH, pattern_fault

NAMES = [
    *(f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 9, 31) for p in "qkvo"),
    "model.language_model.layers.31.mlp.experts.127.down_proj", "lm_head", "a" * 60,
    "model.visual.blocks.0.attn.qkv", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a!", "ab" * 30,
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r".*\.(q_proj|v_proj)$",
        r"model\.layers\.(?:1|2|10)\.self_attn\.[qkvo]_proj",
        r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        # of the kind that libraries write for models with vision parts
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|ffn).*?(?:q_proj|k_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))",
        r"(?i).*\.(Q|K)_PROJ",
        r"(?:\w+\.)*q_proj",
        r"(\.[a-z_]+)+",
        r"(ab|c)+",
        r"[a-z_.0-9]+",
        "|".join(rf"model\.layers\.{i}\.mlp" for i in range(400)),
    ],
)
def test_patterns_of_real_adapters_pass(pattern: str) -> None:
    assert pattern_fault(pattern) is None


@pytest.mark.parametrize("pattern", ["q_proj", r"layers\.(0|1)\..*_proj", r"model\..*\.\d+\.mlp"])
def test_keys_of_rank_patterns_pass(pattern: str) -> None:
    assert pattern_fault(rf"(.*\.)?({pattern})$") is None


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(([a-z_.0-9]+)+)+$!", "a repeat within a repeat"),
        (r"(a+)+$", "a repeat within a repeat"),
        (r"(a?){40}a{40}", "a repeat within a repeat"),
        (r"(\w*\.\w*)*!", "a repeat within a repeat"),
        (r"(\w*\w*\.)*!", "a repeat within a repeat"),
        (r"(?:\w+\.?)*!", "a repeat within a repeat"),
        (r"((((){60000}){60000}){60000})", "a repeat within a repeat"),
        (r"(a|a)*!", "begin alike"),
        (r"(a|ab|b)*!", "begin alike"),
        (r"(?i)(?:ka|\u212ab)*!", "begin alike"),
        (r"(?:|a)*!", "begin alike|within a repeat"),
        (r".*.*.*.*.*.*!", "too many repeats in a row"),
        ("a?" * 30 + "a" * 30, "too many repeats in a row"),
        (r"(a*)\1\1\1!", "refers back"),
        (r"(", "no regular expression"),
        (r"*", "no regular expression"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a" * (MAX_LENGTH + 1), "characters"),
        ("a{99999999999}", "no regular expression"),
    ],
)
def test_patterns_that_may_not_end_are_refused(pattern: str, reason: str) -> None:
    fault = pattern_fault(pattern)
    assert fault is not None
    assert re.search(reason, fault), fault
    assert "\n" not in fault


def _match_accepted(seed: int, until_s: float) -> tuple[int, int, str, float]:
    """(accepted, refused, slowest accepted pattern, its seconds over all names)."""
    rng = random.Random(seed)
    parts = [
        "a", "b", r"\.", ".", "[a-z]", r"\w", r"\d", "[^.]", "(a|b)", "(ab|c)", "(a|ab)", "(?:a)",
        "(", ")", "|", "*", "+", "?", "*?", "{2,}", "{3}", "(?!", "(?=", "^", "$", "q_proj", "(?i)",
    ]  # fmt: skip
    accepted = refused = 0
    slowest = ("", 0.0)
    end = time.monotonic() + until_s
    while time.monotonic() < end:
        pattern = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        if rng.random() < 0.5:
            pattern = f"({pattern})" + rng.choice(["*", "+", "?", "{2,}"])
        try:
            re.compile(pattern)
        except re.error:
            assert pattern_fault(pattern) is not None
            continue
        if pattern_fault(pattern) is not None:
            refused += 1
            continue
        accepted += 1
        begin = time.monotonic()
        for name in NAMES:
            re.fullmatch(pattern, name)
        spent = time.monotonic() - begin
        slowest = max(slowest, (pattern, spent), key=lambda one: one[1])
    return accepted, refused, *slowest


def test_no_accepted_pattern_hangs() -> None:
    """In a process of its own: a pattern that hangs holds on to its interpreter."""
    with get_context("fork").Pool(1) as pool:
        accepted, refused, pattern, spent = pool.apply_async(_match_accepted, (3, 1.0)).get(60)
    assert accepted > 300
    assert refused > 100
    assert spent < 20, pattern
