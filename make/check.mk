# SPDX-License-Identifier: MIT
#
# What has to hold of the sources, and of what the documents say about the library.

##@ Sources

python_scripts := $(addprefix scripts/,amalgamate check-calls dist)
scripts := .ci/run fuzz/run fuzz/oss-fuzz/build.sh $(filter-out $(python_scripts),$(wildcard scripts/*)) \
	$(wildcard tests/*.sh tests/*/*.sh python/*/*.sh tools/*.sh examples/*/*.sh mpi/*.sh)
formatted = $(shell find include src dispatch tests fuzz bench examples tools mpi python -name '*.[ch]' -o -name '*.cc')

format: ## formats every C and C++ file
	clang-format -i $(formatted)

lint: warnings ## formatting, scripts, static analysis, the documents' code, the tree, who calls whom
	clang-format --dry-run -Werror $(formatted)
	shellcheck $(scripts)
	scripts/check-readme
	AR='$(AR)' NM='$(NM)' scripts/check-calls $(BUILD)/gcc/libbnorm.a
	printf '%s\n' $(lib_sources) | xargs -P $(JOBS) -I{} clang-tidy --quiet {} -- \
		-std=c11 -DBNORM_SLEEF=1 -Iinclude $(warnings)

sizes: $(static_lib) ## bytes of every kernel set and of a program that only infers, against their limits
	CC='$(CC)' scripts/check-sizes $(lib_objects)

# A frame of the library, of which 16 KiB are promised for all of a call.
small_frames = frames=-Wframe-larger-than=10240

warnings: warnings-unoptimized ## builds everything with gcc and with clang; a warning is an error
	$(MAKE) BUILD=$(BUILD)/gcc CC=gcc CXX=g++ CFLAGS='-O2 -Werror' CXXFLAGS='-O2 -Werror' $(small_frames) everything
	$(MAKE) BUILD=$(BUILD)/clang CC=clang CXX=clang++ CFLAGS='-O2 -Werror' CXXFLAGS='-O2 -Werror' $(small_frames) everything

# The library alone, with what is installed. Without optimization gcc's intrinsics are macros, and other
# systems have other macros in their headers.
warnings-unoptimized: $(BUILD)/unoptimized

$(BUILD)/unoptimized: $(lib_sources) $(wildcard include/*.h dispatch/*.h src/*.h src/*/*.h)
	@mkdir -p $(@D)
	@for source in $(lib_sources); do \
		for cc in 'gcc -std=c11' 'gcc -std=gnu2x -fsyntax-only' x86_64-w64-mingw32-gcc aarch64-linux-gnu-gcc; do \
			command -v $${cc%% *} >/dev/null || continue; \
			echo "$$cc -O0 $(warnings) -Werror -Iinclude -o /dev/null -c $$source"; \
		done; \
	done | xargs -P $(JOBS) -I{} sh -c '{}'
	@touch $@

everything: all examples $(BUILD)/bnorm-tests $(BUILD)/bnorm-bench $(BUILD)/bnorm-verify \
	$(BUILD)/bnorm-balance $(BUILD)/bnorm-support $(BUILD)/digits

# Side by side, like test-cross.
sanitize: ## the tests under ASan and both UBSans, those with threads and of jobs under TSan
	BNORM_TEST_QUICK=1 $(MAKE) --output-sync=recurse sanitized

sanitized: sanitize-memory sanitize-undefined sanitize-threads

sanitize-memory:
	$(MAKE) BUILD=$(BUILD)/asan LDFLAGS= CFLAGS='$(asan)' run-tests TESTS='$(or $(TESTS),$(sanitized_tests))'

# clang's finds what gcc's does not, as offsets from NULL. It takes for granted that nobody looks at exceptions.
sanitize-undefined:
	$(MAKE) BUILD=$(BUILD)/ubsan CC=clang LDFLAGS= CFLAGS='$(ubsan)' run-tests \
		TESTS='$(or $(TESTS),$(sanitized_tests) !exceptions/*)'

# All but element types, variants and pieces, of which some are enough here: they differ in the layout
# or the kernel set alone. What frameworks have computed the same bits give again.
sanitized_tests = !frameworks/* !types/* !variants/* !pieces/* types/nhwc/*/avx2/* variants/nhwc/avx2/* pieces/*/avx2/*

sanitize-threads:
	$(MAKE) BUILD=$(BUILD)/tsan LDFLAGS= CFLAGS='$(tsan)' run-tests TESTS='$(or $(TESTS),*threads* jobs/*)'

# Lines, but no variables: gcc takes long to follow these through the kernels' inlined functions.
asan = -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ubsan = -O1 -g1 -fsanitize=undefined -fno-sanitize-recover=all
tsan = -O1 -g1 -fsanitize=thread

abi_of = abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed --no-parameter-names \
	--exported-interfaces-only --drop-private-types --headers-dir include

abi-check: $(BUILD)/abi.xml ## functions, structs and enums of the shared library against abi/x86_64.xml
	@abidiff abi/x86_64.xml $< || { echo 'The ABI has changed. Where programs that are built already would break, a new' \
		'minor version is due (major from 1.0 on). Then, and where something was only added: run make abi-update.'; exit 1; }

abi-update: $(BUILD)/abi.xml
	cp $< abi/x86_64.xml

# With what describes types to debuggers, and not optimized, as that is quick.
$(BUILD)/abi.xml: $(lib_sources) $(wildcard include/*.h dispatch/*.h src/*.h src/*/*.h)
	@command -v abidw >/dev/null || { echo 'abidw is missing: run make deps-lint'; exit 1; }
	$(MAKE) BUILD=$(BUILD)/abi CC=x86_64-linux-gnu-gcc CFLAGS='-O0 -g' LDFLAGS= SLEEF=0 $(BUILD)/abi/libbnorm.so.$(VERSION)
	$(call say,ABI) $(abi_of) $(BUILD)/abi/libbnorm.so.$(VERSION) >$@

# As debuggers want it, which names files and folders.
reproducible: ## two builds in two folders: the same bytes?
	@rm -rf $(BUILD)/reproducible
	@for folder in one two/deeper; do \
		mkdir -p $(BUILD)/reproducible/$$folder; \
		cp -r include src dispatch make Makefile bnorm.pc.in $(BUILD)/reproducible/$$folder; \
		CCACHE_DISABLE=1 $(MAKE) -C $(BUILD)/reproducible/$$folder BUILD=build CFLAGS='-O0 -g' all || exit; \
	done
	cd $(BUILD)/reproducible; for library in libbnorm.a libbnorm.so.$(VERSION); do \
		cmp one/build/$$library two/deeper/build/$$library || exit; \
	done

support: $(BUILD)/bnorm-support ## which op, layout, type and activation each kernel set has, as in docs/support.md
	@$<

support-update: $(BUILD)/support.md
	sed -i -e '/^<!-- support/,/^<!-- end of support/{//!d}' -e '/^<!-- support/r $<' docs/support.md

support-check: $(BUILD)/support.md ## are the tables of docs/support.md true?
	@sed -n '/^<!-- support/,/^<!-- end of support/{//!p}' docs/support.md | diff - $< || \
		{ echo 'The tables of docs/support.md are not those of this build: run make support-update.'; exit 1; }

$(BUILD)/support.md: $(BUILD)/bnorm-support FORCE
	$< >$@

$(BUILD)/bnorm-support: $(BUILD)/tools/support.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

.PHONY: abi-check abi-update reproducible format lint sizes warnings warnings-unoptimized everything sanitize sanitized sanitize-memory sanitize-undefined sanitize-threads \
	support support-update support-check
