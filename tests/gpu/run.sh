#!/usr/bin/env bash
# Every check that needs a GPU, in one run of a few minutes; prints one JSON object last.
# Needs torch, transformers, timm, numpy, scipy, PIL and pyarrow only: no ray, no pydantic, no installation.
#
#   bash tests/gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python3 -c 'import torch; assert torch.cuda.is_available(), "no GPU here: these checks need one"'
exec python3 tests/gpu/checks.py
