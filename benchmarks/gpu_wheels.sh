#!/bin/sh
# What benchmarks/gpu_training.py needs and a bare CUDA machine rarely has, as wheels for its Python.
#
#   sh benchmarks/gpu_wheels.sh FOLDER            # here, with a network: 113 MB
#   sh benchmarks/gpu_wheels.sh FOLDER 130        # the same for a machine with CUDA 13.0 alone: 54 MB
#
# and on that machine, in the root of this repository:
#
#   pip install --no-index --no-deps FOLDER/*.whl && python -m benchmarks.gpu_training --data FILE
#
# The machine must have torch, transformers, peft and accelerate, and with them numpy, safetensors and huggingface_hub.
# Leave out of FOLDER what it has too (`pip list`). PYTHON_VERSION is 3.12 if not given. FOLDER belongs outside the tree.
#
# With the second argument (`torch.version.cuda` without its point) bitsandbytes keeps its libraries for the CPU and that
# CUDA, and pyarrow loses its tests, headers, Flight and S3, which no training imports.
set -eu
folder=${1:?give a folder for the wheels}
cuda=${2:-}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

mkdir -p "$folder"
# dill and multiprocess: the newest that datasets 5.2.0 allows
"$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" --constraint "$here/constraints.txt" \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 \
    bitsandbytes trl datasets pyarrow pandas==3.1.1 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 \
    python-dateutil==2.9.0.post0 six==1.17.0

if [ -n "$cuda" ]; then
    "$python" - "$folder" "$cuda" <<'PYTHON'
import re
import sys
import zipfile
from pathlib import Path

folder, cuda = Path(sys.argv[1]), sys.argv[2]
needless = {
    "bitsandbytes": rf"bitsandbytes/libbitsandbytes_(?!cpu\.|cuda{cuda}\.).*",
    "pyarrow": r"pyarrow/(tests/|include/|src/|.*(flight|s3)[^/]*\.so).*",
}
for package, pattern in needless.items():
    for wheel in folder.glob(f"{package}-*.whl"):
        draft = wheel.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            kept = [name for name in old.namelist() if not re.fullmatch(pattern, name)]
            if package == "bitsandbytes" and not any(f"_cuda{cuda}." in name for name in kept):
                draft.unlink()
                sys.exit(f"{wheel.name} has no library for CUDA {cuda}")
            for name in kept:
                content = old.read(name)
                if name.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(line for line in lines if line.partition(",")[0] in kept).encode()
                new.writestr(old.getinfo(name), content)
        draft.replace(wheel)
PYTHON
fi
du -h "$folder"/*.whl
