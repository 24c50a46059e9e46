# SPDX-License-Identifier: MIT
#
# Programs to read and to run.

##@ Examples

questions := $(patsubst examples/%.c,$(BUILD)/%,$(wildcard examples/questions/*.c))
digits_sources := $(wildcard examples/digits/*.c)
digits_objects := $(call objects,$(digits_sources))

digits: $(BUILD)/digits ## trains a small network on handwritten digits, with and without batch norm
	$<

$(BUILD)/digits: $(digits_objects) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lpthread $(libs)

examples: $(BUILD)/hello $(BUILD)/mixed $(BUILD)/describe $(BUILD)/threads $(BUILD)/densenet $(questions) ## the README's example, training in bfloat16, tensors of other libraries, bnorm on a thread pool, a DenseNet; builds questions

$(BUILD)/hello $(BUILD)/mixed $(BUILD)/describe: $(BUILD)/%: $(BUILD)/examples/%.c.o $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

questions: $(questions) ## runs examples/questions: does docs/frameworks.md show what they print?
	scripts/check-questions $(BUILD)/questions

questions-update: $(questions)
	scripts/check-questions --write $(BUILD)/questions

$(questions): $(BUILD)/questions/%: $(BUILD)/examples/questions/%.c.o $(static_lib)
	@mkdir -p $(@D)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lpthread $(libs)

$(BUILD)/threads $(BUILD)/densenet: $(BUILD)/%: examples/%.c $(static_lib) $(BUILD)/flags
	$(call say,LINK) $(CC) $(CFLAGS) $(c_flags) $(LDFLAGS) -o $@ $< $(static_lib) $(thread_pools) $(libs)

thread_pools = $(call if_works,-fopenmp) \
	$(call if_works,-DHAVE_PTHREADPOOL -include pthreadpool.h -lpthreadpool)

.PHONY: digits examples questions questions-update
