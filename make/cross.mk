# SPDX-License-Identifier: MIT
#
# The same bits elsewhere: other CPUs, under emulators, and other compilers.

##@ Elsewhere

# Side by side, as emulation is slow; what a target prints comes out when it is done.
test-cross: ## the tests for Arm and older x86 CPUs under qemu, and two CPUs without SIMD kernels
	BNORM_TEST_QUICK=1 $(MAKE) --output-sync=recurse emulated

emulated: emulate-aarch64 emulate-armhf emulate-mingw emulate-Haswell emulate-Nehalem verify-riscv64 verify-s390x

# The scalar set's cases run on the machine itself. The oldest core, so that an instruction of a later one ends
# the run.
emulate-aarch64:
	BNORM_REQUIRE=neon $(MAKE) run-tests RUN='qemu-aarch64 -cpu cortex-a53' \
		TESTS='$(or $(TESTS),*neon* !frameworks/* !types/nchw/* !types/blocked/* !variants/nchw/* !variants/blocked/*)' \
		BUILD=$(BUILD)/aarch64 CC=aarch64-linux-gnu-gcc LDFLAGS= SLEEF=$(SLEEF)

# Debian's 32-bit Arm has no NEON in its baseline. A7 and A15 run the set, A8 (NEON, but no fma) and A9 may
# not: an illegal instruction ends the run.
armhf = BUILD=$(BUILD)/armhf CC=arm-linux-gnueabihf-gcc AR=arm-linux-gnueabihf-ar LDFLAGS= SLEEF=$(SLEEF)
emulate-armhf:
	$(MAKE) $(armhf) $(BUILD)/armhf/bnorm-verify
	BNORM_REQUIRE=neon $(MAKE) $(armhf) run-tests RUN='qemu-arm -cpu cortex-a7' \
		TESTS='$(or $(TESTS),*neon* !*/nchw/* !*/blocked/* !frameworks/* !types/* !options/*)'
	qemu-arm -cpu cortex-a15 $(BUILD)/armhf/bnorm-verify --quick
	for cpu in cortex-a8 cortex-a9; do \
		qemu-arm -cpu $$cpu $(BUILD)/armhf/bnorm-verify --quick || exit; \
		BNORM_REQUIRE=scalar qemu-arm -cpu $$cpu $(BUILD)/armhf/bnorm-tests -j $(JOBS) 'apply/*' cpu/ errors/apply; \
	done

# Windows, under Wine, with winpthreads. Debian's wine64 is not in PATH and wants the suffix. gcc takes the formats
# of printf for those of Microsoft's C library, which the tests are not linked with.
emulate-mingw:
	$(MAKE) BUILD=$(BUILD)/mingw CC=x86_64-w64-mingw32-gcc-posix AR=x86_64-w64-mingw32-ar LDFLAGS=-static SLEEF=0 \
		CFLAGS='-O2 -D__USE_MINGW_ANSI_STDIO=1 -Wno-format -Wno-format-extra-args -Wno-float-conversion' \
		test_libs=-lshlwapi $(BUILD)/mingw/bnorm-tests $(BUILD)/mingw/bnorm-verify-dll.exe
	$(wine) $(BUILD)/mingw/bnorm-verify-dll.exe --quick
	BNORM_REQUIRE=scalar $(wine) $(BUILD)/mingw/bnorm-tests.exe $(or $(TESTS),apply/ kernel/ errors/ cpu/ fold/)
wine = WINEPREFIX='$(abspath $(BUILD))/wine' WINEDEBUG=-all PATH="$$PATH:/usr/lib/wine" wine64

# With the library as a DLL, which exports what BNORM_SHARED says.
$(BUILD)/bnorm-verify-dll.exe: $(BUILD)/tools/verify.c.o $(BUILD)/bnorm.dll
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

$(BUILD)/bnorm.dll: $(shared_objects)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -o $@ $^ $(libs)

# These have AVX2 but not AVX-512; EPYC is Zen 1. Emulated AVX2 is slow: the hashes, and the cases of inference.
emulate-Haswell: $(BUILD)/bnorm-tests $(BUILD)/bnorm-verify
	for cpu in Haswell EPYC; do qemu-x86_64 -cpu $$cpu $(BUILD)/bnorm-verify --quick || exit; done
	BNORM_REQUIRE=avx2 BNORM_TEST_READABLE_GUARDS=1 qemu-x86_64 -cpu Haswell $< -j $(JOBS) \
		$(or $(TESTS),'apply/*avx2*')

# Nehalem has no AVX, SandyBridge no fma: an illegal instruction ends the run.
emulate-Nehalem: $(BUILD)/bnorm-tests $(BUILD)/bnorm-verify
	for cpu in Nehalem SandyBridge; do qemu-x86_64 -cpu $$cpu $(BUILD)/bnorm-verify --quick || exit; done
	BNORM_REQUIRE=scalar qemu-x86_64 -cpu Nehalem $< -j $(JOBS) \
		$(or $(TESTS),'apply/*scalar*' 'train/*scalar*' 'backward/*scalar*' 'smooth/*' 'errors/*')

# musl, for which there is no cmocka.
test-musl: ## the tests of inference and of arguments with the C library musl, in a static program
	$(MAKE) BUILD=$(BUILD)/musl CC=musl-gcc LDFLAGS=-static SLEEF=0 CFLAGS='-O2 -isystem tests/without_cmocka' test_libs= \
		run-tests TESTS='$(or $(TESTS),apply/* kernel/* errors/* cpu/* threads/*)'

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

verify-compilers: ## the same with every compiler, option and emulated CPU that is installed
	tools/verify_compilers.sh

# After a change that is meant to change bits.
verify-update: $(BUILD)/bnorm-verify
	$< --write >$(BUILD)/verify_hashes.inc
	cp $(BUILD)/verify_hashes.inc tools/verify_hashes.inc

.PHONY: test-cross test-musl emulated emulate-aarch64 emulate-armhf emulate-mingw emulate-Haswell emulate-Nehalem emulate-SkylakeX verify-compilers verify-update
