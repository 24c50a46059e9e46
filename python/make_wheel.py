#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make_wheel.py MACHINE BUILT FOLDER: the wheel for a machine (x86_64, aarch64) of what `make` has built in
BUILT (_bnorm.so and libsleef-bnorm.so), into FOLDER. The same bytes of the same files."""
import base64
import hashlib
import pathlib
import re
import sys
import zipfile

TOP = pathlib.Path(__file__).resolve().parent
SUMMARY = "Batch normalization on CPUs for NumPy, PyTorch, JAX and Keras, the same bits on every instruction set"


def main():
    machine, built, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    header = (TOP / "../include/bnorm.h").read_text(encoding="utf-8")
    version = ".".join(re.findall(r"^#define BNORM_VERSION_[A-Z]+ +(\d+)", header, re.M))
    libraries = {name: (built / name).read_bytes() for name in ("_bnorm.so", "libsleef-bnorm.so")}

    # The oldest glibc that has what the libraries ask for.
    glibc = max(int(n) for data in libraries.values() for n in re.findall(rb"GLIBC_2\.(\d+)", data))
    tags = [f"manylinux_2_{max(glibc, 17)}_{machine}"] + ([f"manylinux2014_{machine}"] if glibc <= 17 else [])
    tag = "py3-none-" + ".".join(tags)

    files = {f"bnorm/{p.name}": p.read_bytes() for p in sorted((TOP / "bnorm").iterdir()) if p.suffix in (".py", ".typed")}
    files.update({f"bnorm/{name}": data for name, data in libraries.items()})
    info = f"bnorm-{version}.dist-info"
    files[f"{info}/licenses/LICENSE"] = (TOP / "../LICENSE").read_bytes()
    files[f"{info}/licenses/SLEEF"] = (TOP / "LICENSE.sleef").read_bytes()
    files[f"{info}/METADATA"] = "\n".join([
        "Metadata-Version: 2.4", "Name: bnorm", f"Version: {version}", f"Summary: {SUMMARY}",
        "License-Expression: MIT AND BSL-1.0", "License-File: LICENSE", "License-File: SLEEF",
        "Requires-Python: >=3.9", "Requires-Dist: numpy>=1.22", "Description-Content-Type: text/markdown", "",
        (TOP / "README.md").read_text(encoding="utf-8")]).encode()
    files[f"{info}/WHEEL"] = "\n".join(
        ["Wheel-Version: 1.0", "Generator: bnorm-make-wheel", "Root-Is-Purelib: false"] +
        [f"Tag: py3-none-{one}" for one in tags] + [""]).encode()
    record = [f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
              for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join(record + [f"{info}/RECORD,,", ""]).encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"bnorm-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, data)
    print(f"{wheel.stat().st_size / 1e6:.1f} MB  {wheel}")


main()
