#!/usr/bin/env bash
# SkyPilot, and what it installs on a machine, for tests/ssh/test_sky.py: two environments below FOLDER, of about 1.5 GB.
# Usage: tests/ssh/sky_image.sh FOLDER; it says how the tests find them.
set -euo pipefail
folder=$(realpath -m "$1")
image=$folder/image
mkdir -p "$image/.local/bin"
python3 -m venv "$folder/sky"
"$folder/sky/bin/pip" install -q 'skypilot[aws]==0.14.1'
python3 -m venv "$image/skypilot-runtime"
# The versions are those of sky/skylet/constants.py, by which SkyPilot sees that there is nothing left to install.
"$image/skypilot-runtime/bin/pip" install -q 'skypilot[aws,remote]==0.14.1' 'ray[default]==2.9.3' 'setuptools<70' 'click<8.3.0' \
  'pydantic-core==2.41.1' uv
mv "$image/skypilot-runtime/bin/uv" "$image/.local/bin/uv"
echo "export RAYKIT_SKY=$folder/sky/bin/sky RAYKIT_SKY_IMAGE=$image"
