#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Downloads what bench-peers compares with, and unpacks what it compiles and links with.

fetch.py FOLDER PEER...      each PEER one of onednn, torch, onnxruntime

The wheels come from PyPI by pip, without what they depend on: of PyTorch only the library for CPUs
is used, which links with two libraries of CUDA, a small part of CUDA. Nothing is installed: FOLDER
is all that changes. What is there already is left alone.
"""

import fnmatch
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

# Peer, package, version, MB to download, MB on disk, what is kept of it. oneDNN's newer packages are
# built for SYCL, which hands every call to a runtime of its own; this is the last one for OpenMP.
WHEELS = [
    ("onednn", "onednn-cpu-gomp", "2023.2.0", 39, 55, ["*/data/lib/libdnnl.so.3"]),
    ("onednn", "onednn-devel-cpu-gomp", "2023.2.0", 1, 1, ["*/data/include/*.h"]),
    ("torch", "torch", "2.15.0", 539, 520, ["torch/include/*", "torch/lib/libtorch_cpu.so",
                                            "torch/lib/libc10.so", "torch/lib/libgomp*"]),
    ("torch", "nvidia-cuda-runtime", "13.2.86", 3, 1, ["*/libcudart.so.*"]),
    ("torch", "nvidia-cuda-cupti", "13.2.86", 12, 6, ["*/libcupti.so.*"]),
    ("onnxruntime", "onnxruntime", "1.32.0", 28, 35, ["*/libonnxruntime.so.*"]),
]

# Some wheels are per version of Python; their parts for Python are not used.
PIP = ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
       "--only-binary=:all:", "--python-version=3.12"]


def unpack(wheel, patterns, folder):
    """Keeps paths as they are, but for the part that pip would replace by its prefix."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/") or not any(fnmatch.fnmatch(name, p) for p in patterns):
                continue
            path = folder / name.split(".data/data/")[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            if path.name == "libdnnl.so.3":  # the name that linkers look for
                link = path.with_name("libdnnl.so")
                link.unlink(missing_ok=True)
                link.symlink_to(path.name)


def mark_of(wheel, folder):
    """A file that is there once the wheel is."""
    return folder / "done" / f"{wheel[1]}-{wheel[2]}"


def fetch(python, wheel, folder):
    _, name, version, megabytes, _, patterns = wheel
    print(f"{name} {version}: {megabytes} MB", flush=True)
    temporary = folder / "download"
    shutil.rmtree(temporary, ignore_errors=True)
    if subprocess.run([python, *PIP, "-d", temporary, f"{name}=={version}"]).returncode != 0:
        return False
    for file in temporary.iterdir():
        unpack(file, patterns, folder)
    shutil.rmtree(temporary)
    mark_of(wheel, folder).parent.mkdir(exist_ok=True)
    mark_of(wheel, folder).touch()
    return True


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    wanted = [w for w in WHEELS if w[0] in sys.argv[2:]]
    missing = [w for w in wanted if not mark_of(w, folder).exists()]
    if not missing:
        print(f"Already in {sys.argv[1]}: " + ", ".join(f"{w[1]} {w[2]}" for w in wanted))
        return 0
    print(f"Downloading {sum(w[3] for w in missing)} MB from PyPI, of which "
          f"{sum(w[4] for w in missing)} MB stay in {sys.argv[1]}:", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    failed = [w[1] for w in missing if not fetch(python, w, folder)]
    if failed:
        print(f"fetch.py: no {', '.join(failed)} for this machine, see pip's message. Try again, or "
              "name builds of your own: make bench-peers ONEDNN_ROOT=PREFIX TORCH_ROOT=FOLDER. "
              "bench-peers compares with what there is.", file=sys.stderr)
    return 1 if failed else 0


sys.exit(main())
