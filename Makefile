# SPDX-License-Identifier: MIT
#
# GNU make. `make help` lists what there is. Everything that is built lies under $(BUILD).

CC = gcc
CXX = g++
AR = ar
NM = nm
OBJDUMP = objdump
CFLAGS = -O2$(if $(DEBUG), -g)
CXXFLAGS = -O2$(if $(DEBUG), -g)
LDFLAGS =
# Not empty: with what debuggers need, which makes the archive ten times as large.
DEBUG =
BUILD = build
PREFIX = /usr/local
LIBDIR = $(PREFIX)/lib
DESTDIR =
# 1 = with SLEEF, for the activations that need exp; 0 = without. Default: 1 where programs link with it,
# which `make` then says: programs have to link with it too, static ones with a static one.
SLEEF ?= $(if $(sleef_found),1,0)
# Which MPI: empty = mpicc and mpiexec, whosever they are; openmpi or mpich = the one of that name in Debian.
MPI =
# Put before the programs that are run here, as in RUN=qemu-aarch64.
RUN =
# Not empty: commands are shown in full.
V =
# How many compilers, and how many processes of the tests, run side by side. `make -j1` is about compilers alone.
JOBS := $(or $(JOBS),$(shell nproc))

# ---------------------------------------------------------------------------------------------------
# What belongs to every compilation, whatever CFLAGS says

VERSION := $(shell sed -n 's/^.define BNORM_VERSION_[A-Z]* *//p' include/bnorm.h | paste -sd.)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))

warnings = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
# Without -ffp-contract=off gcc may turn a*b + c into one fma and so change bits.
c_flags = -std=c11 -ffp-contract=off -DBNORM_SLEEF=$(if $(sleef_libs),1,0) -Iinclude $(warnings) -MMD -MP
# Hidden: a plugin that embeds the archive neither exports bnorm nor calls its host's copy.
lib_flags = -fPIC -fvisibility=hidden $(inline_atomics)
# gcc's functions for atomics on Arm would bring libgcc's constructor into the shared library.
inline_atomics = $(eval inline_atomics := $(call if_works,-mno-outline-atomics))$(inline_atomics)

# What every program links that links $(static_lib).
libs = $(strip $(sleef_libs) -lm)
sleef_libs = $(if $(filter-out 0,$(SLEEF)),$(or $(sleef_found),$(error SLEEF=$(SLEEF), but no program \
	links with -lsleef: run `make deps`, for Arm under qemu `make deps-cross`, or say SLEEF=0)))
# Found out once, when first needed; with a symbol, as there are CPUs for which SLEEF lacks it.
sleef_found = $(eval sleef_found := $(call if_links,float Sleef_finz_expf1_u10purecfma(float x); \
	int main(void) { return Sleef_finz_expf1_u10purecfma(0) != 1; },-lsleef))$(sleef_found)

api_sources := $(wildcard src/*.c dispatch/*.c)
kernel_sources := $(wildcard src/*/*.c)
lib_sources := $(api_sources) $(kernel_sources)
test_sources := $(wildcard tests/*.c)
bench_sources := $(wildcard bench/*.c)
peers_sources := $(filter-out %/onednn.c,$(wildcard bench/peers/*.c bench/peers/*.cc))
digits_sources := $(wildcard examples/digits/*.c)
questions := $(patsubst examples/%.c,$(BUILD)/%,$(wildcard examples/questions/*.c))
accuracy_sources := $(wildcard tools/accuracy*.c)
scripts := .ci/run $(wildcard scripts/* tests/*.sh tools/*.sh examples/*/*.sh mpi/*.sh)
formatted := $(shell find include src dispatch tests bench examples tools mpi -name '*.[ch]' -o -name '*.cc')

# What is compiled is said on a terminal alone, on one line that is written again and again.
say = $(if $(V),,@$(call $(if $(filter CC CXX MPICC,$(1)),say_over,say_line),$(1)))
say_line = printf '$(if $(MAKE_TERMOUT),\033[K)%5s  %s\n' '$(1)' '$@' &&
say_over = $(if $(MAKE_TERMOUT),printf '\033[K%5s  %s\r' '$(1)' '$@' &&)
objects = $(patsubst %,$(BUILD)/%.o,$(1))
lib_objects := $(call objects,$(lib_sources))
# The shared library exports the functions of bnorm.h, none of which is in the kernels' sources.
api_objects := $(patsubst %,$(BUILD)/shared/%.o,$(api_sources))
shared_objects := $(api_objects) $(call objects,$(kernel_sources))
test_objects := $(call objects,$(test_sources))
bench_objects := $(call objects,$(bench_sources) bench/shim.cc)
peers_objects := $(call objects,$(peers_sources))
# What bench-peers shares with bench.
peers_shared := $(call objects,$(addprefix bench/,clock.c cpu_name.c plain.c reference.c roof.c shapes.c tensor.c workload.c))
digits_objects := $(call objects,$(digits_sources))

static_lib = $(BUILD)/libbnorm.a
soname = libbnorm.so.$(SOVERSION)
shared_lib = $(BUILD)/libbnorm.so.$(VERSION)
conformance_ready = $(BUILD)/conformance/venv/ready
# What is built with an MPI that is named, lies in a folder of that name.
mpi_build = $(BUILD)$(addprefix /,$(MPI))

# ---------------------------------------------------------------------------------------------------
# Packages: what each one is for

# compilers and tools; exp and the like; test framework and ONNX's batch-norm cases; benchmark framework,
# pictures; example
deps_packages = gcc g++ libc6-dev binutils make pkgconf libsleef-dev \
	libcmocka-dev libonnx-testdata libbenchmark-dev python3 gnuplot-nox libpthreadpool-dev
deps_peers_packages = libdnnl-dev libtorch-dev libpthreadpool-dev python3-torch
# For the frameworks of PyPI, and PyTorch.
deps_conformance_packages = python3-venv python3-torch python3-numpy ca-certificates
deps_lint_packages = clang clang-format clang-tidy shellcheck
deps_mca_packages = llvm-19 gcc-aarch64-linux-gnu libc6-dev-arm64-cross python3
deps_mpi_packages = libopenmpi-dev openmpi-bin libmpich-dev mpich libcmocka-dev
deps_cross_packages = qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross libcmocka-dev:arm64 \
	libsleef-dev:arm64 gcc-riscv64-linux-gnu libc6-dev-riscv64-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross

deps_avx512_packages = bochs bochs-term binutils xorriso

# ---------------------------------------------------------------------------------------------------
MAKEFLAGS += --no-print-directory
# A -j that is given is stronger; a make that is called by another one shares that one's.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(JOBS)
endif

# Several goals are made one after the other, each side by side in itself: packages are there before they are
# looked for, `clean all` does not delete what it builds, and no bench runs beside a test.
ifneq ($(word 2,$(MAKECMDGOALS)),)
.PHONY: $(MAKECMDGOALS) one-by-one
$(MAKECMDGOALS): one-by-one
	@:
one-by-one:
	@for goal in $(MAKECMDGOALS); do $(MAKE) $$goal || exit; done
else

##@ Build

all: $(static_lib) $(shared_lib) $(BUILD)/bnorm.pc ## static and shared library (the default)
	$(if $(sleef_libs),@echo 'bnorm is built with SLEEF: programs with $(static_lib) link with $(libs); make SLEEF=0 builds without.')

$(static_lib): $(lib_objects)
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

# Bound to itself: its calls of its own functions stay its own, whatever else the process has loaded.
$(shared_lib): $(shared_objects)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(soname) -Wl,--no-undefined \
		-Wl,-Bsymbolic-functions -Wl,--exclude-libs,ALL -o $@ $^ $(libs)

$(BUILD)/bnorm.pc: bnorm.pc.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|' \
		-e 's|@SLEEF@|$(if $(sleef_libs),1,0)|; s|@VERSION@|$(VERSION)|; s|@LIBS@|$(libs)|' $< >$@

$(lib_objects): private c_flags += $(lib_flags)
$(api_objects): private c_flags += $(lib_flags) -DBNORM_SHARED
# The plain loop that a user would write, with all that the compiler has: also fma, as is gcc's default.
$(BUILD)/bench/plain.c.o: private c_flags += -O3 -march=native -ffp-contract=fast

$(BUILD)/%.c.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CFLAGS) $(c_flags) -c -o $@ $<

$(BUILD)/shared/%.c.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(CFLAGS) $(c_flags) -c -o $@ $<

$(BUILD)/%.cc.o: %.cc $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CXX) $(CXX) $(CXXFLAGS) -std=c++17 -Iinclude $(warnings) -MMD -MP -c -o $@ $<

# Changes, and so has everything rebuilt, when the compiler or its flags do.
flags = $(CC) $(CXX) $(CFLAGS) $(CXXFLAGS) $(LDFLAGS) $(c_flags) $(lib_flags)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(flags)' | cmp -s - $@ || echo '$(flags)' >$@

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d $(mpi_build)/*/*.d $(mpi_build)/*/*/*/*.d)

install: all $(BUILD)/bnorm-verify ## header, libraries, pkg-config file and bnorm-verify into PREFIX (under DESTDIR, if given)
	install -d '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(LIBDIR)/pkgconfig'
	install -m 755 $(BUILD)/bnorm-verify '$(DESTDIR)$(PREFIX)/bin'
	install -m 644 include/bnorm.h '$(DESTDIR)$(PREFIX)/include'
	install -m 644 $(static_lib) '$(DESTDIR)$(LIBDIR)'
	install -m 755 $(shared_lib) '$(DESTDIR)$(LIBDIR)'
	ln -sf $(notdir $(shared_lib)) '$(DESTDIR)$(LIBDIR)/$(soname)'
	ln -sf $(soname) '$(DESTDIR)$(LIBDIR)/libbnorm.so'
	install -m 644 $(BUILD)/bnorm.pc '$(DESTDIR)$(LIBDIR)/pkgconfig'

uninstall: ## removes what install put there
	rm -f '$(DESTDIR)$(PREFIX)/include/bnorm.h' '$(DESTDIR)$(PREFIX)/bin/bnorm-verify' \
		'$(DESTDIR)$(LIBDIR)/pkgconfig/bnorm.pc' \
		$(patsubst %,'$(DESTDIR)$(LIBDIR)/%',libbnorm.a libbnorm.so $(soname) $(notdir $(shared_lib)))

clean: ## removes everything that was built
	rm -rf build $(BUILD)

##@ Prove

test: hygiene $(BUILD)/bnorm-tests ## all tests; TESTS=apply/* picks some, BNORM_REQUIRE=avx2 insists on a kernel set
	$(run_tests)

test-full: ## the same with all repetitions and sizes, which takes several times as long
	BNORM_TEST_FULL=1 $(MAKE) test

# The runner alone, as for other compilers, flags and CPUs.
run-tests: $(BUILD)/bnorm-tests
	$(run_tests)

run_tests = $(RUN) $(BUILD)/bnorm-tests -j $(JOBS) $(patsubst %,'%',$(TESTS))

hygiene: $(static_lib) $(shared_lib)
	@CC='$(CC)' CXX='$(CXX)' NM='$(NM)' OBJDUMP='$(OBJDUMP)' STATIC_LIB='$(static_lib)' \
		SHARED_LIB='$(shared_lib)' SLEEF='$(if $(sleef_libs),1,0)' tests/hygiene.sh

$(BUILD)/bnorm-tests: $(test_objects) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka -lpthread $(libs)

# Side by side, as emulation is slow; what a target prints comes out when it is done.
test-cross: ## the tests for Arm and older x86 CPUs under qemu, and two CPUs without SIMD kernels
	BNORM_TEST_QUICK=1 $(MAKE) --output-sync=recurse emulated

emulated: emulate-aarch64 emulate-Haswell emulate-Nehalem verify-riscv64 verify-s390x

# The scalar set's cases run on the machine itself.
emulate-aarch64:
	BNORM_REQUIRE=neon $(MAKE) run-tests RUN=qemu-aarch64 \
		TESTS='$(or $(TESTS),*neon* !frameworks/* !types/nchw/* !types/blocked/* !variants/nchw/* !variants/blocked/*)' \
		BUILD=$(BUILD)/aarch64 CC=aarch64-linux-gnu-gcc LDFLAGS= SLEEF=$(SLEEF)

# Has AVX2 but not AVX-512. Emulated AVX2 is slow: the hashes, and the cases of inference.
emulate-Haswell: $(BUILD)/bnorm-tests $(BUILD)/bnorm-verify
	qemu-x86_64 -cpu Haswell $(BUILD)/bnorm-verify --quick
	BNORM_REQUIRE=avx2 BNORM_TEST_READABLE_GUARDS=1 qemu-x86_64 -cpu Haswell $< -j $(JOBS) \
		$(or $(TESTS),'apply/*avx2*')

# Has no AVX: an illegal instruction ends the run.
emulate-Nehalem: $(BUILD)/bnorm-tests $(BUILD)/bnorm-verify
	qemu-x86_64 -cpu Nehalem $(BUILD)/bnorm-verify --quick
	BNORM_REQUIRE=scalar qemu-x86_64 -cpu Nehalem $< -j $(JOBS) \
		$(or $(TESTS),'apply/*scalar*' 'train/*scalar*' 'backward/*scalar*' 'smooth/*' 'errors/*')

# Has AVX-512, which takes a whole PC; see there why F16 needs a header of its own.
emulate-SkylakeX:
	$(MAKE) BUILD=$(BUILD)/SkylakeX CFLAGS='-O2 -g -D_GNU_SOURCE -include tools/bochs_f16.h' SLEEF=0 \
		$(addprefix $(BUILD)/SkylakeX/bnorm-,verify tests)
	tools/emulate_avx512.sh $(BUILD)/SkylakeX/bnorm-verify --quick
	BNORM_REQUIRE=avx512 BNORM_TEST_QUICK=1 tools/emulate_avx512.sh $(BUILD)/SkylakeX/bnorm-tests \
		$(or $(TESTS),'kernel/*avx512*')

# The hashes of everything that the library computes, under qemu. Debian has no SLEEF for these.
verify-%:
	$(MAKE) BUILD=$(BUILD)/$* CC=$*-linux-gnu-gcc LDFLAGS=-static SLEEF=0 $(BUILD)/$*/bnorm-verify
	qemu-$* $(BUILD)/$*/bnorm-verify --quick

verify: $(BUILD)/bnorm-verify ## does this machine compute the bits that bnorm promises?
	$(RUN) $<

# Static, so that one file can be copied to another machine. With a SLEEF that is a shared library only,
# as Debian's is, the other machine needs that too; with SLEEF=0 it needs nothing.
$(BUILD)/bnorm-verify: $(BUILD)/tools/verify.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(or $(call if_works,-static $(libs)),$(libs))

verify-compilers: ## the same with every compiler, option and emulated CPU that is installed
	tools/verify_compilers.sh

# After a change that is meant to change bits.
verify-update: $(BUILD)/bnorm-verify
	$< --write >$(BUILD)/verify_hashes.inc
	cp $(BUILD)/verify_hashes.inc tools/verify_hashes.inc

test-mpi: ## training over MPI on 1 to 7 processes against one process, with every MPI that is installed
	@for mpi in $(mpi_installed); do $(MAKE) MPI=$${mpi#default} mpi-programs || exit; done
	@$(mpi_environment) mpi/test.sh $(BUILD) $(mpi_installed)

conformance: deps-conformance $(conformance_ready) $(shared_lib) ## bnorm against Keras, tf-keras, PyTorch and ONNX themselves, which it downloads (360 MB, 1.7 GB on disk)
	$(run_conformance) $(CONFORMANCE)

# Puts the table of the results into docs/frameworks.md.
conformance-update: deps-conformance $(conformance_ready) $(shared_lib)
	$(run_conformance) --update docs/frameworks.md

# What the tests compare with where there are no frameworks.
conformance-snapshot: deps-conformance $(conformance_ready) $(shared_lib)
	$(run_conformance) --snapshot tests/frameworks.inc

# Debian's Python, for Debian's PyTorch.
CONFORMANCE_PYTHON = /usr/bin/python3

run_conformance = PYTHONDONTWRITEBYTECODE=1 $(BUILD)/conformance/venv/bin/python tools/conformance/run.py \
	--library $(shared_lib) --folder $(BUILD)/conformance --debian-python $(CONFORMANCE_PYTHON)

# tf-keras without its dependencies, see there.
$(conformance_ready): tools/conformance/requirements.txt | deps-conformance
	rm -rf $(@D)
	$(CONFORMANCE_PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -r $<
	$(@D)/bin/pip install --no-deps tf-keras==2.21.0
	@touch $@

accuracy: $(BUILD)/accuracy ## errors against exact results, beside oneDNN's and PyTorch's (QUICK=1: without 1e8 values)
	$< $(if $(QUICK),--quick) --markdown $(BUILD)/accuracy.md --tsv $(BUILD)/accuracy.tsv
	gnuplot -e "tsv='$(BUILD)/accuracy.tsv'; svg='$(BUILD)/accuracy.svg'" tools/accuracy.plot

$(BUILD)/accuracy: $(accuracy_sources) tools/accuracy.h $(static_lib) $(BUILD)/flags
	$(call say,LINK) $(CC) $(CFLAGS) $(c_flags) $(LDFLAGS) -o $@ $(accuracy_sources) $(static_lib) \
		$(call if_works,-DHAVE_DNNL -ldnnl) $(libs)

activations: $(BUILD)/activations ## errors of the activations that use SLEEF, and of their derivatives (STEP=1021: every n-th float)
	$< $(if $(STEP),--step $(STEP)) --markdown $(BUILD)/activations.md

$(BUILD)/activations: $(BUILD)/tools/activations.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

denormals: $(BUILD)/denormals ## what denormals and constant channels cost, and what flushing denormals saves (x86)
	$<

$(BUILD)/denormals: $(BUILD)/tools/denormals.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

count: count-programs ## instructions of every kernel against tools/count.tsv: a rise of 3 % fails
	tools/count.py $(BUILD)/count

# After a change that is meant to take more instructions, or takes fewer.
count-update: count-programs
	tools/count.py --update $(BUILD)/count

# With the flags of the figures, whatever this build has; SLEEF's instructions are its own.
count-programs:
	@for cpu in x86_64 aarch64; do \
		if command -v $$cpu-linux-gnu-gcc >/dev/null; then \
			$(MAKE) BUILD=$(BUILD)/count/$$cpu CC=$$cpu-linux-gnu-gcc CFLAGS=-O2 LDFLAGS=-static \
				SLEEF=0 $(BUILD)/count/$$cpu/bnorm-count || exit; \
		fi; \
	done

# Static, and with its own memory functions: libc's are chosen by the CPU.
$(BUILD)/bnorm-count: $(BUILD)/tools/count.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -Wl,--wrap=memcpy,--wrap=memset -o $@ $^ $(libs)

support: $(BUILD)/bnorm-support ## which op, layout, type and activation each kernel set has, as in the README
	@$<

support-update: $(BUILD)/support.md
	sed -i -e '/^<!-- support/,/^<!-- end of support/{//!d}' -e '/^<!-- support/r $<' README.md

support-check: $(BUILD)/support.md ## is the README's table of that true?
	@sed -n '/^<!-- support/,/^<!-- end of support/{//!p}' README.md | diff - $< || \
		{ echo 'The tables of README.md are not those of this build: run make support-update.'; exit 1; }

$(BUILD)/support.md: $(BUILD)/bnorm-support FORCE
	$< >$@

$(BUILD)/bnorm-support: $(BUILD)/tools/support.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

balance: $(BUILD)/bnorm-balance ## how evenly work is shared among 1 to 64 simulated threads: more than 10 % off fails
	$< $(BALANCE)

$(BUILD)/bnorm-balance: $(call objects,tools/balance.c bench/shapes.c) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

mca: ## the NEON loops on paper: cycles on four Arm cores beside their ports' limits (MCA='--code dx_rows' shows code)
	@command -v $(firstword $(MCA_CC)) >/dev/null || \
		{ echo '$(firstword $(MCA_CC)) is missing: run make deps-mca, or say MCA_CC='; exit 1; }
	$(MAKE) BUILD=$(BUILD)/mca CC='$(MCA_CC)' CFLAGS='-O2 -g' LDFLAGS= SLEEF=0 $(BUILD)/mca/neon.so
	tools/mca.py $(MCA) $(BUILD)/mca/neon.so

# Or clang --target=aarch64-linux-gnu.
MCA_CC = aarch64-linux-gnu-gcc

# The NEON set alone, linked so that its addresses are final.
$(BUILD)/neon.so: $(call objects,$(wildcard src/neon/*.c))
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -nostdlib -o $@ $^

# Side by side, like test-cross.
sanitize: ## the tests under ASan and UBSan, those with threads and of jobs under TSan
	BNORM_TEST_QUICK=1 $(MAKE) --output-sync=recurse sanitized

sanitized: sanitize-memory sanitize-threads

# All but element types, variants and pieces, of which some are enough here: they differ in the layout
# or the kernel set alone. What frameworks have computed the same bits give again.
sanitize-memory:
	$(MAKE) BUILD=$(BUILD)/asan LDFLAGS= CFLAGS='$(asan)' run-tests \
		TESTS='$(or $(TESTS),!frameworks/* !types/* !variants/* !pieces/* types/nhwc/*/avx2/* variants/nhwc/avx2/* pieces/*/avx2/*)'

sanitize-threads:
	$(MAKE) BUILD=$(BUILD)/tsan LDFLAGS= CFLAGS='$(tsan)' run-tests TESTS='$(or $(TESTS),*threads* jobs/*)'

asan = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
tsan = -O1 -g -fsanitize=thread

##@ Measure

bench: $(BUILD)/bnorm-bench ## speed against plain C and the memory's roof, in about a minute (BENCH='--shape 8,64,56,56': of this shape)
	$(strip $< $(BENCH))
	@$(if $(BENCH),,! command -v gnuplot >/dev/null || bench/plot.py $(BUILD)/bench.json)

bench-full: $(BUILD)/bnorm-bench ## the same for every op, layout, kernel set and shape
	$(strip $< --full $(BENCH))

bench-claims: $(BUILD)/bnorm-bench ## what the project aims at in types, layouts and fusions: reached or missed
	$(strip $< --claims $(BENCH))

bench-peers: $(BUILD)/bnorm-peers $(BUILD)/bnorm-peers-onednn.so ## speed beside oneDNN (ONEDNN_ROOT= another one) and PyTorch, 10 to 15 minutes (QUICK=1: 2; PEERS= options)
	$< $(if $(QUICK),--quick) $(PEERS)

# What there is of them, found out once, when first needed.
comma = ,
onednn_flags = $(eval onednn_flags := $(call if_works,$(if $(ONEDNN_ROOT),-I$(ONEDNN_ROOT)/include \
	-L$(ONEDNN_ROOT)/lib -Wl$(comma)-rpath$(comma)$(ONEDNN_ROOT)/lib) -ldnnl))$(onednn_flags)
torch_libs = $(eval torch_libs := $(call if_works,-ltorch -ltorch_cpu -lc10))$(torch_libs)
torch_flags = $(if $(torch_libs),-DHAVE_TORCH)

$(BUILD)/peers-flags: FORCE
	@mkdir -p $(@D)
	@echo '$(onednn_flags) $(torch_libs)' | cmp -s - $@ || echo '$(onednn_flags) $(torch_libs)' >$@

$(peers_objects): $(BUILD)/peers-flags
$(peers_objects): private c_flags += $(torch_flags)
$(peers_objects): private CXXFLAGS += $(torch_flags)

$(BUILD)/bnorm-peers: $(peers_objects) $(peers_shared) $(static_lib)
	$(call say,LINK) $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(torch_libs) -lpthreadpool -lpthread -ldl $(libs)

# A library of its own, as PyTorch loads a oneDNN too. Without oneDNN there is none.
$(BUILD)/bnorm-peers-onednn.so: bench/peers/onednn.c $(wildcard bench/*.h bench/peers/*.h) $(BUILD)/peers-flags $(BUILD)/flags
	@rm -f $@
	$(if $(onednn_flags),$(call say,LINK) $(CC) $(CFLAGS) $(filter-out -MMD -MP,$(c_flags)) $(LDFLAGS) -fPIC -shared -o $@ $< $(onednn_flags) -lm)

bench-mpi: $(mpi_build)/bnorm-mpi-bench ## time of training over MPI on 2 processes: what the collective costs (MPI=mpich: another MPI)
	$(mpi_environment) $(MPIEXEC) -n 2 $< --json $(BUILD)/bench-mpi.json $(BENCH_MPI)

plot: ## draws the roofline picture of the last bench run
	bench/plot.py $(BUILD)/bench.json

$(BUILD)/bnorm-bench: $(bench_objects) $(static_lib)
	$(call say,LINK) $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ -lbenchmark -lpthread $(libs)

##@ Try

digits: $(BUILD)/digits ## trains a small network on handwritten digits, with and without batch norm
	$<

$(BUILD)/digits: $(digits_objects) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lpthread $(libs)

examples: $(BUILD)/hello $(BUILD)/mixed $(BUILD)/describe $(BUILD)/threads $(questions) ## the README's example, training in bfloat16, tensors of other libraries, bnorm on a thread pool; builds questions

$(BUILD)/hello $(BUILD)/mixed $(BUILD)/describe: $(BUILD)/%: $(BUILD)/examples/%.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

questions: $(questions) ## runs examples/questions: does docs/frameworks.md show what they print?
	scripts/check-questions $(BUILD)/questions

questions-update: $(questions)
	scripts/check-questions --write $(BUILD)/questions

$(questions): $(BUILD)/questions/%: $(BUILD)/examples/questions/%.c.o $(static_lib)
	@mkdir -p $(@D)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lpthread $(libs)

$(BUILD)/threads: examples/threads.c $(static_lib) $(BUILD)/flags
	$(call say,LINK) $(CC) $(CFLAGS) $(c_flags) $(LDFLAGS) -o $@ $< $(static_lib) $(thread_pools) $(libs)

# The flags where a program can be built with them, else nothing; if_links: where the program $(1) can.
if_works = $(call if_links,int main(void) { return 0; },$(1))
if_links = $(if $(shell echo '$(1)' | $(CC) $(CFLAGS) $(LDFLAGS) -xc - -o /dev/null $(2) 2>&1 || \
	echo no),,$(2))
thread_pools = $(call if_works,-fopenmp) \
	$(call if_works,-DHAVE_PTHREADPOOL -include pthreadpool.h -lpthreadpool)

##@ MPI

mpi: $(mpi_build)/libbnorm_mpi.a ## mpi/bnorm_mpi.h: training with a batch that is spread over processes (docs/mpi.md)

digits-mpi: $(mpi_build)/digits-mpi ## trains the digits with every batch spread over 2 processes, to the bits of one
	$(mpi_environment) $(MPIEXEC) -n 2 $<

mpi-programs: $(addprefix $(mpi_build)/,libbnorm_mpi.a bnorm-mpi-tests bnorm-mpi-bench digits-mpi) mpi-header

# C++ takes the header too. The macro leaves out Open MPI's own C++ classes.
mpi-header:
	@echo '#include "bnorm_mpi.h"' | OMPI_CXX='$(CXX)' MPICH_CXX='$(CXX)' $(MPICXX) -std=c++11 $(warnings) \
		-DOMPI_SKIP_MPICXX -Iinclude -Impi -fsyntax-only -x c++ -

MPICC = mpicc$(addprefix .,$(MPI))
MPICXX = mpicxx$(addprefix .,$(MPI))
MPIEXEC = mpiexec$(addprefix .,$(MPI))
mpi_installed = $(or $(MPI),$(shell for mpi in openmpi mpich; do \
	(command -v mpicc.$$mpi && command -v mpiexec.$$mpi) >/dev/null && echo $$mpi; done),default)
# Open MPI's words for more processes than cores, and for root, as in a container.
mpi_environment = OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
	OMPI_MCA_rmaps_base_oversubscribe=1

$(mpi_build)/libbnorm_mpi.a: $(mpi_build)/mpi/bnorm_mpi.c.o
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

$(mpi_build)/bnorm-mpi-tests: $(mpi_build)/mpi/test_mpi.c.o $(call objects,tests/harness.c)
$(mpi_build)/bnorm-mpi-tests: private libs += -lcmocka -lpthread
$(mpi_build)/bnorm-mpi-bench: $(mpi_build)/mpi/bench_mpi.c.o $(call objects,$(addprefix bench/,clock.c cpu_name.c shapes.c))
$(mpi_build)/digits-mpi: $(patsubst %,$(mpi_build)/%.o,$(wildcard examples/digits/mpi/*.c)) \
	$(call objects,examples/digits/net.c examples/digits/data.c)

$(addprefix $(mpi_build)/,bnorm-mpi-tests bnorm-mpi-bench digits-mpi): $(mpi_build)/libbnorm_mpi.a $(static_lib)
	$(call say,LINK) $(mpi_cc) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(libs)

# mpicc with this build's compiler.
mpi_cc = OMPI_CC='$(CC)' MPICH_CC='$(CC)' $(MPICC)

$(mpi_build)/mpi/%.c.o: mpi/%.c $(BUILD)/flags
	$(compile_mpi)
$(mpi_build)/examples/digits/mpi/%.c.o: examples/digits/mpi/%.c $(BUILD)/flags
	$(compile_mpi)

define compile_mpi
@mkdir -p $(@D)
@command -v $(MPICC) >/dev/null || { echo '$(MPICC) is missing: run make deps-mpi, or say MPICC='; exit 1; }
$(call say,MPICC) $(mpi_cc) $(CFLAGS) $(c_flags) -Impi -c -o $@ $<
endef

##@ Work on bnorm

deps: ## installs what test, bench and plot need (Debian and Ubuntu; through sudo where not root)
	@scripts/apt-install 'to build, test and measure' $(deps_packages)

deps-lint: ## installs what lint and format need
	@scripts/apt-install 'to check and format the sources' $(deps_lint_packages)

deps-peers: ## installs what bench-peers and accuracy compare with, oneDNN and PyTorch (about 1 GB)
	@scripts/apt-install 'to compare with' $(deps_peers_packages)

deps-conformance: ## installs what conformance needs: PyTorch, and Python's venv for the other frameworks
	@scripts/apt-install 'to compare with frameworks' $(deps_conformance_packages)

deps-mca: ## installs what mca needs
	@scripts/apt-install 'to look at Arm loops' $(deps_mca_packages)

deps-mpi: ## installs what mpi, test-mpi and bench-mpi need: Open MPI and MPICH
	@scripts/apt-install 'to train over MPI' $(deps_mpi_packages)

deps-cross: ## installs what test-cross needs; adds Debian's arm64 architecture
	@scripts/apt-install 'to cross-compile and emulate' --arch arm64 $(deps_cross_packages)

deps-avx512: ## installs what emulate-SkylakeX needs, Bochs; fetches a kernel for it, which it doesn't install
	@scripts/apt-install 'to emulate AVX-512' $(deps_avx512_packages)
	@tools/emulate_avx512.sh --prepare

format: ## formats every C and C++ file
	clang-format -i $(formatted)

lint: warnings ## formatting, scripts, static analysis, the README's code
	clang-format --dry-run -Werror $(formatted)
	shellcheck $(scripts)
	scripts/check-readme
	printf '%s\n' $(lib_sources) | xargs -P $(JOBS) -I{} clang-tidy --quiet {} -- \
		-std=c11 -DBNORM_SLEEF=1 -Iinclude $(warnings)

warnings: warnings-unoptimized ## builds everything with gcc and with clang; a warning is an error
	$(MAKE) BUILD=$(BUILD)/gcc CC=gcc CXX=g++ CFLAGS='-O2 -Werror' CXXFLAGS='-O2 -Werror' everything
	$(MAKE) BUILD=$(BUILD)/clang CC=clang CXX=clang++ CFLAGS='-O2 -Werror' CXXFLAGS='-O2 -Werror' everything

# The library alone, with what is installed. Without optimization gcc's intrinsics are macros, and other
# systems have other macros in their headers.
warnings-unoptimized: $(BUILD)/unoptimized

$(BUILD)/unoptimized: $(lib_sources) $(wildcard include/*.h dispatch/*.h src/*.h src/*/*.h)
	@mkdir -p $(@D)
	@for cc in 'gcc -std=c11' 'gcc -std=gnu2x -fsyntax-only' x86_64-w64-mingw32-gcc aarch64-linux-gnu-gcc; do \
		command -v $${cc%% *} >/dev/null || continue; \
		echo " WARN  $$cc -O0"; \
		printf '%s\n' $(lib_sources) | xargs -n 1 -P 2 \
			$$cc -O0 $(warnings) -Werror -Iinclude -o /dev/null -c || exit; \
	done
	@touch $@

everything: all examples $(BUILD)/bnorm-tests $(BUILD)/bnorm-bench $(BUILD)/bnorm-verify \
	$(BUILD)/bnorm-balance $(BUILD)/bnorm-support $(BUILD)/digits

help: ## this list
	@echo 'Targets of bnorm $(VERSION):'
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables: CC CXX AR CFLAGS CXXFLAGS LDFLAGS BUILD PREFIX LIBDIR DESTDIR SLEEF DEBUG JOBS ONEDNN_ROOT MPI; V=1 shows commands\n'

.PHONY: all install uninstall clean test test-full run-tests emulated sanitized hygiene test-cross emulate-aarch64 \
	emulate-SkylakeX deps-avx512 \
	emulate-Haswell emulate-Nehalem verify verify-compilers verify-update count count-update \
	count-programs support support-update support-check balance mca deps-mca accuracy activations denormals sanitize \
	sanitize-memory sanitize-threads bench bench-full bench-claims bench-peers plot digits examples questions questions-update deps deps-lint \
	conformance conformance-update conformance-snapshot deps-conformance \
	mpi digits-mpi mpi-programs mpi-header test-mpi bench-mpi deps-mpi deps-peers deps-cross format lint warnings warnings-unoptimized everything help FORCE
.DELETE_ON_ERROR:
endif
