# SPDX-License-Identifier: MIT
#
# Ways into other projects: one file, a release, packages (docs/packages.md).

##@ Packages of bnorm

amalgamation: $(BUILD)/amalgamation/bnorm.c ## bnorm as one source and one header, for `cc -c bnorm.c`

$(BUILD)/amalgamation/bnorm.c: scripts/amalgamate LICENSE $(lib_sources) \
		$(wildcard include/*.h dispatch/*.h src/*.h src/*/*.h)
	$(call say,WRITE) CC='$(CC)' scripts/amalgamate $(@D)

# Does that file compute the same bits?
verify-amalgamation: $(BUILD)/amalgamation/bnorm-verify
	$(RUN) $<

$(BUILD)/amalgamation/bnorm-verify: $(BUILD)/tools/verify.c.o $(BUILD)/amalgamation/bnorm.c.o
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

# With no more than the README says.
$(BUILD)/amalgamation/bnorm.c.o: $(BUILD)/amalgamation/bnorm.c $(BUILD)/flags
	$(call say,CC) $(CC) $(CFLAGS) -Wall -Wextra -Werror -DBNORM_SLEEF=$(if $(sleef_libs),1,0) -c -o $@ $<

dist: ## a release of what is committed: sources, one file, SHA256SUMS, SPDX list; the same bytes every time
	scripts/dist $(BUILD)/dist

deb: dist ## Debian packages in build/deb: libbnorm0.1, libbnorm-dev, bnorm-tools; and what lintian says of them
	rm -rf $(BUILD)/deb
	mkdir -p $(BUILD)/deb
	cp $(BUILD)/dist/bnorm-$(VERSION).tar.gz $(BUILD)/deb/bnorm_$(VERSION).orig.tar.gz
	tar -xzf $(BUILD)/dist/bnorm-$(VERSION).tar.gz -C $(BUILD)/deb
	cp -r packaging/debian $(BUILD)/deb/bnorm-$(VERSION)/debian
	cd $(BUILD)/deb/bnorm-$(VERSION) && $(without_make) dpkg-buildpackage -us -uc
	lintian --allow-root --fail-on error $(BUILD)/deb/*.changes

# A build of its own, with its own flags and number of compilers.
without_make = env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS

# With Conan 2 from PyPI. Folders of its own, so that nothing is left in the tree or the home. It finds the compiler
# itself, as it takes a CC that is `ccache gcc` for one word.
run_conan = env -u CC -u CXX CONAN_HOME=$(abspath $(BUILD))/conan/home $(BUILD)/conan/bin/conan

conan: ## the package of Conan, made and tried (packaging/conan)
	test -x $(BUILD)/conan/bin/conan || { python3 -m venv $(BUILD)/conan && $(BUILD)/conan/bin/pip install -q conan; }
	$(run_conan) profile detect --exist-ok
	$(run_conan) create packaging/conan \
		-c tools.cmake.cmake_layout:test_folder=$(abspath $(BUILD))/conan/test

# ---------------------------------------------------------------------------------------------------
# Python: a library with SLEEF beside it, under a name of its own, so that a process with another SLEEF has both.

python_objects = $(BUILD)/python/glue.c.o $(BUILD)/python/xla.c.o
$(python_objects): private c_flags += $(lib_flags)

$(BUILD)/python/libsleef-bnorm.so:
	@mkdir -p $(@D)
	@command -v patchelf >/dev/null || { echo 'patchelf is missing: run make deps-wheel'; exit 1; }
	$(call say,COPY) cp "$$($(CC) -print-file-name=libsleef.so)" $@ && patchelf --set-soname $(@F) $@

$(BUILD)/python/_bnorm.so: $(python_objects) $(static_lib) $(BUILD)/python/libsleef-bnorm.so
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -s -Wl,--exclude-libs,ALL -Wl,-Bsymbolic-functions \
		'-Wl,-rpath,$$ORIGIN' -o $@ $(filter %.o,$^) $(static_lib) $(BUILD)/python/libsleef-bnorm.so -lm

wheel: ## wheels of the Python package in build/wheel, for x86-64 and AArch64, each where its compiler is
	@for cpu in x86_64 aarch64; do \
		command -v $$cpu-linux-gnu-gcc >/dev/null || { echo "no wheel for $$cpu: no $$cpu-linux-gnu-gcc"; continue; }; \
		$(MAKE) BUILD=$(BUILD)/wheel/$$cpu CC=$$cpu-linux-gnu-gcc CFLAGS=-O2 LDFLAGS= SLEEF=1 \
			$(BUILD)/wheel/$$cpu/python/_bnorm.so || exit; \
		python/make_wheel.py $$cpu $(BUILD)/wheel/$$cpu/python $(BUILD)/wheel || exit; \
	done

# In a virtual environment that has NumPy and this wheel alone.
test-wheel: wheel ## installs the wheel for this machine in a new virtual environment and tests it there
	rm -rf $(BUILD)/wheel/venv
	python3 -m venv $(BUILD)/wheel/venv
	$(BUILD)/wheel/venv/bin/pip install -q numpy ml_dtypes
	$(BUILD)/wheel/venv/bin/pip install -q --no-index --no-deps --find-links $(BUILD)/wheel bnorm
	cd $(BUILD)/wheel && venv/bin/python $(abspath python)/tests/test_numpy.py

test-wheel-aarch64: wheel ## the same of the wheel for AArch64, under qemu
	python/tests/emulate_aarch64.sh $(BUILD)/wheel/emulated $(BUILD)/wheel/bnorm-*_aarch64.whl

# PyTorch's wheel for Linux brings libraries for GPUs, 6 GB on disk; expecttest is what its own samples of operations
# need, pytest what Keras' own tests do.
ENGINES = torch jax keras
packages_torch = torch torchvision expecttest
packages_jax = jax
packages_keras = jax keras pytest
engines_python = $(BUILD)/engines/venv/bin/python

$(engines_python):
	python3 -m venv $(BUILD)/engines/venv

$(BUILD)/engines/venv/ready-%: | $(engines_python)
	$(engines_python) -m pip install -q $(packages_$*)
	@touch $@

# What is there, with the wheel of now.
engines-ready: wheel $(ENGINES:%=$(BUILD)/engines/venv/ready-%)
	$(engines_python) -m pip install -q --no-index --no-deps --force-reinstall --find-links $(BUILD)/wheel bnorm

engines: engines-ready ## bnorm.torch, .jax and .keras with PyPI's PyTorch (3 GB), JAX and Keras (300 MB); ENGINES='jax keras' picks
	@cd $(BUILD)/engines && for engine in $(ENGINES); do \
		echo "$$engine:" && venv/bin/python $(abspath python)/tests/test_$$engine.py || exit; \
	done
	$(if $(and $(filter keras,$(ENGINES)),$(filter torch,$(ENGINES))),@cd $(BUILD)/engines && \
		KERAS_BACKEND=torch venv/bin/python $(abspath python)/tests/test_keras.py)
	$(if $(filter jax,$(ENGINES)),@$(CC) -std=c11 -fsyntax-only python/tests/xla_abi.c \
		-I"$$($(engines_python) -c 'import jax; print(jax.ffi.include_dir())')" && echo "xla.h is as JAX's header")

bench-engines: engines-ready ## networks with PyTorch's batch norms and with bnorm's, an hour (BENCH=--short: minutes)
	cd $(BUILD)/engines && venv/bin/python $(abspath python)/tests/bench_torch.py --markdown models.md --json models.json $(BENCH)

bench-jax: engines-ready ## layers in JAX, as XLA compiles the formula and by bnorm.jax, two minutes (BENCH='--threads 2')
	cd $(BUILD)/engines && venv/bin/python $(abspath python)/tests/bench_jax.py --markdown layers.md $(BENCH)

packages: ## every quick way into other projects, tried with small ones (tests/consumers)
	JOBS=$(JOBS) tests/consumers/run.sh $(BUILD)/packages

.PHONY: test-wheel-aarch64 engines engines-ready bench-engines bench-jax wheel test-wheel conan packages deb amalgamation verify-amalgamation dist
