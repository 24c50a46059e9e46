# SPDX-License-Identifier: MIT
#
# What is installed, and what for.

##@ Packages

deps_lint_packages = clang clang-format clang-tidy shellcheck abigail-tools
# For bench-peers, which takes today's peers from PyPI; for accuracy, oneDNN and PyTorch.
deps_peers_packages = libpthreadpool-dev python3-venv ca-certificates libdnnl-dev python3-torch
# For the frameworks of PyPI, and PyTorch.
deps_conformance_packages = python3-venv python3-torch python3-numpy ca-certificates
deps_ci_packages = ccache
deps_mca_packages = llvm-19 gcc-aarch64-linux-gnu libc6-dev-arm64-cross python3
deps_deb_packages = dpkg-dev debhelper lintian libsleef-dev
deps_packages_packages = cmake clang
deps_wheel_packages = libsleef-dev patchelf python3-venv ca-certificates
deps_mpi_packages = libopenmpi-dev openmpi-bin libmpich-dev mpich libcmocka-dev
deps_cross_packages = gcc-mingw-w64-x86-64-posix wine wine64 qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross libcmocka-dev:arm64 \
	libsleef-dev:arm64 gcc-riscv64-linux-gnu libc6-dev-riscv64-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross
deps_armhf_packages = gcc-arm-linux-gnueabihf libc6-dev-armhf-cross libcmocka-dev:armhf libsleef-dev:armhf
deps_platforms_packages = clang cmake llvm musl-tools python3-venv ca-certificates
deps_avx512_packages = bochs bochs-term binutils xorriso

deps-lint: ## installs what lint and format need
	@scripts/apt-install 'to check and format the sources' $(deps_lint_packages)

deps-ci: ## installs what .ci/run needs, besides what deps, deps-lint, deps-cross and deps-mpi do
	@scripts/apt-install 'to compile nothing twice' $(deps_ci_packages)

deps-peers: ## brings what bench-peers compares with, PyTorch, oneDNN and ONNX Runtime (620 MB, into build/peers), and what accuracy does
	@scripts/apt-install 'to compare with' $(deps_peers_packages)
	@python3 bench/peers/fetch.py $(peers_folder) $(if $(ONEDNN_ROOT),,onednn) $(if $(TORCH_ROOT),,torch) onnxruntime

deps-conformance: ## installs what conformance needs: PyTorch, and Python's venv for the other frameworks
	@scripts/apt-install 'to compare with frameworks' $(deps_conformance_packages)

deps-mca: ## installs what mca needs
	@scripts/apt-install 'to look at Arm loops' $(deps_mca_packages)

deps-packages: ## installs what packages needs
	@scripts/apt-install 'to try bnorm in other projects' $(deps_packages_packages)

deps-deb: ## installs what deb needs
	@scripts/apt-install 'to make Debian packages' $(deps_deb_packages)

deps-wheel: ## installs what wheel and test-wheel need, besides deps-cross for AArch64
	@scripts/apt-install 'to make the Python package' $(deps_wheel_packages)

deps-mpi: ## installs what mpi, test-mpi and bench-mpi need: Open MPI and MPICH
	@scripts/apt-install 'to train over MPI' $(deps_mpi_packages)

deps-cross: ## installs what test-cross needs; adds Debian's arm64 and armhf architectures
	@scripts/apt-install 'to cross-compile and emulate' --arch arm64 $(deps_cross_packages)
	@scripts/apt-install 'to do so for 32-bit Arm' --arch armhf $(deps_armhf_packages)

deps-platforms: ## brings what platforms needs besides deps-cross; zig and wasmtime are of PyPI (500 MB, into build/platforms)
	@scripts/apt-install 'to build for every target' $(deps_platforms_packages)
	test -x $(BUILD)/platforms/bin/python || python3 -m venv $(BUILD)/platforms
	$(BUILD)/platforms/bin/pip install -q ziglang wasmtime

deps-avx512: ## installs what emulate-SkylakeX needs, Bochs; fetches a kernel for it, which it doesn't install
	@scripts/apt-install 'to emulate AVX-512' $(deps_avx512_packages)
	@tools/emulate_avx512.sh --prepare

.PHONY: deps-packages deps-deb deps-wheel deps-ci deps-lint deps-peers deps-conformance deps-mca deps-mpi deps-cross deps-platforms deps-avx512
