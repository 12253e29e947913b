#!/usr/bin/env bash
# The checks that need a GPU, in under five minutes; run it in the repository with hiermem and pytest installed.
set -uo pipefail
out=${1:-.}
python -m pytest -q tests/test_cuda.py 2>&1 | tail -20
python -m hiermem.cli.main bench gpu --json > "$out/gpu.json" && cat "$out/gpu.json"
python -m hiermem.cli.main bench gpu --policy attention --evictor none --rows 1 --json > "$out/gpu-attention.json" \
  && cat "$out/gpu-attention.json"
python -m hiermem.cli.main bench decode --contexts 512,8192 --json > "$out/decode.json" && cat "$out/decode.json"
