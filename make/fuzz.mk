# SPDX-License-Identifier: MIT
#
# Attacks: random calls, wrong ones among them, judged by a model of what the header says; mutants of the
# sources, which the tests have to notice; the lines that the tests do not reach.

##@ Attack

comma := ,
deps_fuzz_packages = clang libclang-rt-14-dev valgrind python3 gcovr

deps-fuzz: ## installs what fuzz, memcheck and coverage need
	@scripts/apt-install 'to fuzz' $(deps_fuzz_packages)

# Seconds.
TIME = 120
# libFuzzer's own options, as in FUZZ='-max_len=512'.
FUZZ =
fuzz_cc = $(if $(findstring clang,$(CC)),$(CC),clang)
# Lines, but no variables, as in check.mk.
fuzz_flags = -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all
fuzz_make = $(MAKE) BUILD=$(BUILD)/fuzz CC='$(fuzz_cc)' CFLAGS='$(fuzz_flags)' LDFLAGS=
fuzz_objects := $(call objects,fuzz/call.c fuzz/model.c fuzz/rest.c)

fuzz: fuzzer ## random calls of every function under ASan and UBSan, for TIME=120 seconds, with clang
	@fuzz/run $(BUILD)/fuzz $(TIME) $(JOBS) $(FUZZ)

fuzz-corpus: fuzzer ## the fuzzer's stored inputs, each once
	@fuzz/run $(BUILD)/fuzz 0 1

fuzzer:
	+$(fuzz_make) $(BUILD)/fuzz/bnorm-fuzz

# What looks at every byte again and again is not what is attacked.
$(fuzz_objects): private c_flags += $(if $(findstring fuzzer,$(CFLAGS)),-O2 -fno-sanitize=address$(comma)undefined)

$(BUILD)/bnorm-fuzz: $(fuzz_objects) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(libs)

# What calls do not write, or do not have to read, the harness declares unwritten before each. clang does not know the
# masked stores of AVX2: it gets the scalar set alone, and what is not instrumented, SLEEF, is left out. valgrind
# knows them, and gets all sets. The tests are not run so, as cmocka is not instrumented either.
msan = -O1 -g1 -fno-omit-frame-pointer -fsanitize=memory
memcheck: memcheck-sanitizer memcheck-valgrind ## the fuzzer's stored inputs under MemorySanitizer and valgrind: is anything read that was not written?

memcheck-seeds:
	@fuzz/run --seeds $(BUILD)/memcheck

memcheck-sanitizer: memcheck-seeds
	$(MAKE) BUILD=$(BUILD)/msan CC='$(fuzz_cc)' CFLAGS='$(msan)' LDFLAGS= SLEEF=0 $(BUILD)/msan/bnorm-soak
	BNORM_ISA=scalar $(BUILD)/msan/bnorm-soak $(BUILD)/memcheck/*

memcheck-valgrind: $(BUILD)/bnorm-soak memcheck-seeds
	valgrind -q --error-exitcode=1 $< $(BUILD)/memcheck/*

soak: $(BUILD)/bnorm-soak ## random calls on two threads against the scalar set, memory flat, for TIME=120 seconds
	$(RUN) $< $(TIME)

$(BUILD)/bnorm-soak: $(fuzz_objects) $(call objects,fuzz/soak.c) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lpthread $(libs)

# Of the kernel sets that this CPU runs, at quick depth; counted atomically, as tests have threads. gcov counts the
# branches of a template in each of its forms, most of which have constants there: no limit holds for them.
coverage: ## which lines and branches the tests run, in build/coverage/index.html; fails where too few
	@find $(BUILD)/coverage -name '*.gcda' -delete 2>/dev/null || true
	BNORM_TEST_QUICK=1 $(MAKE) BUILD=$(BUILD)/coverage LDFLAGS= CFLAGS='-O1 --coverage -fprofile-update=atomic' run-tests
	$(gcovr) --exclude 'src/(avx512|neon)/' --txt - --html-details $(BUILD)/coverage/index.html --fail-under-line 99
	$(gcovr) --exclude 'src/(avx2|avx512|neon|kernels)/' --branches --txt - --fail-under-branch 97

gcovr = gcovr --root . --filter src/ --filter dispatch/ --exclude-unreachable-branches $(BUILD)/coverage

# As tools/mutants.py --help says; also src/kernels/*.h, src/scalar/*.c, src/neon/*.h (under qemu) and mpi/bnorm_mpi.c.
FILES = src/*.c dispatch/*.c
SEED = 1
COUNT = 60

mutants: ## small changes of FILES='src/*.c dispatch/*.c', which tests have to notice; COUNT=60, SEED=1
	tools/mutants.py --make '$(MAKE) CC="$(CC)"' --jobs $(JOBS) --folder $(BUILD)/mutants \
		--seed $(SEED) --count $(COUNT) $(patsubst %,'%',$(FILES))

.PHONY: deps-fuzz fuzz fuzz-corpus fuzzer memcheck memcheck-seeds memcheck-sanitizer memcheck-valgrind soak coverage mutants
