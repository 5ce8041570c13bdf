"""Which base an adapter has: certain, or an error that says what to give."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evalcore.errors import BaseUnresolvedError, IncompatibleError, InputError
from evalcore.identity import (
    adapter_fingerprint,
    checkpoint_fingerprint,
    find_adapters,
    open_checkpoint,
    read_provenance,
    resolve_subjects,
    step_of,
    write_provenance,
)

Make = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"
COMMITS = {"step100": "a" * 40, "step200": "b" * 40}


def record(adapter: Path, base: Path, **base_changes: Any) -> None:
    """Writes a provenance record for an adapter."""
    write_provenance(
        adapter,
        {
            "schema": 1,
            "base": {
                "name": base.name,
                "path": str(base),
                "path_relative": None,
                "source": str(base),
                "revision": None,
                "fingerprint": checkpoint_fingerprint(base),
                "step": None,
                **base_changes,
            },
            "tuning": {"name": "pocket_nli", "control": None, "seed": 3},
            "adapter_fingerprint": adapter_fingerprint(adapter),
        },
    )


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Make) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("second") / "step-00200", seed=2)


@pytest.fixture
def hub(
    tmp_path: Path, tiny_checkpoint: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A hub cache in the library's own layout that holds two revisions of org/base."""
    repo = tmp_path / "hub/models--org--base"
    (repo / "refs").mkdir(parents=True)
    for (revision, commit), source in zip(COMMITS.items(), (tiny_checkpoint, second), strict=True):
        snapshot = shutil.copytree(source, repo / "snapshots" / commit)
        weights = snapshot / "model.safetensors"
        blob = repo / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        weights.rename(blob)
        weights.symlink_to(Path("../../blobs") / blob.name)
        (repo / "refs" / revision).write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return "org/base"


def test_steps_in_names() -> None:
    names = {
        "step-00400": 400, "step400": 400, "step1000-tokens4B": 1000, "checkpoint-20": 20,
        "00300": 300, "main": None, "OLMo-1B-0724": None, "base@step200": 200, "a_step_7": 7,
        "footstep9": None, "²": None, "9" * 5000: None, "step-" + "9" * 5000: None,
        "stage1-step1907359-tokens3896B": 1907359, "stage2-ingredient1-step23000-tokens48B": None,
        "OLMo-2@Stage_3-step10": None, "backstage2-step5": 5,
    }  # fmt: skip
    assert {name: step_of(name) for name in names} == names


def test_find_adapters(tmp_path: Path, make_adapter: Make) -> None:
    make_adapter(tmp_path / "b/x", "base")
    make_adapter(tmp_path / "a", "base")
    assert find_adapters([tmp_path, tmp_path / "a"]) == [tmp_path / "a", tmp_path / "b/x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no adapters found in .*empty.*adapter_config\.json"):
        find_adapters([tmp_path / "empty"])
    with pytest.raises(InputError, match="does not exist"):
        find_adapters([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="nothing to score"):
        resolve_subjects([])


def test_subjects_in_order(
    tmp_path: Path, tiny_checkpoint: Path, second: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "a/two", second, seed=5)
    make_adapter(tmp_path / "a/zero", tiny_checkpoint, zero=True)
    make_adapter(tmp_path / "a/one", tiny_checkpoint)
    make_adapter(tmp_path / "a/one-again", tiny_checkpoint)
    resolved = resolve_subjects([tmp_path / "a"])
    labels = [subject.label for subject in resolved.subjects]
    assert labels == [
        "step-00100", "step-00100 + one", "step-00100 + zero", "step-00200", "step-00200 + two",
    ]  # fmt: skip
    assert [s.adapter.untrained for s in resolved.subjects if s.adapter] == [False, True, False]
    assert resolved.subjects[3].checkpoint.step == 200
    assert "exact copy" in resolved.notes[0]
    assert not resolved.problems
    tuned = resolve_subjects([tmp_path / "a"], include_bases=False).subjects
    assert all(subject.adapter for subject in tuned)
    assert len(tuned) == 3
    both = resolve_subjects([tmp_path / "a/two"], [str(tiny_checkpoint)], include_bases=False)
    assert [s.label for s in both.subjects] == ["step-00100", "step-00200 + two"]


def test_one_bad_adapter_is_a_problem_not_the_end(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "a/good", tiny_checkpoint)
    (make_adapter(tmp_path / "a/json", tiny_checkpoint) / "adapter_config.json").write_text("{")
    gone = make_adapter(tmp_path / "a/gone", tiny_checkpoint) / "adapter_model.safetensors"
    gone.rename(gone.with_suffix(".bin"))
    cut = make_adapter(tmp_path / "a/cut", tiny_checkpoint) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-5])
    (make_adapter(tmp_path / "a/started", tiny_checkpoint, seed=9) / "unfinished").touch()
    make_adapter(tmp_path / "a/other", tiny_checkpoint, peft_type="IA3")
    swapped = make_adapter(tmp_path / "a/swapped", tiny_checkpoint, seed=10)
    record(swapped, tiny_checkpoint)
    make_adapter(swapped, tiny_checkpoint, seed=11)  # other weights under the old record
    resolved = resolve_subjects([tmp_path / "a"])
    assert [s.label for s in resolved.subjects] == ["step-00100", "step-00100 + good"]
    kinds = {Path(problem.path).name: problem.kind for problem in resolved.problems}
    broken = dict.fromkeys(("json", "gone", "cut", "other", "swapped"), "broken")
    assert kinds == {**broken, "started": "unfinished"}
    assert all("\n" not in p.message and "a/" in p.message for p in resolved.problems)


def test_adapters_that_do_not_fit_or_are_uncertain_cost_only_themselves(
    tmp_path: Path, tiny_checkpoint: Path, second: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "a/good", tiny_checkpoint)
    make_adapter(tmp_path / "a/deep", tiny_checkpoint, seed=2, layers=4)
    make_adapter(tmp_path / "a/uncertain", "org/base", seed=3)
    other = make_adapter(tmp_path / "a/other", tiny_checkpoint, seed=4)
    record(other, second, path="/gone")
    make_adapter(tmp_path / "a/home", "~nobody-of-that-name/x", seed=5)
    make_adapter(tmp_path / "a/long", "x" * 5000, seed=6)
    make_adapter(tmp_path / "a/nul", "x\0y", seed=7)
    make_adapter(tmp_path / "a/two\nlines", "x\ny", seed=8)
    make_adapter(tmp_path / "a/empty", tiny_checkpoint)
    save_file({}, tmp_path / "a/empty/adapter_model.safetensors")
    make_adapter(tmp_path / "a/rows", tiny_checkpoint)
    rows = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((0, 8), "f")}
    save_file(rows, tmp_path / "a/rows/adapter_model.safetensors")
    make_adapter(tmp_path / "a/whole", tiny_checkpoint)
    save_file({name: np.ones((4, 8), "i4") for name in rows}, tmp_path / "a/whole" / WEIGHTS)
    os.rename(make_adapter(tmp_path / "x", tiny_checkpoint), os.fsencode(tmp_path) + b"/a/\xff\xfe")
    resolved = resolve_subjects([tmp_path / "a"])
    assert [s.label for s in resolved.subjects] == ["step-00100", "step-00100 + good"]
    found = {os.path.basename(problem.path): problem for problem in resolved.problems}
    assert {name: problem.kind for name, problem in found.items()} == {
        "deep": "misfit", "uncertain": "uncertain", "other": "uncertain", "home": "uncertain",
        "long": "uncertain", "nul": "uncertain", "two\nlines": "uncertain",
        "empty": "broken", "rows": "broken",
        "whole": "broken", "\udcff\udcfe": "broken",
    }  # fmt: skip
    assert "--base-map" in found["uncertain"].message
    assert "holds no tensors" in found["empty"].message
    assert "is empty" in found["rows"].message
    assert "of type I32" in found["whole"].message
    assert r"\udcff\udcfe: its path is not UTF-8" in found["\udcff\udcfe"].message
    assert all("\n" not in problem.message for problem in resolved.problems)


def test_the_plainest_of_copies_is_scored_and_the_others_are_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    odd = make_adapter(tmp_path / "a/aaa", tiny_checkpoint, some_new_key={"x": 1})
    make_adapter(tmp_path / "a/good", tiny_checkpoint)
    make_adapter(tmp_path / "a/megatron", tiny_checkpoint, megatron_config={"x": 1})
    resolved = resolve_subjects([tmp_path / "a"], include_bases=False)
    (subject,) = resolved.subjects
    assert subject.adapter is not None
    assert (subject.adapter.name, subject.adapter.copies) == ("good", (str(odd),))
    assert len(resolved.problems) == 1
    assert "exact copy" in resolved.notes[0]


def test_weights_without_a_configuration_are_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "a", tiny_checkpoint)
    (make_adapter(tmp_path / "b", tiny_checkpoint) / "adapter_config.json").unlink()
    found = resolve_subjects([tmp_path])
    assert [p.path for p in found.problems] == [str(tmp_path / "b")]
    assert "adapter_model.safetensors has no adapter_config.json" in found.problems[0].message


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


def test_files_that_a_clone_left_out_are_named(
    tmp_path: Path, make_checkpoint: Make, make_adapter: Make
) -> None:
    base = make_checkpoint(tmp_path / "step-1")
    make_adapter(tmp_path / "a", base)
    (tmp_path / "a" / WEIGHTS).write_text(POINTER)
    linked = make_adapter(tmp_path / "b", base)
    (linked / WEIGHTS).unlink()
    (linked / WEIGHTS).symlink_to("/nowhere/else")
    found = {p.path: p.message for p in resolve_subjects([tmp_path]).problems}
    assert "is a pointer of Git LFS, not the file itself" in found[str(tmp_path / "a")]
    assert "is a link to nothing" in found[str(linked)]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        held = (base / name).read_bytes()
        (base / name).write_text(POINTER)
        with pytest.raises(InputError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
            open_checkpoint(str(base))
        (base / name).write_bytes(held)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ["q_proj"]}, "v_proj, which target_modules does not name"),
        ({"target_modules": []}, "which target_modules does not name"),
        ({"target_modules": r".*layers\.0\..*\.(q|v)_proj"}, "LoRA of model.layers.1.self_attn.q"),
        ({"target_modules": "q_proj"}, "LoRA of model.layers.0.self_attn.q_proj"),
        ({"exclude_modules": ["layers.1.self_attn.v_proj"]}, "LoRA of model.layers.1.self_attn.v"),
        ({"exclude_modules": r".*v_proj"}, "less what exclude_modules"),
        ({"layers_to_transform": [0]}, "LoRA of model.layers.1.self_attn.q_proj"),
        (
            {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"]},
            "LoRA of model.layers.1.self_attn.q_proj",
        ),
        ({"target_modules": "all-linear"}, "lacks the LoRA"),
        ({"target_modules": r".*\.(q|v)_proj"}, None),
        (
            {
                "target_modules": [
                    f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"
                ],
                "layers_to_transform": [0],
            },
            None,
        ),
        ({"peft_type": None}, "key peft_type"),
        ({"target_modules": ["self_attn.q_proj", "v_proj"]}, None),
        ({"target_modules": None}, None),
    ],
)
def test_what_peft_would_leave_out_is_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, config: dict[str, Any],
    says: str | None,
) -> None:  # fmt: skip
    """PEFT loads what the configuration names and drops the rest; vLLM would merge all of it."""
    make_adapter(tmp_path / "a", tiny_checkpoint, **config)
    make_adapter(tmp_path / "good", tiny_checkpoint, seed=7)
    messages = [p.message for p in resolve_subjects([tmp_path]).problems]
    assert len(messages) == (says is not None)
    assert all(str(says) in message for message in messages)


def test_links_to_folders_are_followed_once(tmp_path: Path, make_adapter: Make) -> None:
    runs = tmp_path / "runs"
    make_adapter(runs / "real", "base")
    make_adapter(tmp_path / "scratch/run-7/final", "base")
    (runs / "linked").symlink_to(tmp_path / "scratch")
    (runs / "latest").symlink_to(runs / "real")
    (runs / "again").symlink_to(tmp_path / "scratch/run-7")
    (runs / "up").symlink_to(tmp_path)
    (runs / "self").symlink_to(runs / "self")
    (runs / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "scratch/back").symlink_to(runs)
    found = find_adapters([runs])
    assert [path.resolve() for path in found] == [
        tmp_path / "scratch/run-7/final", runs / "real",
    ]  # fmt: skip
    assert runs / "real" in found
    assert find_adapters([runs / "latest"]) == [runs / "latest"]


def test_a_link_to_a_whole_disk_is_bounded(
    tmp_path: Path, make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "runs/real", "base")
    for number in range(20):
        (tmp_path / "disk" / str(number)).mkdir(parents=True)
    (tmp_path / "runs/disk").symlink_to(tmp_path / "disk")
    # By the module's own name: the package also has a function called search.
    monkeypatch.setattr(sys.modules["evalcore.identity.search"], "MAX_FOLDERS", 10)
    with pytest.raises(InputError, match="more than 10 folders below it"):
        find_adapters([tmp_path / "runs"])


def test_provenance_first(
    tmp_path: Path, tiny_checkpoint: Path, second: Path, make_adapter: Make
) -> None:
    """adapter_config names another base: the verified record wins."""
    adapter = make_adapter(tmp_path / "a/one", second)
    record(adapter, tiny_checkpoint)
    (subject,) = resolve_subjects([adapter], include_bases=False).subjects
    assert subject.checkpoint.path == str(tiny_checkpoint.resolve())
    assert subject.adapter is not None
    assert (subject.adapter.tuning, subject.adapter.seed) == ("pocket_nli", 3)


def test_a_moved_pair_is_found_by_its_relative_path(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "demo/models/step-00100")
    adapter = make_adapter(tmp_path / "demo/adapters/one", "x")
    record(adapter, tmp_path / "demo/models/step-00100", path_relative="../../models/step-00100")
    (tmp_path / "demo").rename(tmp_path / "moved")
    resolved = resolve_subjects([tmp_path / "moved/adapters"], include_bases=False)
    assert resolved.subjects[0].checkpoint.path == str(tmp_path / "moved/models/step-00100")


def test_a_base_that_moved_needs_a_map(
    tmp_path: Path, tiny_checkpoint: Path, second: Path, make_adapter: Make
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_checkpoint, home)
    adapter = make_adapter(tmp_path / "a/one", "x")
    record(adapter, home)
    home.rename(tmp_path / "away")
    with pytest.raises(BaseUnresolvedError, match=r"--base-map GLOB=PATH\|REPO@REV"):
        resolve_subjects([adapter])
    for base_map in (f"*/one={tmp_path / 'away'}", f"one={tmp_path / 'away'}"):
        (subject,) = resolve_subjects([adapter], base_map=[base_map], include_bases=False).subjects
        assert subject.adapter is not None
    # A checkpoint given anyway is recognised by content.
    assert len(resolve_subjects([adapter], [str(tiny_checkpoint)]).subjects) == 2
    with pytest.raises(IncompatibleError, match="trained on another base"):
        resolve_subjects([adapter], base_map=[f"one={second}"])
    with pytest.raises(IncompatibleError, match="trained on another base"):
        resolve_subjects([adapter], assume_base=str(second))
    shutil.copytree(second, home)  # something else at the recorded place
    with pytest.raises(IncompatibleError, match="no longer the checkpoint"):
        resolve_subjects([adapter])
    with pytest.raises(InputError, match="expected GLOB="):
        resolve_subjects([adapter], base_map=["one"])
    with pytest.raises(InputError, match="--base-map: base missing on disk"):
        resolve_subjects([adapter], base_map=["one=/nowhere"])


def test_what_is_said_of_bases_for_nothing_is_told(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    adapter = make_adapter(tmp_path / "a/one", tiny_checkpoint)
    base = str(tiny_checkpoint)
    with pytest.raises(InputError, match=r"--base-map two=.*fits 'two' \(there: .*a/one\)$"):
        resolve_subjects([tmp_path / "a"], base_map=[f"one={base}", f"two={base}"])
    with pytest.raises(InputError, match=r"fits 'two' \(there: none\)$"):
        resolve_subjects([], [base], base_map=[f"two={base}"])
    found = resolve_subjects([adapter], base_map=[f"*/one={base}"], assume_base=base)
    assert found.notes == (f"--assume-base {base}: no adapter needed it",)
    shutil.rmtree(adapter)
    make_adapter(adapter, "org/unknown")
    (note,) = resolve_subjects([adapter], assume_base=base).notes
    assert "base assumed to be" in note


def test_a_hub_base_without_revision_is_an_error(
    tmp_path: Path, hub: str, make_adapter: Make
) -> None:
    """PEFT writes revision null: two adapters of two revisions look the same."""
    make_adapter(tmp_path / "a/at100", hub, seed=1)
    make_adapter(tmp_path / "a/at200", hub, seed=2)
    with pytest.raises(BaseUnresolvedError) as caught:
        resolve_subjects([tmp_path / "a"])
    line = str(caught.value)
    assert caught.value.exit_status == 2
    assert "\n" not in line
    assert all(part in line for part in ("at100", "at200", "org/base", "--base-map", "--assume"))
    resolved = resolve_subjects(
        [tmp_path / "a"],
        base_map=["at100=org/base@step100", "at200=org/base@step200"],
        include_bases=False,
    )
    found = {s.adapter.name: s.checkpoint.revision for s in resolved.subjects if s.adapter}
    assert found == {"at100": "a" * 40, "at200": "b" * 40}
    assert [s.checkpoint.step for s in resolved.subjects] == [100, 200]
    assumed = resolve_subjects([tmp_path / "a"], assume_base="org/base@step200")
    assert {s.checkpoint.revision for s in assumed.subjects} == {"b" * 40}
    assert any("assumed" in note for note in assumed.notes)


def test_a_hub_base_with_revision_is_resolved(
    tmp_path: Path, hub: str, second: Path, make_adapter: Make
) -> None:
    adapter = make_adapter(tmp_path / "a/one", hub, revision="step200")
    base, tuned = resolve_subjects([adapter]).subjects
    assert base.checkpoint.revision == "b" * 40
    assert base.checkpoint.name == "base@step200"
    assert tuned.base_id == base.id
    snapshot = Path(base.checkpoint.path)
    assert base.checkpoint.fingerprint == checkpoint_fingerprint(second)  # a copy is the same
    # A blob is named by its sha256: known again at any place and time without reading it.
    os.utime(snapshot / "model.safetensors")
    blob = (snapshot / "model.safetensors").resolve()
    blob.chmod(0o644)
    size = blob.stat().st_size
    blob.write_bytes(bytes(size))
    assert checkpoint_fingerprint(snapshot) == base.checkpoint.fingerprint
    by_commit = resolve_subjects([], [f"{hub}@{'a' * 40}"]).subjects[0].checkpoint
    assert by_commit.revision == "a" * 40
    with pytest.raises(InputError, match=r"org/base@step999 not in the local cache"):
        resolve_subjects([], [f"{hub}@step999"])
    with pytest.raises(InputError, match=r"needs a revision: org/base@REVISION"):
        resolve_subjects([], [hub])


def test_checkpoints_that_are_not_there(tmp_path: Path, second: Path) -> None:
    with pytest.raises(InputError, match="base missing on disk"):
        resolve_subjects([], [str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"no config\.json.*1 checkpoints: step-00200"):
        resolve_subjects([], [str(second.parent)])


def test_an_adapter_of_another_architecture_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    deep = make_adapter(tmp_path / "deep", tiny_checkpoint, layers=4)
    with pytest.raises(IncompatibleError, match="does not fit base"):
        resolve_subjects([deep])


def test_equal_names_are_told_apart(
    tmp_path: Path, make_checkpoint: Make, make_adapter: Make
) -> None:
    for number, model in enumerate(("small", "large")):
        make_checkpoint(tmp_path / model / "main", seed=20 + number)
        for seed, run in enumerate(("r1", "r2")):
            make_adapter(tmp_path / "a" / model / run / "nli", tmp_path / model / "main", seed=seed)
    labels = [subject.label for subject in resolve_subjects([tmp_path / "a"]).subjects]
    assert labels == [
        "large/main", "large/main + r1/nli", "large/main + r2/nli",
        "small/main", "small/main + r1/nli", "small/main + r2/nli",
    ]  # fmt: skip


def test_checkpoint_json_gives_the_step(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "final")
    (folder / "checkpoint.json").write_text(json.dumps({"step": 77, "tokens": 9}))
    assert resolve_subjects([], [str(folder)]).subjects[0].checkpoint.step == 77
    (folder / "checkpoint.json").write_text(json.dumps({"step": "x"}))
    with pytest.raises(InputError, match="whole number"):
        resolve_subjects([], [str(folder)])


def test_broken_provenance(tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make) -> None:
    adapter = make_adapter(tmp_path / "one", tiny_checkpoint)
    (adapter / "provenance.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(InputError, match=r"provenance\.json: key 'schema'"):
        read_provenance(adapter)
    assert resolve_subjects([adapter], [str(tiny_checkpoint)]).problems[0].kind == "broken"


def test_same_weights_asked_otherwise_are_two_checkpoints(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    one, other, same = (
        Path(shutil.copytree(tiny_checkpoint, tmp_path / name)) for name in ("a-1", "b-1", "c-1")
    )
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[0].content }}"
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    make_adapter(tmp_path / "runs" / "x", one)
    make_adapter(tmp_path / "runs" / "y", other, seed=5)
    make_adapter(tmp_path / "runs" / "z", same, seed=6)
    found = resolve_subjects([tmp_path / "runs"], [str(one), str(other), str(same)])
    places = {s.adapter.name: s.checkpoint.path for s in found.subjects if s.adapter is not None}
    assert places == {"x": str(one), "y": str(other), "z": str(one)}
    bases = {s.checkpoint.path: s for s in found.subjects if s.adapter is None}
    assert set(bases) == {str(one), str(other)}
    first, second = bases[str(one)], bases[str(other)]
    assert first.id != second.id
    assert first.weights == second.weights
    tuned = {s.adapter.name: s for s in found.subjects if s.adapter is not None}
    assert tuned["y"].base_id == second.id
    assert tuned["x"].base_id == tuned["z"].base_id == first.id
    assert any("its own chat template" in note and str(other) in note for note in found.notes)


def test_a_recorded_base_is_the_one_at_its_place(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    one, other = (Path(shutil.copytree(tiny_checkpoint, tmp_path / n)) for n in ("a-1", "b-1"))
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    record(make_adapter(tmp_path / "runs" / "y", other, seed=5), other)
    found = resolve_subjects([tmp_path / "runs"], [str(one), str(other)])
    (tuned,) = [s for s in found.subjects if s.adapter is not None]
    assert tuned.checkpoint.path == str(other)
    assert tuned.checkpoint.end_tokens == (1, 7)


def test_a_model_saved_again_by_another_version_is_the_same(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    """As transformers 5 saves what an older version wrote: all defaults, rope's base elsewhere."""
    again = Path(shutil.copytree(tiny_checkpoint, tmp_path / "again"))
    config = json.loads((again / "config.json").read_text())
    theta = config.pop("rope_theta")
    defaults: dict[str, Any] = {
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "head_dim": 16,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1,
        "initializer_range": 0.02, "rope_scaling": None,
    }  # fmt: skip
    (again / "config.json").write_text(json.dumps({**config, **defaults}))
    adapter = make_adapter(tmp_path / "a/one", str(again))
    record(adapter, again)
    given = [str(tiny_checkpoint), str(again)]
    resolved = resolve_subjects([tmp_path / "a"], given)
    assert [s.label for s in resolved.subjects] == ["step-00100", "step-00100 + one"]
    assert any(f"{again} is {tiny_checkpoint}" in note for note in resolved.notes)
    mapped = resolve_subjects([tmp_path / "a"], base_map=[f"*={tiny_checkpoint}"])
    assert len(mapped.subjects) == 2
    other = {"rope_parameters": {"rope_theta": 5000.0}}
    (again / "config.json").write_text(json.dumps({**config, **defaults, **other}))
    assert len(resolve_subjects([], given).subjects) == 2, "another model"


@pytest.mark.parametrize(
    ("given", "hint"),
    [("runs/*", "without a pattern"), ("pocket_facts", "-t A,B"), ("no/such", "$")],
)
def test_a_folder_that_is_not_there_comes_with_what_was_meant(given: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"adapter folder .* does not exist.*{hint}") as caught:
        resolve_subjects([given])
    assert "\n" not in str(caught.value)
