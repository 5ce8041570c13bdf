"""One field, one definition: the command line, study files and checks are made from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from annotated_types import Ge, Gt, Le

from evalcore.cli import cli
from evalcore.cli.command import sections
from evalcore.cli.options import CERTIFIED_SHARE, option_fields, said
from evalcore.cli.score import score as score_command
from evalcore.cluster import GRACE_S
from evalcore.config import (
    PARTS,
    EngineConfig,
    ScoreConfig,
    all_options,
    options_of,
    study_keys,
)
from evalcore.config.page import PAGE, page
from evalcore.engines.protocol import EngineSpec
from evalcore.engines.registry import ENGINES
from evalcore.errors import InputError
from finetune.study import EvaluationSpec

# An option that goes or changes its spelling breaks users: say so in CHANGELOG.md, then mend this.
OPTIONS = """
    --adapters --allow-code --apply-chat-template --assume-base --base-map --budget --certify
    --certify-share --leave-out
    --chat-template-args --checkpoint --cluster --commit-every --data-root --device --disk-budget
    --dry-run --dtype --engine --fewshot-as-multiturn --gpu-kind --include-path --limit --log-json
    --max-length
    --name-pattern --no-bases --no-documents --num-fewshot --num-gpus --output --parent-map
    --peak-tflops --prompt-path --prompts --ray-address --seed --shard --stop-grace --strategy
    --strict --system-instruction --task-path --tasks --template-date --tensor-parallel --threads
    --time-limit --tokenizer --trust-remote-code --tuned-on --unit-examples --witness --workers
"""
STUDY_KEYS = """
    adapters budget certify device dtype engine limit max_length num_fewshot strategy
    tensor_parallel
"""
PARAMETERS = {param.name: param for param in score_command.params}


def test_the_options_of_score() -> None:
    words = {param.opts[-1] for param in PARAMETERS.values() if isinstance(param, click.Option)}
    assert words == set(OPTIONS.split())


def test_the_keys_of_the_evaluation_block() -> None:
    assert set(study_keys()) == set(STUDY_KEYS.split())
    own = {"tasks", "prompts", "extra", "groups", "primary"}
    assert set(EvaluationSpec.model_fields) == {*study_keys(), *own}
    properties = EvaluationSpec.model_json_schema()["properties"]
    for key, about in study_keys().items():
        spec = EvaluationSpec.model_fields[key]
        assert spec.default is None  # not given
        assert str(about.help) in properties[key]["description"]
        bounds = {type(b): b for b in spec.metadata if isinstance(b, Ge | Le | Gt)}
        assert bounds.get(Ge, Ge(0)).ge == (about.low or 0)  # type: ignore[union-attr]
        for word in about.choices:
            assert word in str(properties[key])


def test_every_field_is_said_in_one_way_or_another() -> None:
    asked = {"tasks", "prompts"}  # together the field grid
    alone = {"certify_share"}  # with --certify the field certify
    assert set(PARAMETERS) - asked - alone == set(all_options()) - {"grid"}
    for name, (_, _, about) in all_options().items():
        assert about.help.endswith((".", ")")), name
        assert about.section in sections()
        parameter = PARAMETERS.get(name)
        if isinstance(parameter, click.Option) and name not in {"certify", "output"}:
            assert tuple(parameter.opts) == about.words
            assert parameter.help == about.help
            if isinstance(parameter.type, click.Choice):
                assert tuple(parameter.type.choices) == about.choices


def parsed(*words: str) -> click.Context:
    """``evalcore score WORDS``; with the settings of the group, which a command remembers."""
    return score_command.make_context(
        "score", list(words), parent=click.Context(cli, **cli.context_settings)
    )


def test_defaults_of_the_command_line_are_those_of_the_fields() -> None:
    with parsed("-t", "x", "-o", "results") as context:
        config = ScoreConfig.of(grid=(), **_options(context))
        assert said(context) == {"tasks": "x", "output": Path("results")}
    assert config == ScoreConfig()


def test_flags_that_take_away() -> None:
    with parsed("-t", "x", "-o", "o", "--no-bases", "--no-documents", "--certify") as context:
        config = ScoreConfig.of(grid=(), **_options(context))
        assert (config.subjects.include_bases, config.run.documents) == (False, False)
        assert config.run.certify == said(context)["certify"] == CERTIFIED_SHARE


def _options(context: click.Context) -> dict[str, Any]:
    asked = {"tasks", "prompts"}
    return {n: v for n, v in option_fields(context.params).items() if n not in asked}


def test_parts_have_the_fields_and_names_are_their_own() -> None:
    assert [f.name for f in fields(ScoreConfig)] == list(PARTS)
    for part in PARTS.values():
        assert set(options_of(part)) == {f.name for f in fields(part)}
        assert part.__doc__


def test_the_tree_is_made_and_changed_by_names() -> None:
    config = ScoreConfig.of(engine="hf", cluster="ray", limit=3, adapters=("runs",))
    assert (config.engine.kind, config.cluster.backend, config.grid.limit) == ("hf", "ray", 3)
    changed = config.changed(limit="first:2", time_limit=5.0)
    assert (changed.grid.limit, changed.run.time_limit) == ("first:2", 5.0)
    assert changed.engine == config.engine
    assert config.record() == {
        "adapters": ["runs"], "engine": "hf", "cluster": "ray", "limit": 3,
    }  # fmt: skip
    assert ScoreConfig().record() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engin": "hf"}, "unknown argument 'engin'; nearest: engine"),
        ({"engine": "vlm"}, "--engine 'vlm': expected auto, vllm or hf"),
        ({"dtype": "int8"}, "--dtype 'int8': expected auto, float32, bfloat16 or float16"),
        ({"workers": 0}, "--workers 0: expected at least 1 and at most 4,096"),
        ({"workers": True}, "--workers True: expected a whole number"),
        ({"threads": 1.5}, "--threads 1.5: expected a whole number"),
        ({"stop_grace": float("nan")}, "--stop-grace nan: expected at least 0"),
        ({"peak_tflops": 0}, "--peak-tflops 0: expected more than 0 and at most"),
        ({"certify": 1.5}, "certify 1.5: expected at least 0 and at most 1"),
        ({"limit": "some"}, "some"),
        ({"limit": -1}, "-1"),
        ({"shard": (2, 2)}, "--shard 2/2: expected I/N with 0 <= I < N"),
        ({"chat": "yes"}, "--apply-chat-template 'yes': expected True or False"),
        ({"task_path": "tasks"}, "--task-path 'tasks': expected a tuple of values"),
        ({"data_root": "data"}, "--data-root 'data': expected a Path"),
        ({"chat_template_args": "[1]"}, "should be a JSON object"),
        ({"template_date": "July"}, "July"),
    ],
)
def test_values_from_python_are_checked_as_those_of_the_command_line(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        ScoreConfig.of(**given)


def test_a_field_of_the_engine_goes_to_every_engine() -> None:
    said = EngineConfig(kind="hf", strategy="plain", trust_remote_code=True)
    spec = EngineSpec.of(said, dtype="bfloat16", threads=3)
    for field in fields(EngineConfig):
        if field.name != "dtype":
            assert getattr(spec, field.name) == getattr(said, field.name)
    assert (spec.dtype, spec.threads) == ("bfloat16", 3)
    assert set(options_of(EngineConfig)["kind"].choices) == {*ENGINES, "auto"}
    assert EngineConfig().dtype_on("cpu") == "float32"
    assert EngineConfig().dtype_on("cuda") == "bfloat16"
    assert EngineConfig(dtype="float16").dtype_on("cpu") == "float16"


def test_the_grace_of_a_run_is_that_of_the_pool() -> None:
    assert ScoreConfig().run.stop_grace == GRACE_S


def test_importing_it_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, evalcore.config; "
        "print(sorted({'numpy', 'pyarrow', 'pydantic', 'click', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m evalcore.config.page"
