# SPDX-License-Identifier: MIT
#
# GNU make. Here: build, install, test, bench; make/*.mk has the rest by theme. `make help` lists what is
# needed most, `make help-all` everything. All that is built lies under $(BUILD).

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
# Put before the programs that are run here, as in RUN=qemu-aarch64.
RUN =
# Not empty: commands are shown in full.
V =
# How many compilers, and how many processes of the tests, run side by side. `make -j1` is about compilers alone.
JOBS := $(or $(JOBS),$(shell nproc))

# ---------------------------------------------------------------------------------------------------
# What belongs to every compilation, whatever CFLAGS says

VERSION := $(shell sed -n 's/^.define BNORM_VERSION_[A-Z]* *//p' include/bnorm.h | paste -sd.)
# What programs are bound to: before 1.0 each minor version may change structs.
SOVERSION := $(if $(filter 0.%,$(VERSION)),$(basename $(VERSION)),$(firstword $(subst ., ,$(VERSION))))

warnings = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
# Without -ffp-contract=off gcc may turn a*b + c into one fma and so change bits.
c_flags = -std=c11 -ffp-contract=off -DBNORM_SLEEF=$(if $(sleef_libs),1,0) -Iinclude $(warnings) -MMD -MP
lib_flags = -fPIC $(inline_atomics) $(hardening) $(frames)
# gcc's functions for atomics on Arm would bring libgcc's constructor into the shared library.
inline_atomics = $(eval inline_atomics := $(call if_works,-mno-outline-atomics))$(inline_atomics)

# What the compiler has of these: large frames touch each page of the stack, so that a guard page is not
# jumped over; marks for CPUs that check where jumps and returns go, of x86 and of Arm; and no trace of the
# folder in which this is built.
hardening = $(eval hardening := $(foreach flag,-fstack-clash-protection -fcf-protection \
	-mbranch-protection=standard -ffile-prefix-map=$(CURDIR)=.,$(call if_works,$(flag))))$(hardening)

test_libs = -lcmocka
# What every program links that links $(static_lib).
libs = $(strip $(sleef_libs) -lm)
sleef_libs = $(if $(filter-out 0,$(SLEEF)),$(or $(sleef_found),$(error SLEEF=$(SLEEF), but no program \
	links with -lsleef: run `make deps`, for Arm under qemu `make deps-cross`, or say SLEEF=0)))
# Found out once, when first needed; with a symbol, as there are CPUs for which SLEEF lacks it.
sleef_found = $(eval sleef_found := $(call if_links,float Sleef_finz_expf1_u10purecfma(float x); \
	int main(void) { return Sleef_finz_expf1_u10purecfma(0) != 1; },-lsleef))$(sleef_found)

# The flags where a program can be built with them, else nothing; if_links: where the program $(1) can.
if_works = $(call if_links,int main(void) { return 0; },$(1))
if_links = $(if $(shell echo '$(1)' | $(CC) $(CFLAGS) $(LDFLAGS) -xc - -o /dev/null $(2) 2>&1 || \
	echo no),,$(2))

api_sources := $(wildcard src/*.c dispatch/*.c)
kernel_sources := $(wildcard src/*/*.c)
# What takes longest to compile comes first, so that no core waits for it in the end.
lib_sources := $(kernel_sources) $(api_sources)
test_sources := $(wildcard tests/*.c)
bench_sources := $(wildcard bench/*.c)

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

static_lib = $(BUILD)/libbnorm.a
soname = libbnorm.so.$(SOVERSION)
shared_lib = $(BUILD)/libbnorm.so.$(VERSION)

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

all: $(static_lib) $(shared_lib) $(BUILD)/bnorm.pc ## static and shared library
	$(if $(sleef_libs),@echo 'bnorm is built with SLEEF: programs with $(static_lib) link with $(libs); make SLEEF=0 builds without.')

$(static_lib): $(lib_objects)
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

# Bound to itself: its calls of its own functions stay its own, whatever else the process has loaded. All of
# that is settled, and read-only, when it is loaded. Without the files that start a program: there is nothing
# to start, and theirs may lack the marks, which then the library would lack.
$(shared_lib): $(shared_objects) $(BUILD)/libbnorm.map
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(soname) -Wl,--no-undefined \
		-Wl,-Bsymbolic-functions -Wl,--version-script=$(BUILD)/libbnorm.map \
		-Wl,-z,relro,-z,now -nostartfiles -o $@ $(shared_objects) $(libs)

# The symbols' version; which of them are exported, the header says.
$(BUILD)/libbnorm.map: $(BUILD)/flags
	@echo 'BNORM_$(SOVERSION) { global: *bnorm_*; local: *; };' >$@

$(BUILD)/bnorm.pc: bnorm.pc.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|' \
		-e 's|@SLEEF@|$(if $(sleef_libs),1,0)|; s|@VERSION@|$(VERSION)|; s|@LIBS@|$(libs)|' $< >$@

$(lib_objects): private c_flags += $(lib_flags)
$(api_objects): private c_flags += $(lib_flags) -DBNORM_SHARED
# The plain loop that a user would write, with all that the compiler has: also fma, as is gcc's default.
$(BUILD)/bench/plain.c.o: private c_flags += -O3 $(call if_works,-march=native) -ffp-contract=fast

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

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

# compilers and tools; exp and the like; test framework and ONNX's batch-norm cases; benchmark framework,
# pictures; example
deps_packages = gcc g++ libc6-dev binutils make pkgconf libsleef-dev \
	libcmocka-dev libonnx-testdata libbenchmark-dev python3 gnuplot-nox libpthreadpool-dev

deps: ## installs what build, test and bench need (Debian, Ubuntu)
	@scripts/apt-install 'to build, test and measure' $(deps_packages)

install: all $(BUILD)/bnorm-verify ## headers, libraries, pkg-config and bnorm-verify, into PREFIX
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

clean: ## removes all that was built
	rm -rf build $(BUILD)

##@ Prove

test: hygiene $(BUILD)/bnorm-tests ## every kernel on this CPU; TESTS='apply/*' picks tests
	$(run_tests)

test-full: ## all repetitions and sizes, which takes several times as long
	BNORM_TEST_FULL=1 $(MAKE) test

# The runner alone, as for other compilers, flags and CPUs.
run-tests: $(BUILD)/bnorm-tests
	$(run_tests)

run_tests = $(RUN) $(BUILD)/bnorm-tests -j $(JOBS) $(patsubst %,'%',$(TESTS))

hygiene: $(static_lib) $(shared_lib)
	@CC='$(CC)' CXX='$(CXX)' NM='$(NM)' OBJDUMP='$(OBJDUMP)' STATIC_LIB='$(static_lib)' \
		SHARED_LIB='$(shared_lib)' SLEEF='$(if $(sleef_libs),1,0)' tests/hygiene.sh

$(BUILD)/bnorm-tests: $(test_objects) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(test_libs) -lpthread $(libs)

verify: $(BUILD)/bnorm-verify ## does this machine compute the bits that bnorm promises?
	$(RUN) $<

# Static, so that one file can be copied to another machine. With a SLEEF that is a shared library only,
# as Debian's is, the other machine needs that too; with SLEEF=0 it needs nothing.
$(BUILD)/bnorm-verify: $(BUILD)/tools/verify.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(or $(call if_works,-static $(libs)),$(libs))

##@ Measure

bench: $(BUILD)/bnorm-bench ## speed against plain C and the roof, in a minute; BENCH=--help
	$(strip $< $(BENCH))
	@$(if $(BENCH),,! command -v gnuplot >/dev/null || bench/plot.py $(BUILD)/bench.json)

bench-full: $(BUILD)/bnorm-bench ## every operation, layout, kernel set and shape
	$(strip $< --full $(BENCH))

bench-claims: $(BUILD)/bnorm-bench ## what bnorm aims at: reached or missed
	$(strip $< --claims $(BENCH))

plot: ## draws the roofline picture of the last run
	bench/plot.py $(BUILD)/bench.json

$(BUILD)/bnorm-bench: $(bench_objects) $(static_lib)
	$(call say,LINK) $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ -lbenchmark -lpthread $(libs)

##@ Help

themes = deps check fuzz cross frameworks measure platforms examples mpi packages
include $(themes:%=make/%.mk)

# Comments after a target's prerequisites are its help; "##@" begins a group.
help:
	@awk -v version='$(VERSION)' -f make/help.awk Makefile $(themes:%=make/%.mk)

help-all: ## every target, with what it does
	@awk -v version='$(VERSION)' -v all=1 -f make/help.awk Makefile $(themes:%=make/%.mk)

.PHONY: all install uninstall clean test test-full run-tests hygiene verify bench bench-full bench-claims plot deps \
	help help-all FORCE
.DELETE_ON_ERROR:
endif
