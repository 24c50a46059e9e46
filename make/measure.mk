# SPDX-License-Identifier: MIT
#
# Figures: errors, instructions, shares of work, cycles, and speed beside other libraries.

##@ Measure

accuracy_sources := $(wildcard tools/accuracy*.c)
peers_sources := $(filter-out %/onednn.c,$(wildcard bench/peers/*.c bench/peers/*.cc))
peers_objects := $(call objects,$(peers_sources))
# What bench-peers shares with bench.
peers_shared := $(call objects,$(addprefix bench/,clock.c cpu_name.c plain.c reference.c roof.c shapes.c tensor.c workload.c))

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

balance: $(BUILD)/bnorm-balance ## how evenly work is shared among 1 to 64 simulated threads: more than 10 % off fails
	$< $(BALANCE)

$(BUILD)/bnorm-balance: $(call objects,tools/balance.c bench/shapes.c) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

mca: ## the NEON loops on paper: cycles on five Arm cores beside their ports' limits (MCA='--code dx_rows' shows code)
	@command -v $(firstword $(MCA_CC)) >/dev/null || \
		{ echo '$(firstword $(MCA_CC)) is missing: run make deps-mca, or say MCA_CC='; exit 1; }
	$(MAKE) BUILD=$(BUILD)/mca CC='$(MCA_CC)' CFLAGS='-O2 -g' LDFLAGS= SLEEF=0 $(BUILD)/mca/neon.so
	tools/mca.py $(MCA) $(BUILD)/mca/neon.so

# Or clang --target=aarch64-linux-gnu.
MCA_CC = aarch64-linux-gnu-gcc

# The NEON set alone, linked so that its addresses are final.
$(BUILD)/neon.so: $(call objects,$(wildcard src/neon/*.c))
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -shared -nostdlib -o $@ $^

bench-peers: $(BUILD)/bnorm-peers $(BUILD)/bnorm-peers-onednn.so ## speed beside oneDNN, PyTorch and ONNX Runtime, in half an hour (QUICK=1: 5 minutes; PEERS=--help: options)
	$< $(if $(QUICK),--quick) $(PEERS)

# The peers: what ONEDNN_ROOT= and TORCH_ROOT= name (a prefix; PyTorch's folder "torch"), else what `make deps-peers`
# brought, else what the system has. Found out once, when first needed.
peers_folder = $(BUILD)/peers
comma = ,
onednn_root = $(or $(ONEDNN_ROOT),$(if $(wildcard $(peers_folder)/done/onednn-*),$(peers_folder)))
torch_root = $(or $(TORCH_ROOT),$(if $(wildcard $(peers_folder)/done/torch-*),$(peers_folder)/torch))
# The library is found at run time by the absolute name of its folder.
lib_dir = -L$(1)/lib -Wl$(comma)-rpath$(comma)$(abspath $(1))/lib
onednn_flags = $(eval onednn_flags := $(call if_works,$(if $(onednn_root),-I$(onednn_root)/include \
	$(call lib_dir,$(onednn_root))) -ldnnl))$(onednn_flags)
# The linker does not look for PyTorch's own needs: they stand in its own search path.
torch_libs = $(eval torch_libs := $(call if_works,$(if $(torch_root),$(call lib_dir,$(torch_root)) \
	-Wl$(comma)--allow-shlib-undefined) -ltorch_cpu -lc10))$(torch_libs)
# Loaded when the program runs, by its absolute name.
onnxruntime_library = $(firstword $(wildcard $(peers_folder)/onnxruntime/capi/libonnxruntime.so*))
torch_flags = $(if $(torch_libs),-DHAVE_TORCH $(if $(torch_root),-isystem $(torch_root)/include -std=c++20))

peers_flags = $(onednn_flags) $(torch_libs) $(onnxruntime_library)
$(BUILD)/peers-flags: FORCE
	@mkdir -p $(@D)
	@echo '$(peers_flags)' | cmp -s - $@ || echo '$(peers_flags)' >$@

$(peers_objects): $(BUILD)/peers-flags
$(peers_objects): private c_flags += $(if $(torch_libs),-DHAVE_TORCH)
$(BUILD)/bench/peers/onnxruntime.c.o: private c_flags += \
	$(if $(onnxruntime_library),-DONNXRUNTIME_LIBRARY='"$(abspath $(onnxruntime_library))"')
# Last on the command line, as these headers want a later standard than the rest.
$(BUILD)/bench/peers/torch.cc.o: private warnings += $(torch_flags)

$(BUILD)/bnorm-peers: $(peers_objects) $(peers_shared) $(static_lib)
	$(call say,LINK) $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(torch_libs) -lpthreadpool -lpthread -ldl $(libs)

# A library of its own, as PyTorch loads a oneDNN too. Without oneDNN there is none.
$(BUILD)/bnorm-peers-onednn.so: bench/peers/onednn.c $(wildcard bench/*.h bench/peers/*.h) $(BUILD)/peers-flags $(BUILD)/flags
	@rm -f $@
	$(if $(onednn_flags),$(call say,LINK) $(CC) $(CFLAGS) $(filter-out -MMD -MP,$(c_flags)) $(LDFLAGS) -fPIC -shared -o $@ $< $(onednn_flags) -lm)

.PHONY: accuracy activations denormals count count-update count-programs balance mca bench-peers
