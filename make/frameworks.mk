# SPDX-License-Identifier: MIT
#
# bnorm against the frameworks themselves.

##@ Frameworks

conformance_ready = $(BUILD)/conformance/venv/ready

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

.PHONY: conformance conformance-update conformance-snapshot
