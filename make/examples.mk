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

# ---------------------------------------------------------------------------------------------------
# Engines, whose headers and libraries are not here (docs/engines.md)

engines-onnxruntime: $(BUILD)/engines/libbnorm_onnxruntime.so ## bnorm in ONNX Runtime by ONNX's tests, which it downloads; ORT_INCLUDE=PATH
	test -x $(BUILD)/engines/onnxruntime/bin/python || python3 -m venv $(BUILD)/engines/onnxruntime
	$(BUILD)/engines/onnxruntime/bin/pip install -q onnx onnxruntime
	$(BUILD)/engines/onnxruntime/bin/python examples/engines/onnxruntime/test.py $<

$(BUILD)/engines/libbnorm_onnxruntime.so: examples/engines/onnxruntime/bnorm_onnxruntime.c $(static_lib) $(BUILD)/flags
	@mkdir -p $(@D)
	@test -f '$(ORT_INCLUDE)/onnxruntime_c_api.h' || { echo 'Where is onnxruntime_c_api.h? Say make engines-onnxruntime' \
		'ORT_INCLUDE=PATH; examples/engines/onnxruntime/README.md says where to get it.'; exit 1; }
	$(call say,LINK) $(CC) $(CFLAGS) $(c_flags) -fPIC -isystem '$(ORT_INCLUDE)' $(LDFLAGS) -shared \
		-Wl,--exclude-libs,ALL -o $@ $< $(static_lib) $(libs)

engines-ncnn: ## bnorm in ncnn, on every kind of blob; NCNN=PATH, where ncnn is installed
	@test -d '$(NCNN)/include/ncnn' || { echo 'Where is ncnn installed? Say make engines-ncnn NCNN=PATH, which has' \
		'include/ncnn and lib/cmake/ncnn; examples/engines/ncnn/README.md has more.'; exit 1; }
	cmake -S examples/engines/ncnn -B $(BUILD)/engines/ncnn -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH='$(abspath $(NCNN))'
	cmake --build $(BUILD)/engines/ncnn --parallel $(JOBS)
	$(BUILD)/engines/ncnn/bnorm-ncnn-test

.PHONY: digits examples questions questions-update engines-onnxruntime engines-ncnn
