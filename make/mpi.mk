# SPDX-License-Identifier: MIT
#
# Training over MPI, a library on top of the public API.

##@ MPI

# Which MPI: empty = mpicc and mpiexec, whosever they are; openmpi or mpich = the one of that name in Debian.
MPI =
# What is built with an MPI that is named, lies in a folder of that name.
mpi_build = $(BUILD)$(addprefix /,$(MPI))

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

test-mpi: ## training over MPI on 1 to 7 processes against one process, with every MPI that is installed
	@for mpi in $(mpi_installed); do $(MAKE) MPI=$${mpi#default} mpi-programs || exit; done
	@$(mpi_environment) mpi/test.sh $(BUILD) $(mpi_installed)

bench-mpi: $(mpi_build)/bnorm-mpi-bench ## time of training over MPI on 2 processes: what the collective costs (MPI=mpich: another MPI)
	$(mpi_environment) $(MPIEXEC) -n 2 $< --json $(BUILD)/bench-mpi.json $(BENCH_MPI)

.PHONY: mpi digits-mpi mpi-programs mpi-header test-mpi bench-mpi
